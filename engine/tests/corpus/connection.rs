//! Whole connections: a shard with a few peers that send anything in any pieces, take what is sent in any
//! pieces, end or break at any time, while the clock moves. No runtime, no socket, no clock: the script is
//! all there is. Messages can be commands to subscribe and to publish, to peers of the same shard or of two.
//!
//! What a peer gets has to be one HTTP answer, then frames that a strict client accepts, whose messages are
//! those the handler sent, in order, and nothing behind a close frame. Nothing that waits for its turn is
//! forgotten, every opened connection is closed once, and in the end none is left.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ringwire::{
    CloseCode, CloseReason, Connection, ConnectionId, Counters, Handler, Message, Upgrade,
    buffer::{HEADROOM_BYTES, SendBuffer},
    connection::{OutboxFull, OutboxLimits, Output, Settings, Timeouts, Timestamp},
    protocol::{
        Decoder, Item, Limits, MessageKind, OpCode, Role, UpgradeRequest, frame::append_masked_frame,
    },
    shard::{MeshSeat, Shard, TICK_MILLIS, TopicLimits, TopicRegistry},
};

use super::{
    Script,
    topics::{Heard, Publications, TOPICS_MAX, topic_rules},
};

const PEERS_MAX: usize = 3;
const OUTBOX_BYTES_MAX: usize = 16 * 1024;
/// Control frames may go over the limit of the data frames by this much.
const CONTROL_BYTES_MAX: usize = 8 * 1024;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// A byte of settings, then steps: a byte that says which peer does what, and what that takes.
pub(crate) fn connection(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new(script.byte());
    let mut steps = 0;
    while !script.is_over() && steps < 2000 {
        world.step(&mut script);
        steps += 1;
    }
    world.finish();
}

struct World {
    shards: Vec<Shard<Echo>>,
    publications: Rc<RefCell<Publications>>,
    /// Windows that are open, by shard.
    windows: Vec<(usize, u32)>,
    log: Rc<RefCell<HashMap<ConnectionId, Record>>>,
    peers: Vec<Peer>,
    now: u64,
    deferred: Vec<(ConnectionId, DeferredUpgrade)>,
    /// A connection takes its turn at once, not when the script says so.
    is_eager: bool,
}

type DeferredUpgrade = std::pin::Pin<Box<dyn Future<Output = Upgrade<()>>>>;

/// What the handler saw of a connection.
#[derive(Debug, Default)]
struct Record {
    closes: u32,
    sent: Vec<(MessageKind, Vec<u8>)>,
}

struct Echo {
    log: Rc<RefCell<HashMap<ConnectionId, Record>>>,
    publications: Rc<RefCell<Publications>>,
}

impl Echo {
    fn send(&self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        if connection.send(message).is_sent() {
            let mut log = self.log.borrow_mut();
            let record = log.get_mut(&connection.id()).expect("an open connection");
            record.sent.push((message.kind(), message.bytes().to_vec()));
        }
    }
}

impl Handler for Echo {
    type Session = ();

    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<()> {
        match request.path() {
            "/reject" => Upgrade::reject(403, "no"),
            "/later" => Upgrade::defer(std::future::ready(Upgrade::accept(()))),
            _ => Upgrade::accept(()).subprotocol("echo"),
        }
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        let before = self.log.borrow_mut().insert(connection.id(), Record::default());
        assert!(before.is_none(), "opened twice");
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        assert!(connection.is_open(), "a message after the close");
        match message.bytes().first() {
            Some(b'c') => connection.close(CloseCode::new(3000), "as asked"),
            Some(b'd') => {
                self.send(connection, message);
                self.send(connection, Message::Text("second"));
            }
            Some(b'p') => connection.ping(message.bytes()),
            Some(b'n') => {}
            Some(b'r') => {
                connection.pause_receive();
                connection.resume_receive();
            }
            Some(b'w') => connection.pause_receive(),
            Some(b'S' | b'U' | b'P' | b'A' | b'K') => {
                self.publications.borrow_mut().obey(connection, message.bytes());
            }
            // Told apart from publications.
            Some(0xff) => {}
            _ => self.send(connection, message),
        }
    }

