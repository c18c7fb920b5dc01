//! The floor under a fan-out: no server, only what every server has to do that sends to each subscriber by
//! itself.
//!
//! Publications are read, framed once, and sent to all connections with one send each, all that were there
//! together in one. There is nothing else: no topics, limits, timers, outboxes or fairness, no answer to a
//! ping, and where a socket has no room everybody waits. What a server costs beyond this is its own; what
//! this costs is the kernel's, and cannot be saved by better code around the same sends.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use io_uring::{IoUring, opcode, squeue, types::Fd};
use ringwire::protocol::frame::append_frame;
use ringwire::protocol::{FrameHeader, HttpRequest, SwitchingProtocols, UpgradeRequest};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Sends every message that it receives to all connections, and does nothing else.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen, on the loopback interface.
    #[arg(long)]
    listen: SocketAddr,
    /// How to send.
    #[arg(long, value_enum, default_value = "calls")]
    sends: Sends,
    /// Gathers publications for so long before they are sent.
    #[arg(long, default_value_t = 0)]
    window_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sends {
    /// Each with a call of `send(2)`.
    Calls,
    /// Many with one call, through a ring.
    Ring,
}

fn main() -> ExitCode {
    match Floor::new(&Arguments::parse()).and_then(|mut floor| floor.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Floor {
    listener: TcpListener,
    epoll: OwnedFd,
    /// By descriptor.
    connections: Vec<Option<Connection>>,
    ring: Option<IoUring>,
    window: Option<Window>,
    /// Frames that have not been sent.
    frames: Vec<u8>,
    received: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// A frame that has not come whole.
    rest: Vec<u8>,
}

struct Window {
    timer: OwnedFd,
    length: Duration,
}

impl Floor {
    fn new(arguments: &Arguments) -> Result<Self> {
        if !arguments.listen.ip().is_loopback() {
            return Err(format!("{} is not on the loopback interface", arguments.listen).into());
        }
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.bind(&arguments.listen.into())?;
        listener.listen(BACKLOG)?;
        let listener = TcpListener::from(listener);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        let window = match arguments.window_ms {
            0 => None,
            milliseconds => {
                let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
                epoll::add(&epoll, &timer, epoll::EventData::new_u64(WINDOW), epoll::EventFlags::IN)?;
                Some(Window { timer, length: Duration::from_millis(milliseconds) })
            }
        };
        let ring = match arguments.sends {
            Sends::Calls => None,
            Sends::Ring => Some(IoUring::builder().setup_submit_all().build(BATCH_MAX as u32)?),
        };
        Ok(Self {
            listener,
            epoll,
            connections: Vec::new(),
            ring,
            window,
            frames: Vec::new(),
            received: vec![0; RECEIVE_BYTES],
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        loop {
            ready.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut ready), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut is_over = self.window.is_none();
            for event in &ready {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    WINDOW => {
                        let window = self.window.as_ref().ok_or("a timer that was not set")?;
                        rustix::io::read(&window.timer, &mut [0; 8])?;
                        is_over = true;
                    }
                    descriptor => self.receive(descriptor as usize)?,
                }
            }
            if is_over && !self.frames.is_empty() {
                self.send_to_all()?;
                self.frames.clear();
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        let (stream, peer) = self.listener.accept()?;
        stream.set_nodelay(true)?;
        let Some(answer) = upgrade(&stream, peer)? else { return Ok(()) };
        (&stream).write_all(&answer)?;
        stream.set_nonblocking(true)?;
        let descriptor = stream.as_raw_fd() as usize;
        epoll::add(
            &self.epoll,
            &stream,
            epoll::EventData::new_u64(descriptor as u64),
            epoll::EventFlags::IN,
        )?;
        if self.connections.len() <= descriptor {
            self.connections.resize_with(descriptor + 1, || None);
        }
        self.connections[descriptor] = Some(Connection { stream, rest: Vec::new() });
        Ok(())
    }

    fn receive(&mut self, descriptor: usize) -> Result<()> {
        let connection = self.connections[descriptor].as_mut().ok_or("an event of nobody")?;
        let rest_bytes = connection.rest.len();
        self.received[..rest_bytes].copy_from_slice(&connection.rest);
        connection.rest.clear();
        let received = match (&connection.stream).read(&mut self.received[rest_bytes..]) {
            Ok(0) | Err(_) => {
                self.connections[descriptor] = None;
                return Ok(());
            }
            Ok(received) => received,
        };
        let had_frames = !self.frames.is_empty();
        let mut unread = &mut self.received[..rest_bytes + received];
        while let Some((header, header_bytes)) = FrameHeader::decode(unread)? {
            let end = header_bytes + header.payload_bytes as usize;
            if unread.len() < end {
                break;
            }
            let (frame, behind) = unread.split_at_mut(end);
            let payload = &mut frame[header_bytes..];
            ringwire::simd::unmask(payload, header.mask.ok_or("a frame without a mask")?, 0);
            if !header.opcode.is_control() {
                append_frame(&mut self.frames, header.opcode, payload);
            }
            unread = behind;
        }
        connection.rest.extend_from_slice(unread);
        if let Some(window) = &self.window
            && !had_frames
            && !self.frames.is_empty()
        {
            let it_value = Timespec::try_from(window.length)?;
            let timer = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            timerfd_settime(&window.timer, TimerfdTimerFlags::empty(), &timer)?;
        }
        Ok(())
    }

    fn send_to_all(&mut self) -> Result<()> {
        let frames = &self.frames[..];
        let mut connections = self.connections.iter().flatten();
        let Some(ring) = &mut self.ring else {
            for connection in connections {
                let sent = send(&connection.stream, frames)?;
                finish(&connection.stream, &frames[sent..])?;
            }
            return Ok(());
        };
        loop {
            let batch: Vec<&Connection> = connections.by_ref().take(BATCH_MAX).collect();
            if batch.is_empty() {
                return Ok(());
            }
            send_together(ring, &batch, frames)?;
        }
    }
}

/// Reads the request of a client, which sends it at once, and gives the answer. `None` if it hung up.
fn upgrade(mut stream: &TcpStream, peer: SocketAddr) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    loop {
        if let Some((request, _)) = HttpRequest::parse(&bytes, REQUEST_BYTES_MAX)? {
            let mut answer = Vec::new();
            let accept_key = &UpgradeRequest::check(&request, peer)?.accept_key();
            SwitchingProtocols { accept_key, subprotocol: None, headers: &[] }.append_to(&mut answer);
            return Ok(Some(answer));
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(received) => bytes.extend_from_slice(&chunk[..received]),
        }
    }
}

/// Sends what the socket has room for.
fn send(stream: &TcpStream, bytes: &[u8]) -> Result<usize> {
    match rustix::net::send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN) => Ok(0),
        // It has left, which its next event says.
        Err(Errno::PIPE | Errno::CONNRESET) => Ok(bytes.len()),
        Err(error) => Err(error.into()),
    }
}

/// Sends the rest, waiting for room.
fn finish(stream: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        poll(&mut [PollFd::new(stream, PollFlags::OUT)], None)?;
        bytes = &bytes[send(stream, bytes)?..];
    }
    Ok(())
}

