//! The decoder driven as a connection drives it, whole and in every kind of pieces.
//!
//! Invariant: `Peer` checks after each call what every caller relies on. It does not know the decoder's
//! fields, only its public methods.

use proptest::prelude::*;

use super::*;
use crate::protocol::close::CloseCode;
use crate::protocol::frame::{
    CONTROL_PAYLOAD_BYTES_MAX, HEADER_BYTES_MAX, append_frame, append_masked_frame,
};

const LIMITS: Limits = Limits { message_bytes_max: 200_000, fragments_max: 64 };

#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Message(MessageKind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Vec<u8>),
}

/// A caller: keeps what was not consumed, assembles parts.
struct Peer {
    decoder: Decoder,
    limits: Limits,
    unconsumed: Vec<u8>,
    assembly: Vec<u8>,
    events: Vec<Event>,
}

impl Peer {
    fn new(role: Role, limits: Limits) -> Self {
        Self {
            decoder: Decoder::new(role),
            limits,
            unconsumed: Vec::new(),
            assembly: Vec::new(),
            events: Vec::new(),
        }
    }

    fn receive(&mut self, chunk: &[u8]) -> Result<(), ProtocolError> {
        self.unconsumed.extend_from_slice(chunk);
        loop {
            let Decoded { consumed, item } = self.decoder.decode(&mut self.unconsumed, &self.limits)?;
            let done: Vec<u8> = self.unconsumed.drain(..consumed).collect();
            let Some(item) = item else {
                assert!(self.unconsumed.len() < HEADER_BYTES_MAX + CONTROL_PAYLOAD_BYTES_MAX);
                return Ok(());
            };
            match item {
                Item::Message { kind, payload } => {
                    assert!(self.assembly.is_empty());
                    self.events.push(Event::Message(kind, done[payload].to_vec()));
                }
                Item::Part { payload } => {
                    assert!(!payload.is_empty() && self.decoder.is_mid_message());
                    self.assembly.extend_from_slice(&done[payload]);
                    assert!(self.assembly.len() <= self.limits.message_bytes_max);
                }
                Item::LastPart { kind, payload } => {
                    assert!(!self.decoder.is_mid_message());
                    self.assembly.extend_from_slice(&done[payload]);
                    self.events.push(Event::Message(kind, std::mem::take(&mut self.assembly)));
                }
                Item::Ping { payload } => self.events.push(Event::Ping(done[payload].to_vec())),
                Item::Pong { payload } => self.events.push(Event::Pong(done[payload].to_vec())),
                Item::Close { payload } => self.events.push(Event::Close(done[payload].to_vec())),
            }
        }
    }
}

type Outcome = (Vec<Event>, Option<ProtocolError>);

fn receive_all<'a>(role: Role, limits: Limits, chunks: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut peer = Peer::new(role, limits);
    let error = chunks.into_iter().try_for_each(|chunk| peer.receive(chunk)).err();
    (peer.events, error)
}

fn receive_whole(stream: &[u8]) -> Outcome {
    receive_all(Role::Server, LIMITS, [stream])
}

/// A frame of a client: first byte as given, mask and length form as they must be.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_masked_frame(&mut out, OpCode::Binary, payload, [0x12, 0x34, 0x56, 0x78]);
    out[0] = first;
    out
}

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const TEXT_BEGIN: u8 = 0x01;
const BINARY_BEGIN: u8 = 0x02;
const MORE: u8 = 0x00;
const LAST: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

fn text(text: &str) -> Event {
    Event::Message(MessageKind::Text, text.as_bytes().to_vec())
}

fn binary(bytes: &[u8]) -> Event {
    Event::Message(MessageKind::Binary, bytes.to_vec())
}

/// Every kind of frame once, and what it amounts to.
fn varied_stream() -> (Vec<u8>, Vec<Event>) {
    let medium = "\u{e9}".repeat(70);
    let stream = [
        frame(TEXT, b"hello"),
        frame(BINARY, &[]),
        frame(TEXT, medium.as_bytes()),
        frame(TEXT_BEGIN, b"caf\xC3"),
        frame(PING, b"are you there"),
        frame(MORE, b""),
        frame(MORE, b"\xA9 \xF0\x9F"),
        frame(PONG, b""),
        frame(LAST, b"\x98\x80"),
        frame(BINARY_BEGIN, b""),
        frame(MORE, b""),
        frame(LAST, b"\xFF"),
        frame(BINARY_BEGIN, b"\x01"),
        frame(LAST, b""),
        frame(PING, &[7; 125]),
        frame(CLOSE, b"\x03\xE8done"),
    ];
    let events = vec![
        text("hello"),
        binary(b""),
        text(&medium),
        Event::Ping(b"are you there".to_vec()),
        Event::Pong(vec![]),
        text("caf\u{e9} \u{1f600}"),
        binary(b"\xFF"),
        binary(b"\x01"),
        Event::Ping(vec![7; 125]),
        Event::Close(b"\x03\xE8done".to_vec()),
    ];
    (stream.concat(), events)
}