    fn on_drain(&mut self, connection: &mut Connection<'_, ()>) {
        connection.resume_receive();
    }

    fn on_close(&mut self, connection: &mut Connection<'_, ()>, _: &CloseReason) {
        assert!(!self.send_is_possible(connection), "a message was taken after the close");
        let mut log = self.log.borrow_mut();
        log.get_mut(&connection.id()).expect("closed, but never opened").closes += 1;
    }
}

impl Echo {
    fn send_is_possible(&self, connection: &mut Connection<'_, ()>) -> bool {
        connection.is_open() || connection.send("late").is_sent()
    }
}

impl World {
    fn new(options: u8) -> Self {
        let full = match options % 2 {
            0 => OutboxFull::Close(CloseCode::TRY_AGAIN_LATER),
            _ => OutboxFull::DropNewest,
        };
        let settings = Settings {
            message: Limits { message_bytes_max: 70_000, fragments_max: 8 },
            header_bytes_max: 1024,
            outbox: OutboxLimits {
                bytes_max: OUTBOX_BYTES_MAX,
                bytes_high: OUTBOX_BYTES_MAX / 2,
                bytes_low: OUTBOX_BYTES_MAX / 4,
                full,
            },
            timeouts: Timeouts {
                handshake: Duration::from_secs(1),
                idle: Some(Duration::from_secs(20)),
                ping_interval: (options & 2 != 0).then_some(Duration::from_secs(2)),
                pong: Duration::from_secs(1),
                close: Duration::from_secs(1),
                lifetime: (options & 4 != 0).then_some(Duration::from_secs(10)),
                lifetime_jitter: Duration::from_secs(1),
            },
        };
        let log = Rc::<RefCell<HashMap<_, _>>>::default();
        let publications = Rc::<RefCell<Publications>>::default();
        let count = if options & 16 == 0 { 1 } else { 2 };
        let registry = TopicRegistry::new(count);
        let limits = TopicLimits { name_bytes_max: 8, topics_max: TOPICS_MAX };
        let seats = MeshSeat::connect(count).into_iter().enumerate();
        let shards = seats.map(|(index, seat)| {
            let handler = Echo { log: Rc::clone(&log), publications: Rc::clone(&publications) };
            let counters = Arc::new(Counters::default());
            let start = Timestamp::from_millis(0);
            Shard::new(index as u16, handler, settings, PEERS_MAX, counters, 1, start).joined(
                seat,
                Arc::clone(&registry),
                topic_rules(),
                limits,
            )
        });
        Self {
            shards: shards.collect(),
            publications,
            windows: Vec::new(),
            log,
            peers: Vec::new(),
            now: 0,
            deferred: Vec::new(),
            is_eager: options & 8 == 0,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let choice = script.byte();
        let peer = usize::from(choice >> 4) % PEERS_MAX;
        if peer >= self.peers.len() {
            return self.accept();
        }
        match choice & 0x0f {
            // Any bytes.
            0 => {
                let count = usize::from(script.byte());
                let bytes = script.bytes(count).to_vec();
                self.receive(peer, &bytes);
            }
            1 => self.receive(peer, REQUEST),
            2 => self.receive(peer, &[&REQUEST[..4], b"/later", &REQUEST[5..]].concat()),
            // The request and what follows come in one piece, or in pieces.
            3 => {
                let cut = usize::from(script.byte()).min(REQUEST.len());
                self.receive(peer, &REQUEST[..cut]);
                let frame = frame_from(script);
                self.receive(peer, &[&REQUEST[cut..], frame.as_slice()].concat());
            }
            4..=6 => {
                let frame = frame_from(script);
                self.receive(peer, &frame);
            }
            // Two frames, cut somewhere.
            7 => {
                let mut frames = frame_from(script);
                frames.extend(frame_from(script));
                let cut = (usize::from(script.byte()) << 8 | usize::from(script.byte())) % frames.len();
                self.receive(peer, &frames[..cut]);
                self.receive(peer, &frames[cut..]);
            }
            8 | 9 => {
                let share = script.byte();
                self.take_output(peer, share);
            }
            10 => {
                self.now += u64::from(script.byte()) * 10;
                self.tick();
            }
            11 => self.end_of_stream(peer),
            12 => {
                let id = self.peers[peer].id;
                self.shard(id).handle_transport_error(id, "lost");
                self.wake(id);
            }
            13 => {
                self.decide();
                self.end_turns();
            }
            14 => {
                let id = self.peers[peer].id;
                self.shard(id).shrink_connection(id);
                self.shard(id).shrink();
            }
            _ => self.accept(),
        }
        if self.is_eager {
            self.end_turns();
            self.take_turns();
        }
        self.check();
    }

    fn shard(&mut self, id: ConnectionId) -> &mut Shard<Echo> {
        &mut self.shards[id.shard()]
    }

    /// What was published is delivered, on all shards.
    fn end_turns(&mut self) {
        for index in 0..self.shards.len() {
            self.end_turn(index);
        }
        // The first gets what the others had for it.
        self.end_turn(0);
        self.publications.borrow_mut().turns_ended();
    }

    fn end_turn(&mut self, index: usize) {
        let shard = &mut self.shards[index];
        shard.handle_mesh(Timestamp::from_millis(self.now));
        assert!(!shard.flush_topics(), "a ring is full");
        while shard.poll_wake().is_some() {}
        self.windows.extend(std::iter::from_fn(|| shard.poll_window()).map(|(topic, _)| (index, topic)));
        self.note_dirty();
    }

    fn accept(&mut self) {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let is_full = self.peers.len() >= PEERS_MAX;
        if is_full && self.shards.len() > 1 {
            return;
        }
        let shard = self.peers.len() % self.shards.len();
        match self.shards[shard].handle_accepted(address, Timestamp::from_millis(self.now)) {
            Ok(id) => self.peers.push(Peer::new(id)),
            Err(answer) => {
                assert_eq!(self.peers.len(), PEERS_MAX);
                assert!(answer.starts_with(b"HTTP/1.1 503 "));
            }
        }
    }

    fn receive(&mut self, peer: usize, bytes: &[u8]) {
        let id = self.peers[peer].id;
        if bytes.is_empty() || !self.shard(id).wants_receive(id) {
            return;
        }
        let mut input = vec![0xaa; HEADROOM_BYTES];
        input.extend_from_slice(bytes);
        let now = Timestamp::from_millis(self.now);
        let relay = self.shard(id).handle_received(id, &mut input, now);
        if let Some(range) = relay {
            let peer = &mut self.peers[peer];
            assert!(peer.in_flight.is_none(), "a frame overtakes what is being sent");
            let frame = &input[range];
            let sent = frame.len() * bytes.len() % (frame.len() + 1);
            peer.wire(&frame[..sent]);
            self.shard(id).handle_relayed(id, sent, &frame[sent..]);
        }
        self.wake(id);
    }

    fn end_of_stream(&mut self, peer: usize) {
        let id = self.peers[peer].id;
        if self.shard(id).wants_receive(id) {
            self.shard(id).handle_end_of_stream(id);
            self.wake(id);
        }
    }

    fn tick(&mut self) {
        for (shard, topic) in self.windows.drain(..) {
            self.shards[shard].close_window(topic);
        }
        for shard in &mut self.shards {
            shard.handle_tick(Timestamp::from_millis(self.now));
        }
        self.note_dirty();
    }

    /// Makes the oldest decision that is pending.
    fn decide(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        let (id, mut decision) = self.deferred.remove(0);
        let Poll::Ready(upgrade) = decision.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            unreachable!("the decision is ready");
        };
        let now = Timestamp::from_millis(self.now);
        self.shard(id).handle_upgrade(id, upgrade, now);
        self.note_dirty();
    }

