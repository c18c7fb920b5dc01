//! The queue of an outbox: entries in the order in which they leave, and, while it is long, an index of what
//! newer publications replace.
//!
//! Invariant: where there is an index, it knows the newest entry of each key. An entry's number is its
//! position plus the number of those that left in front of it, so nothing is renumbered when one leaves.

use std::collections::{HashMap, VecDeque};

use crate::buffer::SendBuffer;

/// What a newer publication replaces an older one by: the topic and the publisher's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConflationKey {
    /// The topic's number in its shard, not used for any other.
    pub topic: u64,
    /// The key within the topic.
    pub key: u64,
}

/// Up to this length the queue is walked: that is faster than hashing.
const WALKED_ENTRIES_MAX: usize = 32;
/// Keys that the index keeps beyond twice the entries before it forgets those that have left.
const STALE_KEYS_MAX: usize = 64;

/// Buffers that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    index: Option<Box<Index>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) buffer: SendBuffer,
    /// Of a publication to a topic that conflates: what newer ones replace it by.
    pub(super) key: Option<ConflationKey>,
}

#[derive(Debug, Default)]
struct Index {
    /// The number of the entry in front.
    front: u64,
    newest: HashMap<ConflationKey, u64>,
}

impl Entry {
    fn holds(&self, key: ConflationKey) -> bool {
        self.key == Some(key) && !self.buffer.is_torn()
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    pub(super) fn back_mut(&mut self) -> Option<&mut Entry> {
        self.entries.back_mut()
    }

    pub(super) fn get_mut(&mut self, position: usize) -> Option<&mut Entry> {
        self.entries.get_mut(position)
    }

    pub(super) fn push_back(&mut self, entry: Entry) {
        if self.entries.capacity() == 0 {
            // Most connections never have more than one: room for four would be their largest part.
            self.entries.reserve_exact(1);
        }
        if let (Some(index), Some(key)) = (&mut self.index, entry.key) {
            index.newest.insert(key, index.front.wrapping_add(self.entries.len() as u64));
            index.forget_stale(self.entries.len());
        }
        self.entries.push_back(entry);
    }

    /// Puts back what did not leave as a whole; it has no key any more.
    pub(super) fn push_front(&mut self, buffer: SendBuffer) {
        if let Some(index) = &mut self.index {
            index.front = index.front.wrapping_sub(1);
        }
        self.entries.push_front(Entry { buffer, key: None });
    }

    pub(super) fn pop_front(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.note_left();
        Some(entry)
    }

    /// Takes the entry at `position` out; those in front of it must be without a key.
    pub(super) fn remove(&mut self, position: usize) {
        debug_assert!(self.entries.iter().take(position).all(|entry| entry.key.is_none()));
        if self.entries.remove(position).is_some() {
            self.note_left();
        }
    }

    /// Keeps the entries for which `keep` answers yes.
    pub(super) fn retain(&mut self, keep: impl FnMut(&mut Entry) -> bool) {
        self.index = None;
        self.entries.retain_mut(keep);
    }

    /// The newest entry with this key, unless a part of it has left.
    pub(super) fn newest(&mut self, key: ConflationKey) -> Option<&mut Entry> {
        if self.index.is_none() {
            if self.entries.len() <= WALKED_ENTRIES_MAX {
                return self.entries.iter_mut().rev().find(|entry| entry.holds(key));
            }
            self.index = Some(Box::new(Index::of(&self.entries)));
        }
        let index = self.index.as_ref()?;
        let position = index.newest.get(&key)?.wrapping_sub(index.front);
        self.entries.get_mut(usize::try_from(position).ok()?).filter(|entry| entry.holds(key))
    }

    /// Gives the index back: it is not needed for the time being.
    pub(super) fn forget_index(&mut self) {
        self.index = None;
    }

    /// Gives back the memory of an empty queue.
    pub(super) fn shrink(&mut self) {
        if self.entries.is_empty() {
            *self = Self::default();
        }
    }

    fn note_left(&mut self) {
        if let Some(index) = &mut self.index {
            index.front = index.front.wrapping_add(1);
        }
    }
}

impl Index {
    fn of(entries: &VecDeque<Entry>) -> Self {
        let keys = entries.iter().zip(0..).filter_map(|(entry, number)| Some((entry.key?, number)));
        Self { front: 0, newest: keys.collect() }
    }

    /// Keys whose entries have left stay until they are too many for the `entries` that are queued.
    fn forget_stale(&mut self, entries: usize) {
        if self.newest.len() > 2 * entries + STALE_KEYS_MAX {
            let front = self.front;
            self.newest.retain(|_, number| number.wrapping_sub(front) <= entries as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::buffer::{LocalFrame, SharedFrame};

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(Option<u64>),
        Pop,
        /// What was popped comes back, a part of it sent.
        Return,
        Remove,
        Replace(u64),
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..100u64).prop_map(|key| Step::Push((key < 80).then_some(key))),
            2 => Just(Step::Pop),
            1 => Just(Step::Return),
            1 => Just(Step::Remove),
            8 => (0..80u64).prop_map(Step::Replace),
            1 => Just(Step::Forget),
        ]
    }

    fn key(key: u64) -> ConflationKey {
        ConflationKey { topic: key % 2, key: key / 2 }
    }

    fn entry(number: u32, key: Option<ConflationKey>) -> Entry {
        let frame = SharedFrame::new(number.to_ne_bytes().to_vec());
        Entry { buffer: SendBuffer::shared(LocalFrame::new(frame)), key }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn the_index_finds_what_a_walk_finds(steps in prop::collection::vec(step(), 0..600)) {
            let mut queue = Queue::default();
            for (step, number) in steps.into_iter().zip(0..) {
                match step {
                    Step::Push(value) => queue.push_back(entry(number, value.map(key))),
                    Step::Pop => drop(queue.pop_front()),
                    Step::Return => {
                        if let Some(mut popped) = queue.pop_front() {
                            popped.buffer.advance(1);
                            queue.push_front(popped.buffer);
                        }
                    }
                    Step::Remove => {
                        let position = queue.iter().position(|entry| !entry.buffer.is_torn());
                        if let Some(position) = position {
                            queue.remove(position);
                        }
                    }
                    Step::Replace(value) => {
                        let walked = queue.entries.iter().rev().find(|entry| entry.holds(key(value)));
                        let walked = walked.map(|entry| entry.buffer.unsent().to_vec());
                        let found = queue.newest(key(value)).map(|entry| {
                            let bytes = entry.buffer.unsent().to_vec();
                            entry.buffer = self::entry(number, None).buffer;
                            bytes
                        });
                        prop_assert_eq!(found, walked);
                    }
                    Step::Forget => queue.forget_index(),
                }
            }
        }
    }

    #[test]
    fn keys_that_have_left_are_forgotten() {
        let mut queue = Queue::default();
        (0..100).for_each(|number| queue.push_back(entry(number, Some(key(number.into())))));
        assert!(queue.newest(key(0)).is_some());
        for number in 100..10_000 {
            queue.push_back(entry(number, Some(key(number.into()))));
            assert!(queue.pop_front().is_some());
        }
        assert!(queue.newest(key(0)).is_none());
        assert!(queue.newest(key(9_999)).is_some());
        let kept = queue.index.as_ref().map(|index| index.newest.len());
        assert!(kept.is_some_and(|kept| kept <= 2 * 100 + STALE_KEYS_MAX + 1), "{kept:?}");
    }
}
