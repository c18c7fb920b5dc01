//! Single stories that chance tells too rarely.

use std::sync::Arc;

use ringwire::{
    Connection, ConnectionId, Counters, Handler, Message, Upgrade,
    buffer::HEADROOM_BYTES,
    connection::{Output, Timestamp},
    protocol::{
        OpCode, UpgradeRequest,
        frame::{append_frame, append_masked_frame},
        handshake::append_client_request,
    },
    shard::Shard,
};

use crate::{plan::Plan, random::Random};

struct Echo;

impl Handler for Echo {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        assert!(connection.send(message).is_sent());
    }
}

struct Story {
    shard: Shard<Echo>,
    id: ConnectionId,
    now: Timestamp,
}

impl Story {
    /// One open connection with roomy limits.
    fn begin() -> Self {
        let now = Timestamp::from_millis(1000);
        let mut settings = Plan::new(&Random::new(0)).settings;
        settings.message.message_bytes_max = 1 << 20;
        settings.outbox.bytes_max = 1 << 20;
        settings.outbox.bytes_high = 1 << 20;
        let mut shard = Shard::new(0, Echo, settings, 1, Arc::new(Counters::default()), 1, now);
        let id = shard.handle_accepted(([10, 0, 0, 1], 1).into(), now).expect("below the limit");
        let mut story = Self { shard, id, now };
        let mut request = Vec::new();
        append_client_request(&mut request, "ringwire", "/", "dGhlIHNhbXBsZSBub25jZQ==", &[]);
        assert!(story.receive(&request).starts_with(b"HTTP/1.1 101 "));
        story
    }

    /// Receives bytes. Answers what the socket takes in return.
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut input = vec![0; HEADROOM_BYTES];
        input.extend_from_slice(bytes);
        let mut sent = Vec::new();
        if let Some(range) = self.shard.handle_received(self.id, &mut input, self.now) {
            self.shard.handle_relayed(self.id, range.len(), &[]);
            sent.extend_from_slice(&input[range]);
        }
        self.send(sent)
    }

    fn pause(&mut self) {
        self.reach_in(&mut |connection| connection.pause_receive());
    }

    fn resume(&mut self) -> Vec<u8> {
        self.reach_in(&mut |connection| connection.resume_receive());
        self.send(Vec::new())
    }

    fn reach_in(&mut self, action: &mut dyn FnMut(&mut Connection<'_, ()>)) {
        assert_eq!(self.shard.with_connection(self.id, self.now, action), Ok(()));
    }

    fn send(&mut self, mut sent: Vec<u8>) -> Vec<u8> {
        while let Output::Send(buffer) = self.shard.poll_output(self.id) {
            sent.extend_from_slice(buffer.unsent());
            let bytes = buffer.len();
            self.shard.handle_sent(self.id, buffer, bytes);
        }
        sent
    }
}

fn client_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_masked_frame(&mut frame, OpCode::Binary, payload, [1, 2, 3, 4]);
    frame
}

fn server_frames(payloads: &[&[u8]]) -> Vec<u8> {
    let mut frames = Vec::new();
    for payload in payloads {
        append_frame(&mut frames, OpCode::Binary, payload);
    }
    frames
}

#[test]
fn a_payload_that_a_pause_cut_from_its_header_is_echoed() {
    for size in [100, 5000, 70_000] {
        let payload = vec![7; size];
        let frame = client_frame(&payload);
        let mut story = Story::begin();
        let header = frame.len() - payload.len();
        assert!(story.receive(&frame[..header]).is_empty());
        story.pause();
        assert!(story.receive(&frame[header..]).is_empty());
        assert_eq!(story.resume(), server_frames(&[&payload]));
    }
}

#[test]
fn what_was_queued_when_the_connection_was_lost_is_counted() {
    let mut story = Story::begin();
    let mut receive = |messages: usize| {
        let mut input = vec![0; HEADROOM_BYTES];
        input.extend((0..messages).flat_map(|_| client_frame(b"echo")));
        assert_eq!(story.shard.handle_received(story.id, &mut input, story.now), None);
        story.shard.poll_output(story.id)
    };
    assert!(matches!(receive(3), Output::Send(_)), "these are on their way");
    assert!(matches!(receive(2), Output::Idle), "these wait");
    story.shard.handle_transport_error(story.id, "reset");
    story.shard.handle_closed(story.id);
    assert_eq!(story.shard.counters().snapshot().dropped_unsent, 2);
}

#[test]
fn large_messages_in_one_receive_are_echoed_in_their_order() {
    let payloads: [&[u8]; 4] = [&[1; 5000], &[2; 6000], &[3; 10], &[4; 5000]];
    let stream = payloads.map(client_frame).concat();
    let mut story = Story::begin();
    assert_eq!(story.receive(&stream), server_frames(&payloads));
    // In two receives, the message that is cut is put together apart.
    for cut in [1, 10, 5007, 5008, 5009, 9000, 11_500, stream.len() - 1] {
        let mut echoed = story.receive(&stream[..cut]);
        echoed.extend(story.receive(&stream[cut..]));
        assert_eq!(echoed, server_frames(&payloads), "cut at {cut}");
    }
}

/// A session that does not want to go.
struct Stubborn;

impl Drop for Stubborn {
    fn drop(&mut self) {
        panic!("in the drop of a session");
    }
}

struct Stubbornly;

impl Handler for Stubbornly {
    type Session = Stubborn;

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<Stubborn> {
        Upgrade::defer(std::future::pending())
    }

    fn on_message(&mut self, _: &mut Connection<'_, Stubborn>, _: Message<'_>) {}
}

#[test]
fn a_panic_in_the_drop_of_a_session_that_comes_too_late_is_counted() {
    let now = Timestamp::from_millis(1000);
    let settings = Plan::new(&Random::new(0)).settings;
    let counters = Arc::new(Counters::default());
    let mut shard = Shard::new(0, Stubbornly, settings, 1, Arc::clone(&counters), 1, now);
    let id = shard.handle_accepted(([10, 0, 0, 1], 1).into(), now).expect("below the limit");
    shard.handle_end_of_stream(id);
    shard.handle_upgrade(id, Upgrade::accept(Stubborn), now);
    assert_eq!(counters.snapshot().handler_panics, 1, "the connection is ending");
    shard.handle_closed(id);
    shard.handle_upgrade(id, Upgrade::accept(Stubborn), now);
    assert_eq!(counters.snapshot().handler_panics, 2, "the connection is gone");
}
