//! Publishing, and what else comes through the mesh.
//!
//! Order: publications of one shard to one topic reach every subscriber in the order they were published; see
//! `docs/order.md`.

use super::{
    Connection, ConnectionId, Context, Handler, Message, Shard,
    envelope::{Envelope, Errand, Gone, Publication},
    topics::{Content, Post},
    visit::shield,
};
use crate::{
    buffer::{LocalFrame, SharedFrame},
    connection::{SendStatus, SharedStatus, Timestamp},
    protocol::{
        MessageKind, OpCode,
        frame::{append_frame, frame_bytes},
    },
};

/// What becomes of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishStatus {
    /// It is on its way to those who subscribe.
    Published,
    /// Nobody subscribes.
    NoSubscribers,
}

/// How many envelopes of one source are handled in one turn: the others have their turn as well.
const ENVELOPES_PER_TURN_MAX: usize = 2048;

impl<S> Connection<'_, S> {
    /// Publishes a message to all subscribers of a topic on all shards, except this connection.
    ///
    /// The message is encoded once. It leaves at the end of the turn, or of the topic's window. Publishing
    /// the very payload that the handler was lent costs no copy from 64 KiB on, where it came in pieces
    /// and was put together, as such messages mostly are; what lies in a receive buffer is copied once.
    pub fn publish<'m>(&mut self, topic: &str, message: impl Into<Message<'m>>) -> PublishStatus {
        self.post_message(topic, 0, message.into(), Some(self.id))
    }

    /// Publishes a message to all subscribers of a topic on all shards, this connection among them if it
    /// subscribes: a subscription made in the same call is not in effect yet.
    pub fn publish_to_all<'m>(&mut self, topic: &str, message: impl Into<Message<'m>>) -> PublishStatus {
        self.post_message(topic, 0, message.into(), None)
    }

    /// Publishes the newest value of `key` within a topic that conflates, except to this connection: for
    /// subscribers who have fallen behind it replaces the older value of the same key.
    pub fn publish_keyed<'m>(
        &mut self,
        topic: &str,
        key: u64,
        message: impl Into<Message<'m>>,
    ) -> PublishStatus {
        self.post_message(topic, key, message.into(), Some(self.id))
    }

    /// Publishes a message that was encoded before, for many topics or many times, to all subscribers of a
    /// topic on all shards, except this connection.
    pub fn publish_prepared(&mut self, topic: &str, message: &PreparedMessage) -> PublishStatus {
        let content = Content::Prepared(&message.0);
        self.post(topic, Post { content, publisher: Some(self.id), key: 0 })
    }

    fn post_message(
        &mut self,
        topic: &str,
        key: u64,
        message: Message<'_>,
        publisher: Option<ConnectionId>,
    ) -> PublishStatus {
        let content = Content::Message(opcode(message.kind()), message.bytes());
        self.post(topic, Post { content, publisher, key })
    }

    fn post(&mut self, topic: &str, post: Post<'_>) -> PublishStatus {
        let Context { topics, topic_limits, lent, counters, .. } = &mut *self.context;
        counters.publications.add(1);
        if !topic_limits.allow_name(topic) {
            // Nobody can subscribe to it, so it is not to be known either.
            return PublishStatus::NoSubscribers;
        }
        let index = topics.intern(topic);
        let published = match post.content {
            Content::Message(opcode, payload) if lent.can_publish(opcode, payload) => {
                let published = topics.post_lent(index, post);
                if published {
                    lent.published = Some(opcode);
                }
                published
            }
            _ => topics.post(index, post),
        };
        if published { PublishStatus::Published } else { PublishStatus::NoSubscribers }
    }

    /// Sends a message that was encoded before, for many connections or many times.
    pub fn send_prepared(&mut self, message: &PreparedMessage) -> SendStatus {
        let frame = LocalFrame::new(message.0.clone());
        let bytes = frame.bytes().len();
        let full = self.endpoint.outbox_full(&self.context.settings);
        self.context.queue(self.endpoint, full, bytes, 1, None, |endpoint, context| {
            match endpoint.send_shared(&frame, None, &context.settings)? {
                SharedStatus::Queued(status) => Ok(status),
                SharedStatus::Replaced => Ok(SendStatus::Sent),
            }
        })
    }
}