#[test]
fn messages_of_every_length_form_arrive_whole() {
    for payload_bytes in [0, 1, 2, 125, 126, 127, 0xFFFF, 0x1_0000] {
        let payload = vec![b'x'; payload_bytes];
        for (first, kind) in [(TEXT, MessageKind::Text), (BINARY, MessageKind::Binary)] {
            let mut stream = frame(first, &payload);
            let header_bytes = stream.len() - payload_bytes;
            let decoded = Decoder::new(Role::Server).decode(&mut stream, &LIMITS).unwrap();
            let item = Item::Message { kind, payload: header_bytes..stream.len() };
            assert_eq!(decoded, Decoded { consumed: stream.len(), item: Some(item) });
            assert_eq!(stream[header_bytes..], payload);
        }
    }
}

#[test]
fn client_takes_unmasked_frames() {
    for payload_bytes in [0, 1, 6, 125, 126, 127, 0xFFFF, 0x1_0000] {
        let payload = vec![b'x'; payload_bytes];
        let mut stream = Vec::new();
        append_frame(&mut stream, OpCode::Text, &payload);
        append_frame(&mut stream, OpCode::Ping, b"p");
        let expected = (vec![Event::Message(MessageKind::Text, payload), Event::Ping(b"p".to_vec())], None);
        assert_eq!(receive_all(Role::Client, LIMITS, [&stream[..]]), expected);
        assert_eq!(receive_all(Role::Client, LIMITS, stream.chunks(5)), expected);
    }
}

#[test]
fn every_pair_of_split_points_gives_the_same_messages() {
    let (stream, events) = varied_stream();
    assert_eq!(receive_whole(&stream), (events.clone(), None));
    for first in 0..=stream.len() {
        for second in (first..=stream.len()).step_by(3) {
            let chunks = [&stream[..first], &stream[first..second], &stream[second..]];
            let (actual, error) = receive_all(Role::Server, LIMITS, chunks);
            assert_eq!((actual, error), (events.clone(), None), "split at {first} and {second}");
        }
    }
}

#[test]
fn every_chunk_size_gives_the_same_messages() {
    let (stream, events) = varied_stream();
    for chunk_bytes in 1..=stream.len() {
        let outcome = receive_all(Role::Server, LIMITS, stream.chunks(chunk_bytes));
        assert_eq!(outcome, (events.clone(), None), "chunks of {chunk_bytes}");
    }
}

#[test]
fn large_message_in_odd_chunks_is_unmasked_with_the_right_phase() {
    let payload: Vec<u8> = (0..150_000_u32).map(|index| (index % 251) as u8).collect();
    let stream = [frame(BINARY_BEGIN, &payload[..70_001]), frame(LAST, &payload[70_001..])].concat();
    for chunk_bytes in [1, 3, 1021, 4096, 65_537] {
        let outcome = receive_all(Role::Server, LIMITS, stream.chunks(chunk_bytes));
        assert_eq!(outcome, (vec![binary(&payload)], None));
    }
}

#[test]
fn remaining_payload_tells_what_is_to_come() {
    let mut stream = frame(BINARY, &[1; 300]);
    let mut decoder = Decoder::new(Role::Server);
    assert_eq!(decoder.remaining_payload(), 0);
    let decoded = decoder.decode(&mut stream[..108], &LIMITS).unwrap();
    assert_eq!(decoded, Decoded { consumed: 108, item: Some(Item::Part { payload: 8..108 }) });
    assert_eq!(decoder.remaining_payload(), 200);
    assert!(decoder.is_mid_message());
    let decoded = decoder.decode(&mut stream[108..], &LIMITS).unwrap();
    let kind = MessageKind::Binary;
    assert_eq!(decoded, Decoded { consumed: 200, item: Some(Item::LastPart { kind, payload: 0..200 }) });
    assert_eq!(decoder.remaining_payload(), 0);
    assert!(!decoder.is_mid_message());
}

#[test]
fn incomplete_control_frame_is_left_alone() {
    let mut stream = frame(PING, b"payload");
    let original = stream.clone();
    let mut decoder = Decoder::new(Role::Server);
    for end in 0..stream.len() {
        let decoded = decoder.decode(&mut stream[..end], &LIMITS).unwrap();
        assert_eq!(decoded, Decoded { consumed: 0, item: None });
    }
    assert_eq!(stream, original);
}

