//! The pool of cork buffers: small frames bound for one connection are written one after the other into such
//! a buffer and leave in one send.
//!
//! Invariant: every pooled buffer is empty and holds between `CORK_BYTES` and `CORK_BYTES_MAX` of capacity.

/// Capacity of a new cork buffer.
const CORK_BYTES: usize = 2048;
/// A buffer that has grown beyond this is given back to the allocator.
const CORK_BYTES_MAX: usize = 32 * 1024;
/// How many idle buffers a pool keeps.
const IDLE_MAX: usize = 1024;

/// Recycles cork buffers, so that sending a message allocates nothing.
#[derive(Debug, Default)]
pub struct CorkPool {
    idle: Vec<Vec<u8>>,
    /// The fewest idle buffers since the pool was last shrunk: those have not been needed.
    idle_min: usize,
}

impl CorkPool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room for at least `bytes`.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.idle.pop().unwrap_or_else(|| Vec::with_capacity(CORK_BYTES.max(bytes)));
        self.idle_min = self.idle_min.min(self.idle.len());
        buffer.reserve(bytes);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if self.idle.len() < IDLE_MAX && (CORK_BYTES..=CORK_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            self.idle.push(buffer);
        }
    }

    /// Frees half of the buffers that have been idle since the last call; to be called now and then.
    pub fn shrink(&mut self) {
        self.idle.truncate(self.idle.len() - self.idle_min.div_ceil(2));
        self.idle_min = self.idle.len();
        if self.idle.is_empty() {
            self.idle.shrink_to_fit();
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
        let buffers: Vec<_> = (0..10).map(|_| pool.take(10)).collect();
        buffers.into_iter().for_each(|buffer| pool.give(buffer));
        pool.shrink();
        assert_eq!(pool.idle.len(), 10, "all of them were out");
        let buffers: Vec<_> = (0..6).map(|_| pool.take(10)).collect();
        buffers.into_iter().for_each(|buffer| pool.give(buffer));
        for left in [8, 4, 2, 1, 0] {
            pool.shrink();
            assert_eq!(pool.idle.len(), left);
        }
    }

    #[test]
    fn an_outsized_buffer_is_not_kept() {
        let mut pool = CorkPool::new();
        pool.give(Vec::with_capacity(CORK_BYTES_MAX + 1));
        assert!(pool.idle.is_empty());
    }
}
