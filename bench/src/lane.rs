//! One client thread's share of the connections: receives, checks, masks and sends, and nothing else.
//!
//! One receive buffer and one send buffer serve all connections. A connection keeps bytes of its own only
//! while the socket does not take them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ringwire::protocol::OpCode;
use ringwire::protocol::frame::append_masked_frame;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::Result;
use crate::dial::Upgraded;
use crate::payload::{Frames, Payloads};
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
    outgoing: Frames,
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
    pub(crate) fn new(payloads: Payloads, wait: Wait, salt: u64) -> Result<Self> {
        Ok(Self {
            poller: Poller::new()?,
            connections: Vec::new(),
            payloads,
            wait,
            random: Random::from_environment(salt),
            incoming: vec![0; INCOMING_BYTES],
            outgoing: Frames::default(),
        })
    }

    /// Takes a connection over; it counts its messages under `tag`.
    ///
    /// # Errors
    /// The server sent something unexpected right after its response.
    pub(crate) fn adopt(&mut self, upgraded: Upgraded, tag: u64) -> Result<()> {
        let mut replies = Replies::new(tag);
        replies.take(&upgraded.early, &self.payloads)?;
        self.poller.add(&upgraded.socket, self.connections.len() as u64, EventFlags::IN)?;
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

    /// A connection's socket.
    pub(crate) fn socket(&self, connection: usize) -> impl AsFd {
        &self.connections[connection].socket
    }

    /// Stops reading a connection: what a subscriber does that hangs. The kernel holds little for it, so that
    /// the server soon has to.
    ///
    /// # Errors
    /// It had been stopped before.
    pub(crate) fn stop_reading(&mut self, connection: usize) -> Result<()> {
        rustix::net::sockopt::set_socket_recv_buffer_size(
            &self.connections[connection].socket,
            HUNG_RECEIVE_BYTES,
        )?;
        self.poller.remove(&self.connections[connection].socket)
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
            self.flush(connection)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return Ok((connection, 0));
        }
        Ok((connection, self.receive(connection)?))
    }

    /// Sends the next `count` messages of a connection in one write.
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub(crate) fn send(&mut self, connection: usize, count: u64) -> Result<()> {
        let Connection { tag, sent, .. } = &mut self.connections[connection];
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.clear();
        for _ in 0..count {
            self.payloads.append(&mut outgoing, number(*tag, *sent), self.random.mask());
            *sent += 1;
        }
        let transmitted = self.transmit(connection, outgoing.as_bytes());
        self.outgoing = outgoing;
        transmitted
    }

    #[inline]
    fn receive(&mut self, connection: usize) -> Result<u64> {
        let Connection { socket, replies, .. } = &mut self.connections[connection];
        let received = match rustix::net::recv(&*socket, &mut self.incoming[..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(format!("connection {connection}: the server hung up").into()),
            Ok((received, _)) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(error) => return Err(format!("connection {connection}: {error}").into()),
        };
        let completed = replies
            .take(&self.incoming[..received], &self.payloads)
            .map_err(|error| format!("connection {connection}: {error}"))?;
        if let Some(payload) = replies.take_pong() {
            let mut pong = Vec::new();
            append_masked_frame(&mut pong, OpCode::Pong, &payload, self.random.mask());
            self.transmit(connection, &pong)?;
        }
        Ok(completed)
    }

    /// Sends frames, or keeps what does not fit.
    #[inline]
    fn transmit(&mut self, index: usize, frames: &[u8]) -> Result<()> {
        let connection = &mut self.connections[index];
        if !connection.unsent.is_empty() {
            connection.unsent.extend_from_slice(frames);
            return Ok(());
        }
        let sent = send(&connection.socket, frames)?;
        if sent < frames.len() {
            connection.unsent.extend_from_slice(&frames[sent..]);
            self.poller.modify(&connection.socket, index as u64, EventFlags::IN | EventFlags::OUT)?;
        }
        Ok(())
    }

    fn flush(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        connection.unsent_start += send(&connection.socket, &connection.unsent[connection.unsent_start..])?;
        if connection.unsent_start == connection.unsent.len() {
            connection.unsent.clear();
            connection.unsent_start = 0;
            self.poller.modify(&connection.socket, index as u64, EventFlags::IN)?;
        }
        Ok(())
    }
}

/// Of a connection that is not read.
const HUNG_RECEIVE_BYTES: usize = 4096;
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
