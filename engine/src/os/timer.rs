//! A timer descriptor that fires again and again.
//!
//! It keeps the runtime's waits free of a time limit, which the kernel would have to set and to clear for
//! every wait that sleeps.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::Timespec,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

/// Becomes readable once in a period.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// # Panics
    /// When the period is centuries long.
    pub(crate) fn every(period: Duration) -> io::Result<Self> {
        let ticker =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let period = Timespec::try_from(period).expect("a period that can be waited for");
        let every = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&ticker, TimerfdTimerFlags::empty(), &every)?;
        Ok(Self(ticker))
    }

    /// Takes the ticks that have come, so that the next wait blocks.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
