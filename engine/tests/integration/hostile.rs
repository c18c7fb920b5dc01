//! Peers that break the protocol, the limits or the peace: each gets its answer, and the others notice
//! nothing.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use ringwire::{Driver, HttpResponse, protocol::OpCode};

use crate::{
    client::{Client, Received, exchange, noise, request, status},
    script::Script,
    server::{Server, collect, config, wait_until_empty},
};

on_both_drivers!(
    a_request_cut_short_leaves_nothing_behind,
    bad_requests_get_their_status,
    a_head_is_measured_to_the_byte,
    plain_http_is_answered_by_the_handler,
    a_body_does_not_keep_the_answer_from_its_client,
    a_slow_request_is_cut_off,
    frames_that_break_the_protocol_end_with_their_code,
    bad_text_is_refused_before_its_frame_is_complete,
    a_message_over_the_limit_is_refused_by_its_header,
    empty_fragments_are_counted,
    nothing_is_processed_behind_a_close_frame,
    a_peer_that_goes_on_after_an_error_is_cut_off,
    connections_above_the_limit_are_turned_away,
    a_crowd_that_connects_at_once_is_served,
    a_flood_does_not_starve_the_others,
);

fn a_request_cut_short_leaves_nothing_behind(driver: Driver) {
    let server = Server::echo(driver);
    let request = request("/", &["chat"]);
    for length in (0..request.len()).step_by(9) {
        let mut client = Client::connect_raw(server.address);
        client.write(&request[..length]);
        if length % 2 == 0 {
            client.shut_write();
            assert_eq!(client.read_rest(), []);
        } else {
            client.reset();
        }
    }
    wait_until_empty(&server);
    server.connect().echo("still here");
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.connections_opened, counters.accept_errors), (1, 0));
}

fn bad_requests_get_their_status(driver: Driver) {
    let server = Server::echo(driver);
    let good = String::from_utf8(request("/", &[])).expect("ASCII");
    let table = [
        ("GET /", "POST /", 405, "Allow: GET"),
        ("HTTP/1.1", "HTTP/1.0", 505, ""),
        ("HTTP/1.1", "HTTP/2.0", 400, ""),
        ("GET /", "GET /#part", 400, ""),
        ("GET /", "GET elsewhere", 400, ""),
        ("Version: 13", "Version: 8", 426, "Sec-WebSocket-Version: 13"),
        ("Host: localhost", "X: y", 400, ""),
        ("Connection: Upgrade", "Connection: close", 400, ""),
        ("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: x", 400, ""),
        ("Host: ", "Content-Length: 5\r\nHost: ", 400, ""),
        ("Host: ", "Transfer-Encoding: chunked\r\nHost: ", 400, ""),
        ("Host: ", " folded\r\nHost: ", 400, ""),
    ];
    for (from, to, expected, header) in table {
        let answer = exchange(server.address, good.replacen(from, to, 1).as_bytes());
        assert_eq!(status(&answer), expected, "{to}: {answer}");
        assert!(answer.contains(header), "{to}: {answer}");
        assert!(answer.contains("Connection: close"), "{answer}");
    }
    let many: String = (0..80).map(|index| format!("X-{index}: y\r\n")).collect();
    assert_eq!(
        status(&exchange(server.address, good.replace("Host", &format!("{many}Host")).as_bytes())),
        431
    );
    let garbage = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\x82\x85mask12345".to_vec(),
        vec![0; 3000],
        noise(3000, 7),
    ];
    for bytes in &garbage {
        assert_eq!(status(&exchange(server.address, bytes)), 400);
    }
    server.connect().echo("still here");
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!(counters.upgrades_refused, table.len() as u64 + 1 + garbage.len() as u64);
    assert_eq!(counters.connections_opened, 1);
}

fn a_head_is_measured_to_the_byte(driver: Driver) {
    let mut config = config(driver);
    config.header_bytes_max = 1024;
    let server = Server::start(config, |_| Script::echo());
    let padded = |bytes: usize| {
        let mut head = request("/", &[]);
        head.truncate(head.len() - 2);
        let pad = bytes - head.len() - "X: \r\n\r\n".len();
        head.extend(format!("X: {}\r\n\r\n", "y".repeat(pad)).into_bytes());
        assert_eq!(head.len(), bytes);
        head
    };
    for bytewise in [false, true] {
        let mut client = Client::connect_raw(server.address);
        if bytewise {
            client.write_bytewise(&padded(1024));
        } else {
            client.write(&padded(1024));
        }
        client.read_upgrade();
        client.echo("fits");
        assert_eq!(status(&exchange(server.address, &padded(1025))), 431);
    }
    // Without an end in sight, and in pieces.
    let mut client = Client::connect_raw(server.address);
    client.write(b"GET /");
    for _ in 0..30 {
        if client.stream.write_all(&[b'a'; 100]).is_err() {
            break;
        }
    }
    let answer = String::from_utf8(client.read_rest()).expect("ASCII");
    assert_eq!(status(&answer), 414);
}

