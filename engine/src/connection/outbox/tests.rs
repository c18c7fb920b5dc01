//! The outbox byte by byte: its limit, its marks, what it drops and what it never tears.

mod control;

use super::*;
use crate::{
    buffer::SharedFrame,
    connection::OutboxFull,
    protocol::{CloseCode, Decoder, Item, Limits, Role},
};

const LIMITS: OutboxLimits = OutboxLimits {
    bytes_max: 1000,
    bytes_high: 600,
    bytes_low: 200,
    full: OutboxFull::Close(CloseCode::TRY_AGAIN_LATER),
};

/// An outbox with the socket it drains into.
struct Fixture {
    outbox: Outbox,
    corks: CorkPool,
    limits: OutboxLimits,
    received: Vec<u8>,
}

impl Fixture {
    fn new(limits: OutboxLimits) -> Self {
        Self { outbox: Outbox::default(), corks: CorkPool::new(), limits, received: Vec::new() }
    }

    /// With room for everything.
    fn roomy() -> Self {
        Self::new(OutboxLimits { bytes_max: 1 << 24, bytes_high: 1 << 24, bytes_low: 1 << 23, ..LIMITS })
    }

    fn push(&mut self, payload: &[u8]) -> Result<SendStatus, Full> {
        self.outbox.push_data(OpCode::Binary, payload, &self.limits, &mut self.corks)
    }

    /// Queues a frame of exactly `bytes`, header included.
    fn push_frame(&mut self, bytes: usize) -> Result<SendStatus, Full> {
        let header = if bytes <= 127 { 2 } else { 4 };
        let before = self.outbox.bytes();
        let pushed = self.push(&vec![b'x'; bytes - header]);
        assert_eq!(self.outbox.bytes(), before + if pushed.is_ok() { bytes } else { 0 });
        pushed
    }

    fn pong(&mut self, payload: &[u8]) {
        self.outbox.push_pong(payload, &mut self.corks);
    }

    /// The socket takes up to `bytes` of the next buffer. Answers how many, and whether the low mark was
    /// reached.
    fn send(&mut self, bytes: usize) -> Option<(usize, bool)> {
        let buffer = self.outbox.poll(&mut self.corks)?;
        assert!(self.outbox.poll(&mut self.corks).is_none(), "two buffers in flight");
        let bytes = bytes.min(buffer.len());
        self.received.extend_from_slice(&buffer.unsent()[..bytes]);
        Some((bytes, self.outbox.sent(buffer, bytes, &self.limits, &mut self.corks)))
    }

    /// Sends `bytes`, by as many sends as it takes. Answers how often the low mark was reached.
    fn send_exactly(&mut self, mut bytes: usize) -> usize {
        let mut drains = 0;
        while bytes > 0 {
            let (sent, drained) = self.send(bytes).expect("nothing to send");
            bytes -= sent;
            drains += usize::from(drained);
        }
        drains
    }

    fn send_all(&mut self) {
        while self.send(usize::MAX).is_some() {}
        assert!(self.outbox.is_idle());
        assert_eq!((self.outbox.bytes(), self.outbox.control), (0, 0));
    }

    fn drop_unsent(&mut self) -> (u64, usize) {
        let dropped = self.outbox.drop_unsent();
        (dropped.messages, dropped.bytes)
    }

    /// What the peer makes of the bytes it has received: opcodes and payloads.
    fn frames(&self) -> Vec<(OpCode, Vec<u8>)> {
        let mut bytes = self.received.clone();
        let limits = Limits { message_bytes_max: 1 << 24, fragments_max: 1 };
        let (mut decoder, mut position, mut frames) = (Decoder::new(Role::Client), 0, Vec::new());
        while position < bytes.len() {
            let decoded = decoder.decode(&mut bytes[position..], &limits).expect("a well-formed stream");
            let (opcode, payload) = match decoded.item.expect("whole frames") {
                Item::Message { kind, payload } => (kind.into(), payload),
                Item::Ping { payload } => (OpCode::Ping, payload),
                Item::Pong { payload } => (OpCode::Pong, payload),
                Item::Close { payload } => (OpCode::Close, payload),
                part => panic!("{part:?}"),
            };
            frames.push((opcode, bytes[position..][payload].to_vec()));
            position += decoded.consumed;
        }
        frames
    }

