//! What a shard sends and receives through a ring of its own: many operations with one system call, and no
//! task that is woken for each.
//!
//! A send is asked not to wait (`MSG_DONTWAIT`), so the kernel carries it out or refuses it while it is being
//! submitted, and says nothing where all was sent (`IOSQE_CQE_SKIP_SUCCESS`; with `MSG_WAITALL` a part is a
//! failure). When the call returns, the kernel is done with every buffer that was to be sent.
//!
//! A receive stays pending, and its lease is in `receives` until it has completed. The runtime waits for the
//! ring as for any descriptor: it is readable while something has completed that was not taken.

use std::{
    collections::VecDeque,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

use io_uring::{IoUring, opcode, squeue, types::Fd};
use rustix::net::SendFlags;
use slab::Slab;

use super::{RingFlags, Socket, ring::COMPLETION_ENTRIES};
use crate::buffer::{Lease, SendBuffer};

/// Sends that are carried out together at most.
const BATCH_MAX: usize = 256;
/// So many sends are carried out one by one, unless there is a call for receives anyway.
const FEW: usize = 2;
/// Operations that are submitted together at most.
const SUBMISSION_ENTRIES: u32 = 512;
/// Receives that are pending at most: there is room for what they complete with, for as many cancellations,
/// and for sends that are refused. What finds none is kept back by the kernel, and would be missed.
const RECEIVES_MAX: usize = COMPLETION_ENTRIES as usize / 2 - 2 * BATCH_MAX;
/// `MSG_WAITALL` of linux/socket.h, which rustix has for receives only.
const WAIT_ALL: SendFlags = SendFlags::from_bits_retain(0x100);
/// In the user data of a send, with its number; that of a receive is its number alone.
const OF_SEND: u64 = 1 << 62;
/// The user data of what nobody asks about.
const OF_NOTHING: u64 = 1 << 63;
/// The error of a cancelled operation.
pub(crate) const ECANCELED: i32 = 125;

/// The number of a receive, until it has completed.
pub(crate) type ReceiveNumber = usize;

/// Sends that are collected and receives that are pending, each with a tag of the caller's.
pub(crate) struct SocketRing<T> {
    /// Without one, each send is a system call and nothing is received.
    ring: Option<IoUring>,
    /// Whether sends go through it.
    carries_sends: bool,
    queued: Vec<QueuedSend<T>>,
    receives: Slab<Receive<T>>,
    /// Receives, cancellations and the like that have not been submitted.
    unsubmitted: Vec<squeue::Entry>,
    /// Receives that were found to have completed when something else was looked for, with what the kernel
    /// said.
    completed: VecDeque<(ReceiveNumber, i32)>,
    /// The kernel has refused a submission, which stays in the ring: nothing more is submitted.
    is_broken: bool,
}

struct QueuedSend<T> {
    tag: T,
    socket: Socket,
    buffer: SendBuffer,
    /// What came of it; `None` stands for all that there was to send.
    result: Option<io::Result<usize>>,
}

struct Receive<T> {
    tag: T,
    lease: Lease,
}

/// A receive that has completed.
#[derive(Debug)]
pub(crate) struct Received<T> {
    pub(crate) tag: T,
    /// How many bytes are in the lease; none at the end of the stream.
    pub(crate) result: io::Result<usize>,
    pub(crate) lease: Lease,
}

impl<T> SocketRing<T> {
    /// Sends are carried out one by one.
    pub(crate) fn without_ring() -> Self {
        Self::new(None, false)
    }

    fn new(ring: Option<IoUring>, carries_sends: bool) -> Self {
        Self {
            ring,
            carries_sends,
            queued: Vec::with_capacity(BATCH_MAX),
            receives: Slab::new(),
            unsubmitted: Vec::new(),
            completed: VecDeque::new(),
            is_broken: false,
        }
    }

    /// With a ring for this thread, if the kernel gives one. Sends go through it from Linux 6.1 on: earlier
    /// ones do not say how much of a buffer was sent.
    pub(crate) fn with_ring(flags: RingFlags) -> Self {
        let carries_sends = flags.defer_taskrun;
        // What is deferred is not seen by who waits for the descriptor.
        let flags = RingFlags { defer_taskrun: false, ..flags };
        let mut builder = flags.builder();
        if carries_sends {
            // What is behind a send that is refused is submitted all the same.
            builder.setup_submit_all();
        }
        let ring = builder.build(SUBMISSION_ENTRIES);
        if let Err(error) = &ring {
            tracing::warn!(%error, "no ring for sends and receives: each is a call of its own");
        }
        Self::new(ring.ok(), carries_sends)
    }

    /// Whether it takes another receive.
    pub(crate) fn has_room_for_receive(&self) -> bool {
        self.ring.is_some() && !self.is_broken && self.receives.len() < RECEIVES_MAX
    }

    /// Receives are pending, or have completed and were not taken.
    pub(crate) fn has_receives(&self) -> bool {
        !self.receives.is_empty()
    }

    /// The kernel has refused a submission: what has completed is to be asked for without being told.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// A socket that is readable while something has completed that was not taken. It is to be
    /// [closed](Socket::close).
    pub(crate) fn watch(&self) -> Option<io::Result<Socket>> {
        let ring = self.ring.as_ref()?;
        // SAFETY: the ring is open, and the descriptor is only borrowed for the time of duplicating it.
        Some(Socket::watch(&unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }))
    }

    /// As many sends are queued as are carried out together.
    pub(crate) fn is_full(&self) -> bool {
        self.queued.len() >= BATCH_MAX
    }

    /// Queues a send.
    pub(crate) fn push_send(&mut self, tag: T, socket: &Socket, buffer: SendBuffer) {
        self.queued.push(QueuedSend { tag, socket: socket.clone(), buffer, result: None });
    }

    /// Receives behind the sends that are [carried out](Self::carry_out) in this turn. The socket is to stay
    /// open until the receive has been [taken](Self::take).
    pub(crate) fn push_receive(&mut self, tag: T, socket: &Socket, mut lease: Lease) -> ReceiveNumber {
        let room = lease.room();
        let receive = opcode::Recv::new(Fd(socket.raw()), room.as_mut_ptr(), room.len() as u32).build();
        // The bytes stay in their place when the lease is moved.
        let number = self.receives.insert(Receive { tag, lease });
        self.unsubmitted.push(receive.user_data(number as u64));
        number
    }

    /// The receives that have not been taken.
    pub(crate) fn receives(&self) -> impl Iterator<Item = (ReceiveNumber, &T)> {
        self.receives.iter().map(|(number, receive)| (number, &receive.tag))
    }

    /// Asks for the end of a receive: it completes with what it has received just then, or with ECANCELED.
    pub(crate) fn cancel(&mut self, number: ReceiveNumber) {
        self.unsubmitted.push(opcode::AsyncCancel::new(number as u64).build().user_data(OF_NOTHING));
    }

    /// Has something complete, for whoever waits.
    pub(crate) fn wake(&mut self) {
        self.push_nothing();
        self.submit(0);
    }

    fn push_nothing(&mut self) {
        self.unsubmitted.push(opcode::Nop::new().build().user_data(OF_NOTHING));
    }

    /// Something has completed that nobody is told of: the ring is broken.
    pub(crate) fn is_left_untold(&mut self) -> bool {
        self.is_broken && self.completed_len() > 0
    }

    /// How often [`take`](Self::take) is to be called until nothing is left of what has completed by now.
    pub(crate) fn completed_len(&mut self) -> usize {
        let in_ring = self.ring.as_mut().map_or(0, |ring| ring.completion().len());
        self.completed.len() + in_ring
    }

    /// The next that has completed, if it was a receive.
    pub(crate) fn take(&mut self) -> Option<Received<T>> {
        let (number, result) = match self.completed.pop_front() {
            Some(completed) => completed,
            None => {
                let completion = self.ring.as_mut()?.completion().next()?;
                (completion.user_data() as ReceiveNumber, completion.result())
            }
        };
        let Receive { tag, lease } = self.receives.try_remove(number)?;
        Some(Received { tag, result: bytes_or_error(result), lease })
    }

    /// Carries out the sends and hands each buffer back with what the socket has taken of it. Receives begin
    /// behind the last sends of a turn: where [no more fit](Self::is_full), others are to follow.
    pub(crate) fn carry_out(&mut self) -> impl Iterator<Item = (T, SendBuffer, io::Result<usize>)> + '_ {
        let held = if self.is_full() { mem::take(&mut self.unsubmitted) } else { Vec::new() };
        let is_worth_it = self.queued.len() > FEW || !self.queued.is_empty() && !self.unsubmitted.is_empty();
        let sent = if self.carries_sends && is_worth_it { self.submit_sends() } else { 0 };
        for queued in self.queued.iter_mut().skip(sent) {
            queued.result = Some(queued.socket.try_send(queued.buffer.unsent()));
        }
        if !self.is_full() && !self.completed.is_empty() {
            // What was taken out of the ring makes it readable no more.
            self.push_nothing();
        }
        if !self.unsubmitted.is_empty() {
            self.submit(0);
        }
        if !held.is_empty() {
            self.unsubmitted = held;
        }
        self.queued.drain(..).map(|queued| {
            let result = queued.result.unwrap_or(Ok(queued.buffer.len()));
            (queued.tag, queued.buffer, result)
        })
    }

    /// Submits the sends, and as much else behind them as there is room for. Answers how many of the sends,
    /// the first ones, have been carried out.
    fn submit_sends(&mut self) -> usize {
        let Some(ring) = self.ring.as_mut().filter(|_| !self.is_broken) else { return 0 };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | WAIT_ALL;
        let mut submissions = ring.submission();
        for (number, queued) in self.queued.iter().enumerate() {
            let bytes = queued.buffer.unsent();
            let submission = opcode::Send::new(Fd(queued.socket.raw()), bytes.as_ptr(), bytes.len() as u32)
                .flags(flags.bits() as i32)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(OF_SEND | number as u64);
            // SAFETY: the socket is open and the bytes stay where they are while `queued` has them, which it
            // does until the kernel has carried the submission out, or will not.
            let pushed = unsafe { submissions.push(&submission) };
            debug_assert!(pushed.is_ok(), "there is room for a batch");
        }
        drop(submissions);
        let submitted = self.submit(self.queued.len());
        self.note_refusals();
        submitted
    }

    /// Submits the `sends` that are in the ring, and everything else behind them. Answers how many of the
    /// sends, the first ones, were submitted.
    fn submit(&mut self, sends: usize) -> usize {
        let (mut pushed, mut submitted) = (0, 0);
        if let Some(ring) = self.ring.as_mut().filter(|_| !self.is_broken) {
            loop {
                let mut submissions = ring.submission();
                let room = submissions.capacity() - submissions.len();
                let more = &self.unsubmitted[pushed..];
                let more = &more[..more.len().min(room)];
                // SAFETY: what is received goes to a lease that is in `receives` until that has completed, or
                // until the ring is broken and not entered again; the others name no memory.
                if unsafe { submissions.push_multiple(more) }.is_ok() {
                    pushed += more.len();
                }
                if submissions.is_empty() {
                    break;
                }
                drop(submissions);
                match ring.submit() {
                    Ok(count) if count > 0 => submitted += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => {
                        tracing::warn!(?result, "a ring is given up: each send is a call of its own now");
                        self.is_broken = true;
                        break;
                    }
                }
            }
        }
        // What is in a broken ring is never carried out.
        let refused = self.unsubmitted.drain(..).skip(submitted.saturating_sub(sends));
        let refused = refused.map(|entry| entry.get_user_data()).filter(|number| *number != OF_NOTHING);
        self.completed.extend(refused.map(|number| (number as ReceiveNumber, -ECANCELED)));
        submitted.min(sends)
    }

    /// Looks for sends that were not carried out, or in part. If there are none, all is left in the ring, so
    /// that it stays readable; else all is taken out, so that there is room for the next.
    fn note_refusals(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let mut completions = ring.completion();
        let mut was_refused = false;
        let found_before = self.completed.len();
        for completion in &mut completions {
            let (number, result) = (completion.user_data(), completion.result());
            if number & OF_SEND != 0 {
                was_refused = true;
                if let Some(queued) = self.queued.get_mut((number & !OF_SEND) as usize) {
                    queued.result = Some(bytes_or_error(result));
                }
            } else if number != OF_NOTHING {
                self.completed.push_back((number as ReceiveNumber, result));
            }
        }
        if !was_refused {
            // Nothing was taken.
            mem::forget(completions);
            self.completed.truncate(found_before);
        }
    }
}

/// What the kernel says of an operation that moves bytes.
fn bytes_or_error(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl<T> Drop for SocketRing<T> {
    fn drop(&mut self) {
        if !self.receives.is_empty() {
            // The kernel may write there until the ring is gone, which nobody waits for.
            mem::forget(mem::take(&mut self.receives));
        }
    }
}

impl<T> std::fmt::Debug for SocketRing<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_ring = self.ring.is_some();
        formatter.debug_struct("SocketRing").field("has_ring", &has_ring).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
