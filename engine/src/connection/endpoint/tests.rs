//! The endpoint, frame by frame: close handshakes, keepalive, pauses, and the stream cut at every byte.

use std::time::Duration;

use super::*;
use crate::{
    buffer::HEADROOM_BYTES,
    connection::{Initiator, OutboxFull, OutboxLimits, Timeouts},
    protocol::{
        CloseCode, Limits,
        frame::{append_frame, append_masked_frame},
    },
};

const SETTINGS: Settings = Settings {
    message: Limits { message_bytes_max: 100_000, fragments_max: 16 },
    header_bytes_max: 8192,
    outbox: OutboxLimits {
        bytes_max: 64 * 1024,
        bytes_high: 32 * 1024,
        bytes_low: 1024,
        full: OutboxFull::Close(CloseCode::TRY_AGAIN_LATER),
    },
    timeouts: Timeouts {
        handshake: Duration::from_secs(10),
        idle: None,
        ping_interval: Some(Duration::from_secs(25)),
        pong: Duration::from_secs(10),
        close: Duration::from_secs(5),
        lifetime: None,
        lifetime_jitter: Duration::ZERO,
    },
};

/// What came of received bytes, payloads included.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Message(MessageKind, Vec<u8>),
    Ping,
    Pong,
    Closed(Option<ProtocolError>),
}

/// What the transport was told to do.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Send(Vec<u8>),
    Shutdown,
    Close,
}

struct Fixture {
    endpoint: Endpoint,
    settings: Settings,
    corks: CorkPool,
    now: Timestamp,
}

impl Fixture {
    /// At the upgrade request.
    fn accepted(settings: Settings) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let endpoint = Endpoint::new(&settings, Duration::ZERO, now);
        Self { endpoint, settings, corks: CorkPool::new(), now }
    }

    /// An open connection whose response has left.
    fn open() -> Self {
        let mut fixture = Self::accepted(SETTINGS);
        fixture.endpoint.accept(b"101".to_vec(), fixture.now);
        assert_eq!(fixture.told(), [Told::Send(b"101".to_vec())]);
        fixture
    }

    /// Receives `bytes`, and pauses behind the message number `pause_behind`.
    fn receive_until(&mut self, bytes: &[u8], pause_behind: usize) -> Vec<Seen> {
        let mut input = vec![0; HEADROOM_BYTES];
        input.extend_from_slice(bytes);
        match self.endpoint.handle_received(&mut input, self.now) {
            Ok(start) => self.process(&mut input, start, pause_behind),
            Err(mut joined) => self.process(&mut joined, 0, pause_behind),
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Vec<Seen> {
        self.receive_until(bytes, usize::MAX)
    }

    /// Resumes receipt, and processes what was kept.
    fn resume(&mut self) -> Vec<Seen> {
        self.endpoint.pause_receive(false);
        if !self.endpoint.take_resumed(&self.settings, self.now) {
            return Vec::new();
        }
        let (mut kept, start) = self.endpoint.take_kept();
        self.process(&mut kept, start, usize::MAX)
    }

    fn process(&mut self, input: &mut [u8], start: usize, pause_behind: usize) -> Vec<Seen> {
        let (mut position, mut seen, mut messages) = (start, Vec::new(), 0);
        loop {
            let endpoint = &mut self.endpoint;
            match endpoint.poll_event(input, &mut position, &self.settings, &mut self.corks, self.now) {
                None => break,
                Some(Event::Message(kind, place)) => {
                    seen.push(Seen::Message(
                        kind,
                        match place {
                            Place::Input(range) => input[range].to_vec(),
                            Place::Assembly => {
                                let (assembly, start) = endpoint.take_assembly();
                                assert_eq!(start, 10, "room for any header of a server's");
                                assembly[start..].to_vec()
                            }
                        },
                    ));
                    messages += 1;
                    if messages == pause_behind {
                        endpoint.pause_receive(true);
                    }
                }
                Some(Event::Ping) => seen.push(Seen::Ping),
                Some(Event::Pong) => seen.push(Seen::Pong),
                Some(Event::Closed(error)) => seen.push(Seen::Closed(error)),
            }
        }
        self.endpoint.keep(&input[position..]);
        seen
    }

    fn send(&mut self, payload: &[u8]) -> Result<SendStatus, Full> {
        self.endpoint.send(OpCode::Binary, payload, &self.settings, &mut self.corks)
    }

    fn close(&mut self, code: CloseCode, reason: &str) {
        self.endpoint.close(code, reason, &self.settings, &mut self.corks, self.now);
    }

    /// What the transport is told until it has nothing to do, when the socket takes everything.
    fn told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        loop {
            let had_output = self.endpoint.has_output();
            let output = self.endpoint.poll_output(&mut self.corks);
            assert_eq!(had_output, !matches!(output, Output::Idle), "has_output foretells the output");
            told.push(match output {
                Output::Idle => return told,
                Output::Shutdown => Told::Shutdown,
                Output::Close => Told::Close,
                Output::Send(buffer) => {
                    let bytes = buffer.unsent().to_vec();
                    let _ = self.endpoint.handle_sent(buffer, bytes.len(), &self.settings, &mut self.corks);
                    Told::Send(bytes)
                }
            });
        }
    }

    /// A buffer that the socket does not take yet.
    fn in_flight(&mut self) -> SendBuffer {
        match self.endpoint.poll_output(&mut self.corks) {
            Output::Send(buffer) => buffer,
            output => panic!("{output:?}"),
        }
    }

    fn sent(&mut self, buffer: SendBuffer, bytes: usize) -> bool {
        self.endpoint.handle_sent(buffer, bytes, &self.settings, &mut self.corks)
    }

    fn ended(&mut self) -> Option<(u16, Initiator)> {
        self.endpoint.take_ended().map(|reason| (reason.code.value(), reason.initiator))
    }

    /// Lets the time to the next deadline pass, and handles it.
    fn expire(&mut self) -> Option<super::super::Expired> {
        self.now = self.endpoint.deadline(&self.settings);
        assert_ne!(self.now, Timestamp::NEVER);
        self.endpoint.handle_deadline(&self.settings, &mut self.corks, self.now)
    }
}

