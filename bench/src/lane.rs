//! One client thread's share of the connections: receives, checks, masks and sends, and nothing else.
//!
//! One receive buffer and one frame to be sent serve all connections. A connection keeps bytes of its own
//! only while the socket does not take them.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ringwire::protocol::OpCode;
use ringwire::protocol::frame::append_masked_frame;
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{RecvFlags, SendFlags};

use crate::Result;
use crate::dial::Upgraded;
use crate::leftovers::Leftovers;
use crate::payload::Payloads;
use crate::poll::Poller;
use crate::random::Random;
use crate::replies::{Replies, number};

/// How a lane waits for sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// Sleep in the kernel until something is ready.
    Sleep,
    /// Ask again and again: the client's core is busy, and the server pays for no wake-ups.
    Spin,
}

/// A set of connections with the buffers they share.
pub(crate) struct Lane {
    /// The event source.
    pub(crate) poller: Poller,
    connections: Vec<Connection>,
    payloads: Payloads,
    wait: Wait,
    random: Random,
    incoming: Vec<u8>,
    /// Frames that leave together.
    outgoing: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    tag: u64,
    sent: u64,
    replies: Replies,
    /// What the socket did not take yet: from `unsent_start` on.
    unsent: Vec<u8>,
    unsent_start: usize,
}

