//! What can go wrong when an engine starts.

use std::{io, net::SocketAddr};

use super::ConfigError;

/// An engine could not be started, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process listens there.
    #[error("{address} is in use: choose another port, or end the program that listens there")]
    AddressInUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The address may not be bound by this user.
    #[error("no permission to listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE")]
    PermissionDenied {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The address could not be bound for another reason.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// io_uring was asked for and cannot be had.
    #[error(
        "io_uring is not available ({0}): Linux 5.11 or later is needed, kernel.io_uring_disabled must be 0, \
         and container runtimes must allow it in their seccomp profile; \
         or let Driver::Auto fall back to epoll"
    )]
    IoUringUnavailable(#[source] io::Error),
    /// A core that was asked for is not in this process's affinity mask.
    #[error("core {core} is not available to this process: the affinity mask or cpuset has {available:?}")]
    CoreUnavailable {
        /// The core that was asked for.
        core: usize,
        /// The cores that there are.
        available: Vec<usize>,
    },
    /// A thread or its runtime could not be made.
    #[error("cannot start a shard: {0}; where descriptors or locked memory ran out, see ulimit -n and -l")]
    Start(#[source] io::Error),
    /// The signals could not be watched.
    #[error("cannot watch SIGTERM and SIGINT: {0}")]
    Signals(#[source] io::Error),
    /// A shard's thread panicked: in the function that makes its handler, or outside of any handler, which is
    /// a bug in this crate.
    #[error("the thread of shard {shard} panicked: where it made its handler, or in the engine")]
    ShardPanicked {
        /// Which shard.
        shard: usize,
    },
}

impl Error {
    pub(super) fn listen(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse { address },
            io::ErrorKind::PermissionDenied => Self::PermissionDenied { address },
            _ => Self::Listen { address, source },
        }
    }
}