fn client_frame(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_masked_frame(&mut frame, opcode, payload, [0x5A, 0x01, 0xFF, 0x80]);
    frame
}

fn client_fragment(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = client_frame(opcode, payload);
    frame[0] &= 0x7F;
    frame
}

fn server_frame(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_frame(&mut frame, opcode, payload);
    frame
}

fn binary(payload: &[u8]) -> Seen {
    Seen::Message(MessageKind::Binary, payload.to_vec())
}

const NORMAL: &[u8] = b"\x03\xE8";

#[test]
fn a_close_of_ours_waits_for_the_peers_and_then_for_the_end_of_the_stream() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.send(b"last words"), Ok(SendStatus::Sent));
    fixture.close(CloseCode::NORMAL, "bye");
    assert_eq!(fixture.endpoint.phase(), Phase::Closing);
    let sent = [server_frame(OpCode::Binary, b"last words"), server_frame(OpCode::Close, b"\x03\xE8bye")];
    assert_eq!(fixture.told(), [Told::Send(sent.concat())]);
    assert_eq!(fixture.ended(), None, "messages may still come");
    assert_eq!(fixture.receive(&client_frame(OpCode::Close, NORMAL)), [Seen::Closed(None)]);
    assert_eq!(fixture.ended(), Some((1000, Initiator::Local)));
    assert_eq!(fixture.told(), [Told::Shutdown]);
    assert!(fixture.endpoint.wants_receive(), "to see the end of the stream");
    fixture.endpoint.handle_end_of_stream();
    assert_eq!(fixture.told(), [Told::Close]);
    assert_eq!(fixture.told(), []);
    assert_eq!(fixture.ended(), None, "told once");
}

