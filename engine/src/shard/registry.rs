//! Which shards have subscribers of which topic: the one thing about topics that all threads share.
//!
//! A shard or a foreign publisher looks a topic up once and keeps the entry; after that, asking who is
//! interested costs one atomic load per shard and no lock. Invariant: `subscribers[shard]` is written by that
//! shard only.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

/// All topics that anybody uses at the moment.
#[derive(Debug)]
pub struct TopicRegistry {
    parts: [Mutex<Part>; PARTS],
    hasher: RandomState,
    /// How many parts have been swept.
    swept: AtomicUsize,
    shards: usize,
}

type Part = HashMap<Arc<str>, Arc<TopicInterest>>;

/// Looking at every entry of a part is to be no long time to wait for its lock, even with a million topics.
const PARTS: usize = 64;

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
        Arc::new(Self {
            parts: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            swept: AtomicUsize::new(0),
            shards,
        })
    }

    fn part(&self, name: &str) -> MutexGuard<'_, Part> {
        lock(&self.parts[self.hasher.hash_one(name) as usize % PARTS])
    }

    /// The entry of a topic, made if there is none.
    #[must_use]
    pub fn intern(&self, name: &str) -> Arc<TopicInterest> {
        let mut topics = self.part(name);
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
        self.part(name).get(name).map(Arc::clone)
    }

    /// Lets a topic go, and forgets it if nobody else holds it.
    pub fn release(&self, interest: Arc<TopicInterest>) {
        let name = Arc::clone(&interest.name);
        let mut topics = self.part(&name);
        drop(interest);
        // Clones are made under this lock, or of one that is held: a count of one is final.
        if topics.get(&name).is_some_and(|interest| Arc::strong_count(interest) == 1) {
            topics.remove(&name);
        }
    }

    /// Forgets topics that nobody holds any more and nobody released: envelopes on their way hold them as
    /// well. Every entry of a part of the topics is looked at, of another part each time.
    pub fn sweep_some(&self) {
        let part = self.swept.fetch_add(1, Ordering::Relaxed) % PARTS;
        lock(&self.parts[part]).retain(|_, interest| Arc::strong_count(interest) > 1);
    }

    /// How many topics are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| lock(part).len()).sum()
    }

    /// No topic is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
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
        registry.release(one);
        (0..PARTS).for_each(|_| registry.sweep_some());
        assert_eq!(registry.len(), 1);
        registry.release(two);
        assert!(registry.is_empty() && registry.find("news").is_none());
        drop(registry.intern("news"));
        (0..PARTS).for_each(|_| registry.sweep_some());
        assert!(registry.is_empty());
    }
}
