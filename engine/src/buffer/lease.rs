//! The slab of receive buffers of a shard: preallocated in two size classes, leased to connections that are
//! reading.
//!
//! Invariants: `leased + idle <= capacity` per class; a buffer is in exactly one place (idle in the pool, in
//! a lease, or inside an operation in flight, which owns the lease); dropping a lease gives its buffer back.
//! At the cap [`LeasePool::lease`] answers `None` and the connection waits for readiness instead, holding
//! nothing.

use std::{cell::RefCell, fmt, rc::Rc};

/// Bytes in front of every receive buffer for what an earlier read left over (an incomplete frame header or
/// control frame, RFC 6455 section 5.2: at most 14 + 125 bytes), so that decoding always sees contiguous
/// bytes.
pub const HEADROOM_BYTES: usize = 192;

/// The size of a leased buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferClass {
    /// 4 KiB: a connection that exchanges small messages.
    Small,
    /// 16 KiB: a connection whose reads fill a small buffer.
    Large,
}

impl BufferClass {
    /// Bytes that one receive can fill.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => 4096 - HEADROOM_BYTES,
            Self::Large => 16 * 1024 - HEADROOM_BYTES,
        }
    }

    const fn allocated_bytes(self) -> usize {
        self.bytes() + HEADROOM_BYTES
    }
}

/// The receive buffers of one shard, with a hard cap. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LeasePool {
    shared: Rc<RefCell<Shared>>,
}

#[derive(Debug)]
struct Shared {
    small: Idle,
    large: Idle,
    /// Bytes allocated, idle and leased together; never above `bytes_max`.
    bytes: usize,
    bytes_max: usize,
    leased: usize,
    refused: u64,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Box<[u8]>>,
    /// The fewest since the pool was last shrunk: those have not been needed.
    fewest: usize,
}

impl LeasePool {
    /// A pool that never holds more than `bytes_max`, with `preallocated` small buffers ready.
    #[must_use]
    pub fn new(bytes_max: usize, preallocated: usize) -> Self {
        let small = BufferClass::Small.allocated_bytes();
        let count = preallocated.min(bytes_max / small);
        Self {
            shared: Rc::new(RefCell::new(Shared {
                small: Idle {
                    buffers: (0..count).map(|_| vec![0; small].into_boxed_slice()).collect(),
                    fewest: count,
                },
                large: Idle::default(),
                bytes: count * small,
                bytes_max,
                leased: 0,
                refused: 0,
            })),
        }
    }

    /// A buffer of the class, or `None` at the cap.
    #[must_use]
    pub fn lease(&self, class: BufferClass) -> Option<Lease> {
        let bytes = self.shared.borrow_mut().take(class)?;
        Some(Lease { bytes, class, pool: self.clone() })
    }

    /// How many buffers are out on lease.
    #[must_use]
    pub fn leased(&self) -> usize {
        self.shared.borrow().leased
    }

    /// How many times a lease was refused because the pool was at its cap.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.borrow().refused
    }

    /// Frees half of the buffers that have been idle since the last call; to be called now and then.
    pub fn shrink(&self) {
        let mut shared = self.shared.borrow_mut();
        let freed = shared.small.shrink() * BufferClass::Small.allocated_bytes()
            + shared.large.shrink() * BufferClass::Large.allocated_bytes();
        shared.bytes -= freed;
    }
}

impl Idle {
    fn pop(&mut self) -> Option<Box<[u8]>> {
        let buffer = self.buffers.pop();
        self.fewest = self.fewest.min(self.buffers.len());
        buffer
    }

    /// Answers how many were freed.
    fn shrink(&mut self) -> usize {
        let freed = self.fewest.div_ceil(2);
        self.buffers.truncate(self.buffers.len() - freed);
        self.fewest = self.buffers.len();
        freed
    }
}

impl Shared {
    fn idle(&mut self, class: BufferClass) -> &mut Idle {
        match class {
            BufferClass::Small => &mut self.small,
            BufferClass::Large => &mut self.large,
        }
    }

    fn take(&mut self, class: BufferClass) -> Option<Box<[u8]>> {
        let buffer = match self.idle(class).pop() {
            Some(buffer) => buffer,
            None if self.bytes + class.allocated_bytes() <= self.bytes_max => {
                self.bytes += class.allocated_bytes();
                vec![0; class.allocated_bytes()].into_boxed_slice()
            }
            None => {
                self.refused += 1;
                return None;
            }
        };
        self.leased += 1;
        debug_assert!(self.bytes <= self.bytes_max);
        Some(buffer)
    }
}

/// A receive buffer on lease: the kernel fills it behind the headroom.
pub struct Lease {
    bytes: Box<[u8]>,
    class: BufferClass,
    pool: LeasePool,
}

impl Lease {
    /// The size class.
    #[must_use]
    pub fn class(&self) -> BufferClass {
        self.class
    }

    /// Where a receive is to write. On the heap: it stays in its place when the lease is moved.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADROOM_BYTES..]
    }

    /// The headroom and, behind it, the `bytes` that were received.
    ///
    /// # Panics
    /// When there was no room for so many.
    pub fn received(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.bytes[..HEADROOM_BYTES + bytes]
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut shared = self.pool.shared.borrow_mut();
        shared.leased -= 1;
        shared.idle(self.class).buffers.push(std::mem::take(&mut self.bytes));
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lease").field("class", &self.class).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_hard_and_a_returned_buffer_is_leased_again() {
        let pool = LeasePool::new(2 * 4096, 1);
        let (one, two) = (pool.lease(BufferClass::Small), pool.lease(BufferClass::Small));
        assert!(one.is_some() && two.is_some());
        assert!(pool.lease(BufferClass::Small).is_none());
        assert_eq!((pool.leased(), pool.refused()), (2, 1));
        drop(one);
        assert!(pool.lease(BufferClass::Small).is_some());
    }

    #[test]
    fn shrinking_makes_room_for_the_other_class() {
        let pool = LeasePool::new(16 * 1024, 4);
        assert!(pool.lease(BufferClass::Large).is_none());
        for _ in 0..3 {
            pool.shrink();
        }
        assert!(pool.lease(BufferClass::Large).is_some());
    }

    #[test]
    fn what_was_filled_stands_behind_the_headroom() {
        let pool = LeasePool::new(4096, 0);
        let mut lease = pool.lease(BufferClass::Small).expect("below the cap");
        assert_eq!(lease.room().len(), BufferClass::Small.bytes());
        lease.room()[..5].copy_from_slice(b"hello");
        assert_eq!(&lease.received(5)[HEADROOM_BYTES..], b"hello");
    }
}