#[test]
fn a_close_of_the_peers_is_echoed_behind_what_was_queued() {
    for (body, echo, code) in
        [(&b""[..], &b""[..], 1005), (NORMAL, NORMAL, 1000), (b"\x0F\xA0why", b"\x0F\xA0", 4000)]
    {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.send(b"queued"), Ok(SendStatus::Sent));
        assert_eq!(fixture.receive(&client_frame(OpCode::Close, body)), [Seen::Closed(None)]);
        assert_eq!(fixture.ended(), Some((code, Initiator::Peer)));
        assert_eq!(fixture.send(b"too late"), Ok(SendStatus::Dropped));
        let sent = [server_frame(OpCode::Binary, b"queued"), server_frame(OpCode::Close, echo)];
        assert_eq!(fixture.told(), [Told::Send(sent.concat()), Told::Shutdown]);
        fixture.endpoint.handle_end_of_stream();
        assert_eq!(fixture.told(), [Told::Close]);
    }
}

#[test]
fn closes_that_cross_each_other_send_one_close_frame() {
    let mut fixture = Fixture::open();
    fixture.close(CloseCode::NORMAL, "");
    assert_eq!(fixture.receive(&client_frame(OpCode::Close, b"\x03\xE9")), [Seen::Closed(None)]);
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Close, NORMAL)), Told::Shutdown]);
    assert_eq!(fixture.ended(), Some((1000, Initiator::Local)));
}

#[test]
fn only_the_first_close_counts() {
    let mut fixture = Fixture::open();
    fixture.close(CloseCode::GOING_AWAY, "first");
    fixture.close(CloseCode::NORMAL, "second");
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Close, b"\x03\xE9first"))]);
    let _ = fixture.receive(&client_frame(OpCode::Close, b""));
    assert_eq!(fixture.ended(), Some((1001, Initiator::Local)));
}

#[test]
fn nothing_behind_the_peers_close_frame_is_looked_at() {
    let mut fixture = Fixture::open();
    let stream = [client_frame(OpCode::Close, NORMAL), client_frame(OpCode::Binary, b"ghost")].concat();
    assert_eq!(fixture.receive(&stream), [Seen::Closed(None)]);
    assert_eq!(fixture.receive(&client_frame(OpCode::Binary, b"ghost")), []);
    assert_eq!(fixture.receive(b"\xFF\xFF not even frames"), []);
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Close, NORMAL)), Told::Shutdown]);
    assert!(fixture.endpoint.take_kept().0.is_empty(), "nothing is kept of it");
}

#[test]
fn a_broken_frame_is_answered_with_its_close_code_and_ends_the_receipt() {
    let mut fixture = Fixture::open();
    let stream = [client_frame(OpCode::Binary, b"good"), b"\x83\x80".to_vec()].concat();
    let seen = fixture.receive(&stream);
    assert_eq!(seen, [binary(b"good"), Seen::Closed(Some(ProtocolError::ReservedOpCode))]);
    assert_eq!(fixture.ended(), Some((1002, Initiator::Local)));
    let told = fixture.told();
    assert!(matches!(&told[..], [Told::Send(close), Told::Shutdown] if close[..4] == *b"\x88\x11\x03\xEA"));
    assert_eq!(fixture.receive(&client_frame(OpCode::Close, b"")), []);
}

#[test]
fn a_broken_frame_while_closing_gets_no_second_close_frame() {
    let mut fixture = Fixture::open();
    fixture.close(CloseCode::NORMAL, "");
    let _ = fixture.told();
    let seen = fixture.receive(b"\x83\x80");
    assert_eq!(seen, [Seen::Closed(Some(ProtocolError::ReservedOpCode))]);
    assert_eq!(fixture.told(), [Told::Shutdown]);
    assert_eq!(fixture.ended(), Some((1000, Initiator::Local)));
}

#[test]
fn a_bad_close_body_is_a_protocol_error() {
    let mut fixture = Fixture::open();
    let seen = fixture.receive(&client_frame(OpCode::Close, b"\x03\xED"));
    assert!(matches!(seen[..], [Seen::Closed(Some(ProtocolError::InvalidCloseCode(_)))]));
    assert_eq!(fixture.ended(), Some((1002, Initiator::Local)));
}

