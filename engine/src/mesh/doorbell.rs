//! The doorbell: a producer rings it after it has put something into a queue, and only a sleeping consumer
//! hears it.
//!
//! Invariant: when the consumer sleeps, it has armed the bell and found its queues empty after that; when a
//! producer has pushed, it looks at the bell after that. Each side writes one variable and then reads the
//! other's, so a sequentially consistent fence stands between the two on both sides: with less, both could
//! read the old value and a wake would be lost (store buffering; Boehm and Adve, PLDI 2008).

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// What wakes the sleeper.
pub trait Signal {
    /// Wakes the consumer, now or when it next waits.
    fn signal(&self);
}

/// Wakes one consumer, if it sleeps.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Doorbell<S> {
    armed: AtomicBool,
    signal: S,
}

impl<S: Signal> Doorbell<S> {
    /// A bell whose consumer is awake.
    pub fn new(signal: S) -> Self {
        Self { armed: AtomicBool::new(false), signal }
    }

    /// What wakes the sleeper.
    pub fn signal(&self) -> &S {
        &self.signal
    }

    /// Called by the consumer before it sleeps. It must look into its queues once more after this, and
    /// [`disarm`](Self::disarm) when something is there.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Called by the consumer when it is awake.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Called by a producer after it has pushed. Answers whether the consumer had to be woken.
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        let sleeps = self.armed.load(Ordering::Relaxed);
        if sleeps {
            // Spares the next producer the signal. Should this overwrite a later arming, the signal that
            // follows wakes the consumer all the same, and it arms anew.
            self.armed.store(false, Ordering::Relaxed);
            self.signal.signal();
        }
        sleeps
    }
}