/// A message encoded once, to be sent to any number of connections of any shard.
///
/// ```
/// let prepared = ringwire::PreparedMessage::new("the same for everybody");
/// assert_eq!(prepared.encoded_bytes(), 2 + 22);
/// ```
#[derive(Clone, Debug)]
pub struct PreparedMessage(pub(super) SharedFrame);

impl PreparedMessage {
    /// Encodes a message.
    pub fn new<'m>(message: impl Into<Message<'m>>) -> Self {
        let message = message.into();
        let mut frame = Vec::with_capacity(frame_bytes(message.bytes().len()));
        append_frame(&mut frame, opcode(message.kind()), message.bytes());
        Self(SharedFrame::new(frame))
    }

    /// The size of the frame.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        self.0.bytes().len()
    }

    pub(crate) fn into_frame(self) -> SharedFrame {
        self.0
    }
}

pub(super) fn opcode(kind: MessageKind) -> OpCode {
    match kind {
        MessageKind::Text => OpCode::Text,
        MessageKind::Binary => OpCode::Binary,
    }
}

impl<H: Handler> Shard<H> {
    /// Handles what has come through the mesh, up to a turn's worth.
    pub fn handle_mesh(&mut self, now: Timestamp) {
        self.context.now = now;
        // What has been taken out before is older; handling it may take out more.
        for _ in 0..ENVELOPES_PER_TURN_MAX.max(self.pending.len()) {
            let next = self.take_pending().or_else(|| self.mesh.receive_from_inbox());
            let Some(envelope) = next else { break };
            self.handle_envelope(envelope, None);
        }
        for from in 0..self.mesh.shards() {
            for _ in 0..ENVELOPES_PER_TURN_MAX {
                let Some(envelope) = self.mesh.receive_from(from) else { break };
                self.handle_envelope(envelope, Some(from));
            }
        }
    }

    /// Something has come through the mesh that has not been handled.
    #[must_use]
    pub fn has_mesh_input(&self) -> bool {
        !self.pending.is_empty() || !self.mesh.is_empty()
    }

    /// Delivers what was published in this turn: to the subscribers here, and to the shards that have some.
    /// Answers whether some of it waits for room on the way to another shard.
    pub fn flush_topics(&mut self) -> bool {
        self.context.topics.seal_staged();
        self.deliver_ready();
        self.mesh.push_staged()
    }

    /// This shard ends: what waits for room on its way to another one is not sent, but counted.
    pub fn abandon_staged(&mut self) {
        while let Some((shard, envelope)) = self.mesh.take_staged() {
            if let Envelope::Publish(publication) = envelope
                && publication.topic.interests(shard)
            {
                self.context.counters.envelopes_refused.add(u64::from(publication.count));
            }
        }
    }

    /// The next shard that is to be woken because something was sent to it.
    pub fn poll_wake(&mut self) -> Option<usize> {
        self.mesh.poll_ring()
    }

    /// The next window that has opened: call [`close_window`](Self::close_window) when its time is over.
    pub fn poll_window(&mut self) -> Option<(u32, std::time::Duration)> {
        self.context.topics.poll_window()
    }

    /// A window's time is over: what it gathered leaves with this turn.
    pub fn close_window(&mut self, topic: u32) {
        self.context.topics.end_window(topic);
    }

    /// Carries out what has been asked so far, and delivers what has been published, windows or not: it would
    /// come too late for connections that are closed now.
    pub(super) fn deliver_all(&mut self) {
        self.receive_publications();
        for _ in 0..self.pending.len() {
            let Some(envelope) = self.take_pending() else { break };
            self.handle_envelope(envelope, None);
        }
        self.context.topics.seal_all();
        self.deliver_ready();
    }

