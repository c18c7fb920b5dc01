//! An epoll set with the few calls the load generator needs.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;

use crate::Result;

/// The set and what was ready at the last wait.
pub(crate) struct Poller {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, ready: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Adds a socket under `token`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn add(&self, socket: impl AsFd, token: u64, interest: epoll::EventFlags) -> Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), interest)?)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// The socket is not in the set.
    pub(crate) fn modify(&self, socket: impl AsFd, token: u64, interest: epoll::EventFlags) -> Result<()> {
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token), interest)?)
    }

    /// Takes a socket out.
    ///
    /// # Errors
    /// The socket is not in the set.
    pub(crate) fn remove(&self, socket: impl AsFd) -> Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits until something is ready, or `timeout` has passed (to the millisecond).
    ///
    /// # Errors
    /// The kernel refuses.
    #[inline]
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.ready.clear();
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits like [`wait`](Self::wait), but to the nanosecond as far as the kernel's timers go.
    ///
    /// # Errors
    /// The kernel refuses.
    #[inline]
    pub(crate) fn wait_exactly(&mut self, timeout: Duration) -> Result<()> {
        self.wait(Duration::ZERO)?;
        if self.ready.is_empty() && !timeout.is_zero() {
            let timeout =
                Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
            match rustix::event::poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => self.wait(Duration::ZERO)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What was ready.
    pub(crate) fn ready(&self) -> &[epoll::Event] {
        &self.ready
    }

    /// Token and flags of one of the ready.
    #[inline]
    pub(crate) fn event(&self, index: usize) -> (u64, epoll::EventFlags) {
        let event = self.ready[index];
        (event.data.u64(), event.flags)
    }
}

const EVENTS_MAX: usize = 1024;
