//! One shard's end of the mesh: a ring to every other shard, a ring from each of them, and the inbox.
//!
//! Invariants: what one shard sends to another arrives in the order it was sent; a ring never blocks: what
//! does not fit is staged in a queue with a limit, and what does not fit there is refused; staged values
//! leave before newer ones.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::VecDeque, sync::Arc};

use super::{
    Inbox, Weight,
    inbox::Load,
    ring::{Consumer, Producer, PushError, RingBuffer},
};

/// Values in flight from one shard to another. Loom is to see full rings.
const RING_CAPACITY: usize = if cfg!(loom) { 1 } else { 1024 };
/// Values that wait for room in a full ring. A handler may publish a large snapshot in one call, key for key:
/// its values are to be limited by their bytes rather than by their number.
const STAGED_MAX: usize = 256 * 1024;

/// There is no room: the receiver does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// One shard's end of the mesh.
#[derive(Debug)]
pub struct MeshEnd<T> {
    index: usize,
    outbound: Vec<Outbound<T>>,
    inbound: Vec<Inbound<T>>,
    inbox: Arc<Inbox<T>>,
}

#[derive(Debug)]
struct Outbound<T> {
    ring: Option<Producer<T>>,
    staged: VecDeque<T>,
    /// How many values have been sent, staged ones included; written here, read at the other end.
    sent: Arc<AtomicU64>,
    load: Arc<Load>,
    /// Something was pushed since the bell was last rung.
    unrung: bool,
}

#[derive(Debug)]
struct Inbound<T> {
    ring: Option<Consumer<T>>,
    sent: Arc<AtomicU64>,
    load: Arc<Load>,
    received: u64,
}

/// Connects `count` shards. Each gets its end, and everybody may push to the inboxes.
#[must_use]
pub fn mesh<T: Weight>(count: usize) -> Vec<MeshEnd<T>> {
    let mut ends: Vec<MeshEnd<T>> = (0..count)
        .map(|index| MeshEnd {
            index,
            outbound: Vec::with_capacity(count),
            inbound: Vec::with_capacity(count),
            inbox: Arc::new(Inbox::new()),
        })
        .collect();
    for from in 0..count {
        for to in 0..count {
            let (producer, consumer) = match from == to {
                true => (None, None),
                false => {
                    let (producer, consumer) = RingBuffer::new(RING_CAPACITY);
                    (Some(producer), Some(consumer))
                }
            };
            let (sent, load) = (Arc::new(AtomicU64::new(0)), Arc::new(Load::default()));
            ends[from].outbound.push(Outbound {
                ring: producer,
                staged: VecDeque::new(),
                sent: Arc::clone(&sent),
                load: Arc::clone(&load),
                unrung: false,
            });
            ends[to].inbound.push(Inbound { ring: consumer, sent, load, received: 0 });
        }
    }
    ends
}

