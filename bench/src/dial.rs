//! Opening connections: TCP connect and upgrade without blocking, one or many at a time.
//!
//! Every response is checked against its request (RFC 6455 section 4.1). It does not know what the connection
//! is for.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ringwire::protocol::handshake::{append_client_request, parse_client_response};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use socket2::SockRef;

use crate::Result;
use crate::poll::Poller;
use crate::random::Random;

/// Where to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// The server's address, on the loopback interface.
    pub(crate) server: SocketAddr,
    /// The path of the upgrade request.
    pub(crate) path: String,
    /// The size of the segments that we take, if not the interface's.
    pub(crate) segment_bytes: Option<u32>,
}

/// A connection that has been upgraded.
#[derive(Debug)]
pub(crate) struct Upgraded {
    /// The non-blocking socket.
    pub(crate) socket: OwnedFd,
    /// What the server sent after its response: already WebSocket frames.
    pub(crate) early: Vec<u8>,
}

/// One connection on its way to being upgraded.
#[derive(Debug)]
pub(crate) struct Dial {
    socket: OwnedFd,
    key: String,
    request: Vec<u8>,
    sent: usize,
    response: Vec<u8>,
}

/// How far a [`Dial`] has come.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Call again when the socket is ready.
    Pending(Dial),
    /// Done.
    Upgraded(Upgraded),
}

impl Dial {
    /// Starts a connection. `index` spreads the connections over many loopback source addresses, so that
    /// ports waiting in TIME_WAIT do not run out.
    ///
    /// # Errors
    /// The socket could not be made or connected.
    pub(crate) fn start(destination: &Destination, index: u64, random: &mut Random) -> Result<Self> {
        let family = if destination.server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if destination.server.is_ipv4() {
            let source = Ipv4Addr::new(127, 0, 1, 1 + (index % SOURCE_ADDRESSES) as u8);
            rustix::net::bind(&socket, &SocketAddrV4::new(source, 0))?;
        }
        if let Some(bytes) = destination.segment_bytes {
            SockRef::from(&socket).set_tcp_mss(bytes)?;
        }
        match rustix::net::connect(&socket, &destination.server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(format!("cannot connect: {error}").into()),
        }
        let key = request_key(random);
        let mut request = Vec::with_capacity(256);
        append_client_request(&mut request, &destination.server.to_string(), &destination.path, &key, &[]);
        Ok(Self { socket, key, request, sent: 0, response: Vec::new() })
    }

    /// Does what can be done without blocking.
    ///
    /// # Errors
    /// The connection failed, or the server refused the upgrade or answered it wrongly.
    pub(crate) fn advance(mut self) -> Result<Progress> {
        while self.sent < self.request.len() {
            let unsent = &self.request[self.sent..];
            match rustix::net::send(&self.socket, unsent, SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(Progress::Pending(self)),
                Err(error) => return Err(format!("connection failed: {error}").into()),
            }
        }
        self.response.reserve(RESPONSE_READ_BYTES);
        match rustix::net::recv(&self.socket, spare_capacity(&mut self.response), RecvFlags::empty()) {
            Ok((0, _)) if self.response.is_empty() => {
                return Err("closed instead of an answer to the upgrade".into());
            }
            Ok((0, _)) => return Err("closed within the answer to the upgrade".into()),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Progress::Pending(self)),
            Err(error) => return Err(format!("upgrade failed: {error}").into()),
        }
        match parse_client_response(&self.response, &self.key) {
            Ok(Some(head_bytes)) => {
                let early = self.response.split_off(head_bytes);
                Ok(Progress::Upgraded(Upgraded { socket: self.socket, early }))
            }
            Ok(None) => Ok(Progress::Pending(self)),
            Err(error) => Err(format!("upgrade refused: {error}").into()),
        }
    }

    /// What to wait for before the next [`advance`](Self::advance).
    pub(crate) fn interest(&self) -> epoll::EventFlags {
        if self.sent < self.request.len() { epoll::EventFlags::OUT } else { epoll::EventFlags::IN }
    }
}

impl AsFd for Dial {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Many connections on their way at once, driven by one poller.
pub(crate) struct Dialing {
    destination: Destination,
    poller: Poller,
    slots: Vec<Option<(Dial, Instant)>>,
    free: Vec<usize>,
    started: u64,
    random: Random,
}

impl Dialing {
    /// Room for `slots` connections at once.
    ///
    /// # Errors
    /// No poller to be had.
    pub(crate) fn new(destination: Destination, slots: usize) -> Result<Self> {
        Ok(Self {
            destination,
            poller: Poller::new()?,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            started: 0,
            random: Random::from_environment(0),
        })
    }

