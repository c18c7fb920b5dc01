//! The connection as a handler sees it: commands whose effects happen after the handler has returned.

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::Duration,
};

use super::{ConnectionId, Context, Message, publish::opcode, topics::Subscription};
use crate::{
    connection::{ConflationKey, DropCounts, Endpoint, Full, Initiator, OutboxFull, SendStatus},
    protocol::{CloseCode, OpCode, frame::frame_bytes},
};

/// An open connection, lent to the handler for one call.
pub struct Connection<'a, S> {
    pub(super) id: ConnectionId,
    pub(super) peer_address: SocketAddr,
    pub(super) endpoint: &'a mut Endpoint,
    pub(super) session: &'a mut S,
    pub(super) context: &'a mut Context,
    pub(super) local: &'a LocalHandle<S>,
    pub(super) subscriptions: &'a [Subscription],
    pub(super) allows_subscription: fn(&S, &str) -> bool,
}

/// Messages from this size on are sent from where they were received, when the handler sends the very payload
/// that it was lent; smaller ones are cheaper to copy.
pub(super) const RELAYED_BYTES_MIN: usize = 4096;

/// The payload that was lent to the handler, and what it has done with it.
#[derive(Debug, Default)]
pub(super) struct Lent {
    address: usize,
    bytes: usize,
    /// Its memory can be given away: it was put together in a buffer that its frame fills.
    is_whole_buffer: bool,
    /// It is to be sent back from where it lies.
    pub(super) relayed: Option<OpCode>,
    /// It is to be published from where it lies.
    pub(super) published: Option<OpCode>,
}

impl Lent {
    pub(super) fn new(payload: &[u8]) -> Self {
        Self { address: payload.as_ptr().addr(), bytes: payload.len(), ..Self::default() }
    }

    /// A payload in a buffer that has room for `header_bytes` in front of it.
    pub(super) fn in_buffer(payload: &[u8], header_bytes: usize) -> Self {
        let is_whole_buffer = frame_bytes(payload.len()) == header_bytes + payload.len();
        Self { is_whole_buffer, ..Self::new(payload) }
    }

    fn is(&self, payload: &[u8]) -> bool {
        self.bytes >= RELAYED_BYTES_MIN
            && self.bytes == payload.len()
            && self.address == payload.as_ptr().addr()
    }

    fn can_relay(&self, opcode: OpCode, payload: &[u8]) -> bool {
        self.is(payload) && self.relayed.is_none() && self.published.is_none_or(|other| other == opcode)
    }

    /// One frame can go to any number of topics, but with one opcode.
    pub(super) fn can_publish(&self, opcode: OpCode, payload: &[u8]) -> bool {
        let same = |other: Option<OpCode>| other.is_none_or(|other| other == opcode);
        self.is_whole_buffer && self.is(payload) && same(self.relayed) && same(self.published)
    }
}

