//! The queue through which any thread reaches a shard, and what limits the bytes on a way.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use super::Full;

/// Values that wait in an inbox.
const INBOX_CAPACITY: usize = 16 * 1024;
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
    /// Adds what is to be sent, if the limit allows it.
    pub(super) fn add(&self, bytes: usize) -> Result<(), Full> {
        // The count guards no other memory: the queues order what is in them.
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before.saturating_add(bytes) > WAY_BYTES_MAX {
            self.remove(bytes);
            return Err(Full);
        }
        Ok(())
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
    load: Load,
}

impl<T: Weight> Inbox<T> {
    pub(super) fn new() -> Self {
        Self { queue: ArrayQueue::new(INBOX_CAPACITY), load: Load::default() }
    }

    /// Puts a value in, from any thread.
    ///
    /// # Errors
    /// When there is no room for one more, or not for so many bytes; the value is dropped.
    pub fn push(&self, value: T) -> Result<(), Full> {
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
}
