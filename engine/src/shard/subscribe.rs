//! Subscribing: the wishes of a handler's call, and what carries them out when it has returned.
//!
//! A subscription begins after everything that had been sent to this shard before it; see `docs/order.md`.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    Connection, ConnectionId, Handler, Shard, find,
    topics::{Subscriber, Subscription},
};

/// Why a subscription was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// [`Handler::allows_subscription`] said no.
    #[error("the handler does not allow this subscription")]
    NotAllowed,
    /// The name is empty or longer than `topic_name_bytes_max`.
    #[error("the topic's name has {bytes} bytes: topic_name_bytes_max allows 1 to {bytes_max}")]
    Name {
        /// Its length.
        bytes: usize,
        /// The longest that is allowed.
        bytes_max: usize,
    },
    /// The connection has `topics_per_connection_max` subscriptions already.
    #[error("the connection has {topics_max} subscriptions already: topics_per_connection_max")]
    TooMany {
        /// How many are allowed.
        topics_max: usize,
    },
    /// The connection is closing.
    #[error("the connection is closing")]
    Closing,
}

/// Changes of subscriptions that take effect when the handler has returned.
///
/// Invariant: nothing but differences from what the connection has, `joined` topics to subscribe to and
/// `left` ones to unsubscribe from. A call may ask for any number of changes: each is found by its topic.
#[derive(Debug, Default)]
pub(super) struct Intents {
    topics: BTreeMap<Box<str>, Intent>,
    joined: usize,
    left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intent {
    Subscribe,
    Unsubscribe,
}

impl Intents {
    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }
}

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
        if !limits.allow_name(topic) {
            return Err(SubscribeError::Name { bytes: topic.len(), bytes_max: limits.name_bytes_max });
        }
        if !self.is_open() {
            return Err(SubscribeError::Closing);
        }
        if !(self.allows_subscription)(self.session, topic) {
            return Err(SubscribeError::NotAllowed);
        }
        if self.is_subscribed(topic) {
            return Ok(());
        }
        let topics_max = self.context.topic_limits.topics_max;
        if self.subscriptions() >= topics_max {
            return Err(SubscribeError::TooMany { topics_max });
        }
        let intents = &mut self.context.intents;
        if intents.topics.remove(topic).is_some() {
            intents.left -= 1;
        } else {
            intents.topics.insert(topic.into(), Intent::Subscribe);
            intents.joined += 1;
        }
        Ok(())
    }

    /// Whether this connection subscribes to a topic, when the handler has returned.
    #[must_use]
    pub fn is_subscribed(&self, topic: &str) -> bool {
        if let Some(intent) = self.context.intents.topics.get(topic) {
            return *intent == Intent::Subscribe;
        }
        let index = self.context.topics.find(topic);
        index.is_some_and(|index| self.subscriptions.iter().any(|entry| entry.topic == index))
    }

    /// Ends a subscription. Publications that have not been queued for this connection yet will not be.
    pub fn unsubscribe(&mut self, topic: &str) {
        if !self.is_subscribed(topic) {
            return;
        }
        let intents = &mut self.context.intents;
        if intents.topics.remove(topic).is_some() {
            intents.joined -= 1;
        } else {
            intents.topics.insert(topic.into(), Intent::Unsubscribe);
            intents.left += 1;
        }
    }

    /// How many topics this connection subscribes to, when the handler has returned.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        let Intents { joined, left, .. } = self.context.intents;
        self.subscriptions.len() + joined - left
    }

    /// The topics that this connection subscribes to, when the handler has returned, in no order. In
    /// [`Handler::on_close`] they are those that it is about to leave.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        let (wishes, table) = (&self.context.intents.topics, &self.context.topics);
        let names = self.subscriptions.iter().filter_map(|entry| table.topic(entry.topic));
        let kept = names.map(|topic| topic.interest.name()).filter(|name| !wishes.contains_key(*name));
        let joined = wishes.iter().filter(|(_, intent)| **intent == Intent::Subscribe);
        kept.chain(joined.map(|(name, _)| &**name))
    }

    /// How many subscribers a topic has on all shards, this connection among them if it subscribes: what is
    /// changed in the same call is not in effect yet. A connection that closes is one until it has ended. A
    /// topic that this shard does not know is looked up under a lock that all threads share.
    #[must_use]
    pub fn subscribers(&self, topic: &str) -> usize {
        self.context.topics.subscribers(topic)
    }
}

impl<H: Handler> Shard<H> {
    pub(super) fn carry_out_intents(&mut self, id: ConnectionId) {
        if self.context.intents.is_empty() {
            return;
        }
        for (topic, intent) in std::mem::take(&mut self.context.intents).topics {
            match intent {
                Intent::Subscribe => self.subscribe(id, &topic),
                Intent::Unsubscribe => self.unsubscribe(id, &topic),
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
        let entry = slot.subscriptions.len() as u32;
        let subscriber = Subscriber { slot: id.index() as u32, entry, fence };
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
            if let Some(moved) = slot.subscriptions.get(found) {
                self.context.topics.move_entry(*moved, found);
            }
            self.remove_subscriber(subscription);
        }
    }

    fn remove_subscriber(&mut self, subscription: Subscription) {
        let Some((slot, entry)) = self.context.topics.unsubscribe(subscription) else { return };
        let Some(slot) = self.slots.get_mut(slot as usize) else { return };
        if let Some(moved) = slot.subscriptions.get_mut(entry as usize) {
            debug_assert_eq!(moved.topic, subscription.topic);
            moved.position = subscription.position;
        }
    }
}