    fn payloads(&self) -> Vec<Vec<u8>> {
        self.frames().into_iter().map(|(_, payload)| payload).collect()
    }
}

#[test]
fn the_limit_is_exact_to_the_byte() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push_frame(900), Ok(SendStatus::Backpressure));
    assert_eq!(fixture.push_frame(101), Err(Full));
    assert_eq!(fixture.push_frame(100), Ok(SendStatus::Backpressure));
    assert_eq!(fixture.push_frame(2), Err(Full));
    // The buffer in flight counts until the socket has taken it.
    let buffer = fixture.outbox.poll(&mut fixture.corks).expect("something to send");
    assert_eq!(fixture.push_frame(2), Err(Full));
    let _ = fixture.outbox.sent(buffer, 2, &LIMITS, &mut fixture.corks);
    assert_eq!(fixture.push_frame(3), Err(Full));
    assert_eq!(fixture.push_frame(2), Ok(SendStatus::Backpressure));
}

#[test]
fn a_frame_in_the_way_of_the_limit_leaves_room_for_smaller_ones() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push(&[0; 2000]), Err(Full));
    assert_eq!(fixture.outbox.bytes(), 0);
    let shared = LocalFrame::new(SharedFrame::new(vec![0; 1001]));
    assert_eq!(fixture.outbox.push_shared(&shared, None, &LIMITS), Err(Full));
    assert_eq!(fixture.outbox.reserve(1001, &LIMITS), Err(Full));
    assert_eq!(fixture.outbox.reserve(usize::MAX, &LIMITS), Err(Full));
    assert!(fixture.outbox.is_idle());
    assert_eq!(fixture.push_frame(600), Ok(SendStatus::Sent));
}

#[test]
fn backpressure_begins_above_the_high_mark_and_drains_once_at_the_low_mark() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push_frame(600), Ok(SendStatus::Sent));
    assert_eq!(fixture.push_frame(2), Ok(SendStatus::Backpressure));
    assert_eq!(fixture.send_exactly(401), 0, "201 bytes are left");
    assert_eq!(fixture.send_exactly(1), 1, "200 bytes are left");
    assert_eq!(fixture.send_exactly(200), 0, "it was told already");
    // Up to the high mark and down again: nobody was told to stop.
    assert_eq!(fixture.push_frame(600), Ok(SendStatus::Sent));
    assert_eq!(fixture.send_exactly(600), 0);
    // A second time above the high mark, the low mark is told a second time.
    assert_eq!(fixture.push_frame(601), Ok(SendStatus::Backpressure));
    assert_eq!(fixture.send_exactly(601), 1);
}

#[test]
fn between_the_marks_sends_answer_sent_and_the_drain_is_still_to_come() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push_frame(700), Ok(SendStatus::Backpressure));
    assert_eq!(fixture.send_exactly(400), 0);
    assert_eq!(fixture.push_frame(100), Ok(SendStatus::Sent));
    assert_eq!(fixture.send_exactly(200), 1);
}

#[test]
fn small_frames_leave_in_one_send() {
    let mut fixture = Fixture::roomy();
    let sizes = [0, 1, 125, 126, 127, 4000, 0, 9000];
    for size in sizes {
        assert_eq!(fixture.push(&vec![7; size]), Ok(SendStatus::Sent));
    }
    let total = sizes.iter().map(|&size| frame_bytes(size)).sum();
    assert_eq!(fixture.send(usize::MAX), Some((total, false)));
    assert_eq!(fixture.frames().len(), sizes.len());
    fixture.send_all();
}

#[test]
fn no_send_is_joined_beyond_the_coalescing_limit() {
    let mut fixture = Fixture::roomy();
    for size in [9000, 9000, 100, 20_000, 1, 16_000, 370, 7] {
        assert_eq!(fixture.push(&vec![1; size]), Ok(SendStatus::Sent));
    }
    let mut sends = Vec::new();
    while let Some((sent, _)) = fixture.send(usize::MAX) {
        sends.push(sent);
    }
    assert_eq!(sends, [9004, 9004 + 102, 20_004, 3 + 16_004 + 374, 9]);
    assert!(fixture.outbox.is_idle());
}

