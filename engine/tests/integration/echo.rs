//! Messages of every size and shape come back as they were sent.

use std::{
    thread,
    time::{Duration, Instant},
};

use ringwire::{Config, Driver, protocol::OpCode};

use crate::{
    client::{Client, Received, noise, request},
    script::Script,
    server::{Server, config},
};

on_both_drivers!(
    every_size_comes_back,
    the_largest_message_comes_back_by_default,
    pipelined_messages_come_back_in_order,
    fragments_come_back_as_one_message,
    bytes_that_arrive_one_by_one_are_understood,
    large_messages_in_small_pieces_come_back_whole,
    a_connection_moves_between_quiet_active_and_bulk,
    many_connections_do_not_mix,
    frames_behind_the_request_are_received,
    messages_received_together_are_all_answered,
    what_came_before_the_end_of_the_stream_is_answered,
);

const MIB: usize = 1024 * 1024;

fn roomy(driver: Driver) -> Config {
    let mut config = config(driver);
    config.message_bytes_max = 2 * MIB;
    config.outbox_bytes_max = 64 * MIB;
    config
}

fn every_size_comes_back(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    let mut client = server.connect();
    // The borders of the length forms, of both buffer classes, of direct sends, of a bulk receive and of the
    // limit.
    let borders =
        [125, 126, 4096 - 192, 4096, 8192, 16 * 1024 - 192, 16 * 1024, 65_535, 65_536, 512 * 1024, MIB];
    let around = borders.into_iter().flat_map(|border| border - 15..border + 2);
    for bytes in (0..20).chain(around).chain([777_777, 2 * MIB]) {
        let payload = noise(bytes, bytes as u64);
        client.send_binary(&payload);
        assert!(client.receive_binary() == payload, "{bytes} bytes of binary");
        let text: String = payload.iter().map(|byte| char::from(byte & 0x7f)).collect();
        client.send_text(&text);
        assert!(client.receive_text() == text, "{bytes} bytes of text");
    }
    client.close();
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!(counters.messages_received, counters.messages_sent);
    assert_eq!(counters.protocol_errors, 0);
}

fn the_largest_message_comes_back_by_default(driver: Driver) {
    let server = Server::echo(driver);
    let mut client = server.connect();
    let payload = noise(config(driver).message_bytes_max, 1);
    // In one piece, relayed, and behind a small one, copied.
    client.send_binary(&payload);
    assert!(client.receive_binary() == payload);
    let mut both = client.frame(OpCode::Text, b"small");
    both.extend(client.frame(OpCode::Binary, &payload));
    client.write(&both);
    assert_eq!(client.receive_text(), "small");
    assert!(client.receive_binary() == payload);
}

fn pipelined_messages_come_back_in_order(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    let mut client = server.connect();
    let sizes = |index: usize| match index % 16 {
        0 => 20_000 + index,
        1..4 => 4000 + index,
        _ => index % 200,
    };
    let payloads: Vec<_> = (0..2000).map(|index| noise(sizes(index), index as u64)).collect();
    let bytes: Vec<u8> = payloads.iter().flat_map(|payload| client.frame(OpCode::Binary, payload)).collect();
    let mut writer = client.stream.try_clone().expect("clone");
    let writing = thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes).expect("write"));
    for (index, payload) in payloads.iter().enumerate() {
        assert!(client.receive_binary() == *payload, "message {index}");
    }
    writing.join().expect("written");
    client.close();
}

fn fragments_come_back_as_one_message(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    let mut client = server.connect();
    for (bytes, fragments) in [(0, 2), (1, 2), (10, 10), (5000, 7), (100_000, 3), (MIB, 100), (3000, 3000)] {
        let payload: Vec<u8> = noise(bytes, bytes as u64).iter().map(|byte| byte & 0x7f).collect();
        let size = bytes.div_ceil(fragments).max(1);
        let mut parts = payload.chunks(size).collect::<Vec<_>>();
        parts.resize(fragments.max(parts.len()), &[]);
        let last = parts.pop().expect("a fragment");
        let mut opcode = OpCode::Text;
        for (index, part) in parts.iter().enumerate() {
            let mut bytes = client.fragment(opcode, part);
            opcode = OpCode::Continuation;
            if index % 50 == 1 {
                // RFC 6455 section 5.4: control frames may come between fragments.
                bytes.extend(client.frame(OpCode::Ping, b"between"));
            }
            client.write(&bytes);
            if index % 50 == 1 {
                assert_eq!(client.receive(), Received::Pong(b"between".to_vec()));
            }
        }
        client.send(OpCode::Continuation, last);
        assert!(client.receive_text().into_bytes() == payload, "{bytes} bytes in {fragments} fragments");
    }
    client.close();
}

fn bytes_that_arrive_one_by_one_are_understood(driver: Driver) {
    let server = Server::echo(driver);
    let mut client = Client::connect_raw(server.address);
    client.write_bytewise(&request("/bytewise?a=b", &["x"]));
    client.read_upgrade();
    let text = "Zoë paid 3 € for 🦀";
    for _ in 0..3 {
        let mut bytes = client.frame(OpCode::Text, text.as_bytes());
        bytes.extend(client.fragment(OpCode::Binary, &noise(300, 1)));
        bytes.extend(client.frame(OpCode::Ping, b"are you there?"));
        bytes.extend(client.frame(OpCode::Continuation, &noise(7, 2)));
        bytes.extend(client.frame(OpCode::Pong, b"unasked"));
        bytes.extend(client.frame(OpCode::Binary, &[]));
        client.write_bytewise(&bytes);
        assert_eq!(client.receive_text(), text);
        assert_eq!(client.receive(), Received::Pong(b"are you there?".to_vec()));
        assert_eq!(client.receive_binary(), [noise(300, 1), noise(7, 2)].concat());
        assert_eq!(client.receive_binary(), []);
    }
    let close = client.frame(OpCode::Close, &[0x0f, 0xa0, b'b', b'y', b'e']);
    client.write_bytewise(&close);
    assert_eq!(client.receive_close(), Some(4000));
    client.receive_end();
}

