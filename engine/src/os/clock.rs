//! A clock that costs a few nanoseconds and is exact to a timer interrupt, a few milliseconds.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the clock was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: coarse_millis() }
    }

    pub(crate) fn millis(self) -> u64 {
        coarse_millis().saturating_sub(self.origin)
    }
}

fn coarse_millis() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    (time.tv_sec as u64) * 1000 + (time.tv_nsec as u64) / 1_000_000
}