impl<S> Connection<'_, S> {
    /// The name by which the connection can be found again.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// What the program keeps for this connection.
    #[must_use]
    pub fn session(&self) -> &S {
        self.session
    }

    /// What the program keeps for this connection, to be changed.
    #[must_use]
    pub fn session_mut(&mut self) -> &mut S {
        self.session
    }

    /// The other end of the socket: the client, or the proxy in front of it.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// Queues a message for the peer. It goes to the socket when the turn ends, or before, together with what
    /// else waits; where the socket has no room, when there is some.
    ///
    /// Sending back the very payload that the handler was lent costs no copy from 4 KiB on, where nothing
    /// else waits to be sent: it is the first such message of a receive then.
    #[inline]
    pub fn send<'m>(&mut self, message: impl Into<Message<'m>>) -> SendStatus {
        let message = message.into();
        let (opcode, payload) = (opcode(message.kind()), message.bytes());
        let status = match payload.len() {
            ..RELAYED_BYTES_MIN => self.endpoint.append(opcode, payload, &self.context.settings),
            _ if self.context.lent.can_relay(opcode, payload) => {
                let status = self.endpoint.reserve_relay(payload.len(), &self.context.settings);
                self.context.lent.relayed = status.and(Some(opcode));
                status
            }
            _ => None,
        };
        if let Some(status) = status {
            self.context.counters.messages_sent.add(1);
            self.endpoint.note_message(self.context.now);
            return status;
        }
        self.send_copy(opcode, payload)
    }

    #[inline(never)]
    fn send_copy(&mut self, opcode: OpCode, payload: &[u8]) -> SendStatus {
        let full = self.endpoint.outbox_full(&self.context.settings);
        self.context.queue(self.endpoint, full, frame_bytes(payload.len()), 1, None, |endpoint, context| {
            endpoint.send(opcode, payload, &context.settings, &mut context.corks)
        })
    }

    /// Begins the close handshake (RFC 6455 section 7.1.2). What was queued before still leaves.
    ///
    /// The reason is cut to 123 bytes. A code that may not be sent (RFC 6455 section 7.4) becomes 1000.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        let context = &mut *self.context;
        self.endpoint.close(code, reason, &context.settings, &mut context.corks, context.now);
    }

    /// Ends the connection without a close frame and without waiting for the peer, who may not read: nothing
    /// that is queued leaves any more, and where something was, the socket is reset.
    ///
    /// `on_close` hears of 1006 (RFC 6455 section 7.1.5) and `reason`, unless a close had begun before.
    pub fn abort(&mut self, reason: &str) {
        self.endpoint.abort(CloseCode::ABNORMAL, reason, Initiator::Local);
    }

    /// Sends a ping of the program's own, with at most 125 bytes of payload; more is cut. It is left out
    /// where 4 KiB of control frames wait for the peer already. The keepalive needs no help.
    pub fn ping(&mut self, payload: &[u8]) {
        let payload = &payload[..payload.len().min(125)];
        self.endpoint.ping(payload, &mut self.context.corks);
    }

    /// No more messages are received until [`resume_receive`](Self::resume_receive); the peer's sends then
    /// come to a stop. While paused, pings go unanswered and a close of the peer's goes unseen. Once a
    /// close has begun this does nothing.
    pub fn pause_receive(&mut self) {
        self.endpoint.pause_receive(true);
    }

    /// Receives again.
    pub fn resume_receive(&mut self) {
        self.endpoint.pause_receive(false);
    }

    /// Bytes of encoded frames that the socket has not taken yet; never above `outbox_bytes_max` by a data
    /// frame.
    #[must_use]
    pub fn outbox_bytes(&self) -> usize {
        self.endpoint.outbox().bytes()
    }

    /// Chooses what happens to a message for which this connection's outbox has no room, in place of what
    /// [`Config::outbox_full`](crate::Config::outbox_full) says for all. A topic's own choice
    /// ([`TopicSettings::full`](crate::TopicSettings::full)) counts for more. A close code that may not be
    /// sent becomes 1000.
    pub fn set_outbox_full(&mut self, full: OutboxFull) {
        self.endpoint.set_outbox_full(full);
    }

    /// How many messages for this connection were dropped while it was open, by reason; values that newer
    /// ones replaced ([`Conflation`](crate::Conflation)) are among them.
    #[must_use]
    pub fn drops(&self) -> DropCounts {
        self.endpoint.drops()
    }

    /// Messages can be sent: no close has begun.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.endpoint.is_open()
    }

    /// The round trip of the newest keepalive ping that was answered, to a few milliseconds.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.endpoint.round_trip()
    }

    /// Runs a future on this shard's thread. It is dropped when the engine stops.
    ///
    /// With [`handle`](Self::handle) and [`id`](Self::id) it finds its way back to the connection.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        self.context.spawned.push_back(Box::pin(future));
    }

    /// A handle to this shard's connections, for futures on its thread.
    #[must_use]
    pub fn handle(&self) -> LocalHandle<S> {
        self.local.clone()
    }
}