fn plain_http_is_answered_by_the_handler(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_http(|request| match request.path() {
            "/large" => HttpResponse::new(200).body(noise(3_000_000, 3)),
            "/nothing" => HttpResponse::new(204),
            path => HttpResponse::new(200)
                .header("X-Method", request.method())
                .header("X-Evil", "a\r\nSet-Cookie: b")
                .body(format!("{path} {:?}", request.query())),
        })
    });
    for version in ["1.0", "1.1"] {
        for method in ["GET", "POST", "DELETE"] {
            let answer = exchange(
                server.address,
                format!("{method} /a?b HTTP/{version}\r\nHost: x\r\n\r\n").as_bytes(),
            );
            assert_eq!(status(&answer), 200);
            assert!(answer.contains(&format!("X-Method: {method}\r\n")), "{answer}");
            assert!(!answer.contains("Evil") && !answer.contains("Cookie"), "{answer}");
            assert!(answer.ends_with("\r\n\r\n/a Some(\"b\")"), "{answer}");
        }
    }
    let head = exchange(server.address, b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.contains("\r\nContent-Length: 7\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let none = exchange(server.address, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(&none), 204);
    // A client that ends its side at once gets its answer all the same, and so does a slow reader.
    let mut client = Client::connect_raw(server.address);
    client.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n");
    client.shut_write();
    thread::sleep(Duration::from_millis(300));
    assert!(client.read_rest().ends_with(&noise(3_000_000, 3)));
    // A second request on the same connection is not looked at.
    let twice =
        exchange(server.address, b"GET /x HTTP/1.1\r\nHost: x\r\n\r\nGET /y HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(twice.matches("HTTP/1.1").count(), 1, "{twice}");
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.http_requests, counters.connections_opened), (10, 0));
    assert_eq!(counters.upgrades_refused, 0);
}

