//! Which shards have subscribers of which topic: the one thing about topics that all threads share.
//!
//! A shard or a foreign publisher looks a topic up once and keeps the entry; after that, asking who is
//! interested costs one atomic load per shard and no lock. Invariant: `subscribers[shard]` is written by that
//! shard only.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// All topics that anybody uses at the moment.
#[derive(Debug)]
pub struct TopicRegistry {
    topics: Mutex<HashMap<Arc<str>, Arc<TopicInterest>>>,
    shards: usize,
}

/// How many subscribers of one topic each shard has.
#[derive(Debug)]
pub struct TopicInterest {
    name: Arc<str>,
    subscribers: Box<[AtomicU32]>,
}

impl TopicRegistry {
    /// A registry for an engine of `shards`.
    #[must_use]
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self { topics: Mutex::default(), shards })
    }

    /// The entry of a topic, made if there is none.
    #[must_use]
    pub fn intern(&self, name: &str) -> Arc<TopicInterest> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interest) = topics.get(name) {
            return Arc::clone(interest);
        }
        let name: Arc<str> = name.into();
        let subscribers = (0..self.shards).map(|_| AtomicU32::new(0)).collect();
        let interest = Arc::new(TopicInterest { name: Arc::clone(&name), subscribers });
        topics.insert(name, Arc::clone(&interest));
        interest
    }

    /// The entry of a topic, if anybody uses it.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<TopicInterest>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone)
    }

    /// Removes the topics that nobody holds any more. Every entry is looked at: not for every turn.
    pub fn sweep(&self) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        // Clones are made under this lock, so a count of one is final.
        topics.retain(|_, interest| Arc::strong_count(interest) > 1);
    }

    /// How many topics are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// No topic is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TopicInterest {
    /// The topic's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many subscribers there are on all shards.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.subscribers.iter().map(|count| count.load(Ordering::SeqCst) as usize).sum()
    }

    /// Whether a shard has subscribers.
    #[must_use]
    pub fn interests(&self, shard: usize) -> bool {
        self.subscribers.get(shard).is_some_and(|count| count.load(Ordering::SeqCst) > 0)
    }

    pub(super) fn set_subscribers(&self, shard: usize, count: usize) {
        self.subscribers[shard].store(count as u32, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_stays_while_it_is_held() {
        let registry = TopicRegistry::new(2);
        let (one, two) = (registry.intern("news"), registry.intern("news"));
        one.set_subscribers(1, 3);
        assert!(two.interests(1) && !two.interests(0));
        assert_eq!(two.subscribers(), 3);
        drop(one);
        registry.sweep();
        assert_eq!(registry.len(), 1);
        drop(two);
        registry.sweep();
        assert!(registry.is_empty() && registry.find("news").is_none());
    }
}