    /// It is the connection's turn, and that of all which the shard names.
    fn wake(&mut self, id: ConnectionId) {
        for peer in self.peers.iter_mut().filter(|peer| peer.id == id) {
            peer.has_turn = true;
        }
        self.note_dirty();
    }

    fn note_dirty(&mut self) {
        for shard in &mut self.shards {
            while let Some(id) = shard.poll_dirty() {
                for peer in self.peers.iter_mut().filter(|peer| peer.id == id) {
                    peer.has_turn = true;
                }
            }
            self.deferred.extend(std::iter::from_fn(|| shard.poll_deferred()));
        }
    }

    /// The peer's socket takes a share of what is being sent; 0 is nothing, 255 all.
    fn take_output(&mut self, peer: usize, share: u8) {
        let id = self.peers[peer].id;
        if let Some(buffer) = self.peers[peer].in_flight.take() {
            let sent = buffer.len() * usize::from(share) / 255;
            self.peers[peer].wire(&buffer.unsent()[..sent]);
            self.shard(id).handle_sent(id, buffer, sent);
            self.wake(id);
        } else {
            self.take_turn(peer);
        }
    }

    /// Asks the connection for output, if it is its turn; the peer may be gone after it.
    fn take_turn(&mut self, peer: usize) {
        let id = self.peers[peer].id;
        if self.peers[peer].has_turn && self.peers[peer].in_flight.is_none() {
            match self.shard(id).poll_output(id) {
                Output::Idle => self.peers[peer].has_turn = false,
                Output::Send(buffer) => {
                    assert!(!self.peers[peer].is_shut, "output after the end");
                    assert!(!buffer.is_empty(), "nothing to send");
                    self.peers[peer].in_flight = Some(buffer);
                }
                Output::Shutdown => {
                    assert!(!std::mem::replace(&mut self.peers[peer].is_shut, true), "shut twice");
                }
                Output::Close => {
                    self.shard(id).handle_closed(id);
                    self.wake(id);
                    let peer = self.peers.remove(peer);
                    self.check_gone(&peer);
                }
            }
        }
    }