#[test]
fn violations_of_order_and_masking_are_refused() {
    use ProtocolError::*;
    let table: [(Vec<u8>, ProtocolError); 8] = [
        (frame(MORE, b"x"), UnexpectedContinuation),
        (frame(LAST, b"x"), UnexpectedContinuation),
        ([frame(TEXT, b"x"), frame(LAST, b"x")].concat(), UnexpectedContinuation),
        ([frame(TEXT_BEGIN, b"x"), frame(TEXT, b"x")].concat(), InterruptedMessage),
        ([frame(TEXT_BEGIN, b""), frame(BINARY_BEGIN, b"")].concat(), InterruptedMessage),
        (b"\x81\x05Hello".to_vec(), UnmaskedFrame),
        (b"\x89\x00".to_vec(), UnmaskedFrame),
        (frame(0xC1, b"x"), ReservedBits),
    ];
    for (stream, error) in table {
        assert_eq!(receive_whole(&stream).1, Some(error));
        assert_eq!(error.close_code(), CloseCode::PROTOCOL_ERROR);
        assert_eq!(receive_all(Role::Server, LIMITS, stream.chunks(1)).1, Some(error));
    }
    assert_eq!(receive_all(Role::Client, LIMITS, [&frame(TEXT, b"x")[..]]).1, Some(MaskedFrame));
    assert_eq!(receive_all(Role::Client, LIMITS, [&frame(PONG, b"")[..]]).1, Some(MaskedFrame));
}

#[test]
fn frames_after_a_close_frame_are_never_processed() {
    let mut stream = [frame(CLOSE, b""), frame(TEXT, b"late"), frame(0xF3, b"junk")].concat();
    assert_eq!(receive_whole(&stream), (vec![Event::Close(vec![])], None));

    let mut decoder = Decoder::new(Role::Server);
    let consumed = decoder.decode(&mut stream, &LIMITS).unwrap().consumed;
    let rest = &mut stream[consumed..];
    assert_eq!(decoder.decode(rest, &LIMITS), Ok(Decoded { consumed: rest.len(), item: None }));
}

#[test]
fn nothing_is_processed_after_an_error() {
    for bad in [frame(TEXT, b"\xFF\xFF\xFF"), frame(0xF3, b"")] {
        let mut decoder = Decoder::new(Role::Server);
        assert!(decoder.decode(&mut bad.clone(), &LIMITS).is_err());
        let mut good = frame(TEXT, b"hello");
        let consumed = good.len();
        assert_eq!(decoder.decode(&mut good, &LIMITS), Ok(Decoded { consumed, item: None }));
    }
}

