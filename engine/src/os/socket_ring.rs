//! Sending to many sockets with one system call: a second ring, on which nothing is ever pending.
//!
//! Each send is asked not to wait (`MSG_DONTWAIT`), so the kernel carries it out or refuses it while it is
//! being submitted, and says nothing where all was sent (`IOSQE_CQE_SKIP_SUCCESS`; with `MSG_WAITALL` a part
//! is a failure). When the call returns, the kernel is done with every buffer.
//!
//! Invariant: while submissions are in the ring, they are the entries of `queued`, in their order, each with
//! its number as user data; sockets and buffers stay there until the submissions have been carried out.

use std::io;

use io_uring::{Builder, IoUring, opcode::Send, squeue, types::Fd};
use rustix::net::SendFlags;

use super::{RingFlags, Socket, ring::build_apart};
use crate::buffer::SendBuffer;

/// Sends that are carried out together at most.
const BATCH_MAX: usize = 256;
/// So many are carried out one by one: they cost less than a call for a ring.
const FEW: usize = 2;
/// `MSG_WAITALL` of linux/socket.h, which rustix has for receives only.
const WAIT_ALL: SendFlags = SendFlags::from_bits_retain(0x100);

/// Collects sends, each with a tag of the caller's, and carries them out together.
pub(crate) struct SocketRing<T> {
    /// Without one, each send is a system call.
    ring: Option<IoUring>,
    queued: Vec<Queued<T>>,
}

struct Queued<T> {
    tag: T,
    socket: Socket,
    buffer: SendBuffer,
    /// What came of it; `None` stands for all that there was to send.
    result: Option<io::Result<usize>>,
}

impl<T> SocketRing<T> {
    /// A batch whose sends are carried out one by one.
    pub(crate) fn without_ring() -> Self {
        Self { ring: None, queued: Vec::with_capacity(BATCH_MAX) }
    }

    /// A batch for this thread, with a ring if the kernel is able: Linux 6.1. Earlier ones do not say how
    /// much of a buffer was sent.
    pub(crate) fn with_ring(flags: RingFlags) -> Self {
        let ring = flags.defer_taskrun.then(|| build_ring(&IoUring::builder())).transpose();
        let ring = ring.unwrap_or_else(|error| {
            tracing::warn!(%error, "no ring for sends: each is a call of its own");
            None
        });
        Self { ring, ..Self::without_ring() }
    }

    /// As much is queued as is carried out together.
    pub(crate) fn is_full(&self) -> bool {
        self.queued.len() >= BATCH_MAX
    }

    pub(crate) fn push(&mut self, tag: T, socket: &Socket, buffer: SendBuffer) {
        self.queued.push(Queued { tag, socket: socket.clone(), buffer, result: None });
    }

    /// Sends what is queued, and hands each buffer back with what the socket has taken of it.
    pub(crate) fn send_all(&mut self) -> impl Iterator<Item = (T, SendBuffer, io::Result<usize>)> + '_ {
        let submitted = if self.queued.len() > FEW { self.submit() } else { 0 };
        for queued in self.queued.iter_mut().skip(submitted) {
            queued.result = Some(queued.socket.try_send(queued.buffer.unsent()));
        }
        self.queued.drain(..).map(|queued| {
            let result = queued.result.unwrap_or(Ok(queued.buffer.len()));
            (queued.tag, queued.buffer, result)
        })
    }

    /// Submits what is queued. Answers how many of the sends, the first ones, have been carried out.
    fn submit(&mut self) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | WAIT_ALL;
        let mut submissions = ring.submission();
        for (number, queued) in self.queued.iter().enumerate() {
            let bytes = queued.buffer.unsent();
            let submission = Send::new(Fd(queued.socket.raw()), bytes.as_ptr(), bytes.len() as u32)
                .flags(flags.bits() as i32)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(number as u64);
            // SAFETY: the socket is open and the bytes stay where they are while `queued` has them, which it
            // does until the kernel has carried the submission out or the ring is gone.
            if unsafe { submissions.push(&submission) }.is_err() {
                break;
            }
        }
        let pushed = submissions.len();
        drop(submissions);
        let mut submitted = 0;
        while submitted < pushed {
            match ring.submit() {
                Ok(count) if count > 0 => submitted += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    tracing::warn!(
                        ?result,
                        "the ring for sends is given up, they are calls of their own now"
                    );
                    break;
                }
            }
        }
        for completion in ring.completion() {
            let Some(queued) = self.queued.get_mut(completion.user_data() as usize) else { continue };
            let sent = usize::try_from(completion.result());
            queued.result = Some(sent.map_err(|_| io::Error::from_raw_os_error(-completion.result())));
        }
        if submitted < pushed {
            // What it holds still is never carried out.
            self.ring = None;
        }
        submitted
    }
}