/// Sends to as many as the ring has room for.
fn send_together(ring: &mut IoUring, batch: &[&Connection], bytes: &[u8]) -> Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::from_bits_retain(WAIT_ALL);
    let mut submissions = ring.submission();
    for (number, connection) in batch.iter().enumerate() {
        let descriptor = Fd(connection.stream.as_raw_fd());
        let submission = opcode::Send::new(descriptor, bytes.as_ptr(), bytes.len() as u32)
            .flags(flags.bits() as i32)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(number as u64);
        // SAFETY: the kernel is done with the socket and the bytes, which are borrowed, when `submit` below
        // returns: nothing waits.
        unsafe { submissions.push(&submission) }?;
    }
    drop(submissions);
    let submitted = ring.submit()?;
    if submitted != batch.len() {
        return Err(io::Error::other(format!("{submitted} of {} were submitted", batch.len())).into());
    }
    let parts: Vec<(usize, i32)> =
        ring.completion().map(|part| (part.user_data() as usize, part.result())).collect();
    for (number, result) in parts {
        let sent = match Errno::from_raw_os_error(-result) {
            _ if result >= 0 => result as usize,
            Errno::AGAIN => 0,
            Errno::PIPE | Errno::CONNRESET => bytes.len(),
            error => return Err(error.into()),
        };
        finish(&batch[number].stream, &bytes[sent..])?;
    }
    Ok(())
}

const LISTENER: u64 = u64::MAX;
const WINDOW: u64 = u64::MAX - 1;
const BACKLOG: i32 = 4096;
const EVENTS_MAX: usize = 1024;
const BATCH_MAX: usize = 256;
const RECEIVE_BYTES: usize = 1 << 20;
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// `MSG_WAITALL` of linux/socket.h.
const WAIT_ALL: u32 = 0x100;