    /// How many connections are on their way.
    pub(crate) fn pending(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts one connection, if there is a free slot, and says whether there was.
    ///
    /// # Errors
    /// See [`Dial::start`].
    pub(crate) fn start(&mut self) -> Result<bool> {
        let Some(slot) = self.free.pop() else {
            return Ok(false);
        };
        let now = Instant::now();
        let dial = Dial::start(&self.destination, self.started, &mut self.random)?;
        self.started += 1;
        self.poller.add(&dial, slot as u64, dial.interest())?;
        self.slots[slot] = Some((dial, now));
        Ok(true)
    }

    /// Waits for progress, at most `timeout`, and hands over what got upgraded with the time that it took.
    ///
    /// # Errors
    /// See [`Dial::advance`].
    pub(crate) fn poll(&mut self, timeout: Duration, mut done: impl FnMut(Upgraded, Duration)) -> Result<()> {
        self.poller.wait(timeout)?;
        for index in 0..self.poller.ready().len() {
            let (slot, _) = self.poller.event(index);
            let slot = slot as usize;
            let Some((dial, since)) = self.slots[slot].take() else {
                continue;
            };
            let interest = dial.interest();
            match dial.advance()? {
                Progress::Pending(dial) => {
                    if dial.interest() != interest {
                        self.poller.modify(&dial, slot as u64, dial.interest())?;
                    }
                    self.slots[slot] = Some((dial, since));
                }
                Progress::Upgraded(upgraded) => {
                    self.poller.remove(&upgraded.socket)?;
                    self.free.push(slot);
                    done(upgraded, since.elapsed());
                }
            }
        }
        Ok(())
    }

    /// Waits for those that are on their way, at most `timeout`, and drops them as they get upgraded.
    ///
    /// # Errors
    /// See [`Dial::advance`], or some are not through in time.
    pub(crate) fn finish(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.pending() > 0 {
            if Instant::now() > deadline {
                return Err(format!("{} handshakes were not answered", self.pending()).into());
            }
            self.poll(POLL_INTERVAL, |_, _| {})?;
        }
        Ok(())
    }
}

/// Opens `count` connections, some of them at a time.
///
/// # Errors
/// One failed, or they did not all open within a minute.
pub(crate) fn open_all(destination: &Destination, count: usize) -> Result<Vec<Upgraded>> {
    let mut dialing = Dialing::new(destination.clone(), count.clamp(1, OPENING_AT_ONCE))?;
    let mut opened = Vec::with_capacity(count);
    let deadline = Instant::now() + OPEN_TIMEOUT;
    while opened.len() < count {
        while opened.len() + dialing.pending() < count && dialing.start()? {}
        dialing.poll(POLL_INTERVAL, |upgraded, _| opened.push(upgraded))?;
        if Instant::now() > deadline {
            return Err(format!("only {} of {count} connections opened within a minute", opened.len()).into());
        }
    }
    Ok(opened)
}

const SOURCE_ADDRESSES: u64 = 200;
const OPENING_AT_ONCE: usize = 64;
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const RESPONSE_READ_BYTES: usize = 1024;

/// Sixteen random bytes in base64: 21 characters of six bits, one of two, and the padding.
fn request_key(random: &mut Random) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |index: u64| char::from(ALPHABET[index as usize & 63]);
    let mut key: String = (0..21).map(|_| letter(random.next())).collect();
    key.push(letter(random.next() << 4));
    key.push_str("==");
    key
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn half_an_answer_and_none_are_failures() {
        assert!(outcome(b"", true).contains("closed instead"));
        assert!(outcome(b"HTTP/1.1 101 Switch", true).contains("closed within"));
        assert!(outcome(b"", false).contains("1 handshakes were not answered"));
        assert!(outcome(b"HTTP/1.1 101 Switch", false).contains("1 handshakes were not answered"));
    }

    /// How a handshake fails with a server that answers it so, and then closes or is silent.
    fn outcome(answer: &'static [u8], closes: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let destination = Destination { server, path: "/".to_owned(), segment_bytes: None };
        let mut dialing = Dialing::new(destination, 1).unwrap();
        assert!(dialing.start().unwrap());
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            // Else it would be a reset that closes it.
            assert!(socket.read(&mut [0; 1024]).unwrap() > 0);
            socket.write_all(answer).unwrap();
            (!closes).then_some(socket)
        });
        let timeout = Duration::from_millis(if closes { 5000 } else { 50 });
        let failure = dialing.finish(timeout).unwrap_err().to_string();
        drop(server.join().unwrap());
        failure
    }
}
