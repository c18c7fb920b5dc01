//! A timer descriptor.
//!
//! It keeps the runtime's waits free of a time limit, which the kernel would have to set and to clear for
//! every wait that sleeps, and which has whole milliseconds.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::Timespec,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

/// Becomes readable when its time has come.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// One whose time does not come until it is [set](Self::set).
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// One whose time comes again and again.
    pub(crate) fn every(period: Duration) -> io::Result<Self> {
        let timer = Self::new()?;
        timer.start(period, period)?;
        Ok(timer)
    }

    /// Its time comes so much later than now, and none that has come before counts. What is centuries away
    /// does not come.
    pub(crate) fn set(&self, later: Duration) {
        // Zero would stop it. The kernel knows the descriptor, so it takes every time that can be written.
        let _ = self.start(later.max(Duration::from_nanos(1)), Duration::ZERO);
    }

    fn start(&self, first: Duration, period: Duration) -> io::Result<()> {
        let timespec = |duration| Timespec::try_from(duration).map_err(io::Error::other);
        let times = Itimerspec { it_interval: timespec(period)?, it_value: timespec(first)? };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }

    /// Takes the times that have come, so that the next wait blocks.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
