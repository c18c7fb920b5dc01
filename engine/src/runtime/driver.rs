//! Choosing and building the monoio runtime of a shard.

use std::{future::Future, io};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder, time::TimeDriver};

use crate::os::{RingFlags, RingHandle, probe_ring};

/// Submissions that fit into one turn.
const SUBMISSION_ENTRIES: u32 = 4096;

/// What the caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DriverChoice {
    Auto,
    IoUring,
    Epoll,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    IoUring(RingFlags),
    Epoll { reason: String },
}

impl DriverChoice {
    /// Probes the kernel.
    ///
    /// # Errors
    /// Why io_uring cannot be had, if nothing else will do.
    pub(crate) fn resolve(self) -> io::Result<Backend> {
        match self {
            Self::Epoll => Ok(Backend::Epoll { reason: "asked for".to_owned() }),
            Self::IoUring => probe_ring().map(Backend::IoUring),
            Self::Auto => Ok(match probe_ring() {
                Ok(flags) => Backend::IoUring(flags),
                Err(error) => Backend::Epoll { reason: format!("io_uring is not available: {error}") },
            }),
        }
    }
}

impl Backend {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::IoUring(_) => "io_uring",
            Self::Epoll { .. } => "epoll",
        }
    }
}

/// A runtime, and the ring it works on when there is one that can be reached and cancels what is pending.
pub(crate) struct Runtime {
    runtime: Fusion,
    ring: Option<RingHandle>,
}

enum Fusion {
    IoUring(Box<monoio::Runtime<TimeDriver<IoUringDriver>>>),
    Epoll(Box<monoio::Runtime<TimeDriver<LegacyDriver>>>),
}

/// Builds the runtime on the thread that will run it.
pub(crate) fn build(backend: &Backend) -> io::Result<Runtime> {
    match backend {
        Backend::Epoll { .. } => {
            let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
            Ok(Runtime { runtime: Fusion::Epoll(Box::new(runtime)), ring: None })
        }
        Backend::IoUring(flags) => {
            let builder = RuntimeBuilder::<IoUringDriver>::new()
                .with_entries(SUBMISSION_ENTRIES)
                .uring_builder(flags.builder())
                .enable_timer();
            let (runtime, ring) = RingHandle::capture(|| builder.build());
            let ring = ring.filter(RingHandle::can_cancel);
            Ok(Runtime { runtime: Fusion::IoUring(Box::new(runtime?)), ring })
        }
    }
}

impl Runtime {
    pub(crate) fn take_ring(&mut self) -> Option<RingHandle> {
        self.ring.take()
    }

    pub(crate) fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match &mut self.runtime {
            Fusion::IoUring(runtime) => runtime.block_on(future),
            Fusion::Epoll(runtime) => runtime.block_on(future),
        }
    }
}
