//! Publishing, subscribing and what else comes through the mesh.
//!
//! Order: publications of one shard to one topic reach every subscriber in the order they were published. A
//! subscription begins after everything that had been sent to this shard before it; see `docs/order.md`.

use std::{any::Any, rc::Rc};

use super::{
    Connection, ConnectionId, Handler, Message, Shard, Slot,
    envelope::{Envelope, Gone, Publication},
    find,
    topics::{Conflation, Post, Ready, Route, Subscriber, Subscription},
};
use crate::{
    buffer::{LocalFrame, SharedFrame},
    connection::{ConflationKey, SendStatus, SharedStatus, Timestamp},
    protocol::{MessageKind, OpCode, frame::append_frame},
};

/// What becomes of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishStatus {
    /// It is on its way to those who subscribe.
    Published,
    /// Nobody subscribes.
    NoSubscribers,
}

/// Why a subscription was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// [`Handler::allows_subscription`] said no.
    #[error("the handler does not allow this subscription")]
    NotAllowed,
    /// The name is empty or longer than `topic_name_bytes_max`.
    #[error("the topic's name has {bytes} bytes: 1 to {bytes_max} are allowed")]
    Name {
        /// Its length.
        bytes: usize,
        /// The longest that is allowed.
        bytes_max: usize,
    },
    /// The connection has `topics_per_connection_max` subscriptions already.
    #[error("the connection has {topics_max} subscriptions already")]
    TooMany {
        /// How many are allowed.
        topics_max: usize,
    },
    /// The connection is closing.
    #[error("the connection is closing")]
    Closing,
}

/// A change of subscriptions that takes effect when the handler has returned.
#[derive(Debug)]
pub(super) enum Intent {
    Subscribe(Box<str>),
    Unsubscribe(Box<str>),
}

/// How many envelopes are handled in one turn.
const ENVELOPES_PER_TURN_MAX: usize = 4096;