#[test]
fn shared_frames_keep_their_place_among_others() {
    let mut fixture = Fixture::roomy();
    let shared = LocalFrame::new(SharedFrame::new(b"\x82\x03two".to_vec()));
    assert_eq!(fixture.push(b"one"), Ok(SendStatus::Sent));
    assert_eq!(fixture.outbox.push_shared(&shared, None, &fixture.limits), Ok(SendStatus::Sent));
    assert_eq!(fixture.push(b"three"), Ok(SendStatus::Sent));
    assert_eq!(fixture.outbox.push_shared(&shared, None, &fixture.limits), Ok(SendStatus::Sent));
    fixture.send_all();
    assert_eq!(fixture.payloads(), [&b"one"[..], b"two", b"three", b"two"]);
    assert_eq!(shared.bytes(), b"\x82\x03two", "shared bytes never change");
}

#[test]
fn what_waits_between_publications_takes_no_more_memory_than_it_has_bytes() {
    let mut fixture = Fixture::roomy();
    let publication = LocalFrame::new(SharedFrame::new(vec![0x82, 1, b'p']));
    for _ in 0..100 {
        let pushed = fixture.outbox.push_shared(&publication, None, &fixture.limits);
        assert!(pushed.is_ok_and(SendStatus::is_sent));
        assert!(fixture.push(b"own").is_ok_and(SendStatus::is_sent));
    }
    let bytes = fixture.outbox.bytes();
    let entries = std::iter::from_fn(|| fixture.outbox.queue.pop_front());
    let owned = entries.filter_map(|entry| entry.buffer.into_owned());
    let allocated: usize = owned.map(|memory| memory.capacity()).sum();
    assert!(allocated <= 2 * bytes, "{allocated} bytes for {bytes}");
}

#[test]
fn newer_values_take_the_places_of_older_ones_while_the_queue_moves() {
    const KEYS: u64 = 300;
    let mut fixture = Fixture::roomy();
    let frame = |key: u64, value: u8| {
        let mut bytes = vec![0x82, 126, 4, 0];
        bytes.resize(4 + 1024 - 8, value);
        bytes.extend_from_slice(&key.to_be_bytes());
        LocalFrame::new(SharedFrame::new(bytes))
    };
    for key in 0..KEYS {
        let key_of = ConflationKey { topic: 1, key };
        let pushed = fixture.outbox.push_shared(&frame(key, 0), Some(key_of), &fixture.limits);
        assert!(pushed.is_ok_and(SendStatus::is_sent));
    }
    let mut newest = vec![0; KEYS as usize];
    for value in 1..=20_u8 {
        // A few frames leave each time, the last of them in part.
        let _ = fixture.send(3000);
        for key in (0..KEYS).step_by(usize::from(value)) {
            let key_of = ConflationKey { topic: 1, key };
            if fixture.outbox.replace(&frame(key, value), key_of, &fixture.limits) {
                newest[key as usize] = value;
            }
            let other = ConflationKey { topic: 2, key };
            assert!(!fixture.outbox.replace(&frame(key, 99), other, &fixture.limits));
        }
    }
    fixture.send_all();
    let expected: Vec<_> =
        (0..KEYS).map(|key| frame(key, newest[key as usize]).bytes()[4..].to_vec()).collect();
    assert_eq!(fixture.payloads(), expected);
    assert!(newest.iter().filter(|value| **value > 0).count() > 100, "most were replaced");
}

#[test]
fn partial_sends_at_every_split_lose_and_repeat_nothing() {
    let payloads = [&b"first"[..], b"", b"the second one", &[5; 200]];
    let total: usize = payloads.iter().map(|payload| frame_bytes(payload.len())).sum();
    for first in 0..=total {
        for second in 0..=total - first {
            let mut fixture = Fixture::roomy();
            for payload in &payloads[..2] {
                assert_eq!(fixture.push(payload), Ok(SendStatus::Sent));
            }
            let _ = fixture.send(first);
            // What comes behind a torn buffer is neither written into it nor sent before it.
            for payload in &payloads[2..] {
                assert_eq!(fixture.push(payload), Ok(SendStatus::Sent));
            }
            let _ = fixture.send(second);
            fixture.send_all();
            assert_eq!(fixture.payloads(), payloads, "split after {first} and {second} more");
        }
    }
}

