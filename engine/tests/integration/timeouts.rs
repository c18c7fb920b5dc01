//! Deadlines, all of them made short: silence, unanswered pings, long lives, half-finished endings.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ringwire::{CloseCode, CloseReason, Config, Driver, Initiator, Upgrade, protocol::OpCode};

use crate::{
    client::{Client, Received, request},
    script::Script,
    server::{Server, collect, config, wait_until_empty},
};

on_both_drivers!(
    an_idle_connection_is_closed_and_a_busy_one_is_not,
    a_peer_that_answers_pings_lives_and_is_measured,
    a_peer_that_does_not_answer_pings_is_lost,
    a_peer_that_neither_reads_nor_answers_is_lost,
    a_pause_is_not_mistaken_for_a_lost_peer,
    a_life_ends_when_it_is_over,
    a_close_that_is_not_answered_ends,
    a_transport_that_is_not_ended_is_ended,
    a_decision_that_does_not_come_is_not_awaited,
);

fn quick(driver: Driver) -> Config {
    let mut config = config(driver);
    config.ping_interval = None;
    config.close_timeout = Duration::from_millis(300);
    config
}

/// Tells of every end.
fn telling(ends: &mpsc::Sender<CloseReason>) -> Script {
    let ends = ends.clone();
    Script::echo().on_close(move |_, reason| ends.send(reason.clone()).expect("the test listens"))
}

fn reason(code: CloseCode, reason: &str) -> CloseReason {
    CloseReason { code, reason: reason.into(), initiator: Initiator::Local }
}

