//! Control frames among the messages: pongs, pings and the close frame.

use super::*;

#[test]
fn control_frames_do_not_keep_a_value_from_being_replaced() {
    let mut fixture = Fixture::new(LIMITS);
    let value = |byte: u8, bytes: usize| {
        let mut frame = Vec::new();
        append_frame(&mut frame, OpCode::Binary, &vec![byte; bytes]);
        LocalFrame::new(SharedFrame::new(frame))
    };
    let key = ConflationKey { topic: 1, key: 1 };
    let pushed = fixture.outbox.push_shared(&value(1, 996), Some(key), &LIMITS);
    assert_eq!((pushed, fixture.outbox.bytes()), (Ok(SendStatus::Backpressure), 1000));
    fixture.pong(b"ping");
    assert!(!fixture.outbox.replace(&value(2, 997), key, &LIMITS), "larger: there is no room for it");
    assert!(fixture.outbox.replace(&value(3, 996), key, &LIMITS));
    assert_eq!(fixture.outbox.bytes(), 1006);
    assert!(fixture.outbox.replace(&value(4, 500), key, &LIMITS));
    assert_eq!(fixture.outbox.bytes(), 510);
}

#[test]
fn pongs_are_bounded_and_the_newest_is_kept() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push_frame(1000), Ok(SendStatus::Backpressure));
    let answered = (CONTROL_BYTES_MAX - CLOSE_BYTES_MAX - CONTROL_ENTRY_BYTES) / 127;
    for number in 0..100_u8 {
        fixture.pong(&[number; 125]);
    }
    assert!(fixture.outbox.bytes() + CLOSE_BYTES_MAX <= LIMITS.bytes_max + CONTROL_BYTES_MAX);
    fixture.send_all();
    let pongs: Vec<u8> = fixture.payloads()[1..].iter().map(|payload| payload[0]).collect();
    let expected: Vec<u8> = (0..answered as u8).chain([99]).collect();
    assert_eq!(pongs, expected);
}

#[test]
fn pongs_take_no_room_but_their_own() {
    let mut fixture = Fixture::roomy();
    let in_flight =
        fixture.push(b"in flight").and_then(|_| fixture.outbox.poll(&mut fixture.corks).ok_or(Full));
    (0..100_000).for_each(|_| fixture.pong(b""));
    assert!(fixture.outbox.bytes() <= 11 + CONTROL_BYTES_MAX, "{} bytes", fixture.outbox.bytes());
    let buffer = in_flight.expect("something to send");
    let _ = fixture.outbox.sent(buffer, 11, &fixture.limits, &mut fixture.corks);
    fixture.send_all();
    // When they have left, there is room again.
    fixture.pong(b"");
    assert_eq!(fixture.send(usize::MAX).map(|(bytes, _)| bytes), Some(2));
}

#[test]
fn pongs_between_publications_take_few_entries_and_survive_a_drop() {
    let mut fixture = Fixture::roomy();
    let publication = LocalFrame::new(SharedFrame::new(b"\x81\x04news".to_vec()));
    for _ in 0..10_000 {
        let pushed = fixture.outbox.push_shared(&publication, None, &fixture.limits);
        assert!(pushed.is_ok_and(SendStatus::is_sent));
        fixture.pong(b"pong");
    }
    let entries = fixture.outbox.queue.iter().filter(|entry| entry.buffer.control() > 0).count();
    assert!((10..CONTROL_BYTES_MAX / CONTROL_ENTRY_BYTES).contains(&entries), "{entries} entries");
    let (dropped, _) = fixture.drop_unsent();
    assert_eq!(dropped, 10_000);
    fixture.send_all();
    assert!(fixture.payloads().iter().all(|payload| payload == b"pong"));
    assert_eq!(fixture.payloads().len(), entries);
}

#[test]
fn a_pong_that_outlives_the_messages_around_it_keeps_little_memory() {
    let mut fixture = Fixture::roomy();
    let _ = fixture.push(&[1; 6000]);
    fixture.pong(b"pong");
    let _ = fixture.push(&[2; 6000]);
    let _ = fixture.drop_unsent();
    let held: usize = fixture.outbox.queue.iter().map(|entry| entry.buffer.owned_capacity()).sum();
    assert!(held <= 512, "{held} bytes");
    fixture.send_all();
    assert_eq!(fixture.payloads(), [b"pong"]);
}

#[test]
fn a_pong_that_waited_leaves_as_soon_as_there_is_room() {
    let mut fixture = Fixture::new(OutboxLimits { bytes_max: 20_000, ..LIMITS });
    assert_eq!(fixture.push(&[0; 19_000]), Ok(SendStatus::Backpressure));
    while fixture.outbox.pending_pong.is_none() {
        fixture.pong(&[1; 125]);
    }
    fixture.pong(b"newest");
    let _ = fixture.send(1000);
    assert!(fixture.outbox.pending_pong.is_none());
    fixture.send_all();
    assert_eq!(fixture.payloads().last().map(Vec::as_slice), Some(&b"newest"[..]));
}

#[test]
fn pings_never_take_the_room_of_the_close_frame() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push_frame(1000), Ok(SendStatus::Backpressure));
    for _ in 0..1000 {
        fixture.outbox.push_ping(&[0; 125], &mut fixture.corks);
    }
    fixture.outbox.push_close(&[3; 125], &mut fixture.corks);
    assert!(fixture.outbox.bytes() <= LIMITS.bytes_max + CONTROL_BYTES_MAX);
}

#[test]
fn nothing_follows_a_close_frame() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push_frame(1000), Ok(SendStatus::Backpressure));
    for _ in 0..100 {
        fixture.pong(&[0; 125]);
    }
    assert!(fixture.outbox.pending_pong.is_some());
    fixture.outbox.push_close(&[], &mut fixture.corks);
    fixture.send_all();
    assert_eq!(fixture.frames().last(), Some(&(OpCode::Close, Vec::new())));
}
