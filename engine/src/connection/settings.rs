//! The limits and timeouts of a connection, shared by all connections of a shard.

use std::time::Duration;

use crate::protocol::{CloseCode, Limits};

/// What happens to a message for which the outbox has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxFull {
    /// Close the connection with this code; what was queued and not yet on its way is dropped and counted.
    Close(CloseCode),
    /// Drop the new message and count it; the connection stays open.
    DropNewest,
    /// Drop the oldest messages that have not begun to leave, until the new one fits, and count them.
    DropOldest,
}

/// The limits of an outbox, in bytes of encoded frames that the socket has not taken yet.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Never exceeded by data frames. Control frames may use a few KiB more.
    pub bytes_max: usize,
    /// Above this a send answers [`SendStatus::Backpressure`](super::SendStatus::Backpressure).
    pub bytes_high: usize,
    /// Having been above `bytes_high`, or having refused a message, the handler's `on_drain` is called
    /// when no more than this is left.
    pub bytes_low: usize,
    /// What happens at `bytes_max`.
    pub full: OutboxFull,
}

/// The deadlines of a connection; `None` switches one off.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From accept to the end of the upgrade, a deferred decision included.
    pub handshake: Duration,
    /// From the last message in either direction to a close with 1001.
    pub idle: Option<Duration>,
    /// From the last byte received to the ping that asks whether the peer is still there.
    pub ping_interval: Option<Duration>,
    /// From a ping to the loss of the connection.
    pub pong: Duration,
    /// From a close frame sent to the end of the transport.
    pub close: Duration,
    /// From accept to a close with 1001.
    pub lifetime: Option<Duration>,
    /// The lifetime is lengthened by up to this, at random, so that connections opened together do not end
    /// together.
    pub lifetime_jitter: Duration,
}

/// Everything that a connection must be told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The limits of a received message.
    pub message: Limits,
    /// The limit of the upgrade request's head.
    pub header_bytes_max: usize,
    /// The limits of what waits to be sent.
    pub outbox: OutboxLimits,
    /// The deadlines.
    pub timeouts: Timeouts,
}