#[test]
fn a_torn_frame_is_finished_and_what_stands_behind_it_dropped() {
    let mut fixture = Fixture::roomy();
    for payload in [&[1; 10_000], &[2; 10_000], &[3; 10_000]] {
        assert_eq!(fixture.push(payload), Ok(SendStatus::Sent));
    }
    let _ = fixture.send(1);
    assert_eq!(fixture.drop_unsent(), (2, 2 * 10_004));
    assert_eq!(fixture.outbox.bytes(), 10_003);
    fixture.send_all();
    assert_eq!(fixture.payloads(), [[1; 10_000]]);
}

#[test]
fn a_frame_stays_torn_when_it_is_joined_with_the_next() {
    for refused in 0..3 {
        let mut fixture = Fixture::roomy();
        assert_eq!(fixture.push(b"torn apart"), Ok(SendStatus::Sent));
        let _ = fixture.send(5);
        assert_eq!(fixture.push(b"whole"), Ok(SendStatus::Sent));
        for _ in 0..refused {
            assert_eq!(fixture.send(0), Some((0, false)), "the socket takes nothing");
        }
        let _ = fixture.drop_unsent();
        fixture.outbox.push_close(&[], &mut fixture.corks);
        fixture.send_all();
        let frames = fixture.frames();
        assert_eq!(frames[0], (OpCode::Binary, b"torn apart".to_vec()));
        assert_eq!(frames.last(), Some(&(OpCode::Close, Vec::new())));
    }
}

#[test]
fn the_buffer_in_flight_is_not_dropped() {
    let mut fixture = Fixture::roomy();
    assert_eq!(fixture.push(b"in flight"), Ok(SendStatus::Sent));
    let buffer = fixture.outbox.poll(&mut fixture.corks).expect("something to send");
    assert_eq!(fixture.push(b"one"), Ok(SendStatus::Sent));
    assert_eq!(fixture.push(b"two"), Ok(SendStatus::Sent));
    assert_eq!(fixture.drop_unsent(), (2, 10));
    let _ = fixture.outbox.sent(buffer, 0, &fixture.limits, &mut fixture.corks);
    fixture.send_all();
    assert_eq!(fixture.payloads(), [b"in flight"]);
}

#[test]
fn dropped_messages_are_counted_and_control_frames_are_not() {
    let mut fixture = Fixture::roomy();
    for size in [0, 125, 126, 5000, 9000, 70_000] {
        assert_eq!(fixture.push(&vec![0; size]), Ok(SendStatus::Sent));
        fixture.pong(b"pong");
    }
    let shared = LocalFrame::new(SharedFrame::new(b"\x81\x02hi".to_vec()));
    assert_eq!(fixture.outbox.push_shared(&shared, None, &fixture.limits), Ok(SendStatus::Sent));
    let bytes = fixture.outbox.bytes();
    let pongs = 6 * frame_bytes(4);
    assert_eq!(fixture.drop_unsent(), (7, bytes - pongs));
    assert_eq!(fixture.outbox.bytes(), pongs);
}

#[test]
fn the_answer_to_the_upgrade_is_never_dropped() {
    let mut fixture = Fixture::roomy();
    fixture.outbox.push_response(b"HTTP/1.1 101\r\n\r\n".to_vec());
    assert_eq!(fixture.push(b"greeting"), Ok(SendStatus::Sent));
    assert_eq!(fixture.drop_unsent(), (1, 10));
    fixture.outbox.push_close(&[], &mut fixture.corks);
    assert_eq!(fixture.outbox.bytes(), 16 + 2);
    assert_eq!(fixture.send(usize::MAX), Some((18, false)), "one send for both");
    assert_eq!(fixture.received, b"HTTP/1.1 101\r\n\r\n\x88\x00");
}