    /// Takes the publications out of the mesh that are there now; other envelopes wait for their turn.
    pub(super) fn receive_publications(&mut self) {
        // What is added meanwhile is left, or this could go on for ever.
        for _ in 0..self.mesh.waiting_in_inbox() {
            let Some(envelope) = self.mesh.receive_from_inbox() else { break };
            self.sort_envelope(envelope, None);
        }
        for from in 0..self.mesh.shards() {
            for _ in 0..self.mesh.waiting_from(from) {
                let Some(envelope) = self.mesh.receive_from(from) else { break };
                self.sort_envelope(envelope, Some(from));
            }
        }
    }

    fn sort_envelope(&mut self, envelope: Envelope, from: Option<usize>) {
        match envelope {
            Envelope::Publish(publication) => self.receive_publication(publication, from),
            other => {
                self.mesh.hold(&other);
                self.pending.push_back(other);
            }
        }
    }

    fn take_pending(&mut self) -> Option<Envelope> {
        let envelope = self.pending.pop_front()?;
        self.mesh.release(&envelope);
        Some(envelope)
    }

    fn handle_envelope(&mut self, envelope: Envelope, from: Option<usize>) {
        match envelope {
            Envelope::Publish(publication) => self.receive_publication(publication, from),
            Envelope::Send { id, frame, reply } => {
                let message = PreparedMessage(frame);
                let mut status = SendStatus::Dropped;
                let reached = self.reach(id, |_, connection| status = connection.send_prepared(&message));
                reply.map(|reply| reply.send(reached.map(|()| status)));
            }
            Envelope::Close { id, code, reason, reply } => {
                let reached = self.reach(id, |_, connection| connection.close(code, &reason));
                reply.map(|reply| reply.send(reached));
            }
            Envelope::Run(action) => {
                let handler = &mut self.handler;
                shield(&self.context.counters, || action(handler));
            }
            Envelope::Reach { id, errand } => {
                let mut errand = match errand.downcast::<Errand<H>>() {
                    Ok(errand) => Some(*errand),
                    // Of another type: whoever waits hears that it is dropped.
                    Err(errand) => return shield(&self.context.counters, || drop(errand)),
                };
                let mut answer = None;
                let reached = self.reach(id, |handler, connection| {
                    answer = errand.take().map(|errand| errand(Ok((handler, connection))));
                });
                shield(&self.context.counters, || match (answer, reached, errand) {
                    (Some(answer), ..) => answer(),
                    (None, Err(gone), Some(errand)) => errand(Err(gone))(),
                    // It panicked: whoever waits hears of that.
                    _ => {}
                });
            }
        }
    }

    /// Lends an open connection to `action`.
    fn reach(
        &mut self,
        id: ConnectionId,
        action: impl FnOnce(&mut H, &mut Connection<'_, H::Session>),
    ) -> Result<(), Gone> {
        if !self.endpoint(id).is_some_and(|endpoint| endpoint.is_open()) {
            self.context.counters.stale_ids.add(1);
            return Err(Gone);
        }
        self.call(id, action);
        self.settle(id);
        self.mark_dirty(id);
        Ok(())
    }

    fn receive_publication(&mut self, publication: Publication, from: Option<usize>) {
        self.context.counters.envelopes_received.add(1);
        let topics = &mut self.context.topics;
        // Its subscribers may have gone meanwhile.
        let Some(index) = topics.find(publication.topic.name()) else { return };
        let fenced = topics.topic(index).is_some_and(|topic| topic.fenced > 0);
        if fenced {
            // What was published here has to be forwarded, and knows no fence: it leaves before.
            topics.seal(index);
            self.deliver_ready();
        }
        let topics = &mut self.context.topics;
        topics.post_foreign(index, publication);
        if fenced {
            // Some of the subscribers are not to get this one: it cannot be gathered with others.
            topics.seal(index);
            while let Some(ready) = self.context.topics.poll_ready() {
                self.deliver(&ready, from);
            }
            let mesh = &self.mesh;
            self.context.topics.lower_fences(index, |from| mesh.received(from));
        }
    }
}