impl<S> Connection<'_, S> {
    /// Subscribes to a topic. When the handler has returned, the subscription is in effect: this connection
    /// will get every publication from then on, and none from before.
    ///
    /// Subscribing again to the same topic changes nothing.
    ///
    /// # Errors
    /// When the name, a limit or [`Handler::allows_subscription`] forbids it.
    pub fn subscribe(&mut self, topic: &str) -> Result<(), SubscribeError> {
        let limits = &self.context.topic_limits;
        if topic.is_empty() || topic.len() > limits.name_bytes_max {
            return Err(SubscribeError::Name { bytes: topic.len(), bytes_max: limits.name_bytes_max });
        }
        if !self.is_open() {
            return Err(SubscribeError::Closing);
        }
        if !(self.allows_subscription)(self.session, topic) {
            return Err(SubscribeError::NotAllowed);
        }
        let pending = self.context.intents.iter().filter(|intent| matches!(intent, Intent::Subscribe(_)));
        let known =
            self.context.topics.find(topic).is_some_and(|index| {
                self.subscriptions.iter().any(|subscription| subscription.topic == index)
            });
        if !known && self.subscriptions.len() + pending.count() >= limits.topics_max {
            return Err(SubscribeError::TooMany { topics_max: limits.topics_max });
        }
        self.context.intents.push(Intent::Subscribe(topic.into()));
        Ok(())
    }

    /// Ends a subscription. Publications that have not been queued for this connection yet will not be.
    pub fn unsubscribe(&mut self, topic: &str) {
        self.context.intents.push(Intent::Unsubscribe(topic.into()));
    }

    /// How many topics this connection subscribes to.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// Publishes a message to all subscribers of a topic on all shards, except this connection.
    ///
    /// The message is encoded once. It leaves at the end of the turn, or of the topic's window.
    pub fn publish<'m>(&mut self, topic: &str, message: impl Into<Message<'m>>) -> PublishStatus {
        self.post(topic, 0, message.into(), Some(self.id))
    }

    /// Publishes a message to all subscribers of a topic on all shards, this connection among them if it
    /// subscribes.
    pub fn publish_to_all<'m>(&mut self, topic: &str, message: impl Into<Message<'m>>) -> PublishStatus {
        self.post(topic, 0, message.into(), None)
    }

    /// Publishes the newest value of `key` within a topic that conflates: for subscribers who have fallen
    /// behind it replaces the older value of the same key.
    pub fn publish_keyed<'m>(
        &mut self,
        topic: &str,
        key: u64,
        message: impl Into<Message<'m>>,
    ) -> PublishStatus {
        self.post(topic, key, message.into(), Some(self.id))
    }

    fn post(
        &mut self,
        topic: &str,
        key: u64,
        message: Message<'_>,
        publisher: Option<ConnectionId>,
    ) -> PublishStatus {
        let topics = &mut self.context.topics;
        let index = topics.intern(topic);
        let post = Post { opcode: opcode(message.kind()), payload: message.bytes(), publisher, key };
        self.context.counters.publications.add(1);
        if topics.post(index, post) { PublishStatus::Published } else { PublishStatus::NoSubscribers }
    }

    /// Sends a message that was encoded before, for many connections or many times.
    pub fn send_prepared(&mut self, message: &PreparedMessage) -> SendStatus {
        let frame = LocalFrame::new(message.0.clone());
        let bytes = frame.bytes().len();
        let full = self.context.settings.outbox.full;
        self.context.queue(self.endpoint, full, bytes, 1, |endpoint, context| {
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
        let mut frame = Vec::with_capacity(message.bytes().len() + 10);
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
        let mut budget = ENVELOPES_PER_TURN_MAX;
        while budget > 0
            && let Some(envelope) = self.pending.pop_front().or_else(|| self.mesh.receive_from_inbox())
        {
            self.handle_envelope(envelope, None);
            budget -= 1;
        }
        for from in 0..self.mesh.shards() {
            while budget > 0
                && let Some(envelope) = self.mesh.receive_from(from)
            {
                self.handle_envelope(envelope, Some(from));
                budget -= 1;
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
        self.context.topics.seal(topic);
    }

    pub(super) fn carry_out_intents(&mut self, id: ConnectionId) {
        if self.context.intents.is_empty() {
            return;
        }
        for intent in std::mem::take(&mut self.context.intents) {
            match intent {
                Intent::Subscribe(topic) => self.subscribe(id, &topic),
                Intent::Unsubscribe(topic) => self.unsubscribe(id, &topic),
            }
        }
    }

    pub(super) fn unsubscribe_all(&mut self, id: ConnectionId) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        for subscription in std::mem::take(&mut slot.subscriptions) {
            self.remove_subscriber(subscription);
        }
    }

    fn subscribe(&mut self, id: ConnectionId, name: &str) {
        // What has been published before is delivered before, to those who subscribed before.
        self.receive_publications();
        let topics = &mut self.context.topics;
        let index = topics.intern(name);
        topics.seal(index);
        self.deliver_ready();
        let fence: Option<Rc<[u64]>> = self.mesh.fence().map(Into::into);
        let Some(slot) = find(&mut self.slots, id).filter(|slot| slot.endpoint.is_open()) else { return };
        if slot.subscriptions.iter().any(|subscription| subscription.topic == index) {
            return;
        }
        let subscriber = Subscriber { slot: id.index() as u32, fence };
        let position = self.context.topics.subscribe(index, subscriber);
        slot.subscriptions.push(Subscription { topic: index, position });
        self.context.counters.subscriptions.add(1);
    }

    fn unsubscribe(&mut self, id: ConnectionId, name: &str) {
        let Some(index) = self.context.topics.find(name) else { return };
        let Some(slot) = find(&mut self.slots, id) else { return };
        let found = slot.subscriptions.iter().position(|subscription| subscription.topic == index);
        if let Some(found) = found {
            let subscription = slot.subscriptions.swap_remove(found);
            self.remove_subscriber(subscription);
        }
    }

    fn remove_subscriber(&mut self, subscription: Subscription) {
        let moved = self.context.topics.unsubscribe(subscription);
        let Some(slot) = moved.and_then(|moved| self.slots.get_mut(moved as usize)) else { return };
        let topic = subscription.topic;
        if let Some(entry) = slot.subscriptions.iter_mut().find(|entry| entry.topic == topic) {
            entry.position = subscription.position;
        }
    }

    /// Takes publications out of the mesh; other envelopes wait for their turn.
    fn receive_publications(&mut self) {
        while let Some(envelope) = self.mesh.receive_from_inbox() {
            self.sort_envelope(envelope, None);
        }
        for from in 0..self.mesh.shards() {
            while let Some(envelope) = self.mesh.receive_from(from) {
                self.sort_envelope(envelope, Some(from));
            }
        }
    }

    fn sort_envelope(&mut self, envelope: Envelope, from: Option<usize>) {
        match envelope {
            Envelope::Publish(publication) => self.receive_publication(publication, from),
            other => self.pending.push_back(other),
        }
    }

    fn handle_envelope(&mut self, envelope: Envelope, from: Option<usize>) {
        match envelope {
            Envelope::Publish(publication) => self.receive_publication(publication, from),
            Envelope::Send { id, frame, reply } => {
                let outcome = self.send_prepared(id, PreparedMessage(frame));
                reply.map(|reply| reply.send(outcome));
            }
            Envelope::Close { id, code, reason, reply } => {
                let open = self.is_open(id);
                if open {
                    self.call(id, |_, connection| connection.close(code, &reason));
                    self.settle(id);
                    self.mark_dirty(id);
                }
                reply.map(|reply| reply.send(if open { Ok(()) } else { Err(self.gone()) }));
            }
            Envelope::Run(action) => {
                let handler: &mut dyn Any = &mut self.handler;
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| action(handler))).is_err() {
                    self.context.counters.handler_panics.add(1);
                }
            }
        }
    }

    fn send_prepared(&mut self, id: ConnectionId, message: PreparedMessage) -> Result<SendStatus, Gone> {
        if !self.is_open(id) {
            return Err(self.gone());
        }
        let mut status = SendStatus::Dropped;
        self.call(id, |_, connection| status = connection.send_prepared(&message));
        self.settle(id);
        self.mark_dirty(id);
        Ok(status)
    }

    fn is_open(&self, id: ConnectionId) -> bool {
        self.endpoint(id).is_some_and(|endpoint| endpoint.is_open())
    }

    fn gone(&self) -> Gone {
        self.context.counters.stale_ids.add(1);
        Gone
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

    fn deliver_ready(&mut self) {
        while let Some(ready) = self.context.topics.poll_ready() {
            if ready.route != Route::Here {
                self.forward(&ready.publication);
            }
            if ready.route != Route::Elsewhere {
                self.deliver(&ready, None);
            }
        }
    }

    fn forward(&mut self, publication: &Publication) {
        for shard in 0..self.mesh.shards() {
            if shard == self.mesh.index() || !publication.topic.interests(shard) {
                continue;
            }
            match self.mesh.send(shard, Envelope::Publish(publication.clone())) {
                Ok(()) => self.context.counters.envelopes_sent.add(1),
                Err(_) => self.context.counters.envelopes_refused.add(u64::from(publication.count)),
            }
        }
    }

    fn deliver(&mut self, ready: &Ready, from: Option<usize>) {
        let Self { slots, context, mesh, .. } = self;
        let Some(topic) = context.topics.topic(ready.topic) else { return };
        let publication = &ready.publication;
        let frame = LocalFrame::new(SharedFrame::new(std::sync::Arc::clone(&publication.frames)));
        let key = match topic.settings.conflation {
            Conflation::Latest => Some(ConflationKey { topic: ready.topic, key: publication.key }),
            Conflation::Off => None,
        };
        let full = topic.settings.full.unwrap_or(context.settings.outbox.full);
        let count = topic.subscribers.len();
        for position in 0..count {
            let Some(topic) = context.topics.topic(ready.topic) else { return };
            let Some(subscriber) = topic.subscribers.get(position) else { return };
            if let (Some(fence), Some(from)) = (&subscriber.fence, from)
                && fence.get(from).is_some_and(|sent| mesh.received(from) <= *sent)
            {
                continue;
            }
            let index = subscriber.slot as usize;
            let Some(slot) = slots.get_mut(index) else { continue };
            let id = ConnectionId::new(context.shard, index as u32, slot.generation);
            let own = publication.own.as_ref().filter(|own| own.iter().any(|own| own.publisher == id));
            let (frame, messages) = match own {
                None => (&frame, publication.count),
                Some(own) => {
                    let Some((rest, messages)) = without_own(publication, own, id) else { continue };
                    (&LocalFrame::new(SharedFrame::new(rest)), messages)
                }
            };
            let bytes = frame.bytes().len();
            let was_open = slot.endpoint.is_open();
            let mut replaced = false;
            let Slot { endpoint, dirty, .. } = slot;
            let status = context.queue(endpoint, full, bytes, messages, |endpoint, context| {
                Ok(match endpoint.send_shared(frame, key, &context.settings)? {
                    SharedStatus::Queued(status) => status,
                    SharedStatus::Replaced => {
                        replaced = true;
                        SendStatus::Backpressure
                    }
                })
            });
            context.counters.conflated.add(u64::from(replaced));
            if status.is_sent() {
                context.counters.deliveries.add(u64::from(messages));
            }
            // One that was given up has a close frame to send, a deadline to set, and perhaps a pause to end.
            let gave_up = was_open && !endpoint.is_open();
            if (status.is_sent() || gave_up) && !*dirty {
                *dirty = true;
                context.dirty.push(id);
            }
        }
    }
}

/// The frames of a publication that connection `id` has not published itself.
fn without_own(
    publication: &Publication,
    own: &[super::envelope::OwnFrame],
    id: ConnectionId,
) -> Option<(Vec<u8>, u32)> {
    let mut rest = Vec::with_capacity(publication.frames.len());
    let (mut position, mut messages) = (0, publication.count);
    for frame in own.iter().filter(|frame| frame.publisher == id) {
        rest.extend_from_slice(&publication.frames[position..frame.start]);
        position = frame.end;
        messages -= 1;
    }
    rest.extend_from_slice(&publication.frames[position..]);
    (messages > 0).then_some((rest, messages))
}
