//! The timer wheel: at most one timer for each connection slot, all driven by one tick.
//!
//! Invariants: a slot is linked in at most one bucket; a timer never fires before its deadline by more than
//! the wheel's horizon allows for, and never later than one tick after it. Deadlines beyond the horizon fire
//! early: the owner looks at its own deadline and schedules again, which also makes postponing a deadline
//! free.

use crate::connection::Timestamp;

/// The length of a tick; deadlines are met within one of it.
pub const TICK_MILLIS: u64 = 100;
/// Ticks around the wheel: 51.2 seconds.
const BUCKETS: usize = 512;
const NONE: u32 = u32::MAX;

/// One timer a slot, hashed by deadline.
#[derive(Debug)]
pub struct TimerWheel {
    buckets: Vec<u32>,
    nodes: Vec<Node>,
    /// The tick up to which timers have fired.
    tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    previous: u32,
    /// The bucket this node is linked in, or `NONE`. It tells when the timer is due: within one turn of the
    /// wheel.
    bucket: u32,
}

const UNLINKED: Node = Node { next: NONE, previous: NONE, bucket: NONE };

impl TimerWheel {
    /// An empty wheel at `now`, with room for `slots` before it has to grow.
    #[must_use]
    pub fn new(now: Timestamp, slots: usize) -> Self {
        Self {
            buckets: vec![NONE; BUCKETS],
            nodes: Vec::with_capacity(slots),
            tick: now.as_millis() / TICK_MILLIS,
        }
    }

    /// Sets the timer of `slot`, unless it already fires at or before `deadline`.
    pub fn schedule(&mut self, slot: usize, deadline: Timestamp) {
        if deadline == Timestamp::NEVER {
            return;
        }
        let due = deadline.as_millis().div_ceil(TICK_MILLIS);
        let ticks = due.saturating_sub(self.tick).clamp(1, BUCKETS as u64 - 1);
        if slot >= self.nodes.len() {
            self.nodes.resize(slot + 1, UNLINKED);
        }
        let bucket = self.nodes[slot].bucket;
        if bucket != NONE {
            if (u64::from(bucket) + BUCKETS as u64 - self.tick % BUCKETS as u64) % BUCKETS as u64 <= ticks {
                return;
            }
            self.cancel(slot);
        }
        self.link(slot, ((self.tick + ticks) % BUCKETS as u64) as u32);
    }

    /// Clears the timer of `slot`.
    pub fn cancel(&mut self, slot: usize) {
        let Some(&node) = self.nodes.get(slot).filter(|node| node.bucket != NONE) else { return };
        match node.previous {
            NONE => self.buckets[node.bucket as usize] = node.next,
            previous => self.nodes[previous as usize].next = node.next,
        }
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        self.nodes[slot] = UNLINKED;
    }

    /// Moves on to `now` and takes the slots whose timers are due into `due`.
    pub fn advance(&mut self, now: Timestamp, due: &mut Vec<usize>) {
        let target = now.as_millis() / TICK_MILLIS;
        // After a jump of more than a turn, one turn visits every bucket.
        let first = self.tick.max(target.saturating_sub(BUCKETS as u64)) + 1;
        for tick in first..=target {
            let bucket = (tick % BUCKETS as u64) as usize;
            let mut next = std::mem::replace(&mut self.buckets[bucket], NONE);
            while next != NONE {
                let slot = next as usize;
                next = std::mem::replace(&mut self.nodes[slot], UNLINKED).next;
                due.push(slot);
            }
        }
        self.tick = self.tick.max(target);
    }

    fn link(&mut self, slot: usize, bucket: u32) {
        let next = std::mem::replace(&mut self.buckets[bucket as usize], slot as u32);
        if next != NONE {
            self.nodes[next as usize].previous = slot as u32;
        }
        self.nodes[slot] = Node { next, previous: NONE, bucket };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(wheel: &mut TimerWheel, millis: u64) -> Vec<usize> {
        let mut due = Vec::new();
        wheel.advance(Timestamp::from_millis(millis), &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn a_timer_fires_once_and_not_early() {
        let mut wheel = TimerWheel::new(Timestamp::from_millis(0), 0);
        wheel.schedule(3, Timestamp::from_millis(250));
        assert!(fired(&mut wheel, 200).is_empty());
        assert_eq!(fired(&mut wheel, 300), [3]);
        assert!(fired(&mut wheel, 900_000).is_empty());
    }

    #[test]
    fn the_earlier_of_two_deadlines_wins() {
        let mut wheel = TimerWheel::new(Timestamp::from_millis(0), 0);
        wheel.schedule(0, Timestamp::from_millis(900));
        wheel.schedule(0, Timestamp::from_millis(300));
        wheel.schedule(0, Timestamp::from_millis(600));
        assert_eq!(fired(&mut wheel, 300), [0]);
        assert!(fired(&mut wheel, 1_000).is_empty());
    }

    #[test]
    fn timers_keep_their_order_however_old_the_clock_is() {
        for start in [0, 51_100, 1 << 32, (1 << 32) * TICK_MILLIS - 150, 1 << 60] {
            let mut wheel = TimerWheel::new(Timestamp::from_millis(start), 0);
            for (slot, first, second) in [(0, 40_000, 300), (1, 300, 40_000), (2, 70_000, 50_000)] {
                wheel.schedule(slot, Timestamp::from_millis(start + first));
                wheel.schedule(slot, Timestamp::from_millis(start + second));
            }
            assert_eq!(fired(&mut wheel, start + 400), [0, 1]);
            assert!(fired(&mut wheel, start + 49_900).is_empty());
            assert_eq!(fired(&mut wheel, start + 50_100), [2]);
        }
    }

    #[test]
    fn a_cancelled_timer_stays_silent_among_its_neighbours() {
        let mut wheel = TimerWheel::new(Timestamp::from_millis(0), 0);
        for slot in 0..5 {
            wheel.schedule(slot, Timestamp::from_millis(500));
        }
        for slot in [0, 2, 4] {
            wheel.cancel(slot);
        }
        assert_eq!(fired(&mut wheel, 500), [1, 3]);
    }

    #[test]
    fn a_deadline_beyond_the_horizon_fires_early_to_be_set_again() {
        let mut wheel = TimerWheel::new(Timestamp::from_millis(0), 0);
        wheel.schedule(1, Timestamp::from_millis(10_000_000));
        assert_eq!(fired(&mut wheel, 60_000), [1]);
    }

    #[test]
    fn a_jump_of_the_clock_fires_everything_due() {
        let mut wheel = TimerWheel::new(Timestamp::from_millis(0), 0);
        for slot in 0..100 {
            wheel.schedule(slot, Timestamp::from_millis(slot as u64 * 400));
        }
        assert_eq!(fired(&mut wheel, 1 << 40).len(), 100);
    }
}
