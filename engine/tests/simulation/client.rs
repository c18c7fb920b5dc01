//! The peer: a client that keeps to RFC 6455, stalls, falls silent or breaks the protocol, as chance has it.

use ringwire::{
    CloseCode,
    protocol::{
        Decoder, Item, Limits, MessageKind, OpCode, Role, UpgradeError, append_close_frame,
        frame::append_masked_frame,
        handshake::{append_client_request, parse_client_response},
        parse_close,
    },
};

use crate::{content::Content, handler::Shared, network::Link};

/// How a client behaves once it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    Fair,
    /// Never reads.
    Deaf,
    /// Reads, but answers neither pings nor close frames.
    Mute,
}

/// How far the answer to the request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Awaited,
    Switched,
    Refused,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) peer: usize,
    temper: Temper,
    /// The status that the request deserves.
    status: u16,
    /// Written, but not in the pipe yet.
    outgoing: Vec<u8>,
    /// The stream ends behind what is outgoing.
    ends: bool,
    /// Nothing more of its own comes: a close frame was sent, a broken frame, or half a request.
    is_done: bool,
    incoming: Vec<u8>,
    head: Head,
    decoder: Decoder,
    /// The message that is being received.
    parts: Vec<u8>,
    pings: u32,
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

impl Client {
    /// A client whose request is on its way.
    pub(crate) fn new(peer: usize, shared: &Shared) -> Self {
        let (random, odds) = (&shared.random, &shared.plan.odds);
        let temper = if random.chance(odds.deaf) {
            Temper::Deaf
        } else if random.chance(odds.mute) {
            Temper::Mute
        } else {
            Temper::Fair
        };
        let mut client = Self {
            peer,
            temper,
            status: 101,
            outgoing: Vec::new(),
            ends: false,
            is_done: false,
            incoming: Vec::new(),
            head: Head::Awaited,
            decoder: Decoder::new(Role::Client),
            parts: Vec::new(),
            pings: 0,
        };
        client.request(shared);
        client
    }

