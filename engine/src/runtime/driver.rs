//! Choosing and building the monoio runtime of a shard.

use std::{future::Future, io};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder, time::TimeDriver};

use crate::{
    os::{RingFlags, SocketRing, probe_ring},
    shard::ConnectionId,
};

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

/// What a shard's thread does its input and output with.
pub(crate) struct Transport {
    pub(crate) runtime: Runtime,
    pub(crate) sockets: SocketRing<ConnectionId>,
}

/// A runtime of either kind.
pub(crate) enum Runtime {
    IoUring(Box<monoio::Runtime<TimeDriver<IoUringDriver>>>),
    Epoll(Box<monoio::Runtime<TimeDriver<LegacyDriver>>>),
}

/// Builds a transport on the thread that will use it.
pub(crate) fn build(backend: &Backend) -> io::Result<Transport> {
    match backend {
        Backend::Epoll { .. } => {
            let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
            let runtime = Runtime::Epoll(Box::new(runtime));
            Ok(Transport { runtime, sockets: SocketRing::without_ring() })
        }
        Backend::IoUring(flags) => {
            let builder = RuntimeBuilder::<IoUringDriver>::new()
                .with_entries(SUBMISSION_ENTRIES)
                .uring_builder(flags.builder())
                .enable_timer();
            let runtime = Runtime::IoUring(Box::new(builder.build()?));
            Ok(Transport { runtime, sockets: SocketRing::with_ring(*flags) })
        }
    }
}

impl Runtime {
    pub(crate) fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}
