//! The queue through which any thread reaches a shard, and what limits the bytes on a way.

#[cfg(loom)]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use super::Full;

/// Values that wait in an inbox.
const INBOX_CAPACITY: usize = if cfg!(loom) { 1 } else { 16 * 1024 };
/// Bytes that are on one way, from one shard to another or in an inbox. A single value that is larger passes
/// when nothing else is on the way.
pub(super) const WAY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much memory a value holds besides its place in a queue.
pub trait Weight {
    /// In bytes.
    fn bytes(&self) -> usize;
}

/// The bytes on one way, counted by both of its ends.
#[derive(Debug, Default)]
pub(super) struct Load(AtomicUsize);

impl Load {
    /// Adds what is to be sent, if the limit allows it. What is refused is never counted, not even for a
    /// moment: others would be refused for its sake.
    pub(super) fn add(&self, bytes: usize) -> Result<(), Full> {
        let with = |before: usize| {
            let after = before.saturating_add(bytes);
            (before == 0 || after <= WAY_BYTES_MAX).then_some(after)
        };
        // The count guards no other memory: the queues order what is in them.
        let added = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with);
        added.map(drop).map_err(|_| Full)
    }

    /// Adds what is there already, whatever the limit.
    fn add_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Removes what has arrived or was not sent after all.
    pub(super) fn remove(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The queue through which any thread reaches a shard.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: ArrayQueue<T>,
    /// How many values were taken out before their turn.
    held: AtomicUsize,
    load: Load,
}

impl<T: Weight> Inbox<T> {
    pub(super) fn new() -> Self {
        Self { queue: ArrayQueue::new(INBOX_CAPACITY), held: AtomicUsize::new(0), load: Load::default() }
    }

    /// Puts a value in, from any thread.
    ///
    /// # Errors
    /// When there is no room for one more, or not for so many bytes; the value is dropped.
    pub fn push(&self, value: T) -> Result<(), Full> {
        if self.held.load(Ordering::Relaxed) >= INBOX_CAPACITY {
            return Err(Full);
        }
        let bytes = value.bytes();
        self.load.add(bytes)?;
        self.queue.push(value).map_err(|_| {
            self.load.remove(bytes);
            Full
        })
    }

    /// The next value.
    pub fn pop(&self) -> Option<T> {
        let value = self.queue.pop()?;
        self.load.remove(value.bytes());
        Some(value)
    }

    /// A value that was taken out before its turn counts as if it waited here still.
    pub(super) fn hold(&self, value: &T) {
        self.held.fetch_add(1, Ordering::Relaxed);
        self.load.add_back(value.bytes());
    }

    /// The turn of a [held](Self::hold) value has come.
    pub(super) fn release(&self, value: &T) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.load.remove(value.bytes());
    }

    /// How many values wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[derive(Debug)]
    struct Heavy(usize);

    impl Weight for Heavy {
        fn bytes(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn an_inbox_is_full_by_bytes_or_by_values() {
        let inbox = Inbox::new();
        assert_eq!(inbox.push(Heavy(2 * WAY_BYTES_MAX)), Ok(()), "one always passes");
        assert_eq!(inbox.push(Heavy(1)), Err(Full));
        assert!(inbox.pop().is_some() && inbox.is_empty());
        assert_eq!(inbox.push(Heavy(WAY_BYTES_MAX - 1)), Ok(()));
        assert_eq!(inbox.push(Heavy(1)), Ok(()));
        assert_eq!(inbox.push(Heavy(1)), Err(Full));
        while inbox.pop().is_some() {}
        for _ in 0..INBOX_CAPACITY {
            assert_eq!(inbox.push(Heavy(1)), Ok(()));
        }
        assert_eq!(inbox.push(Heavy(1)), Err(Full));
        while inbox.pop().is_some() {}
        assert_eq!(inbox.push(Heavy(WAY_BYTES_MAX)), Ok(()), "what was refused is not counted");
    }

    #[test]
    fn what_was_taken_out_before_its_turn_counts_still() {
        let inbox = Inbox::new();
        assert_eq!(inbox.push(Heavy(WAY_BYTES_MAX)), Ok(()));
        let heavy = inbox.pop().expect("it is there");
        inbox.hold(&heavy);
        assert_eq!(inbox.push(Heavy(1)), Err(Full), "no more bytes");
        inbox.release(&heavy);
        for _ in 0..INBOX_CAPACITY {
            assert_eq!(inbox.push(Heavy(1)), Ok(()));
            inbox.hold(&inbox.pop().expect("it is there"));
        }
        assert_eq!(inbox.push(Heavy(1)), Err(Full), "no more values");
        inbox.release(&Heavy(1));
        assert_eq!(inbox.push(Heavy(1)), Ok(()));
    }

    #[test]
    fn what_is_being_refused_is_in_nobodys_way() {
        let inbox = Inbox::new();
        assert_eq!(inbox.push(Heavy(1)), Ok(()));
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    assert_eq!(inbox.push(Heavy(WAY_BYTES_MAX)), Err(Full));
                }
            });
            let refused = (0..200_000).find(|_| inbox.push(Heavy(1)).is_err() || inbox.pop().is_none());
            ends.store(true, Ordering::Relaxed);
            assert_eq!(refused, None);
        });
    }
}