#[test]
fn a_handshake_that_takes_too_long_is_cut_off() {
    let mut fixture = Fixture::accepted(SETTINGS);
    assert_eq!(fixture.endpoint.deadline(&SETTINGS), fixture.now.after(Duration::from_secs(10)));
    fixture.endpoint.begin_deciding();
    assert!(!fixture.endpoint.wants_receive());
    assert_eq!(fixture.expire(), Some(super::super::Expired::Handshake));
    assert_eq!(fixture.told(), [Told::Close]);
}

#[test]
fn a_refusal_is_flushed_before_the_connection_ends() {
    let mut fixture = Fixture::accepted(SETTINGS);
    fixture.endpoint.refuse(b"HTTP/1.1 403".to_vec(), &SETTINGS, fixture.now);
    assert_eq!(fixture.receive(b"a body nobody reads"), []);
    assert_eq!(fixture.told(), [Told::Send(b"HTTP/1.1 403".to_vec()), Told::Shutdown]);
    assert_eq!(fixture.ended(), None, "it was never open");
    fixture.endpoint.handle_end_of_stream();
    assert_eq!(fixture.told(), [Told::Close]);
}

#[test]
fn a_peer_that_does_not_finish_the_close_handshake_is_cut_off() {
    use super::super::Expired;
    // In each phase of it: no close frame, no room to flush, no end of the stream.
    let mut closing = Fixture::open();
    closing.close(CloseCode::NORMAL, "");
    let _ = closing.told();

    let mut flushing = Fixture::open();
    assert_eq!(flushing.send(b"stuck"), Ok(SendStatus::Sent));
    let stuck = flushing.in_flight();
    let _ = flushing.receive(&client_frame(OpCode::Close, b""));
    assert_eq!((flushing.endpoint.phase(), flushing.told()), (Phase::Flushing, vec![]));

    let mut lingering = Fixture::open();
    let _ = lingering.receive(&client_frame(OpCode::Close, b""));
    assert_eq!(lingering.told().last(), Some(&Told::Shutdown));

    for mut fixture in [closing, flushing, lingering] {
        let began = fixture.now;
        assert_eq!(fixture.expire(), Some(Expired::Close));
        assert_eq!(fixture.now, began.after(SETTINGS.timeouts.close));
        assert_eq!(fixture.told(), [Told::Close]);
        assert_eq!(fixture.endpoint.deadline(&SETTINGS), Timestamp::NEVER);
    }
    drop(stuck);
}

#[test]
fn data_that_arrives_while_closing_is_still_decoded() {
    let mut fixture = Fixture::open();
    fixture.close(CloseCode::NORMAL, "");
    let stream = [client_frame(OpCode::Binary, b"late"), client_frame(OpCode::Ping, b"late")].concat();
    assert_eq!(fixture.receive(&stream), [binary(b"late"), Seen::Ping]);
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Close, NORMAL))], "no pong behind a close");
    assert_eq!(fixture.receive(&client_frame(OpCode::Close, b"")), [Seen::Closed(None)]);
}

#[test]
fn pings_are_answered_with_their_payload_in_their_place() {
    let mut fixture = Fixture::open();
    let stream = [
        client_fragment(OpCode::Binary, b"one"),
        client_frame(OpCode::Ping, b"between"),
        client_frame(OpCode::Continuation, b"two"),
        client_frame(OpCode::Ping, b""),
        client_frame(OpCode::Ping, &[9; 125]),
    ];
    let seen = fixture.receive(&stream.concat());
    assert_eq!(seen, [Seen::Ping, binary(b"onetwo"), Seen::Ping, Seen::Ping]);
    let pongs = [&b"between"[..], b"", &[9; 125]].map(|payload| server_frame(OpCode::Pong, payload));
    assert_eq!(fixture.told(), [Told::Send(pongs.concat())]);
}

