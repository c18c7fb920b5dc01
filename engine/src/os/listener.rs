//! Listening sockets: one for each core on the same address, so that the kernel spreads the connections.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{Shutdown, SocketFlags, acceptfrom_with, shutdown};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A listening TCP socket.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Fails when somebody else listens on `address`: with SO_REUSEPORT alone, a second server of the same
    /// user would share the port in silence.
    pub(crate) fn check_free(address: SocketAddr) -> io::Result<()> {
        stream_socket(address)?.bind(&SockAddr::from(address))
    }

    /// Binds and listens with SO_REUSEPORT.
    pub(crate) fn bind(address: SocketAddr, backlog: u32) -> io::Result<Self> {
        let socket = stream_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(Self(socket.into()))
    }

    /// The address that was bound, with the port that the kernel chose for port 0.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        let address = rustix::net::getsockname(&self.0)?;
        SocketAddr::try_from(address).map_err(|_| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Accepts a connection if one is waiting. The descriptor blocks, as io_uring wants it, and is not
    /// inherited.
    pub(crate) fn accept(&self) -> io::Result<(OwnedFd, SocketAddr)> {
        let (socket, peer) = acceptfrom_with(&self.0, SocketFlags::CLOEXEC)?;
        let peer =
            peer.and_then(|address| SocketAddr::try_from(address).ok()).ok_or(io::ErrorKind::NotConnected)?;
        Ok((socket, peer))
    }

    /// Ends listening; whoever waits for this socket is woken.
    pub(crate) fn shut(&self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

fn stream_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
