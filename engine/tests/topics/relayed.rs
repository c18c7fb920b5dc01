//! Messages that are published, and sent back, as they were received.

use ringwire::{
    Connection, Driver, Handler, Message, Upgrade, UpgradeRequest,
    protocol::{OpCode, frame::HEADER_BYTES_MAX},
};

use crate::{
    client::{Client, Received, noise},
    commands::config,
    server::Server,
};

on_both_drivers!(the_payload_that_was_lent_reaches_everybody_whole);

/// Publishes each message to both topics, the second without its publisher, and sends it back in between.
struct Relay;

impl Handler for Relay {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        for topic in ["all", "others"] {
            connection.subscribe(topic).expect("below the limit");
        }
        let _ = connection.send("subscribed");
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        connection.publish_to_all("all", message);
        assert!(connection.send(message).is_sent());
        connection.publish("others", message);
        if let Message::Text(text) = message {
            // Other bytes on the wire: the first byte of the frame.
            connection.publish("others", text.as_bytes());
        }
    }
}

fn the_payload_that_was_lent_reaches_everybody_whole(driver: Driver) {
    let mut config = config(driver);
    config.outbox_bytes_max = 16 * 1024 * 1024;
    let server = Server::start(config, |_| Relay);
    // As many on each shard as it happens; the publisher is on one of them.
    let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.receive_text(), "subscribed"));
    for (seed, bytes) in [10, 4096, 9000, 65_535, 65_536, 70_000, 300_000, 1_000_000].into_iter().enumerate()
    {
        let payload = noise(bytes, seed as u64);
        // In one frame and write; in fragments; in one frame, in two writes.
        clients[0].send_binary(&payload);
        let (first, rest) = payload.split_at(bytes / 3);
        let fragments =
            [clients[0].fragment(OpCode::Binary, first), clients[0].frame(OpCode::Continuation, rest)];
        fragments.iter().for_each(|fragment| clients[0].write(fragment));
        let frame = clients[0].frame(OpCode::Binary, &payload);
        let (head, tail) = frame.split_at(HEADER_BYTES_MAX);
        clients[0].write(head);
        std::thread::sleep(std::time::Duration::from_millis(5));
        clients[0].write(tail);
        // The publisher gets its own from one topic and back, the others from both topics.
        for client in &mut clients {
            for _ in 0..3 * 2 {
                assert!(client.receive_binary() == payload, "{bytes} bytes");
            }
        }
    }
    let text = "ä".repeat(50_000);
    let (first, rest) = text.as_bytes().split_at(33_333);
    let fragments = [clients[0].fragment(OpCode::Text, first), clients[0].frame(OpCode::Continuation, rest)];
    clients[0].write(&fragments.concat());
    for (index, client) in clients.iter_mut().enumerate() {
        let expected = if index == 0 { (2, 0) } else { (2, 1) };
        let (mut texts, mut binaries) = (0, 0);
        while (texts, binaries) != expected {
            match client.receive() {
                Received::Text(received) if received == text => texts += 1,
                Received::Binary(received) if received == text.as_bytes() => binaries += 1,
                _ => panic!("neither the text nor its bytes"),
            }
        }
    }
    // Nothing else is on its way.
    for sender in 0..clients.len() {
        clients[sender].send_binary(b"end");
        for client in &mut clients {
            assert_eq!((client.receive_binary(), client.receive_binary()), (b"end".into(), b"end".into()));
        }
    }
}