impl Lane {
    /// An empty lane.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn new(payloads: Payloads, wait: Wait, random: Random) -> Result<Self> {
        Ok(Self {
            poller: Poller::new()?,
            connections: Vec::new(),
            payloads,
            wait,
            random,
            incoming: vec![0; INCOMING_BYTES],
            outgoing: Vec::new(),
        })
    }

    /// Takes a connection over; it counts its messages under `tag`.
    ///
    /// # Errors
    /// The server sent something unexpected right after its response.
    pub(crate) fn adopt(&mut self, upgraded: Upgraded, tag: u64) -> Result<()> {
        let mut replies = Replies::new(tag);
        replies.take(&upgraded.early, &self.payloads)?;
        self.poller.add(&upgraded.socket, self.connections.len() as u64, INTEREST)?;
        let socket = upgraded.socket;
        self.connections.push(Connection {
            socket,
            tag,
            sent: 0,
            replies,
            unsent: Vec::new(),
            unsent_start: 0,
        });
        Ok(())
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How many messages a connection has sent.
    pub(crate) fn sent(&self, connection: usize) -> u64 {
        self.connections[connection].sent
    }

    /// How many replies a connection has received.
    pub(crate) fn received(&self, connection: usize) -> u64 {
        self.connections[connection].replies.received()
    }

    /// Stops reading a connection: what a subscriber does that hangs. The kernel holds little for it, so that
    /// the server soon has to.
    ///
    /// # Errors
    /// It had been stopped before.
    pub(crate) fn stop_reading(&mut self, connection: usize) -> Result<()> {
        set_socket_recv_buffer_size(&self.connections[connection].socket, HUNG_RECEIVE_BYTES)?;
        self.poller.remove(&self.connections[connection].socket)
    }

    /// Reads connections that were stopped, all at once, until each has the last of `published` messages or
    /// nothing has come by `deadline`, or for a moment after it.
    ///
    /// # Errors
    /// One got something else than what was published.
    pub(crate) fn read_leftovers(
        &mut self,
        stopped: Range<usize>,
        published: u64,
        deadline: Instant,
    ) -> Result<Vec<Leftovers>> {
        let sockets = self.connections[stopped.clone()].iter().map(|connection| &connection.socket);
        for socket in sockets.clone() {
            set_socket_recv_buffer_size(socket, INCOMING_BYTES)?;
        }
        let mut all: Vec<Leftovers> = stopped.map(|_| Leftovers::default()).collect();
        loop {
            let mut waiting: Vec<_> = sockets
                .clone()
                .zip(&mut all)
                .filter(|(_, leftovers)| !leftovers.is_over(published))
                .collect();
            let mut polled: Vec<_> =
                waiting.iter().map(|(socket, _)| PollFd::new(*socket, PollFlags::IN)).collect();
            let patience = deadline.saturating_duration_since(Instant::now()).max(PAUSE_MAX);
            let timeout =
                Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
            if waiting.is_empty() {
                return Ok(all);
            }
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) => return Ok(all),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for (socket, leftovers) in &mut waiting {
                match rustix::net::recv(*socket, &mut self.incoming[..], RecvFlags::empty()) {
                    Ok((0, _)) | Err(Errno::CONNRESET) => leftovers.is_cut_off = true,
                    Ok((received, _)) => leftovers.take(&self.incoming[..received], &self.payloads)?,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    /// Waits for at most `timeout` and returns how many connections are ready.
    ///
    /// # Errors
    /// The kernel refuses.
    #[inline]
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<usize> {
        self.poller.wait(if self.wait == Wait::Spin { Duration::ZERO } else { timeout })?;
        Ok(self.poller.ready().len())
    }

    /// Like [`wait`](Self::wait), with an exact timeout.
    ///
    /// # Errors
    /// The kernel refuses.
    #[inline]
    pub(crate) fn wait_exactly(&mut self, timeout: Duration) -> Result<usize> {
        self.poller.wait_exactly(if self.wait == Wait::Spin { Duration::ZERO } else { timeout })?;
        Ok(self.poller.ready().len())
    }

    /// Serves the `index`-th of the ready and returns its connection and how many replies it got.
    ///
    /// # Errors
    /// The connection broke, or a reply is wrong.
    #[inline]
    pub(crate) fn serve(&mut self, index: usize) -> Result<(usize, u64)> {
        let (token, flags) = self.poller.event(index);
        let connection = token as usize;
        if flags.contains(EventFlags::OUT) {
            self.connections[connection].flush(&self.poller, connection)?;
        }
        let is_ending = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if !is_ending && !flags.contains(EventFlags::IN) {
            return Ok((connection, 0));
        }
        let mut replies = 0;
        // A socket tells once that there is something: it has to be emptied, and is when it had less than
        // there was room for, unless its end is in there too.
        while let Some(received) = self.receive(connection)? {
            replies += self.take(connection, received)?;
            if received < self.incoming.len() && !is_ending {
                break;
            }
        }
        Ok((connection, replies))
    }

    /// Sends the next `count` messages of a connection in one write.
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub(crate) fn send(&mut self, connection: usize, count: u64) -> Result<()> {
        let Connection { tag, sent, .. } = self.connections[connection];
        self.connections[connection].sent += count;
        if count == 1 {
            let frame = self.payloads.frame(number(tag, sent));
            return self.connections[connection].transmit(&self.poller, connection, frame);
        }
        self.outgoing.clear();
        for index in sent..sent + count {
            self.outgoing.extend_from_slice(self.payloads.frame(number(tag, index)));
        }
        self.connections[connection].transmit(&self.poller, connection, &self.outgoing)
    }

    /// Receives what there is, and returns how many bytes of `incoming` it takes, if any.
    #[inline]
    fn receive(&mut self, connection: usize) -> Result<Option<usize>> {
        let socket = &self.connections[connection].socket;
        loop {
            match rustix::net::recv(socket, &mut self.incoming[..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(format!("connection {connection}: the server hung up").into()),
                Ok((received, _)) => return Ok(Some(received)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(format!("connection {connection}: {error}").into()),
            }
        }
    }

    /// Checks what was received, and returns how many replies it completed.
    #[inline]
    fn take(&mut self, connection: usize, received: usize) -> Result<u64> {
        let replies = &mut self.connections[connection].replies;
        let completed = replies
            .take(&self.incoming[..received], &self.payloads)
            .map_err(|error| format!("connection {connection}: {error}"))?;
        if let Some(payload) = replies.take_pong() {
            let mut pong = Vec::new();
            append_masked_frame(&mut pong, OpCode::Pong, &payload, self.random.mask());
            self.connections[connection].transmit(&self.poller, connection, &pong)?;
        }
        Ok(completed)
    }
}

impl Connection {
    /// Sends frames, or keeps what does not fit.
    #[inline]
    fn transmit(&mut self, poller: &Poller, token: usize, frames: &[u8]) -> Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(frames);
            return Ok(());
        }
        let sent = send(&self.socket, frames)?;
        if sent < frames.len() {
            self.unsent.extend_from_slice(&frames[sent..]);
            poller.modify(&self.socket, token as u64, INTEREST | EventFlags::OUT)?;
        }
        Ok(())
    }

    fn flush(&mut self, poller: &Poller, token: usize) -> Result<()> {
        self.unsent_start += send(&self.socket, &self.unsent[self.unsent_start..])?;
        if self.unsent_start == self.unsent.len() {
            self.unsent.clear();
            self.unsent_start = 0;
            poller.modify(&self.socket, token as u64, INTEREST)?;
        }
        Ok(())
    }
}

/// Edges: the kernel looks at a socket once for each event instead of once more at the next wait.
const INTEREST: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);
/// Of a connection that is not read.
const HUNG_RECEIVE_BYTES: usize = 4096;
/// A server that can send and has something to send does so sooner.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Larger than any reply that is measured, so that one call takes what is there.
const INCOMING_BYTES: usize = 512 * 1024;

#[inline]
fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(format!("cannot send: {error}").into()),
    }
}