    /// Until everybody sends, has nothing to send or is gone.
    fn take_turns(&mut self) {
        let is_due = |peer: &Peer| peer.has_turn && peer.in_flight.is_none();
        while let Some(peer) = self.peers.iter().position(is_due) {
            self.take_turn(peer);
        }
    }

    fn check(&self) {
        assert_eq!(self.shards.iter().map(Shard::len).sum::<usize>(), self.peers.len());
        for peer in &self.peers {
            let shard = &self.shards[peer.id.shard()];
            let endpoint = shard.endpoint(peer.id).expect("a peer has a connection");
            let bytes = endpoint.outbox().bytes();
            assert!(bytes <= OUTBOX_BYTES_MAX + CONTROL_BYTES_MAX, "{bytes} bytes in the outbox");
            let waits = endpoint.has_output() && peer.in_flight.is_none();
            assert!(!waits || peer.has_turn, "output, but nobody was told");
        }
    }

    fn check_gone(&self, peer: &Peer) {
        let log = self.log.borrow();
        let Some(record) = log.get(&peer.id) else {
            assert!(peer.messages.is_empty(), "messages from a connection that was never open");
            return;
        };
        assert_eq!(record.closes, 1, "on_close is called once");
        let publications = self.publications.borrow();
        let (heard, messages): (Vec<_>, Vec<_>) =
            peer.messages.iter().cloned().partition(|(_, bytes)| Heard::is_publication(bytes));
        publications.check(peer.id, heard.iter().map(|(_, bytes)| bytes.as_slice()));
        let mut sent = record.sent.iter();
        let in_order = messages.iter().all(|message| sent.any(|sent| sent == message));
        assert!(in_order, "not the messages that the handler sent");
        // Nothing is missing between them, unless a topic drops the oldest.
        let whole = record.sent.starts_with(&messages) || publications.drops_oldest(peer.id);
        assert!(whole, "a message is missing");
    }