impl<T: Weight> MeshEnd<T> {
    /// This shard's number.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.outbound.len()
    }

    /// The queue through which any thread reaches this shard.
    #[must_use]
    pub fn inbox(&self) -> Arc<Inbox<T>> {
        Arc::clone(&self.inbox)
    }

    /// Sends a value to another shard.
    ///
    /// # Errors
    /// When the ring and the queue behind it are full, or too many bytes are on the way; the value is
    /// dropped.
    pub fn send(&mut self, to: usize, value: T) -> Result<(), Full> {
        let outbound = self.outbound.get_mut(to).ok_or(Full)?;
        let Some(ring) = outbound.ring.as_mut() else { return Err(Full) };
        if outbound.staged.len() >= STAGED_MAX {
            return Err(Full);
        }
        outbound.load.add(value.bytes())?;
        // Counted first: who has seen this value has seen the count.
        outbound.sent.store(outbound.sent.load(Ordering::Relaxed) + 1, Ordering::SeqCst);
        outbound.unrung = true;
        if !outbound.staged.is_empty() {
            outbound.staged.push_back(value);
        } else if let Err(PushError::Full(value)) = ring.push(value) {
            outbound.staged.push_back(value);
        }
        Ok(())
    }

    /// Moves staged values on where there is room again. Answers whether some are still staged.
    pub fn push_staged(&mut self) -> bool {
        let mut waiting = false;
        for outbound in &mut self.outbound {
            let Some(ring) = outbound.ring.as_mut().filter(|_| !outbound.staged.is_empty()) else { continue };
            while let Some(value) = outbound.staged.pop_front() {
                if let Err(PushError::Full(value)) = ring.push(value) {
                    outbound.staged.push_front(value);
                    waiting = true;
                    break;
                }
                outbound.unrung = true;
            }
            if outbound.staged.is_empty() {
                // It may have been a snapshot, the only one of the day.
                outbound.staged.shrink_to(RING_CAPACITY);
            }
        }
        waiting
    }

    /// The next staged value, and where it was to go: for a shard that ends.
    pub fn take_staged(&mut self) -> Option<(usize, T)> {
        let staged = self.outbound.iter_mut().enumerate();
        staged.into_iter().find_map(|(to, outbound)| outbound.staged.pop_front().map(|value| (to, value)))
    }

    /// The next shard whose bell is to be rung, because something was pushed to it.
    pub fn poll_ring(&mut self) -> Option<usize> {
        let to = self.outbound.iter().position(|outbound| outbound.unrung)?;
        self.outbound[to].unrung = false;
        Some(to)
    }

    /// The next value that has arrived from shard `from`.
    pub fn receive_from(&mut self, from: usize) -> Option<T> {
        let inbound = self.inbound.get_mut(from)?;
        let value = inbound.ring.as_mut()?.pop().ok()?;
        inbound.received += 1;
        inbound.load.remove(value.bytes());
        Some(value)
    }

    /// How many values have arrived from shard `from`.
    #[must_use]
    pub fn received(&self, from: usize) -> u64 {
        self.inbound.get(from).map_or(0, |inbound| inbound.received)
    }

    /// What each shard had sent to this one by now, if some of it has not arrived yet.
    #[must_use]
    pub fn fence(&self) -> Option<Vec<u64>> {
        let sent: Vec<u64> = self.inbound.iter().map(|inbound| inbound.sent.load(Ordering::SeqCst)).collect();
        let behind = sent.iter().zip(&self.inbound).any(|(sent, inbound)| *sent > inbound.received);
        behind.then_some(sent)
    }

    /// How many values have come from shard `from` by now and were not received.
    #[must_use]
    pub fn waiting_from(&self, from: usize) -> usize {
        self.inbound.get(from).and_then(|inbound| inbound.ring.as_ref()).map_or(0, Consumer::slots)
    }

    /// How many values are in the inbox.
    #[must_use]
    pub fn waiting_in_inbox(&self) -> usize {
        self.inbox.len()
    }

    /// The next value from the inbox.
    pub fn receive_from_inbox(&mut self) -> Option<T> {
        self.inbox.pop()
    }

    /// A value from the inbox is kept for its turn: it counts there until it is
    /// [released](Self::release).
    pub fn hold(&self, value: &T) {
        self.inbox.hold(value);
    }

    /// The turn of a [held](Self::hold) value has come.
    pub fn release(&self, value: &T) {
        self.inbox.release(value);
    }

    /// Nothing has arrived.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inbox.is_empty()
            && self.inbound.iter().all(|inbound| inbound.ring.as_ref().is_none_or(Consumer::is_empty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::inbox::WAY_BYTES_MAX;

    impl Weight for usize {
        fn bytes(&self) -> usize {
            *self
        }
    }

    #[test]
    fn values_arrive_in_order_through_a_full_ring() {
        let mut ends = mesh::<usize>(2);
        let count: usize = RING_CAPACITY * 3;
        let (one, two) = ends.split_at_mut(1);
        let (sender, receiver) = (&mut one[0], &mut two[0]);
        for value in 0..count {
            assert_eq!(sender.send(1, value), Ok(()));
        }
        let mut received = Vec::new();
        while received.len() < count {
            received.extend(std::iter::from_fn(|| receiver.receive_from(0)));
            sender.push_staged();
        }
        assert!(received.iter().copied().eq(0..count));
        assert_eq!((sender.poll_ring(), sender.poll_ring()), (Some(1), None));
    }

    #[test]
    fn a_queue_that_has_drained_gives_its_memory_back() {
        let mut ends = mesh::<usize>(2);
        (0..20_000).for_each(|_| assert_eq!(ends[0].send(1, 1), Ok(())));
        assert!(ends[0].outbound[1].staged.capacity() >= 20_000 - RING_CAPACITY);
        while ends[0].push_staged() {
            while ends[1].receive_from(0).is_some() {}
        }
        assert!(ends[0].outbound[1].staged.capacity() <= 2 * RING_CAPACITY);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut ends = mesh::<usize>(2);
        let sent = std::iter::repeat(1).take_while(|value| ends[0].send(1, *value).is_ok()).count();
        assert_eq!(sent, RING_CAPACITY + STAGED_MAX);
        assert_eq!(ends[1].fence(), Some(vec![sent as u64, 0]));
    }

    #[test]
    fn the_bytes_on_the_way_are_limited() {
        let mut ends = mesh::<usize>(2);
        assert_eq!(ends[0].send(1, WAY_BYTES_MAX), Ok(()));
        assert_eq!(ends[0].send(1, 1), Err(Full));
        assert_eq!(ends[1].fence(), Some(vec![1, 0]), "what was refused is not waited for");
        assert_eq!(ends[1].receive_from(0), Some(WAY_BYTES_MAX));
        assert_eq!(ends[0].send(1, 1), Ok(()));
    }

    #[test]
    fn nobody_sends_to_himself() {
        let mut ends = mesh::<usize>(1);
        assert_eq!(ends[0].send(0, 1), Err(Full));
        assert_eq!(ends[0].inbox().push(7), Ok(()));
        assert_eq!(ends[0].receive_from_inbox(), Some(7));
    }
}