#[test]
fn the_round_trip_is_that_of_the_keepalive_ping() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.expire(), None);
    let payload = fixture.now.as_millis().to_be_bytes();
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Ping, &payload))]);
    assert_eq!(fixture.receive(&client_frame(OpCode::Pong, b"")), [Seen::Pong], "the peer is there");
    assert_eq!(fixture.receive(&client_frame(OpCode::Pong, b"12345678")), []);
    assert_eq!(fixture.endpoint.round_trip(), None);
    fixture.now = fixture.now.after(Duration::from_millis(250));
    assert_eq!(fixture.receive(&client_frame(OpCode::Pong, &payload)), [Seen::Pong]);
    assert_eq!(fixture.endpoint.round_trip(), Some(Duration::from_millis(250)));
    assert_eq!(fixture.receive(&client_frame(OpCode::Pong, &payload)), [], "once");
    assert_eq!(fixture.endpoint.deadline(&SETTINGS), fixture.now.after(Duration::from_secs(25)));
}

#[test]
fn a_ping_of_the_programs_own_is_not_the_keepalive() {
    let mut fixture = Fixture::open();
    fixture.endpoint.ping(b"mine", &mut fixture.corks);
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Ping, b"mine"))]);
    assert_eq!(fixture.receive(&client_frame(OpCode::Pong, b"mine")), []);
    assert_eq!(fixture.endpoint.round_trip(), None);
}

#[test]
fn the_end_of_the_stream_without_a_close_frame_is_abnormal() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.send(b"lost"), Ok(SendStatus::Sent));
    fixture.endpoint.handle_end_of_stream();
    assert_eq!(fixture.ended(), Some((1006, Initiator::Transport)));
    assert_eq!(fixture.told(), [Told::Close]);
    assert!(!fixture.endpoint.wants_receive());
}

#[test]
fn the_end_of_the_stream_while_closing_keeps_our_reason() {
    let mut fixture = Fixture::open();
    fixture.close(CloseCode::GOING_AWAY, "");
    fixture.endpoint.handle_end_of_stream();
    assert_eq!(fixture.ended(), Some((1001, Initiator::Local)));
    assert_eq!(fixture.told(), [Told::Close]);
}

#[test]
fn a_peer_that_ends_its_side_while_we_flush_gets_the_rest_and_no_shutdown_of_its_own() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.send(&[7; 100]), Ok(SendStatus::Sent));
    let buffer = fixture.in_flight();
    let _ = fixture.receive(&client_frame(OpCode::Close, b""));
    fixture.endpoint.handle_end_of_stream();
    assert!(!fixture.endpoint.wants_receive(), "there is nothing more to receive");
    assert_eq!(fixture.told(), [], "a buffer is in flight");
    let rest = buffer.unsent()[1..].to_vec();
    assert!(!fixture.sent(buffer, 1));
    let sent = [rest, server_frame(OpCode::Close, b"")].concat();
    assert_eq!(fixture.told(), [Told::Send(sent), Told::Close]);
}

#[test]
fn a_transport_error_ends_every_phase() {
    for phase in 0..4 {
        let mut fixture = Fixture::open();
        let reason = match phase {
            0 => Some((1006, Initiator::Transport)),
            1 => {
                fixture.close(CloseCode::NORMAL, "");
                Some((1000, Initiator::Local))
            }
            _ => {
                let _ = fixture.receive(&client_frame(OpCode::Close, NORMAL));
                if phase == 3 {
                    let _ = fixture.told();
                }
                Some((1000, Initiator::Peer))
            }
        };
        fixture.endpoint.handle_transport_error("reset");
        fixture.endpoint.handle_transport_error("again");
        assert_eq!(fixture.told(), [Told::Close]);
        assert_eq!(fixture.ended(), reason);
    }
}

