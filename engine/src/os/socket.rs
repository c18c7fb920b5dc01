//! A connected socket that can be waited for in both directions at the same time.
//!
//! monoio's stream operations borrow the stream mutably although they only submit; this type hands out
//! futures that own a reference instead, so that a connection's task can keep one of each direction.

use std::{
    cell::UnsafeCell,
    future::Future,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    rc::Rc,
};

use monoio::net::UnixStream;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

/// How sure a wait for readiness is to be. It matters on epoll only, where being certain costs a call of
/// `poll(2)` each time a flag is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Ask the kernel; without bytes the flag is cleared.
    Certain,
    /// Believe the flag, which the caller has seen cleared.
    Likely,
}

/// Which direction of a socket to shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// No more is sent; the peer sees the end of the stream.
    Send,
    /// Both: operations in flight end.
    Both,
}

/// A connected socket (or any descriptor that can be waited for), cheap to clone, of one thread.
///
/// It is a `UnixStream` whatever its kind: that one is 8 bytes where monoio's `TcpStream` is 80, and the
/// operations are the same.
#[derive(Clone)]
pub(crate) struct Socket(Rc<UnsafeCell<UnixStream>>);

impl Socket {
    /// Registers a descriptor with the runtime of this thread.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let stream = UnixStream::from_std(descriptor.into())?;
        Ok(Self(Rc::new(UnsafeCell::new(stream))))
    }

    /// Another descriptor of `watched`, to wait with until it is readable.
    pub(crate) fn watch(watched: &impl AsFd) -> io::Result<Self> {
        Self::new(watched.as_fd().try_clone_to_owned()?)
    }

    /// Closes the descriptor by `close(2)`, unless a clone is left: the ring, through which a socket that is
    /// dropped is closed, refuses to close a ring.
    pub(crate) fn close(self) {
        if let Ok(stream) = Rc::try_unwrap(self.0) {
            // SAFETY: the stream has let go of the descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(stream.into_inner().into_raw_fd()) });
        }
    }

    /// Waits until a receive would not block.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        loop {
            match self.readiness(Readiness::Certain).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                ready => return ready,
            }
        }
    }

    /// Waits for the readiness to receive. On epoll a signal that is handled meanwhile can interrupt it.
    pub(crate) fn readiness(
        &self,
        readiness: Readiness,
    ) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        self.stream().readable(readiness == Readiness::Likely)
    }

    /// Waits until a send would not block. On epoll a signal that is handled meanwhile can interrupt it.
    pub(crate) fn writable(&self) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        self.stream().writable(false)
    }

    /// The stream, for submitting one operation.
    ///
    /// The operations are made without capturing `self`, so that a connection's task need not store one
    /// reference more for each of its two operations: every byte of it counts once per idle connection.
    fn stream(&self) -> &'static mut UnixStream {
        // SAFETY: only this thread has the stream, and the callers use the reference for one call that
        // submits an operation: an operation keeps the descriptor by a reference count of its own,
        // and receives touch nothing that sends touch (monoio declares its streams `Split`).
        // `readable` and `writable` look at the stream when they are first polled; the task polls
        // them while it holds this socket, whose memory does not move.
        unsafe { &mut *self.0.get() }
    }

    /// Receives what is there, without waiting.
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (received, _) = recv(self.descriptor(), buffer, RecvFlags::DONTWAIT)?;
        Ok(received)
    }

    /// Sends what fits, without waiting.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.descriptor(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    /// Shuts a direction down; operations in flight in that direction end.
    pub(crate) fn shut(&self, direction: Direction) {
        let how = match direction {
            Direction::Send => Shutdown::Write,
            Direction::Both => Shutdown::Both,
        };
        // Not connected any more: there is nothing to shut.
        let _ = shutdown(self.descriptor(), how);
    }

    /// Messages leave at once: the engine does the batching itself.
    pub(crate) fn set_no_delay(&self) -> io::Result<()> {
        Ok(sockopt::set_tcp_nodelay(self.descriptor(), true)?)
    }

    /// Closing this socket throws away what has not been sent.
    pub(crate) fn set_reset_on_close(&self) {
        let _ = sockopt::set_socket_linger(self.descriptor(), Some(std::time::Duration::ZERO));
    }

    /// The descriptor's number, to name it to the kernel.
    pub(crate) fn raw(&self) -> RawFd {
        self.stream().as_raw_fd()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open while `self` is, and the result borrows `self`.
        unsafe { BorrowedFd::borrow_raw(self.raw()) }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Socket({})", self.raw())
    }
}
