//! Every interleaving of the users of the doorbell, of the gate and of the ends of the mesh: no wake is lost,
//! none is needed while the consumer is awake, what does not fit into a ring arrives in its order, and
//! nothing is lost when the consumer ends. The ring itself, a crate's, is a stand-in.
//!
//! Run with `LOOM_MAX_PREEMPTIONS=3 RUSTFLAGS="--cfg loom" cargo test --release -p ringwire --test
//! loom_mesh`.

#![cfg(loom)]

use loom::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use ringwire::mesh::{Doorbell, Gate, Signal, Weight, mesh};

/// What an event descriptor does: remembers a signal until somebody waits.
#[derive(Default)]
struct Event {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn wait(&self) {
        let mut signalled = self.signalled.lock().unwrap();
        while !*signalled {
            signalled = self.changed.wait(signalled).unwrap();
        }
        *signalled = false;
    }
}

impl Signal for Event {
    fn signal(&self) {
        *self.signalled.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// A ring as its two ends see it: a count that the producer releases and the consumer acquires.
struct Ring {
    pushed: AtomicUsize,
    closed: AtomicBool,
    bell: Doorbell<Event>,
}

impl Ring {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            pushed: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            bell: Doorbell::new(Event::default()),
        })
    }

    fn push(&self) {
        let pushed = self.pushed.load(Ordering::Relaxed);
        self.pushed.store(pushed + 1, Ordering::Release);
        self.bell.ring();
    }

    /// The consumer: takes what there is, sleeps when nothing came meanwhile, until it has `expected` or
    /// hears the close.
    fn consume(&self, expected: usize) {
        let mut taken = 0;
        loop {
            self.bell.disarm();
            taken = taken.max(self.pushed.load(Ordering::Acquire));
            if taken == expected || self.closed.load(Ordering::Acquire) {
                return;
            }
            self.bell.arm();
            let idle = self.pushed.load(Ordering::Acquire) == taken && !self.closed.load(Ordering::Acquire);
            if idle {
                // A deadlock here is a lost wake.
                self.bell.signal().wait();
            }
        }
    }
}

#[test]
fn no_wake_is_lost() {
    loom::model(|| {
        let ring = Ring::new();
        let producer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                ring.push();
                ring.push();
            })
        };
        ring.consume(2);
        producer.join().unwrap();
    });
}

#[test]
fn two_producers_wake_one_consumer() {
    loom::model(|| {
        let rings = [AtomicBool::new(false), AtomicBool::new(false)];
        let shared = Arc::new((rings, Doorbell::new(Event::default())));
        let producers: Vec<_> = (0..2)
            .map(|index| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.0[index].store(true, Ordering::Release);
                    shared.1.ring();
                })
            })
            .collect();
        let all = || shared.0.iter().all(|ring| ring.load(Ordering::Acquire));
        while !all() {
            shared.1.arm();
            if !all() {
                shared.1.signal().wait();
            }
            shared.1.disarm();
        }
        for producer in producers {
            producer.join().unwrap();
        }
    });
}

/// A value that weighs nothing.
#[derive(Debug, PartialEq, Eq)]
struct Numbered(usize);

impl Weight for Numbered {
    fn bytes(&self) -> usize {
        0
    }
}

/// Sends values from one shard to another, whose ring has room for one, and looks at what arrives.
fn send_through_a_full_ring(count: usize) {
    let mut ends = mesh::<Numbered>(2);
    let (mut receiver, mut sender) = (ends.remove(1), ends.remove(0));
    let bell = Arc::new(Doorbell::new(Event::default()));
    let producer = {
        let bell = Arc::clone(&bell);
        thread::spawn(move || {
            for value in 0..count {
                assert_eq!(sender.send(1, Numbered(value)), Ok(()));
            }
            loop {
                let waits = sender.push_staged();
                while let Some(shard) = sender.poll_ring() {
                    assert_eq!(shard, 1);
                    bell.ring();
                }
                if !waits {
                    return;
                }
                // The worker tries again a millisecond later; here, as soon as it is scheduled.
                thread::yield_now();
            }
        })
    };
    let mut arrived = 0;
    while arrived < count {
        bell.disarm();
        while let Some(value) = receiver.receive_from(0) {
            assert_eq!(value, Numbered(arrived), "out of order");
            arrived += 1;
        }
        if arrived < count {
            bell.arm();
            if receiver.is_empty() {
                // A deadlock here is a lost wake.
                bell.signal().wait();
            }
        }
    }
    producer.join().unwrap();
}

#[test]
fn what_waits_for_room_leaves_in_its_order_when_there_is_some() {
    loom::model(|| send_through_a_full_ring(3));
}

#[test]
fn a_close_is_heard() {
    loom::model(|| {
        let ring = Ring::new();
        let closer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                ring.closed.store(true, Ordering::Release);
                ring.bell.ring();
            })
        };
        ring.consume(1);
        closer.join().unwrap();
    });
}

#[test]
fn what_is_pushed_through_an_open_gate_is_found() {
    loom::model(|| {
        // Relaxed: the gate alone makes the last look find it.
        let shared = Arc::new((AtomicBool::new(false), Gate::new()));
        let producer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.0.store(true, Ordering::Relaxed);
                !shared.1.is_shut()
            })
        };
        shared.1.shut();
        let found = shared.0.load(Ordering::Relaxed);
        let was_open = producer.join().unwrap();
        assert!(found || !was_open, "pushed through an open gate and never seen");
    });
}