fn an_idle_connection_is_closed_and_a_busy_one_is_not(driver: Driver) {
    let (end, ended) = mpsc::channel();
    let mut config = quick(driver);
    config.idle_timeout = Some(Duration::from_millis(600));
    let server = Server::start(config, move |_| {
        telling(&end).on_message(|connection, message| {
            if message.bytes() != b"talk" {
                return;
            }
            // The other direction counts as well.
            let (handle, id) = (connection.handle(), connection.id());
            connection.spawn(async move {
                while handle.with(id, |connection| connection.send("still talking")).is_ok() {
                    monoio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        })
    });
    let mut idle = server.connect();
    let mut pinging = server.connect();
    let mut sending = server.connect();
    let mut listening = server.connect();
    listening.send_text("talk");
    for _ in 0..20 {
        sending.send_text("hello");
        // Pings keep nobody from being idle.
        let ping = pinging.frame(OpCode::Ping, b"");
        let _ = std::io::Write::write_all(&mut pinging.stream, &ping);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(idle.receive(), Received::Close(Some((1001, "idle timeout".to_owned()))));
    assert_eq!(pinging.receive_close(), Some(1001));
    assert_eq!(listening.receive_text(), "still talking");
    assert_eq!(server.counters().timeouts_idle, 2);
    for told in collect(&ended, 2) {
        assert_eq!(told, reason(CloseCode::GOING_AWAY, "idle timeout"));
    }
    sending.send(OpCode::Close, &[]);
    assert_eq!(sending.receive(), Received::Close(None));
}

fn a_peer_that_answers_pings_lives_and_is_measured(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let mut config = quick(driver);
    config.ping_interval = Some(Duration::from_millis(200));
    config.pong_timeout = Duration::from_millis(500);
    let server = Server::start(config, move |_| {
        let tell = tell.clone();
        Script::echo().on_message(move |connection, _| {
            tell.send(connection.round_trip()).expect("the test listens");
        })
    });
    let mut client = server.connect();
    client.send_text("how far?");
    assert_eq!(collect(&told, 1), [None]);
    let mut pings = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        match client.receive() {
            Received::Ping(payload) => {
                pings += 1;
                thread::sleep(Duration::from_millis(100));
                client.send(OpCode::Pong, &payload);
            }
            other => panic!("{other:?}"),
        }
    }
    client.send_text("how far?");
    let round_trip = collect(&told, 1)[0].expect("a measured round trip");
    // The clock is exact to a few milliseconds.
    assert!(round_trip >= Duration::from_millis(85), "{round_trip:?}");
    client.close();
    let counters = server.stop(Duration::from_secs(5));
    assert!(pings >= 4, "{pings}");
    assert!((pings - 1..=pings).contains(&counters.pongs_received), "{pings} pings, {counters:?}");
    assert_eq!(counters.timeouts_pong, 0);
}

fn a_peer_that_does_not_answer_pings_is_lost(driver: Driver) {
    let (end, ended) = mpsc::channel();
    let mut config = quick(driver);
    config.ping_interval = Some(Duration::from_millis(200));
    config.pong_timeout = Duration::from_millis(300);
    let server = Server::start(config, move |_| telling(&end));
    let mut silent = server.connect();
    let mut wrong = server.connect();
    assert!(matches!(silent.receive(), Received::Ping(_)));
    assert!(matches!(wrong.receive(), Received::Ping(_)));
    // A sign of life puts the end off, for as long as the answer may take.
    wrong.send(OpCode::Pong, b"something else");
    wrong.send_text("data");
    wrong.receive_end();
    silent.receive_end();
    wait_until_empty(&server);
    assert_eq!(server.counters().timeouts_pong, 2);
    for told in collect(&ended, 2) {
        assert_eq!(told, reason(CloseCode::ABNORMAL, "ping not answered"));
    }
}

fn a_peer_that_neither_reads_nor_answers_is_lost(driver: Driver) {
    let mut config = quick(driver);
    config.ping_interval = Some(Duration::from_millis(200));
    config.pong_timeout = Duration::from_millis(300);
    config.outbox_full = ringwire::OutboxFull::DropNewest;
    let server = Server::start(config, |_| {
        Script::echo().on_message(|connection, message| {
            let bytes: usize = message.to_string().parse().expect("a number");
            while connection.send(&vec![1; bytes]).is_sent() {}
        })
    });
    let mut stalled = Vec::new();
    for bytes in ["100", "5000", "100000"] {
        let mut client = Client::connect_narrow(server.address, 4096);
        client.send_text(bytes);
        stalled.push(client);
    }
    server.eventually("all are lost", |counters| counters.timeouts_pong == 3);
    wait_until_empty(&server);
    drop(stalled);
}

fn a_pause_is_not_mistaken_for_a_lost_peer(driver: Driver) {
    let mut config = quick(driver);
    config.ping_interval = Some(Duration::from_millis(200));
    config.pong_timeout = Duration::from_millis(300);
    let server = Server::start(config, |_| {
        Script::echo().on_message(|connection, message| {
            let _ = connection.send(message);
            if message.bytes() == b"pause" {
                connection.pause_receive();
                let (handle, id) = (connection.handle(), connection.id());
                connection.spawn(async move {
                    monoio::time::sleep(Duration::from_millis(1200)).await;
                    handle.with(id, |connection| connection.resume_receive()).expect("it is still there");
                });
            }
        })
    });
    let mut client = server.connect();
    // A ping is on its way when the pause begins: its answer waits until the end of it.
    for _ in 0..2 {
        let Received::Ping(payload) = client.receive() else { panic!("not a ping") };
        client.send_text("pause");
        client.send(OpCode::Pong, &payload);
        client.send_text("behind the pause");
        let mut texts = Vec::new();
        while texts.len() < 2 {
            match client.receive() {
                Received::Text(text) => texts.push(text),
                Received::Ping(payload) => client.send(OpCode::Pong, &payload),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(texts, ["pause", "behind the pause"]);
    }
    assert_eq!(server.counters().timeouts_pong, 0);
}

fn a_life_ends_when_it_is_over(driver: Driver) {
    let (end, ended) = mpsc::channel();
    let mut config = quick(driver);
    config.connection_lifetime_max = Some(Duration::from_millis(500));
    config.connection_lifetime_jitter = Duration::from_millis(1500);
    let server = Server::start(config, move |_| telling(&end));
    let start = Instant::now();
    let lives: Vec<_> = (0..30)
        .map(|_| {
            let mut client = server.connect();
            thread::spawn(move || {
                // Being busy does not help.
                loop {
                    client.send_text("busy");
                    match client.receive() {
                        Received::Text(_) => thread::sleep(Duration::from_millis(10)),
                        close => {
                            client.send(OpCode::Close, &1001u16.to_be_bytes());
                            client.receive_end();
                            return (close.close_code(), start.elapsed());
                        }
                    }
                }
            })
        })
        .collect();
    let ends: Vec<_> = lives.into_iter().map(|life| life.join().expect("a life")).collect();
    assert!(
        ends.iter().all(|(code, life)| *code == Some(1001) && *life >= Duration::from_millis(490)),
        "{ends:?}"
    );
    let lives: Vec<_> = ends.iter().map(|(_, life)| *life).collect();
    let spread = *lives.iter().max().expect("a life") - *lives.iter().min().expect("a life");
    assert!(spread >= Duration::from_millis(300), "they ended together, within {spread:?}");
    assert_eq!(server.counters().lifetimes_reached, 30);
    assert_eq!(collect(&ended, 1), [reason(CloseCode::GOING_AWAY, "connection lifetime reached")]);
}

fn a_close_that_is_not_answered_ends(driver: Driver) {
    let (end, ended) = mpsc::channel();
    let server = Server::start(quick(driver), move |_| {
        telling(&end).on_message(|connection, message| {
            connection.close(CloseCode::from(4000), &message.to_string());
            assert!(!connection.is_open());
            assert!(!connection.send("too late").is_sent());
        })
    });
    let mut client = server.connect();
    client.send_text("go away");
    assert_eq!(client.receive(), Received::Close(Some((4000, "go away".to_owned()))));
    // It goes on sending, and is not listened to.
    client.send_text("why?");
    client.receive_end();
    wait_until_empty(&server);
    assert_eq!(collect(&ended, 1), [reason(CloseCode::from(4000), "go away")]);
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.timeouts_close, counters.dropped_closing), (1, 1));
    assert_eq!(ended.try_iter().count(), 0, "on_close was called twice");
}

fn a_transport_that_is_not_ended_is_ended(driver: Driver) {
    let server = Server::start(quick(driver), |_| Script::echo());
    // Closed properly, by either side, but the connection beneath is kept.
    let mut client = server.connect();
    client.send(OpCode::Close, &1000u16.to_be_bytes());
    assert_eq!(client.receive_close(), Some(1000));
    assert_eq!(client.receive(), Received::End);
    server.eventually("the end of the first", |counters| counters.connections_current == 0);
    // A request that was refused, likewise.
    let mut refused = Client::connect_raw(server.address);
    refused.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(refused.read_rest().starts_with(b"HTTP/1.1 404"));
    server.eventually("the end of the second", |counters| counters.connections_current == 0);
    assert_eq!(server.counters().timeouts_close, 2);
    drop((client, refused));
}

fn a_decision_that_does_not_come_is_not_awaited(driver: Driver) {
    struct Tells(mpsc::Sender<()>);
    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (tell, told) = mpsc::channel();
    let mut config = quick(driver);
    config.handshake_timeout = Duration::from_millis(400);
    let server = Server::start(config, move |_| {
        let tell = tell.clone();
        Script::echo().on_upgrade(move |_| {
            let guard = Tells(tell.clone());
            Upgrade::defer(async move {
                let _guard = guard;
                std::future::pending().await
            })
        })
    });
    let mut client = Client::connect_raw(server.address);
    client.write(&request("/", &[]));
    client.receive_end();
    collect(&told, 1);
    wait_until_empty(&server);
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.timeouts_handshake, counters.connections_opened), (1, 0));
}