fn a_body_does_not_keep_the_answer_from_its_client(driver: Driver) {
    let server = Server::start(config(driver), |_| Script::echo().on_http(|_| HttpResponse::new(413)));
    let mut client = Client::connect_raw(server.address);
    client.write(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n");
    client.write(&noise(4_000_000, 5));
    let answer = String::from_utf8(client.read_rest()).expect("ASCII");
    assert_eq!(status(&answer), 413);
    drop(client);
    wait_until_empty(&server);
}

fn a_slow_request_is_cut_off(driver: Driver) {
    let mut config = config(driver);
    config.handshake_timeout = Duration::from_millis(400);
    let server = Server::start(config, |_| Script::echo());
    let mut silent = Client::connect_raw(server.address);
    let mut slow = Client::connect_raw(server.address);
    let start = Instant::now();
    for byte in request("/", &[]) {
        if slow.stream.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() < Duration::from_secs(3), "a trickle of bytes must not put the deadline off");
    assert_eq!(slow.read_rest(), []);
    assert_eq!(silent.read_rest(), []);
    server.eventually("both timeouts", |counters| counters.timeouts_handshake == 2);
    wait_until_empty(&server);
    server.connect().echo("still here");
}

fn frames_that_break_the_protocol_end_with_their_code(driver: Driver) {
    let server = Server::echo(driver);
    let table: &[(&str, &[u8], u16)] = &[
        ("an unmasked frame", b"\x82\x05hello", 1002),
        ("an unmasked ping", b"\x89\x00", 1002),
        ("a reserved bit", b"\xc2\x80mask", 1002),
        ("a reserved opcode", b"\x83\x80mask", 1002),
        ("a reserved control opcode", b"\x8b\x80mask", 1002),
        ("a continuation of nothing", b"\x80\x80mask", 1002),
        ("a message inside a message", b"\x02\x81mask?\x82\x80mask", 1002),
        ("a fragmented ping", b"\x09\x80mask", 1002),
        ("a long ping", b"\x89\xfe\x00\x7emask", 1002),
        ("a length of 16 bits that fits into 7", b"\x82\xfe\x00\x7dmask", 1002),
        ("a length of 64 bits that fits into 16", b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xffmask", 1002),
        ("the top bit of a length", b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00mask", 1002),
        ("a close frame of one byte", b"\x88\x81\x00\x00\x00\x00\x03", 1002),
        ("a close code never sent", b"\x88\x82\x00\x00\x00\x00\x03\xed", 1002),
        ("a close reason that is not UTF-8", b"\x88\x83\x00\x00\x00\x00\x03\xe8\xff", 1007),
        ("a text that is not UTF-8", b"\x81\x81\x00\x00\x00\x00\xff", 1007),
        ("a text that ends in a character", b"\x81\x82\x00\x00\x00\x00\xe2\x82", 1007),
    ];
    for (what, bytes, code) in table {
        for bytewise in [false, true] {
            let mut client = server.connect();
            client.echo("so far so good");
            if bytewise {
                // The refusal may come before the last byte.
                let _ = bytes.iter().try_for_each(|byte| client.stream.write_all(&[*byte]));
            } else {
                client.write(bytes);
            }
            assert_eq!(client.receive_close(), Some(*code), "{what}");
            client.receive_end();
        }
    }
    let mut random = 0;
    for seed in 0..100 {
        let mut client = server.connect();
        let _ = client.stream.write_all(&noise(500, seed));
        client.shut_write();
        // Whatever it is, it must not hurt, and the answer must be well-formed.
        random += u64::from(client.receive_close().is_some());
        client.receive_end();
    }
    assert!(random > 50);
    server.connect().echo("still here");
    let counters = server.stop(Duration::from_secs(5));
    assert!(counters.protocol_errors >= 2 * table.len() as u64 + random);
}

fn bad_text_is_refused_before_its_frame_is_complete(driver: Driver) {
    let server = Server::echo(driver);
    // A short frame, one over 16 bits, and one whose first part has been taken already.
    for (length, good) in [(100, 10), (70_000, 10), (70_000, 5000)] {
        let mut client = server.connect();
        let text = [vec![b'a'; good], b"\xf0\x9f\xff".to_vec(), vec![b'a'; length]].concat();
        let frame = client.frame(OpCode::Text, &text);
        let header = frame.len() - text.len();
        client.write(&frame[..header + good]);
        thread::sleep(Duration::from_millis(20));
        client.write(&frame[header + good..header + good + 3]);
        assert_eq!(client.receive_close(), Some(1007), "the rest of the frame was not waited for");
        client.receive_end();
    }
    // In a later fragment, with a character across the border.
    let mut client = server.connect();
    let mut bytes = client.fragment(OpCode::Text, b"\xe2\x82");
    bytes.extend(client.fragment(OpCode::Continuation, b"\xac"));
    bytes.extend(client.fragment(OpCode::Continuation, b"\xe2"));
    client.write(&bytes);
    assert_eq!(client.receive_within(Duration::from_millis(100)), None, "so far it is UTF-8");
    let bytes = client.fragment(OpCode::Continuation, b"\xe2");
    client.write(&bytes);
    assert_eq!(client.receive_close(), Some(1007));
}

fn a_message_over_the_limit_is_refused_by_its_header(driver: Driver) {
    let mut config = config(driver);
    config.message_bytes_max = 1000;
    let server = Server::start(config, |_| Script::echo());
    let mut client = server.connect();
    client.send_binary(&[1; 1000]);
    assert_eq!(client.receive_binary(), [1; 1000]);
    client.write(b"\x82\xfe\x03\xe9mask");
    assert_eq!(client.receive_close(), Some(1009));
    client.receive_end();
    for length in [1u64 << 20, 1 << 32, (1 << 63) - 1] {
        let mut client = server.connect();
        client.write(&[b"\x81\xff".as_slice(), &length.to_be_bytes(), b"mask"].concat());
        assert_eq!(client.receive_close(), Some(1009));
    }
    // Over all fragments together, judged by the header of the one that exceeds.
    let mut client = server.connect();
    let first = client.fragment(OpCode::Binary, &[2; 600]);
    client.write(&first);
    client.write(b"\x80\xfe\x01\x91mask");
    assert_eq!(client.receive_close(), Some(1009));
    wait_until_empty(&server);
}

fn empty_fragments_are_counted(driver: Driver) {
    let mut config = config(driver);
    config.fragments_max = 1000;
    let server = Server::start(config, |_| Script::echo());
    let mut client = server.connect();
    for count in [999, 5000] {
        let mut bytes = client.fragment(OpCode::Text, b"");
        for _ in 1..count {
            bytes.extend(client.fragment(OpCode::Continuation, b""));
        }
        bytes.extend(client.frame(OpCode::Continuation, b"end"));
        client.write(&bytes);
        if count < 1000 {
            assert_eq!(client.receive_text(), "end");
        } else {
            assert_eq!(client.receive_close(), Some(1008));
        }
    }
    client.receive_end();
}

fn nothing_is_processed_behind_a_close_frame(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let (tell, closed) = (tell.clone(), tell.clone());
        Script::echo()
            .on_message(move |_, message| tell.send(message.to_string()).expect("the test listens"))
            .on_close(move |_, reason| closed.send(format!("{reason:?}")).expect("the test listens"))
    });
    let mut client = server.connect();
    let mut bytes = client.frame(OpCode::Text, b"before");
    bytes.extend(client.frame(OpCode::Close, b"\x0f\xa1bye"));
    bytes.extend(client.frame(OpCode::Text, b"after"));
    bytes.extend(client.frame(OpCode::Ping, b"after"));
    bytes.extend(noise(1000, 1));
    client.write(&bytes);
    assert_eq!(client.receive(), Received::Close(Some((4001, String::new()))));
    client.receive_end();
    wait_until_empty(&server);
    let told: Vec<_> = told.try_iter().collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "before");
    assert!(told[1].contains("4001") && told[1].contains("bye") && told[1].contains("Peer"), "{told:?}");
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.protocol_errors, counters.pings_received), (0, 0));
}