#[test]
fn a_pause_keeps_what_has_arrived_and_resuming_goes_on_with_it() {
    let stream = [
        client_frame(OpCode::Binary, b"one"),
        client_frame(OpCode::Binary, &[2; 500]),
        client_fragment(OpCode::Binary, b"th"),
        client_frame(OpCode::Continuation, b"ree"),
        client_frame(OpCode::Ping, b"end"),
    ]
    .concat();
    // The rest arrives in any two pieces after the pause: receives that were pending.
    let first = client_frame(OpCode::Binary, b"one").len();
    for split in first..=stream.len() {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.receive_until(&stream[..split], 1), [binary(b"one")]);
        assert!(!fixture.endpoint.wants_receive() && fixture.endpoint.is_paused());
        assert_eq!(fixture.receive(&stream[split..]), []);
        assert_eq!(fixture.resume(), [binary(&[2; 500]), binary(b"three"), Seen::Ping], "split at {split}");
        assert!(fixture.endpoint.wants_receive());
        assert!(fixture.endpoint.partial.is_none(), "an idle connection holds no memory");
        assert_eq!(fixture.resume(), [], "it was not paused");
    }
}

#[test]
fn a_pause_in_the_middle_of_a_frame_goes_on_in_the_middle_of_it() {
    let stream = client_frame(OpCode::Binary, &[5; 5000]);
    for split in [1, 4, 8, 9, 100, 4000] {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.receive(&stream[..split]), []);
        fixture.endpoint.pause_receive(true);
        assert_eq!(fixture.receive(&stream[split..]), []);
        assert_eq!(fixture.resume(), [binary(&[5; 5000])], "split at {split}");
    }
}

#[test]
fn closing_ends_a_pause_and_finds_the_close_frame_behind_it() {
    let mut fixture = Fixture::open();
    let stream = [client_frame(OpCode::Binary, b"one"), client_frame(OpCode::Close, NORMAL)].concat();
    assert_eq!(fixture.receive_until(&stream, 1), [binary(b"one")]);
    fixture.close(CloseCode::GOING_AWAY, "");
    fixture.endpoint.pause_receive(true);
    assert!(!fixture.endpoint.is_paused(), "a connection that is closing is not paused");
    assert!(fixture.endpoint.wants_receive());
    assert!(fixture.endpoint.take_resumed(&SETTINGS, fixture.now));
    let (mut kept, start) = fixture.endpoint.take_kept();
    assert_eq!(fixture.process(&mut kept, start, usize::MAX), [Seen::Closed(None)]);
}

#[test]
fn what_was_left_over_stands_in_front_of_what_comes_whatever_its_length() {
    for carried in [1, HEADROOM_BYTES - 1, HEADROOM_BYTES, HEADROOM_BYTES + 1, 5000] {
        let left_over: Vec<u8> = (0..carried).map(|index| index as u8).collect();
        // Kept out of a receive buffer, or in a buffer of its own, behind little or much that is done with.
        for done_with in [None, Some(0), Some(1), Some(carried - 1), Some(carried), Some(3 * carried)] {
            let mut fixture = Fixture::accepted(SETTINGS);
            match done_with {
                None => fixture.endpoint.keep(&left_over),
                Some(start) => {
                    let kept = [&vec![0xDD; start][..], &left_over].concat();
                    fixture.endpoint.keep_rest(kept, start);
                    let (kept, start) = fixture.endpoint.take_kept();
                    assert!(kept.capacity() <= 2 * carried + 8, "memory for no more than what is to come");
                    fixture.endpoint.keep_rest(kept, start);
                }
            }
            let mut input = vec![0xEE; HEADROOM_BYTES];
            input.extend_from_slice(b"behind");
            let whole = match fixture.endpoint.handle_received(&mut input, fixture.now) {
                Ok(start) => {
                    assert!(carried <= HEADROOM_BYTES);
                    input[start..].to_vec()
                }
                Err(joined) => joined,
            };
            assert_eq!(whole, [&left_over[..], b"behind"].concat(), "{done_with:?}");
            assert!(fixture.endpoint.take_kept().0.is_empty());
        }
    }
}