impl Context {
    /// Queues `messages` for a connection by `push`, and carries out what `full` says when there is no room
    /// for their `bytes`, which replace an older value of `key`.
    pub(super) fn queue(
        &mut self,
        endpoint: &mut Endpoint,
        full: OutboxFull,
        bytes: usize,
        messages: u32,
        key: Option<ConflationKey>,
        mut push: impl FnMut(&mut Endpoint, &mut Self) -> Result<SendStatus, Full>,
    ) -> SendStatus {
        let messages = u64::from(messages);
        let mut pushed = push(endpoint, self);
        // Twice where the older value was itself among the oldest: then it has no place to give any more.
        while pushed.is_err() && full == OutboxFull::DropOldest {
            let dropped = endpoint.make_room(bytes, key, &self.settings);
            self.counters.dropped_oldest.add(dropped.messages);
            self.note_dropped(endpoint, |drops| &mut drops.oldest, dropped.messages);
            if dropped.messages == 0 {
                break;
            }
            pushed = push(endpoint, self);
        }
        match pushed {
            Ok(SendStatus::Dropped) => self.counters.dropped_closing.add(messages),
            Ok(status) => {
                self.counters.messages_sent.add(messages);
                endpoint.note_message(self.now);
                return status;
            }
            Err(Full) => {
                let mut lost = messages;
                if let OutboxFull::Close(code) = full {
                    lost += endpoint.give_up(code, &self.settings, &mut self.corks, self.now).messages;
                    self.counters.dropped_by_close.add(lost);
                    self.counters.closed_outbox_full.add(1);
                    self.note_dropped(endpoint, |drops| &mut drops.by_close, lost);
                } else {
                    self.counters.dropped_newest.add(lost);
                    self.note_dropped(endpoint, |drops| &mut drops.newest, lost);
                }
            }
        }
        SendStatus::Dropped
    }
}

/// Finds connections of a shard again, from futures on its thread.
///
/// ```
/// # use ringwire::{Connection, Message};
/// # fn on_message(connection: &mut Connection<'_, ()>, _: Message<'_>) {
/// let (handle, id) = (connection.handle(), connection.id());
/// connection.spawn(async move {
///     // ... wait for something ...
///     let _ = handle.with(id, |connection| {
///         let _ = connection.send("done");
///     });
/// });
/// # }
/// ```
pub struct LocalHandle<S>(pub(super) Option<Weak<dyn LocalShard<S>>>);

/// What stands behind a [`LocalHandle`]: whoever owns the shard.
pub(crate) trait LocalShard<S> {
    fn with_connection(
        &self,
        id: ConnectionId,
        action: &mut dyn FnMut(&mut Connection<'_, S>),
    ) -> Result<(), LocalError>;
}

/// A connection could not be reached through a [`LocalHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// It has ended, or never was of this shard.
    #[error("the connection is gone")]
    Gone,
    /// A handler of the same shard is being called: use the connection it was given, or spawn a future.
    #[error("a handle was used inside a handler's call: spawn a future instead")]
    InHandler,
}

impl<S> LocalHandle<S> {
    /// Lends the connection to `action`.
    ///
    /// # Errors
    /// [`LocalError::Gone`] when the connection has ended, [`LocalError::InHandler`] inside a handler's call.
    pub fn with<R>(
        &self,
        id: ConnectionId,
        action: impl FnOnce(&mut Connection<'_, S>) -> R,
    ) -> Result<R, LocalError> {
        let shard: Rc<dyn LocalShard<S>> = self.0.as_ref().and_then(Weak::upgrade).ok_or(LocalError::Gone)?;
        let (mut action, mut result) = (Some(action), None);
        shard.with_connection(id, &mut |connection| {
            result = action.take().map(|action| action(connection));
        })?;
        result.ok_or(LocalError::Gone)
    }
}

impl<S> Clone for LocalHandle<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> fmt::Debug for LocalHandle<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LocalHandle")
    }
}

impl<S> fmt::Debug for Connection<'_, S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("id", &self.id)
            .field("peer_address", &self.peer_address)
            .field("outbox_bytes", &self.outbox_bytes())
            .finish_non_exhaustive()
    }
}
