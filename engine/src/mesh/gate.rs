//! The gate: the consumer of a queue shuts it before it looks for the last time, and a producer looks at it
//! after it has pushed.
//!
//! Invariant: what a producer pushed before it found the gate open is seen by the consumer's last look. Each
//! side writes one variable and then reads the other's, as at the [doorbell](super::Doorbell).

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Says whether a queue is still looked into.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new() -> Self {
        Self { shut: AtomicBool::new(false) }
    }

    /// Called by the consumer before its last look into the queue.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Called by a producer after it has pushed: whether that may never be seen. Either this answers yes, or
    /// who shut the gate finds what was pushed.
    pub fn is_shut(&self) -> bool {
        fence(Ordering::SeqCst);
        self.shut.load(Ordering::Relaxed)
    }
}
