//! A client that can do what a well-behaved one never would: it writes any bytes, at any pace, and reads when
//! it likes.
//!
//! What it reads it decodes strictly: a frame that is torn, masked or out of place fails the test.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use ringwire::protocol::{
    Decoder, Item, MessageKind, OpCode, Role,
    decoder::Limits,
    frame::append_masked_frame,
    handshake::{append_client_request, parse_client_response},
    parse_close,
};
use socket2::{Domain, SockAddr, Socket, Type};

pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// Longer than anything takes, on the busiest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits { message_bytes_max: 1 << 30, fragments_max: u32::MAX };

/// What a client read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// A close frame with its code and reason, or an empty one.
    Close(Option<(u16, String)>),
    /// The end of the stream.
    End,
    /// The server reset the connection.
    Reset,
}

impl Received {
    pub(crate) fn close_code(&self) -> Option<u16> {
        match self {
            Self::Close(Some((code, _))) => Some(*code),
            _ => None,
        }
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    decoder: Decoder,
    input: Vec<u8>,
    position: usize,
    message: Vec<u8>,
    mask: u32,
}

impl Client {
    /// Connects and upgrades.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::upgraded(TcpStream::connect(address).expect("connect"), "/", &[]).0
    }

    /// Connects with a receive buffer of this size, so that the server soon finds its socket full.
    pub(crate) fn connect_narrow(address: SocketAddr, receive_bytes: usize) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
        socket.set_recv_buffer_size(receive_bytes).expect("SO_RCVBUF");
        socket.connect(&SockAddr::from(address)).expect("connect");
        Self::upgraded(socket.into(), "/", &[]).0
    }

    /// Connects and upgrades with this target and these subprotocols; answers with the head of the response
    /// as well.
    pub(crate) fn connect_to(address: SocketAddr, target: &str, subprotocols: &[&str]) -> (Self, String) {
        Self::upgraded(TcpStream::connect(address).expect("connect"), target, subprotocols)
    }

    /// Connects and nothing more.
    pub(crate) fn connect_raw(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).expect("connect"))
    }

    fn upgraded(stream: TcpStream, target: &str, subprotocols: &[&str]) -> (Self, String) {
        let mut client = Self::new(stream);
        client.write(&request(target, subprotocols));
        let head = client.read_upgrade();
        (client, head)
    }

    /// A client on a connection that somebody else has made.
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("write timeout");
        Self {
            stream,
            decoder: Decoder::new(Role::Client),
            input: Vec::new(),
            position: 0,
            message: Vec::new(),
            mask: 0x9e37_79b9,
        }
    }

    /// Reads the answer to the upgrade request, which must be 101.
    pub(crate) fn read_upgrade(&mut self) -> String {
        loop {
            let parsed = parse_client_response(&self.input, KEY);
            match parsed.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.input))) {
                Some(head) => {
                    self.position = head;
                    return String::from_utf8(self.input[..head].to_vec()).expect("an ASCII head");
                }
                None => {
                    assert!(self.fill().expect("an answer to the upgrade") > 0, "closed before the answer");
                }
            }
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write");
    }

    /// Writes each byte by itself.
    pub(crate) fn write_bytewise(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write(std::slice::from_ref(byte));
        }
    }

    pub(crate) fn send(&mut self, opcode: OpCode, payload: &[u8]) {
        let frame = self.frame(opcode, payload);
        self.write(&frame);
    }

    pub(crate) fn send_text(&mut self, text: &str) {
        self.send(OpCode::Text, text.as_bytes());
    }

    pub(crate) fn send_binary(&mut self, payload: &[u8]) {
        self.send(OpCode::Binary, payload);
    }

    /// A masked frame, with a mask of its own.
    pub(crate) fn frame(&mut self, opcode: OpCode, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(payload.len() + 14);
        self.mask = self.mask.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        append_masked_frame(&mut frame, opcode, payload, self.mask.to_le_bytes());
        frame
    }

    /// Like [`frame`](Self::frame), but more fragments follow.
    pub(crate) fn fragment(&mut self, opcode: OpCode, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.frame(opcode, payload);
        frame[0] &= 0x7f;
        frame
    }

    /// The next message, control frame or end.
    pub(crate) fn receive(&mut self) -> Received {
        self.receive_within(PATIENCE).expect("nothing came from the server")
    }

    /// The same, or `None` when nothing comes for this long.
    pub(crate) fn receive_within(&mut self, patience: Duration) -> Option<Received> {
        self.stream.set_read_timeout(Some(patience)).expect("read timeout");
        let received = loop {
            if let Some(received) = self.decode() {
                break Some(received);
            }
            match self.fill() {
                Ok(0) => break Some(Received::End),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break Some(Received::Reset),
                Err(error) => panic!("read: {error}"),
            }
        };
        self.stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        received
    }

    pub(crate) fn receive_text(&mut self) -> String {
        match self.receive() {
            Received::Text(text) => text,
            other => panic!("not a text: {other:?}"),
        }
    }

    pub(crate) fn receive_binary(&mut self) -> Vec<u8> {
        match self.receive() {
            Received::Binary(bytes) => bytes,
            other => panic!("not binary: {other:?}"),
        }
    }

    /// Sends a text and wants it back.
    pub(crate) fn echo(&mut self, text: &str) {
        self.send_text(text);
        assert_eq!(self.receive_text(), text);
    }

    /// Reads on until the close frame, whose code is returned, or the end.
    pub(crate) fn receive_close(&mut self) -> Option<u16> {
        loop {
            match self.receive() {
                close @ Received::Close(_) => return close.close_code(),
                Received::End | Received::Reset => return None,
                _ => {}
            }
        }
    }

    /// Reads until the server has ended the stream, whatever comes before.
    pub(crate) fn receive_end(&mut self) {
        while !matches!(self.receive(), Received::End | Received::Reset) {}
    }

    /// Closes as RFC 6455 section 7.1.2 has it.
    pub(crate) fn close(mut self) {
        self.send(OpCode::Close, &1000u16.to_be_bytes());
        assert_eq!(self.receive_close(), Some(1000));
        self.receive_end();
    }

    /// Disappears without a word: the server's end sees a reset.
    pub(crate) fn reset(self) {
        let socket = Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    pub(crate) fn shut_write(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shutdown");
    }

    /// Everything up to the end of the stream, undecoded.
    pub(crate) fn read_rest(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("read: {error}"),
            }
        }
        self.input.split_off(self.position)
    }

    fn decode(&mut self) -> Option<Received> {
        loop {
            let start = self.position;
            let decoded =
                self.decoder.decode(&mut self.input[start..], &LIMITS).expect("a well-formed frame");
            self.position += decoded.consumed;
            let bytes =
                |range: std::ops::Range<usize>| self.input[start + range.start..start + range.end].to_vec();
            let received = match decoded.item {
                None => {
                    self.input.drain(..self.position);
                    self.position = 0;
                    return None;
                }
                Some(Item::Part { payload }) => {
                    let part = bytes(payload);
                    self.message.extend_from_slice(&part);
                    continue;
                }
                Some(Item::Message { kind, payload }) => message(kind, bytes(payload)),
                Some(Item::LastPart { kind, payload }) => {
                    let part = bytes(payload);
                    self.message.extend_from_slice(&part);
                    message(kind, std::mem::take(&mut self.message))
                }
                Some(Item::Ping { payload }) => Received::Ping(bytes(payload)),
                Some(Item::Pong { payload }) => Received::Pong(bytes(payload)),
                Some(Item::Close { payload }) => {
                    let payload = bytes(payload);
                    let close = parse_close(&payload).expect("a well-formed close frame");
                    Received::Close(close.map(|(code, reason)| (code.value(), reason.to_owned())))
                }
            };
            return Some(received);
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let filled = self.input.len();
        self.input.resize(filled + 64 * 1024, 0);
        let result = loop {
            match self.stream.read(&mut self.input[filled..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.input.truncate(filled + *result.as_ref().unwrap_or(&0));
        result
    }
}

fn message(kind: MessageKind, payload: Vec<u8>) -> Received {
    match kind {
        MessageKind::Text => Received::Text(String::from_utf8(payload).expect("UTF-8")),
        MessageKind::Binary => Received::Binary(payload),
    }
}

/// The bytes of a good upgrade request.
pub(crate) fn request(target: &str, subprotocols: &[&str]) -> Vec<u8> {
    let mut request = Vec::new();
    append_client_request(&mut request, "localhost", target, KEY, subprotocols);
    request
}

/// Sends bytes and reads the answer up to the end of the stream.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut client = Client::connect_raw(address);
    client.write(bytes);
    String::from_utf8(client.read_rest()).expect("a text answer")
}

/// The status of an HTTP answer.
pub(crate) fn status(answer: &str) -> u16 {
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no HTTP answer: {answer:?}"))
}

/// Waits until `holds` does.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