#[test]
fn what_a_direct_send_left_over_goes_before_everything_else() {
    for sent in 0..=6 {
        let mut fixture = Fixture::new(LIMITS);
        let frame = b"\x82\x04here";
        assert_eq!(fixture.outbox.reserve(frame.len(), &LIMITS), Ok(SendStatus::Sent));
        assert_eq!(fixture.push(b"behind"), Ok(SendStatus::Sent));
        fixture.received.extend_from_slice(&frame[..sent]);
        assert!(!fixture.outbox.sent_directly(sent, SendBuffer::owned(frame.to_vec(), sent), &LIMITS));
        assert_eq!(fixture.outbox.bytes(), 6 - sent + 8);
        let (dropped, _) = fixture.drop_unsent();
        assert_eq!(dropped, if sent == 0 { 2 } else { 1 }, "what has begun to leave stays");
        fixture.send_all();
        assert_eq!(fixture.payloads(), if sent == 0 { vec![] } else { vec![b"here"] });
    }
}

#[test]
fn a_direct_send_reaches_the_low_mark_like_any_other() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.outbox.reserve(700, &LIMITS), Ok(SendStatus::Backpressure));
    assert!(!fixture.outbox.sent_directly(499, SendBuffer::owned(vec![0; 201], 0), &LIMITS));
    let (_, drained) = fixture.send(1).expect("the rest");
    assert!(drained);
}

#[test]
fn shrinking_an_outbox_that_is_in_use_changes_nothing() {
    let mut fixture = Fixture::roomy();
    assert_eq!(fixture.push(b"message"), Ok(SendStatus::Sent));
    fixture.outbox.shrink();
    let _ = fixture.send(3);
    fixture.outbox.shrink();
    fixture.send_all();
    fixture.outbox.shrink();
    assert_eq!(fixture.payloads(), [b"message"]);
}

#[test]
fn messages_behind_a_cut_are_known() {
    // Ten frames of ten bytes, joined into one send of which a part leaves, in two pieces.
    for sent in 0..=100 {
        let mut fixture = Fixture::roomy();
        (0..10).for_each(|_| assert_eq!(fixture.push(b"12345678"), Ok(SendStatus::Sent)));
        let before = sent / 3;
        if before > 0 {
            assert_eq!(fixture.send(before), Some((before, false)));
        }
        // What is joined with the rest of a frame is whole.
        fixture.pong(b"pong");
        assert_eq!(fixture.push(b"12345678"), Ok(SendStatus::Sent));
        if sent > before {
            assert_eq!(fixture.send(sent - before), Some((sent - before, false)));
        }
        let begun = sent.div_ceil(10) as u64;
        assert_eq!(fixture.outbox.unsent_messages(), 11 - begun, "{sent} bytes sent");
    }
    // An answer to the upgrade is no message, and those behind it are.
    let mut fixture = Fixture::roomy();
    fixture.outbox.push_response(b"HTTP/1.1 101 Switching Protocols".to_vec());
    assert_eq!(fixture.push(b"one"), Ok(SendStatus::Sent));
    assert_eq!(fixture.outbox.unsent_messages(), 1);
    assert_eq!(fixture.send(0), Some((0, false)));
    assert_eq!(fixture.outbox.unsent_messages(), 1);
    assert_eq!(fixture.send(5), Some((5, false)));
    assert_eq!(fixture.outbox.unsent_messages(), 1);
    // A relayed message that has begun to leave is not counted.
    let mut fixture = Fixture::roomy();
    assert_eq!(fixture.outbox.reserve(6, &LIMITS), Ok(SendStatus::Sent));
    assert_eq!(fixture.push(b"behind"), Ok(SendStatus::Sent));
    assert!(!fixture.outbox.sent_directly(3, SendBuffer::owned(b"ere".to_vec(), 0), &LIMITS));
    assert_eq!(fixture.outbox.unsent_messages(), 1);
    assert_eq!(fixture.send(2), Some((2, false)));
    assert_eq!(fixture.outbox.unsent_messages(), 1);
}
