//! Every way in which a connection can end.

use super::*;
use crate::connection::Expired;

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
    assert_eq!(fixture.expire(), Some(Expired::Handshake));
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