    fn request(&mut self, shared: &Shared) {
        let random = &shared.random;
        let subprotocol = if random.chance(50) { "chat".into() } else { "x".repeat(random.within(1, 700)) };
        let target = format!("/peer/{}", self.peer);
        append_client_request(&mut self.outgoing, "ringwire", &target, KEY, &[&subprotocol]);
        if !random.chance(shared.plan.odds.bad_request) {
            return;
        }
        self.is_done = true;
        let request = String::from_utf8_lossy(&self.outgoing).into_owned();
        let (bad, status) = match random.below(7) {
            0 => (request.replace("Key", "Lock"), 400),
            1 => (request.replace("Version: 13", "Version: 12"), 426),
            2 => (request.replace("GET", "POST"), 405),
            3 => (request.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"), 400),
            4 => (request.replace("\r\n\r\n", &format!("\r\nX: {}\r\n\r\n", "x".repeat(2000))), 431),
            5 => ("GET /health HTTP/1.1\r\nHost: ringwire\r\n\r\n".into(), 200),
            _ => (request[..random.below(request.len())].into(), 0),
        };
        self.outgoing = bad.into_bytes();
        self.status = status;
    }

    /// Does what comes to mind.
    pub(crate) fn act(&mut self, shared: &Shared, link: &mut Link) {
        let (random, odds) = (&shared.random, &shared.plan.odds);
        if random.chance(odds.reset) {
            shared.model.borrow_mut().records[self.peer].vanished = true;
            link.is_reset = true;
        }
        // A client that cannot write does not go on writing for ever.
        if self.is_done || self.outgoing.len() > 300_000 {
            return;
        }
        if random.chance(odds.client_ping) {
            for _ in 0..if random.chance(odds.ping_flood) { 50 } else { 1 } {
                self.ping(shared);
            }
        } else if random.chance(odds.broken_frame) {
            self.break_the_protocol(shared);
        } else if random.chance(odds.client_close) {
            self.close(shared);
        } else if random.chance(odds.half_close) {
            shared.model.borrow_mut().records[self.peer].vanished = true;
            self.is_done = true;
            self.ends = true;
        } else {
            self.send(shared);
        }
    }

    /// Moves some of what is written into the pipe. Answers whether there was any.
    pub(crate) fn flush(&mut self, shared: &Shared, link: &mut Link) -> bool {
        if link.is_reset || link.server_is_gone || link.to_server.has_ended() {
            self.outgoing.clear();
            return false;
        }
        let was_empty = self.outgoing.is_empty() && !self.ends;
        let bytes = shared.random.share(self.outgoing.len());
        let written = link.to_server.write(&self.outgoing[..bytes]);
        self.outgoing.drain(..written);
        if self.ends && self.outgoing.is_empty() {
            link.to_server.end();
        }
        !was_empty
    }

    /// Reads some of what has arrived, unless it is deaf. Answers whether there was any.
    pub(crate) fn read(&mut self, shared: &Shared, link: &mut Link) -> bool {
        if self.temper == Temper::Deaf || link.is_reset {
            return false;
        }
        let bytes = shared.random.share(link.to_client.len());
        self.read_bytes(shared, link, bytes);
        bytes > 0
    }

    /// Reads everything that has arrived, even if it was deaf until now.
    pub(crate) fn read_all(&mut self, shared: &Shared, link: &mut Link) {
        let bytes = link.to_client.len();
        self.read_bytes(shared, link, bytes);
    }

    /// Begins the close handshake.
    pub(crate) fn close(&mut self, shared: &Shared) {
        if self.is_done {
            return;
        }
        let random = &shared.random;
        let (code, reason) =
            *random.one_of(&[(1005, ""), (1000, ""), (1001, "leaving"), (3500, "gr\u{fc}\u{df}e")]);
        self.send_close(shared, CloseCode::new(code), reason);
    }

    /// The client is content: it has read the end of the stream.
    pub(crate) fn knows_the_end(&self, link: &Link) -> bool {
        link.to_client.is_at_end()
    }

    /// It finishes whatever it has begun.
    pub(crate) fn is_fair(&self) -> bool {
        self.temper == Temper::Fair
    }

    pub(crate) fn has_switched(&self) -> bool {
        self.head == Head::Switched
    }

    fn send_close(&mut self, shared: &Shared, code: CloseCode, reason: &str) {
        shared.model.borrow().narrate(|| format!("client {}: closes with {code}", self.peer));
        let mut frame = Vec::new();
        append_close_frame(&mut frame, Some(code), reason);
        self.write(shared, OpCode::Close, &frame[2..]);
        let record = &mut shared.model.borrow_mut().records[self.peer];
        record.client_close = Some((code, reason.to_owned()));
        self.is_done = true;
        // Some end the stream at once, most wait for the server to do so.
        self.ends |= shared.random.chance(20);
    }

    fn write(&mut self, shared: &Shared, opcode: OpCode, payload: &[u8]) {
        let mask = (shared.random.bits() as u32).to_ne_bytes();
        append_masked_frame(&mut self.outgoing, opcode, payload, mask);
    }

    fn write_fragment(&mut self, shared: &Shared, opcode: OpCode, payload: &[u8]) {
        let start = self.outgoing.len();
        self.write(shared, opcode, payload);
        self.outgoing[start] &= 0x7F;
    }

    fn ping(&mut self, shared: &Shared) {
        self.pings += 1;
        let mut payload = self.pings.to_be_bytes().to_vec();
        payload.resize(shared.random.within(4, 125), 0);
        self.write(shared, OpCode::Ping, &payload);
        shared.model.borrow_mut().pinged(self.peer, payload);
    }

    /// Sends a message, whole or in fragments with control frames between them.
    fn send(&mut self, shared: &Shared) {
        let random = &shared.random;
        let content =
            Content::random(random, shared.plan.message_bytes(random, shared.plan.uploaded_bytes_max));
        shared.model.borrow_mut().records[self.peer].uploads.push_back(content);
        let opcode = OpCode::from(content.kind);
        let fragments = shared.plan.settings.message.fragments_max as usize;
        let fragments = if random.chance(70) { 1 } else { random.within(1, fragments.min(8)) };
        let mut rest = content.bytes;
        for number in 1..fragments {
            let (fragment, behind) = rest.split_at(random.below(rest.len() + 1));
            self.write_fragment(shared, if number == 1 { opcode } else { OpCode::Continuation }, fragment);
            rest = behind;
            if random.chance(30) {
                self.ping(shared);
            } else if random.chance(10) {
                self.write(shared, OpCode::Pong, b"unasked");
            }
        }
        self.write(shared, if fragments == 1 { opcode } else { OpCode::Continuation }, rest);
    }

    fn break_the_protocol(&mut self, shared: &Shared) {
        let random = &shared.random;
        let limits = shared.plan.settings.message;
        let code = match random.below(11) {
            0 => self.write_raw(b"\x83\x80\0\0\0\0", 1002),
            1 => self.write_raw(b"\xC1\x80\0\0\0\0", 1002),
            2 => self.write_raw(b"\x82\x05plain", 1002),
            3 => self.write_raw(b"\x80\x80\0\0\0\0", 1002),
            4 => self.write_raw(b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0", 1002),
            5 => self.write_raw(b"\x09\x80\0\0\0\0", 1002),
            6 => self.write_raw(b"\x81\x83\0\0\0\0\xE2\x82\x41", 1007),
            7 => self.write_raw(b"\x88\x81\0\0\0\0\x03", 1002),
            8 => self.write_raw(b"\x88\x82\0\0\0\0\x03\xED", 1002),
            9 => {
                self.write_fragment(shared, OpCode::Binary, b"");
                for _ in 0..limits.fragments_max {
                    self.write_fragment(shared, OpCode::Continuation, b"");
                }
                1008
            }
            _ => {
                let bytes = vec![b'!'; random.within(limits.message_bytes_max + 1, 128 * 1024)];
                self.write(shared, OpCode::Binary, &bytes);
                1009
            }
        };
        self.is_done = true;
        let mut model = shared.model.borrow_mut();
        model.narrate(|| format!("client {}: breaks the protocol, deserving {code}", self.peer));
        model.tally.broken += 1;
        model.records[self.peer].causes.push(CloseCode::new(code));
    }

    fn write_raw(&mut self, bytes: &[u8], code: u16) -> u16 {
        self.outgoing.extend_from_slice(bytes);
        code
    }

    fn read_bytes(&mut self, shared: &Shared, link: &mut Link, bytes: usize) {
        if link.is_reset {
            return;
        }
        self.incoming.extend_from_slice(link.to_client.read(bytes));
        if self.head == Head::Awaited {
            self.read_head(shared);
        }
        match self.head {
            Head::Awaited => {}
            Head::Refused => self.incoming.clear(),
            Head::Switched => self.read_frames(shared),
        }
        if link.to_client.is_at_end() && self.temper == Temper::Fair {
            self.is_done = true;
            self.ends = true;
        }
    }

    fn read_head(&mut self, shared: &Shared) {
        match parse_client_response(&self.incoming, KEY) {
            Ok(None) => {}
            Ok(Some(head_bytes)) => {
                self.incoming.drain(..head_bytes);
                self.head = Head::Switched;
                let deserved = self.status == 101;
                let mut model = shared.model.borrow_mut();
                model.check(self.peer, deserved, "a bad request is not answered with 101");
            }
            Err(UpgradeError::UnexpectedStatus(status)) => {
                self.head = Head::Refused;
                self.is_done = true;
                // 403: the handler's will; 500: its panic; 503: the limit of connections.
                let expected = status == self.status || matches!(status, 403 | 500 | 503);
                if !expected {
                    let deserved = self.status;
                    shared.model.borrow_mut().fail(self.peer, format!("{status} in place of {deserved}"));
                }
            }
            Err(error) => {
                shared.model.borrow_mut().fail(self.peer, format!("the answer to the request: {error}"));
                self.head = Head::Refused;
            }
        }
    }

    fn read_frames(&mut self, shared: &Shared) {
        let limits = Limits { message_bytes_max: 1 << 20, fragments_max: 1 };
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut position = 0;
        while position < incoming.len() {
            if shared.model.borrow().records[self.peer].server_close.is_some() {
                shared.model.borrow_mut().fail(self.peer, "bytes behind the close frame");
                position = incoming.len();
                break;
            }
            let rest = &mut incoming[position..];
            match self.decoder.decode(rest, &limits) {
                Ok(decoded) => {
                    position += decoded.consumed;
                    match decoded.item {
                        Some(item) => self.receive(shared, item, rest),
                        None => break,
                    }
                }
                Err(error) => {
                    shared.model.borrow_mut().fail(self.peer, format!("the server's frames: {error}"));
                    position = incoming.len();
                }
            }
        }
        incoming.drain(..position);
        self.incoming = incoming;
    }

    fn receive(&mut self, shared: &Shared, item: Item, bytes: &[u8]) {
        let arrived = |kind: MessageKind, payload: &[u8]| {
            let mut model = shared.model.borrow_mut();
            if !model.hears_publication(self.peer, payload) {
                model.arrived(self.peer, kind, payload);
            }
        };
        match item {
            Item::Message { kind, payload } => arrived(kind, &bytes[payload]),
            Item::Part { payload } => self.parts.extend_from_slice(&bytes[payload]),
            Item::LastPart { kind, payload } => {
                self.parts.extend_from_slice(&bytes[payload]);
                arrived(kind, &self.parts);
                self.parts.clear();
            }
            Item::Ping { payload } => {
                if !self.is_done && self.temper == Temper::Fair {
                    self.write(shared, OpCode::Pong, &bytes[payload]);
                }
            }
            Item::Pong { payload } => shared.model.borrow_mut().answered(self.peer, &bytes[payload]),
            Item::Close { payload } => match parse_close(&bytes[payload]) {
                Ok(frame) => {
                    let code = frame.map_or(CloseCode::NO_STATUS, |(code, _)| code);
                    shared.model.borrow_mut().records[self.peer].server_close = Some(code);
                    if !self.is_done && self.temper == Temper::Fair {
                        self.send_close(shared, code, "");
                    }
                }
                Err(error) => shared.model.borrow_mut().fail(self.peer, format!("close frame: {error}")),
            },
        }
    }
}
