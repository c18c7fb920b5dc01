//! The pool of buffers that frames and messages are put together in: small frames bound for one connection
//! are written one after the other into a *cork* buffer and leave in one send; a message in pieces, or a
//! frame of some size, gets a *large* one.
//!
//! Invariants: every pooled buffer is empty; cork buffers hold between `CORK_BYTES` and `CORK_BYTES_MAX` of
//! capacity, large ones more; the large ones together hold at most `LARGE_BYTES_MAX`.

/// Capacity of a new cork buffer.
const CORK_BYTES: usize = 2048;
/// A buffer that has grown beyond this is a large one.
const CORK_BYTES_MAX: usize = 32 * 1024;
/// How many idle cork buffers a pool keeps at most.
const IDLE_MAX: usize = 1024;
/// How many a pool begins with, and does not free when they are not needed: how many sends are in flight at
/// once varies from second to second, and what one second freed the next one would allocate again. Nor do
/// they shrink where they have grown, for the same reason: 2 MiB a shard at most.
const IDLE_MIN: usize = 64;
/// How much memory idle large buffers keep. Fresh memory costs a page fault for every 4 KiB, which is a fifth
/// of what it takes to echo a message of 1 MiB.
const LARGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Recycles buffers, so that sending a message allocates nothing.
#[derive(Debug)]
pub struct CorkPool {
    corks: Idle,
    large: Idle,
    large_bytes: usize,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    /// The fewest buffers since the pool was last shrunk: those have not been needed.
    fewest: usize,
}

impl Default for CorkPool {
    fn default() -> Self {
        Self::new()
    }
}

impl CorkPool {
    /// A pool with a few cork buffers ready.
    #[must_use]
    pub fn new() -> Self {
        let buffers = (0..IDLE_MIN).map(|_| Vec::with_capacity(CORK_BYTES)).collect();
        let corks = Idle { buffers, fewest: IDLE_MIN };
        Self { corks, large: Idle::default(), large_bytes: 0 }
    }

    /// An empty buffer with room for at least `bytes`.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        if bytes > CORK_BYTES_MAX {
            return self.take_large(bytes);
        }
        let mut buffer =
            self.corks.take_newest().unwrap_or_else(|| Vec::with_capacity(CORK_BYTES.max(bytes)));
        buffer.reserve(bytes);
        buffer
    }

    /// A buffer with these bytes; nothing is taken for none.
    #[must_use]
    pub fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() {
            return Vec::new();
        }
        let mut buffer = self.take(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        match buffer.capacity() {
            CORK_BYTES..=CORK_BYTES_MAX if self.corks.buffers.len() < IDLE_MAX => {
                self.corks.buffers.push(buffer);
            }
            large if large > CORK_BYTES_MAX && self.large_bytes + large <= LARGE_BYTES_MAX => {
                self.large_bytes += large;
                self.large.buffers.push(buffer);
            }
            _ => {}
        }
    }

    /// Frees half of the buffers that have been idle since the last call, but for a few cork buffers; to be
    /// called now and then.
    pub fn shrink(&mut self) {
        self.corks.shrink(IDLE_MIN);
        self.large.shrink(0);
        self.large_bytes = self.large.buffers.iter().map(Vec::capacity).sum();
    }

    fn take_large(&mut self, bytes: usize) -> Vec<u8> {
        match self.large.take_fitting(|buffer| buffer.capacity() >= bytes) {
            Some(buffer) => {
                self.large_bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(bytes),
        }
    }
}

impl Idle {
    fn take_newest(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.fewest = self.fewest.min(self.buffers.len());
        Some(buffer)
    }

    /// The newest that `fits`.
    fn take_fitting(&mut self, fits: impl Fn(&Vec<u8>) -> bool) -> Option<Vec<u8>> {
        let position = self.buffers.iter().rposition(fits)?;
        let buffer = self.buffers.swap_remove(position);
        self.fewest = self.fewest.min(self.buffers.len());
        Some(buffer)
    }

    /// Frees half of what was not needed, down to `kept` buffers.
    fn shrink(&mut self, kept: usize) {
        self.buffers.truncate((self.buffers.len() - self.fewest.div_ceil(2)).max(kept));
        self.fewest = self.buffers.len();
        if kept == 0 && self.buffers.is_empty() {
            self.buffers.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty() {
        let mut pool = CorkPool::new();
        let mut buffer = pool.take(10);
        buffer.extend_from_slice(b"hello");
        let address = buffer.as_ptr();
        pool.give(buffer);
        let again = pool.take(10);
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), address);
    }

    #[test]
    fn only_what_was_not_needed_is_freed() {
        let mut pool = CorkPool::new();
        let take_and_give = |pool: &mut CorkPool, count: usize, bytes: usize| {
            let buffers: Vec<_> = (0..count).map(|_| pool.take(bytes)).collect();
            buffers.into_iter().for_each(|buffer| pool.give(buffer));
        };
        take_and_give(&mut pool, 200, 10);
        pool.shrink();
        assert_eq!(pool.corks.buffers.len(), 200, "all of them were out");
        take_and_give(&mut pool, 160, 10);
        for left in [180, 90, IDLE_MIN, IDLE_MIN] {
            pool.shrink();
            assert_eq!(pool.corks.buffers.len(), left);
        }
        take_and_give(&mut pool, 10, LARGE_BYTES_MAX / 10);
        pool.shrink();
        take_and_give(&mut pool, 6, LARGE_BYTES_MAX / 10);
        for left in [8, 4, 2, 1, 0] {
            pool.shrink();
            assert_eq!(pool.large.buffers.len(), left);
        }
    }

    #[test]
    fn large_buffers_are_kept_up_to_their_limit() {
        let mut pool = CorkPool::new();
        let (small, large) = (CORK_BYTES_MAX + 1, LARGE_BYTES_MAX / 2);
        pool.give(Vec::with_capacity(large));
        pool.give(Vec::with_capacity(large + 1));
        assert_eq!(pool.large_bytes, large, "no room for the second");
        let buffer = pool.take(small);
        assert_eq!((buffer.capacity(), pool.large_bytes), (large, 0));
        pool.give(Vec::with_capacity(small));
        assert!(pool.take(large).capacity() >= large, "the one that is there is too small");
        assert_eq!(pool.large_bytes, small);
        pool.shrink();
        pool.shrink();
        assert_eq!(pool.large_bytes, 0);
    }
}