#[test]
fn message_over_the_limit_is_refused_by_its_header() {
    let limits = Limits { message_bytes_max: 10, fragments_max: 4 };
    let fits = frame(BINARY, &[0; 10]);
    assert_eq!(receive_all(Role::Server, limits, [&fits[..]]), (vec![binary(&[0; 10])], None));

    let header_only = &frame(BINARY, &[0; 11])[..6];
    let too_big = Some(ProtocolError::MessageTooBig);
    assert_eq!(receive_all(Role::Server, limits, [header_only]).1, too_big);
    assert_eq!(ProtocolError::MessageTooBig.close_code(), CloseCode::TOO_BIG);

    let over_by_sum = [frame(BINARY_BEGIN, &[0; 6]), frame(LAST, &[0; 5])[..6].to_vec()].concat();
    assert_eq!(receive_all(Role::Server, limits, [&over_by_sum[..]]).1, too_big);

    let huge = [0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
    assert_eq!(receive_all(Role::Server, limits, [&huge[..]]).1, too_big);
    let huge_after_some = [&frame(BINARY_BEGIN, &[0; 6])[..], &[LAST], &huge[1..]].concat();
    assert_eq!(receive_all(Role::Server, limits, [&huge_after_some[..]]).1, too_big);
}

#[test]
fn empty_fragments_count_against_the_limit() {
    let limits = Limits { message_bytes_max: 10, fragments_max: 4 };
    let fragments =
        |more: usize| [frame(TEXT_BEGIN, b""), frame(MORE, b"").repeat(more), frame(LAST, b"")].concat();
    assert_eq!(receive_all(Role::Server, limits, [&fragments(2)[..]]), (vec![text("")], None));
    let too_many = Some(ProtocolError::TooManyFragments);
    assert_eq!(receive_all(Role::Server, limits, [&fragments(3)[..]]).1, too_many);
    assert_eq!(receive_all(Role::Server, limits, fragments(3).chunks(1)).1, too_many);

    // Each message counts anew, and an unfragmented one has no fragments.
    assert_eq!(receive_all(Role::Server, limits, [&fragments(2).repeat(3)[..]]).1, None);
    let none = Limits { message_bytes_max: 10, fragments_max: 0 };
    assert_eq!(receive_all(Role::Server, none, frame(TEXT, b"ok").chunks(1)), (vec![text("ok")], None));
    assert_eq!(receive_all(Role::Server, none, [&frame(TEXT_BEGIN, b"")[..]]).1, too_many);
}

#[test]
fn invalid_text_fails_at_the_first_bad_byte_inside_a_frame() {
    // Autobahn 6.4.1-6.4.4: the third byte of U+110000 in UTF-8 has no valid continuation.
    let valid = "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}".as_bytes();
    for stream in [
        frame(TEXT, &[valid, b"\xF4\x90\x80\x80edited"].concat()),
        [frame(TEXT_BEGIN, valid), frame(LAST, b"\xF4\x90\x80\x80edited")].concat(),
    ] {
        let bad_byte = stream.len() - 9;
        let mut peer = Peer::new(Role::Server, LIMITS);
        assert_eq!(peer.receive(&stream[..bad_byte]), Ok(()));
        assert_eq!(peer.receive(&stream[bad_byte..=bad_byte]), Err(ProtocolError::InvalidUtf8));
    }
    assert_eq!(ProtocolError::InvalidUtf8.close_code(), CloseCode::INVALID_PAYLOAD);
}

#[test]
fn text_that_ends_inside_a_character_is_refused() {
    for stream in [
        frame(TEXT, b"\xE2\x82"),
        [frame(TEXT_BEGIN, b"\xE2"), frame(LAST, b"\x82")].concat(),
        [frame(TEXT_BEGIN, b"\xE2\x82"), frame(LAST, b"")].concat(),
    ] {
        let invalid = (vec![], Some(ProtocolError::InvalidUtf8));
        assert_eq!(receive_whole(&stream), invalid);
        assert_eq!(receive_all(Role::Server, LIMITS, stream.chunks(1)), invalid);
    }
}

#[test]
fn binary_messages_are_not_checked_to_be_text() {
    let stream = [frame(BINARY_BEGIN, b"\xFF"), frame(LAST, b"\xC0"), frame(BINARY, b"\xFF\xFE")].concat();
    let events = vec![binary(b"\xFF\xC0"), binary(b"\xFF\xFE")];
    assert_eq!(receive_whole(&stream), (events, None));
}

/// Frames that are mostly right, in orders that are mostly right.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let first = prop::sample::select(vec![
        TEXT,
        BINARY,
        TEXT_BEGIN,
        BINARY_BEGIN,
        MORE,
        MORE,
        LAST,
        LAST,
        PING,
        PONG,
        CLOSE,
        0xC1,
        0x83,
        0x09,
    ]);
    let payload = prop_oneof![
        "[a-z]{0,9}".prop_map(String::into_bytes),
        "\\PC{0,140}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..9),
    ];
    let frames =
        prop::collection::vec((first, payload).prop_map(|(first, bytes)| frame(first, &bytes)), 0..9);
    let flip = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (frames, flip).prop_map(|(frames, flip)| {
        let mut stream = frames.concat();
        if let Some((index, byte)) = flip.filter(|_| !stream.is_empty()) {
            let index = index.index(stream.len());
            stream[index] ^= byte;
        }
        stream
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn chunked_stream_gives_what_the_whole_stream_gives(
        stream in any_stream(),
        sizes in prop::collection::vec(1_usize..40, 1..8),
        message_bytes_max in 0_usize..300,
        fragments_max in 0_u32..6,
    ) {
        let limits = Limits { message_bytes_max, fragments_max };
        let mut rest = &stream[..];
        let chunks = sizes.iter().cycle().map_while(|&size| {
            let (chunk, behind) = rest.split_at(size.min(rest.len()));
            rest = behind;
            (!chunk.is_empty()).then_some(chunk)
        });
        let chunked = receive_all(Role::Server, limits, chunks);
        prop_assert_eq!(chunked, receive_all(Role::Server, limits, [&stream[..]]));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, chunk_bytes in 1_usize..50) {
        for role in [Role::Server, Role::Client] {
            let chunked = receive_all(role, LIMITS, bytes.chunks(chunk_bytes));
            prop_assert_eq!(chunked, receive_all(role, LIMITS, [&bytes[..]]));
        }
    }

    #[test]
    fn written_messages_come_back(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..6),
        mask: [u8; 4],
        chunk_bytes in 1_usize..500,
    ) {
        let mut stream = Vec::new();
        for payload in &payloads {
            append_masked_frame(&mut stream, OpCode::Binary, payload, mask);
        }
        let events = payloads.iter().map(|payload| binary(payload)).collect();
        prop_assert_eq!(receive_all(Role::Server, LIMITS, stream.chunks(chunk_bytes)), (events, None));
    }
}