fn large_messages_in_small_pieces_come_back_whole(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    let payloads: Vec<_> = (0..8).map(|index| noise(100_000 + 123 * index, index as u64)).collect();
    let mut clients: Vec<_> = payloads.iter().map(|_| server.connect()).collect();
    let frames: Vec<_> = clients
        .iter_mut()
        .zip(&payloads)
        .map(|(client, payload)| client.frame(OpCode::Binary, payload))
        .collect();
    let mut position = 0;
    for step in (1..).map(|round| 1 + round * 37 % 3001) {
        let mut left = false;
        for (client, frame) in clients.iter_mut().zip(&frames) {
            let piece = &frame[position.min(frame.len())..(position + step).min(frame.len())];
            left |= !piece.is_empty();
            client.write(piece);
        }
        position += step;
        if !left {
            break;
        }
    }
    for (client, payload) in clients.iter_mut().zip(&payloads) {
        assert!(client.receive_binary() == *payload);
    }
}

fn a_connection_moves_between_quiet_active_and_bulk(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    let mut client = server.connect();
    let mut seed = 0;
    let mut burst = |client: &mut Client, count: usize, bytes: usize, together: usize| {
        for _ in 0..count / together {
            let payloads: Vec<_> = (0..together)
                .map(|_| {
                    seed += 1;
                    noise(bytes + seed as usize % 7, seed)
                })
                .collect();
            let frames: Vec<u8> =
                payloads.iter().flat_map(|payload| client.frame(OpCode::Binary, payload)).collect();
            client.write(&frames);
            for payload in &payloads {
                assert!(client.receive_binary() == *payload);
            }
        }
    };
    for _ in 0..2 {
        // Quiet: a message now and then.
        for _ in 0..3 {
            burst(&mut client, 1, 10, 1);
            thread::sleep(Duration::from_millis(520));
        }
        // Active: a small leased buffer, then a large one, then the scratch buffer, and back.
        burst(&mut client, 40, 20, 1);
        burst(&mut client, 64, 3000, 8);
        burst(&mut client, 40, 20, 1);
        burst(&mut client, 64, 60_000, 8);
        burst(&mut client, 40, 20, 1);
        burst(&mut client, 4, 1_500_000, 1);
        burst(&mut client, 40, 20, 1);
    }
    client.close();
    server.stop(Duration::from_secs(5));
}

fn many_connections_do_not_mix(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    let address = server.address;
    let threads: Vec<_> = (0..8u64)
        .map(|thread| {
            thread::spawn(move || {
                let mut clients: Vec<_> = (0..16).map(|_| Client::connect(address)).collect();
                let start = Instant::now();
                for round in 0..30u64 {
                    let payload = |index: usize| {
                        let seed = (thread << 32) | (round << 16) | index as u64;
                        noise((seed.wrapping_mul(2_654_435_761) >> 7) as usize % 9000, seed)
                    };
                    for (index, client) in clients.iter_mut().enumerate() {
                        client.send_binary(&payload(index));
                    }
                    for (index, client) in clients.iter_mut().enumerate() {
                        assert!(client.receive_binary() == payload(index), "after {:?}", start.elapsed());
                    }
                }
                clients.into_iter().for_each(Client::close);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("every message came back"));
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.connections_opened, counters.messages_received), (128, 128 * 30));
}

fn frames_behind_the_request_are_received(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    // As one segment, and with a message that is still on its way when the upgrade is decided.
    for bytes in [5, 3000, 200_000] {
        let mut client = Client::connect_raw(server.address);
        let payload = noise(bytes, 1);
        let mut together = request("/", &[]);
        together.extend(client.frame(OpCode::Ping, b"early"));
        together.extend(client.frame(OpCode::Binary, &payload));
        client.write(&together);
        client.read_upgrade();
        assert_eq!(client.receive(), Received::Pong(b"early".to_vec()));
        assert!(client.receive_binary() == payload);
        client.close();
    }
}

fn messages_received_together_are_all_answered(driver: Driver) {
    let server = Server::start(roomy(driver), |_| Script::echo());
    let mut client = server.connect();
    // Relayed in place and copied ones, in one receive, in every order.
    for order in 0..16u64 {
        let payloads: Vec<_> = (0..4)
            .map(|place| noise(if order >> place & 1 == 1 { 5000 } else { 50 }, order * 4 + place))
            .collect();
        let frames: Vec<u8> =
            payloads.iter().flat_map(|payload| client.frame(OpCode::Binary, payload)).collect();
        client.write(&frames);
        for payload in &payloads {
            assert!(client.receive_binary() == *payload, "order {order:04b}");
        }
    }
    client.close();
}

fn what_came_before_the_end_of_the_stream_is_answered(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_message(|connection, message| {
            // Long enough for all the rest to arrive: it is received in the same turn.
            thread::sleep(Duration::from_millis(100));
            let _ = connection.send(message);
        })
    });
    let mut client = server.connect();
    for text in ["first", "second", "third"] {
        client.send_text(text);
        // The next one is not received together with it.
        thread::sleep(Duration::from_millis(20));
    }
    client.shut_write();
    for text in ["first", "second", "third"] {
        assert_eq!(client.receive_text(), text);
    }
}