fn build_ring(builder: &Builder) -> io::Result<IoUring> {
    build_apart(|| builder.clone().setup_submit_all().build(BATCH_MAX as u32))
}

impl<T> std::fmt::Debug for SocketRing<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_ring = self.ring.is_some();
        formatter.debug_struct("SocketRing").field("has_ring", &has_ring).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use monoio::{LegacyDriver, RuntimeBuilder};

    use super::*;
    use crate::os::probe_ring;

    /// Runs `test` with a batch that has a ring, where there can be one, and with one that has none.
    fn with_each(test: impl Fn(SocketRing<usize>)) {
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().build().expect("a runtime");
        runtime.block_on(async {
            if let Ok(flags) = probe_ring() {
                test(SocketRing::with_ring(flags));
            }
            test(SocketRing::without_ring());
        });
    }

    fn pair() -> (Socket, UnixStream) {
        let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket of our own");
        (Socket::new(ours.into()).expect("a runtime"), peer)
    }

    fn owned(bytes: &[u8]) -> SendBuffer {
        SendBuffer::owned(bytes.to_vec(), 0)
    }

    fn fill(socket: &Socket) {
        while socket.try_send(&[0; 4096]).is_ok() {}
    }

    #[test]
    fn each_socket_gets_its_own_bytes() {
        with_each(|mut batch| {
            for count in [1, FEW, FEW + 1, BATCH_MAX] {
                let mut pairs: Vec<_> = (0..count).map(|_| pair()).collect();
                for (tag, (socket, _)) in pairs.iter().enumerate() {
                    batch.push(tag, socket, owned(&tag.to_ne_bytes()));
                }
                assert_eq!(batch.is_full(), count == BATCH_MAX);
                let results: Vec<_> =
                    batch.send_all().map(|(tag, _, result)| (tag, result.expect("room"))).collect();
                assert!(results.into_iter().eq((0..count).map(|tag| (tag, 8))));
                for (tag, (_, peer)) in pairs.iter_mut().enumerate() {
                    let mut received = [0; 8];
                    peer.read_exact(&mut received).expect("eight bytes");
                    assert_eq!(usize::from_ne_bytes(received), tag);
                }
            }
        });
    }

    #[test]
    fn a_socket_says_what_it_has_not_taken() {
        with_each(|mut batch| {
            let (full, _peer) = pair();
            fill(&full);
            let (lost, peer) = pair();
            drop(peer);
            let ((narrow, _narrow_peer), (wide, _wide_peer)) = (pair(), pair());
            let large = vec![7; 4 << 20];
            batch.push(0, &full, owned(b"no room"));
            batch.push(1, &lost, owned(b"nobody"));
            batch.push(2, &narrow, owned(&large));
            batch.push(3, &wide, owned(b"room"));
            let results: Vec<_> = batch.send_all().map(|(_, _, result)| result).collect();
            let [no_room, nobody, part, all] = &results[..] else { panic!("four results") };
            assert_eq!(no_room.as_ref().map_err(io::Error::kind).err(), Some(io::ErrorKind::WouldBlock));
            assert_eq!(nobody.as_ref().map_err(io::Error::kind).err(), Some(io::ErrorKind::BrokenPipe));
            assert!(part.as_ref().is_ok_and(|sent| (1..large.len()).contains(sent)), "{part:?}");
            assert!(all.as_ref().is_ok_and(|sent| *sent == 4), "{all:?}");
        });
    }

    #[test]
    fn a_ring_that_fails_is_done_without() {
        with_each(|mut batch| {
            if batch.ring.is_none() {
                return;
            }
            // It refuses every submission.
            let builder = IoUring::builder().setup_r_disabled().clone();
            batch.ring = Some(build_ring(&builder).expect("a ring"));
            let mut pairs: Vec<_> = (0..5).map(|_| pair()).collect();
            for (tag, (socket, _)) in pairs.iter().enumerate() {
                batch.push(tag, socket, owned(b"hello"));
            }
            assert_eq!(batch.send_all().filter(|(_, _, result)| result.is_ok()).count(), 5);
            assert!(batch.ring.is_none());
            for (_, peer) in &mut pairs {
                let mut received = [0; 6];
                assert_eq!(peer.read(&mut received).expect("five bytes"), 5, "sent once");
            }
        });
    }
}