fn a_peer_that_goes_on_after_an_error_is_cut_off(driver: Driver) {
    let mut config = config(driver);
    config.close_timeout = Duration::from_millis(400);
    let server = Server::start(config, |_| Script::echo());
    let mut client = server.connect();
    client.write(b"\xf2\x80mask");
    let start = Instant::now();
    let bytes = noise(10_000, 1);
    while client.stream.write_all(&bytes).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "it may write for ever");
        thread::sleep(Duration::from_millis(1));
    }
    wait_until_empty(&server);
    assert_eq!(server.counters().timeouts_close, 1);
}

fn connections_above_the_limit_are_turned_away(driver: Driver) {
    let mut config = config(driver);
    config.connections_max = 10;
    let server = Server::start(config, |_| Script::echo());
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for _ in 0..100 {
        let mut refused = Client::connect_raw(server.address);
        let answer = String::from_utf8(refused.read_rest()).expect("ASCII");
        assert_eq!(status(&answer), 503);
    }
    clients.iter_mut().for_each(|client| client.echo("we were first"));
    clients.pop().expect("a client").close();
    server.eventually("a free place", |counters| counters.connections_current == 9);
    clients.push(server.connect());
    clients.iter_mut().for_each(|client| client.echo("full again"));
    let counters = server.counters();
    assert_eq!((counters.connections_refused, counters.connections_accepted), (100, 11));
}

fn a_crowd_that_connects_at_once_is_served(driver: Driver) {
    let (enter, entered) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let left = Arc::new(std::sync::Mutex::new(left));
    let server = Server::start(config(driver), move |_| {
        let (enter, left) = (enter.clone(), Arc::clone(&left));
        Script::echo().on_message(move |connection, message| {
            if message.bytes() == b"block" {
                enter.send(()).expect("the test listens");
                left.lock().expect("one thread").recv().expect("the test goes on");
            }
            let _ = connection.send(message);
        })
    });
    let mut blocker = server.connect();
    blocker.send_text("block");
    collect(&entered, 1);
    // More than one turn of accepting takes, all of them waiting when the shard comes back to it.
    let mut crowd: Vec<_> = (0..300).map(|_| Client::connect_raw(server.address)).collect();
    crowd.iter_mut().for_each(|client| client.write(&request("/", &[])));
    leave.send(()).expect("the handler waits");
    assert_eq!(blocker.receive_text(), "block");
    for client in &mut crowd {
        client.read_upgrade();
        client.echo("at last");
    }
    assert_eq!(server.counters().connections_opened, 301);
}

fn a_flood_does_not_starve_the_others(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        // Slower than its flooding peers, as any handler may be.
        Script::echo().on_message(|connection, message| {
            if message.bytes().len() == 200 {
                std::hint::black_box(noise(200, 1));
            } else {
                let _ = connection.send(message);
            }
        })
    });
    let mut polite = server.connect();
    let ends = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..2)
        .map(|_| {
            let (mut client, ends) = (server.connect(), Arc::clone(&ends));
            let bytes: Vec<u8> = (0..5000).flat_map(|_| client.frame(OpCode::Binary, &[1; 200])).collect();
            thread::spawn(
                move || {
                    while !ends.load(Ordering::Relaxed) && client.stream.write_all(&bytes).is_ok() {}
                },
            )
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    for _ in 0..20 {
        polite.echo("am I heard?");
    }
    let mut late = server.connect();
    late.echo("and I?");
    server.stop(Duration::from_millis(200));
    ends.store(true, Ordering::Relaxed);
    floods.into_iter().for_each(|flood| flood.join().expect("a flood"));
}
