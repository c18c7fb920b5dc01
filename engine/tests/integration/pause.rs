//! Receiving on demand: nothing is lost, nothing comes early, and a peer that is not listened to comes to a
//! stop.

use std::{
    cell::Cell,
    io::{ErrorKind, Write},
    rc::Rc,
    sync::mpsc,
    thread,
    time::Duration,
};

use ringwire::{Driver, protocol::OpCode};

use crate::{
    client::{Received, noise},
    script::Script,
    server::{Server, collect, config, wait_until_empty},
};

on_both_drivers!(
    a_pause_holds_back_what_follows,
    one_message_at_a_time_loses_nothing,
    a_pause_and_its_end_in_one_call_change_nothing,
    a_connection_paused_from_its_opening_waits,
    a_paused_peer_comes_to_a_stop,
    a_peer_that_leaves_during_a_pause_is_noticed_after_it,
);

/// Pauses at each message, reports it, and resumes after a while.
fn one_by_one(told: &mpsc::Sender<Vec<u8>>, rest: Duration) -> Script {
    let told = told.clone();
    let working = Rc::new(Cell::new(false));
    Script::echo().on_message(move |connection, message| {
        assert!(!working.replace(true), "a message during the pause");
        told.send(message.bytes().to_vec()).expect("the test listens");
        connection.pause_receive();
        let (handle, id, working) = (connection.handle(), connection.id(), Rc::clone(&working));
        connection.spawn(async move {
            monoio::time::sleep(rest).await;
            working.set(false);
            let _ = handle.with(id, |connection| connection.resume_receive());
        });
    })
}

fn a_pause_holds_back_what_follows(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| one_by_one(&tell, Duration::from_millis(300)));
    let mut client = server.connect();
    // In one segment, in its own, and across a frame's border.
    let mut bytes: Vec<u8> =
        (0..3).flat_map(|index: u8| client.frame(OpCode::Binary, &[index; 10])).collect();
    client.write(&bytes);
    bytes = client.frame(OpCode::Binary, &[3; 5000]);
    client.write(&bytes[..100]);
    thread::sleep(Duration::from_millis(50));
    client.write(&bytes[100..]);
    for index in 0..4u8 {
        let message = collect(&told, 1).remove(0);
        assert_eq!(message[0], index);
        assert_eq!(told.recv_timeout(Duration::from_millis(150)), Err(mpsc::RecvTimeoutError::Timeout));
    }
}

fn one_message_at_a_time_loses_nothing(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| one_by_one(&tell, Duration::from_millis(1)));
    let mut client = server.connect();
    let payloads: Vec<_> =
        (0..400).map(|index| noise([0, 7, 200, 4000, 20_000][index % 5], index as u64)).collect();
    // Some of them in fragments, with pings between.
    for (index, payload) in payloads.iter().enumerate() {
        if index % 7 == 0 {
            let (first, last) = payload.split_at(payload.len() / 3);
            let mut bytes = client.fragment(OpCode::Binary, first);
            bytes.extend(client.frame(OpCode::Ping, &index.to_be_bytes()));
            bytes.extend(client.frame(OpCode::Continuation, last));
            client.write(&bytes);
        } else {
            client.send_binary(payload);
        }
    }
    for (index, (received, payload)) in collect(&told, 400).iter().zip(&payloads).enumerate() {
        assert!(received == payload, "message {index}");
    }
    for index in (0..400usize).step_by(7) {
        assert_eq!(client.receive(), Received::Pong(index.to_be_bytes().to_vec()));
    }
    assert_eq!(server.counters().messages_received, 400);
}

fn a_pause_and_its_end_in_one_call_change_nothing(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_message(|connection, message| {
            connection.pause_receive();
            let _ = connection.send(message);
            connection.resume_receive();
        })
    });
    let mut client = server.connect();
    let payloads: Vec<_> = (0..200).map(|index| noise(index * 97 % 9000, index as u64)).collect();
    for together in payloads.chunks(4) {
        let bytes: Vec<u8> =
            together.iter().flat_map(|payload| client.frame(OpCode::Binary, payload)).collect();
        // Cut in the middle, so that something is kept each time.
        let (first, rest) = bytes.split_at(bytes.len() * 2 / 3);
        client.write(first);
        client.write(rest);
        for payload in together {
            assert!(client.receive_binary() == *payload);
        }
    }
    client.close();
}

fn a_connection_paused_from_its_opening_waits(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_open(|connection| {
            connection.pause_receive();
            let (handle, id) = (connection.handle(), connection.id());
            connection.spawn(async move {
                monoio::time::sleep(Duration::from_millis(200)).await;
                let resumed = handle.with(id, |connection| {
                    let _ = connection.send("now");
                    connection.resume_receive();
                });
                resumed.expect("it is still there");
            });
        })
    });
    for bytes in [10, 10_000] {
        let mut client = crate::client::Client::connect_raw(server.address);
        let mut together = crate::client::request("/", &[]);
        together.extend(client.frame(OpCode::Binary, &noise(bytes, 1)));
        client.write(&together);
        client.read_upgrade();
        assert_eq!(client.receive_text(), "now");
        assert!(client.receive_binary() == noise(bytes, 1));
    }
}

fn a_paused_peer_comes_to_a_stop(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let tell = tell.clone();
        let mut received = 0;
        Script::echo().on_message(move |connection, message| {
            if message.bytes() == b"pause" {
                connection.pause_receive();
                let (handle, id) = (connection.handle(), connection.id());
                connection.spawn(async move {
                    monoio::time::sleep(Duration::from_secs(2)).await;
                    let _ = handle.with(id, |connection| connection.resume_receive());
                });
            } else {
                received += 1;
                let index = u64::from_be_bytes(*message.bytes().first_chunk().expect("a number"));
                assert_eq!(index, received);
                tell.send(received).expect("the test listens");
            }
        })
    });
    let mut client = server.connect();
    client.send_text("pause");
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("write timeout");
    let (mut sent, mut bytes) = (0u64, 0);
    let rest = loop {
        sent += 1;
        let mut payload = noise(50_000, sent);
        payload[..8].copy_from_slice(&sent.to_be_bytes());
        let frame = client.frame(OpCode::Binary, &payload);
        let mut written = 0;
        let stalled = loop {
            match client.stream.write(&frame[written..]) {
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                // The signals of another test.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
            if written == frame.len() {
                break false;
            }
        };
        bytes += written;
        assert!(bytes < 64 << 20, "the peer was never stopped");
        if stalled {
            break frame[written..].to_vec();
        }
    };
    // The engine itself took no more than one receive's worth of it.
    assert!(server.counters().bytes_received < 1 << 20, "{:?}", server.counters());
    client.stream.set_write_timeout(None).expect("write timeout");
    client.write(&rest);
    collect(&told, sent as usize);
}

fn a_peer_that_leaves_during_a_pause_is_noticed_after_it(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| one_by_one(&tell, Duration::from_millis(500)));
    for politely in [true, false] {
        let mut client = server.connect();
        client.send_text("pause");
        collect(&told, 1);
        client.send_text("the last one");
        if politely {
            client.send(OpCode::Close, &[]);
            collect(&told, 1);
            assert_eq!(client.receive(), Received::Close(None));
            client.receive_end();
        } else {
            client.shut_write();
            collect(&told, 1);
            assert_eq!(client.receive(), Received::End);
        }
        drop(client);
        wait_until_empty(&server);
        thread::sleep(Duration::from_millis(600));
    }
}