    /// Everybody reads, nobody sends, time passes: all connections end.
    fn finish(mut self) {
        for _ in 0..400 {
            let mut sends = 0;
            self.take_turns();
            while let Some(peer) = self.peers.iter().position(|peer| peer.in_flight.is_some()) {
                self.take_output(peer, 255);
                self.take_turns();
                sends += 1;
                assert!(sends < 10_000, "output without end");
            }
            self.decide();
            self.now += TICK_MILLIS;
            self.tick();
            self.end_turns();
        }
        assert!(self.peers.is_empty(), "{} connections are left", self.peers.len());
        assert!(self.shards.iter().all(Shard::is_empty));
    }
}

/// One end of a transport, and what it has been sent.
struct Peer {
    id: ConnectionId,
    in_flight: Option<SendBuffer>,
    has_turn: bool,
    is_shut: bool,
    answer: Vec<u8>,
    is_upgraded: bool,
    frames: Vec<u8>,
    decoder: Decoder,
    partial: Vec<u8>,
    messages: Vec<(MessageKind, Vec<u8>)>,
    is_closed: bool,
}

impl Peer {
    fn new(id: ConnectionId) -> Self {
        Self {
            id,
            in_flight: None,
            has_turn: false,
            is_shut: false,
            answer: Vec::new(),
            is_upgraded: false,
            frames: Vec::new(),
            decoder: Decoder::new(Role::Client),
            partial: Vec::new(),
            messages: Vec::new(),
            is_closed: false,
        }
    }

    fn wire(&mut self, bytes: &[u8]) {
        assert!(!self.is_closed || bytes.is_empty(), "bytes behind a close frame");
        if self.is_upgraded {
            return self.read_frames(bytes);
        }
        self.answer.extend_from_slice(bytes);
        let Some(head) = self.answer.windows(4).position(|window| window == b"\r\n\r\n") else { return };
        if self.answer.starts_with(b"HTTP/1.1 101 ") {
            self.is_upgraded = true;
            let frames = self.answer.split_off(head + 4);
            self.read_frames(&frames);
        }
    }

    fn read_frames(&mut self, bytes: &[u8]) {
        const LIMITS: Limits = Limits { message_bytes_max: usize::MAX, fragments_max: u32::MAX };
        self.frames.extend_from_slice(bytes);
        loop {
            let decoded =
                self.decoder.decode(&mut self.frames, &LIMITS).expect("frames that a client accepts");
            let item = decoded.item;
            let taken: Vec<u8> = self.frames.drain(..decoded.consumed).collect();
            match item {
                None => return assert!(!self.is_closed || taken.is_empty(), "bytes behind a close frame"),
                Some(Item::Message { kind, payload }) => self.messages.push((kind, taken[payload].to_vec())),
                Some(Item::Part { payload }) => self.partial.extend_from_slice(&taken[payload]),
                Some(Item::LastPart { kind, payload }) => {
                    self.partial.extend_from_slice(&taken[payload]);
                    self.messages.push((kind, std::mem::take(&mut self.partial)));
                }
                Some(Item::Ping { .. } | Item::Pong { .. }) => {}
                Some(Item::Close { .. }) => self.is_closed = true,
            }
        }
    }
}

/// A frame as clients send them; whether it is allowed at this place is for the connection to find out.
fn frame_from(script: &mut Script<'_>) -> Vec<u8> {
    let shape = script.byte();
    let opcode = match shape & 7 {
        0 | 1 => OpCode::Text,
        2 => OpCode::Binary,
        3 => OpCode::Continuation,
        4 => OpCode::Ping,
        5 => OpCode::Pong,
        6 => OpCode::Close,
        _ => OpCode::Binary,
    };
    let seed = script.byte();
    let payload = match (shape >> 3) & 7 {
        0 => Vec::new(),
        1..=3 => script.bytes(usize::from(seed % 16)).to_vec(),
        4 => vec![seed; 125],
        5 => vec![b'x'; 126 + usize::from(seed)],
        6 => vec![b'n'; 4096 + usize::from(seed)],
        _ => "ß".repeat(2000 + usize::from(seed) * 140).into_bytes(),
    };
    let mut frame = Vec::new();
    append_masked_frame(&mut frame, opcode, &payload, [seed, 2, 3, 4]);
    if shape & 0x40 != 0 {
        // Not the last fragment.
        frame[0] &= 0x7f;
    }
    frame
}
