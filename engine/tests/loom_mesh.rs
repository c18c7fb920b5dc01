//! Every interleaving of the users of the doorbell and of the gate: no wake is lost, none is needed while the
//! consumer is awake, and nothing is lost when it ends.
//!
//! Run with `LOOM_MAX_PREEMPTIONS=3 RUSTFLAGS="--cfg loom" cargo test --release -p ringwire --test
//! loom_mesh`.

#![cfg(loom)]

use std::collections::VecDeque;

use loom::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use ringwire::mesh::{Doorbell, Gate, Signal};

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
    popped: AtomicUsize,
    closed: AtomicBool,
    bell: Doorbell<Event>,
}

impl Ring {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            pushed: AtomicUsize::new(0),
            popped: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            bell: Doorbell::new(Event::default()),
        })
    }

    fn push(&self) {
        let pushed = self.pushed.load(Ordering::Relaxed);
        self.pushed.store(pushed + 1, Ordering::Release);
        self.bell.ring();
    }

    fn is_full(&self, capacity: usize) -> bool {
        self.pushed.load(Ordering::Relaxed) - self.popped.load(Ordering::Acquire) >= capacity
    }

    /// The consumer: takes what there is, sleeps when nothing came meanwhile, until it has `expected` or
    /// hears the close.
    fn consume(&self, expected: usize) {
        let mut taken = 0;
        loop {
            self.bell.disarm();
            taken = taken.max(self.pushed.load(Ordering::Acquire));
            self.popped.store(taken, Ordering::Release);
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

#[test]
fn what_waits_for_room_leaves_when_there_is_some() {
    loom::model(|| {
        let ring = Ring::new();
        let producer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let mut staged = VecDeque::from([(), ()]);
                while let Some(()) = staged.pop_front() {
                    // The worker tries again a millisecond later; here, as soon as it is scheduled.
                    while ring.is_full(1) {
                        thread::yield_now();
                    }
                    ring.push();
                }
            })
        };
        ring.consume(2);
        producer.join().unwrap();
    });
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
