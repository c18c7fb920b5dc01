//! What is received: pings and pongs, pauses, and streams that are cut anywhere.

use super::*;

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