#[test]
fn a_rest_of_nothing_is_not_kept() {
    let mut fixture = Fixture::open();
    fixture.endpoint.keep_rest(vec![1; 100], 100);
    assert!(fixture.endpoint.partial.is_none());
    fixture.endpoint.handle_end_of_stream();
    fixture.endpoint.keep_rest(vec![1; 100], 1);
    assert!(fixture.endpoint.partial.is_none(), "nobody will read it");
}

#[test]
fn messages_are_the_same_however_the_stream_is_cut() {
    let payload = vec![0xA5; 300];
    let stream = [
        client_fragment(OpCode::Text, "gr\u{fc}".as_bytes()),
        client_fragment(OpCode::Continuation, b""),
        client_frame(OpCode::Ping, &[1; 125]),
        client_frame(OpCode::Continuation, "\u{df}e".as_bytes()),
        client_frame(OpCode::Binary, &payload),
        client_frame(OpCode::Text, b""),
        client_fragment(OpCode::Binary, b""),
        client_frame(OpCode::Continuation, &payload),
        client_frame(OpCode::Close, b""),
    ]
    .concat();
    let expected = [
        Seen::Ping,
        Seen::Message(MessageKind::Text, "gr\u{fc}\u{df}e".into()),
        binary(&payload),
        Seen::Message(MessageKind::Text, Vec::new()),
        binary(&payload),
        Seen::Closed(None),
    ];
    for piece in [1, 2, 3, 5, 7, 64, 139, 140, 500, stream.len()] {
        let mut fixture = Fixture::open();
        let seen: Vec<Seen> = stream.chunks(piece).flat_map(|bytes| fixture.receive(bytes)).collect();
        assert_eq!(seen, expected, "in pieces of {piece}");
    }
    for split in 0..stream.len() {
        let mut fixture = Fixture::open();
        let mut seen = fixture.receive(&stream[..split]);
        seen.extend(fixture.receive(&stream[split..]));
        assert_eq!(seen, expected, "split at {split}");
    }
}

#[test]
fn a_message_is_relayed_only_past_an_idle_outbox() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), Some(SendStatus::Sent));
    assert_eq!(fixture.endpoint.outbox().bytes(), 5004);
    assert!(!fixture.endpoint.handle_relayed(5004, SendBuffer::owned(Vec::new(), 0), &SETTINGS));

    assert_eq!(fixture.send(b"queued"), Ok(SendStatus::Sent));
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), None, "something is queued");
    let buffer = fixture.in_flight();
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), None, "something is in flight");
    let _ = fixture.sent(buffer, 8);
    assert_eq!(fixture.endpoint.reserve_relay(64 * 1024, &SETTINGS), None, "over the limit");
    fixture.close(CloseCode::NORMAL, "");
    let _ = fixture.told();
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), None, "closing");
}

#[test]
fn a_relay_that_drains_a_closing_connection_tells_nobody() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.endpoint.reserve_relay(40_000, &SETTINGS), Some(SendStatus::Backpressure));
    fixture.close(CloseCode::NORMAL, "");
    assert!(!fixture.endpoint.handle_relayed(40_004, SendBuffer::owned(Vec::new(), 0), &SETTINGS));
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Close, NORMAL))]);
}

#[test]
fn giving_up_a_full_outbox_closes_behind_what_is_torn() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.send(&[1; 30_000]), Ok(SendStatus::Sent));
    assert_eq!(fixture.send(&[2; 30_000]), Ok(SendStatus::Backpressure));
    let buffer = fixture.in_flight();
    assert!(!fixture.sent(buffer, 10));
    assert_eq!(fixture.send(&[3; 30_000]), Err(Full));
    let endpoint = &mut fixture.endpoint;
    let dropped =
        endpoint.give_up(CloseCode::TRY_AGAIN_LATER, &fixture.settings, &mut fixture.corks, fixture.now);
    assert_eq!(dropped, Dropped { messages: 1, bytes: 30_004 });
    let told = fixture.told();
    let [Told::Send(torn), Told::Send(close)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(torn[..], server_frame(OpCode::Binary, &[1; 30_000])[10..]);
    assert_eq!(close[..], server_frame(OpCode::Close, b"\x03\xF5outbox full"));
}
