//! Stopping: everyone is told, nobody can hold it up beyond the deadline, and every open has its close.

use std::{
    cell::Cell,
    io::Write,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use ringwire::{CloseCode, Config, Driver, OutboxFull, SendStatus, Upgrade, protocol::OpCode};

use crate::{
    client::{Client, Received, noise, request},
    script::Script,
    server::{Server, collect, config},
};

on_both_drivers!(
    everyone_is_told_and_the_stop_is_not_waited_out,
    a_stop_under_load_keeps_its_deadline,
    stalled_peers_are_cut_off_at_the_deadline,
    a_stop_without_a_deadline_is_immediate,
    connections_that_arrive_during_the_stop_do_not_delay_it,
    everyone_who_waits_to_be_accepted_is_accepted,
    paused_connections_are_closed,
    futures_are_dropped,
    what_was_asked_before_a_stop_is_done_before_it,
);

/// A script that counts its opens and closes, and fails where they do not match.
fn counted(counts: &Arc<[AtomicU64; 2]>) -> Script {
    let (open, close) = (Arc::clone(counts), Arc::clone(counts));
    Script::echo()
        .on_open(move |_| {
            open[0].fetch_add(1, Ordering::Relaxed);
        })
        .on_close(move |connection, reason| {
            assert!(!connection.is_open() && !reason.reason.is_empty());
            close[1].fetch_add(1, Ordering::Relaxed);
        })
}

fn counts(counts: &Arc<[AtomicU64; 2]>) -> [u64; 2] {
    [0, 1].map(|index| counts[index].load(Ordering::Relaxed))
}

fn everyone_is_told_and_the_stop_is_not_waited_out(driver: Driver) {
    let calls = Arc::new([const { AtomicU64::new(0) }; 2]);
    let theirs = Arc::clone(&calls);
    let server = Server::start(config(driver), move |_| counted(&theirs));
    let mut clients: Vec<_> = (0..60).map(|_| server.connect()).collect();
    // A third of them is active, a third moves bulk, the rest has said nothing.
    for client in &mut clients[..20] {
        (0..10).for_each(|_| client.echo("active"));
    }
    for client in &mut clients[20..40] {
        client.send_binary(&noise(100_000, 1));
        client.receive_binary();
    }
    let ends: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                let close = client.receive();
                client.send(OpCode::Close, &1001u16.to_be_bytes());
                client.receive_end();
                close
            })
        })
        .collect();
    let start = Instant::now();
    let counters = server.stop(Duration::from_secs(25));
    assert!(start.elapsed() < Duration::from_secs(20), "the deadline was waited out");
    for end in ends {
        assert_eq!(end.join().expect("a close"), Received::Close(Some((1001, "server stops".to_owned()))));
    }
    assert_eq!((counters.connections_opened, counters.timeouts_close), (60, 0));
    assert_eq!(counts(&calls), [60, 60]);
}

fn a_stop_under_load_keeps_its_deadline(driver: Driver) {
    let calls = Arc::new([const { AtomicU64::new(0) }; 2]);
    let theirs = Arc::clone(&calls);
    let server = Server::start(config(driver), move |_| counted(&theirs));
    let clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
    let told = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(index, mut client)| {
            let told = Arc::clone(&told);
            thread::spawn(move || {
                let payload = noise([10, 3000, 60_000][index % 3], index as u64);
                // These never answer a close: they go on until the transport ends.
                let frame = client.frame(OpCode::Binary, &payload);
                while client.stream.write_all(&frame).is_ok() {
                    match client.receive() {
                        Received::Binary(echo) => assert!(echo == payload),
                        Received::Close(Some((1001, _))) => {
                            told.fetch_add(1, Ordering::Relaxed);
                        }
                        Received::End | Received::Reset => break,
                        other => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    server.eventually("load", |counters| counters.messages_received > 2000);
    server.stop(Duration::from_millis(500));
    load.into_iter().for_each(|thread| thread.join().expect("a client"));
    assert_eq!(told.load(Ordering::Relaxed), 40);
    assert_eq!(counts(&calls), [40, 40]);
}

fn stalled_peers_are_cut_off_at_the_deadline(driver: Driver) {
    let mut config: Config = config(driver);
    config.outbox_full = OutboxFull::DropNewest;
    let calls = Arc::new([const { AtomicU64::new(0) }; 2]);
    let theirs = Arc::clone(&calls);
    let server = Server::start(config, move |_| {
        counted(&theirs)
            .on_upgrade(|request| match request.path() {
                "/never" => Upgrade::defer(std::future::pending()),
                _ => Upgrade::accept(()),
            })
            .on_message(|connection, message| {
                let bytes: usize = message.to_string().parse().expect("a number");
                while connection.send(&noise(bytes, 1)).is_sent() {}
            })
    });
    // Full outboxes of small, of large and of huge frames, mute ones, and requests never finished or decided.
    let mut held = Vec::new();
    for bytes in ["20", "3000", "20000", "500000"] {
        for _ in 0..3 {
            let mut client = Client::connect_narrow(server.address, 4096);
            let dropped = server.counters().dropped_newest;
            client.send_text(bytes);
            server.eventually("a full outbox", |counters| counters.dropped_newest > dropped);
            held.push(client);
        }
    }
    held.extend((0..3).map(|_| server.connect()));
    for bytes in [b"".as_slice(), b"GET / HT", &request("/never", &[])] {
        let mut client = Client::connect_raw(server.address);
        client.write(bytes);
        held.push(client);
    }
    server.eventually("all of them", |counters| counters.connections_current == 18);
    let start = Instant::now();
    server.stop(Duration::from_millis(700));
    assert!(start.elapsed() >= Duration::from_millis(600), "cut off before the deadline");
    assert_eq!(counts(&calls), [15, 15]);
    drop(held);
}

fn a_stop_without_a_deadline_is_immediate(driver: Driver) {
    let calls = Arc::new([const { AtomicU64::new(0) }; 2]);
    let theirs = Arc::clone(&calls);
    let server = Server::start(config(driver), move |_| counted(&theirs));
    let mut clients: Vec<_> = (0..30).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| (0..6).for_each(|_| client.echo("active")));
    let handle = server.handle.clone();
    server.stop(Duration::ZERO);
    assert_eq!(counts(&calls), [30, 30]);
    // Asking again, of an engine that is gone, does nothing.
    handle.stop(Duration::ZERO);
    assert_eq!(handle.counters().connections_closed, 30);
}

fn connections_that_arrive_during_the_stop_do_not_delay_it(driver: Driver) {
    let server = Server::echo(driver);
    let ends = Arc::new(AtomicBool::new(false));
    let storms: Vec<_> = (0..3)
        .map(|_| {
            let (address, ends) = (server.address, Arc::clone(&ends));
            thread::spawn(move || {
                let mut held = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    let Ok(mut stream) = std::net::TcpStream::connect(address) else { break };
                    let _ = stream.write_all(&request("/", &[]));
                    held.push(stream);
                    if held.len() > 100 {
                        held.clear();
                    }
                }
            })
        })
        .collect();
    server.eventually("a storm", |counters| counters.connections_accepted > 300);
    server.stop(Duration::from_millis(300));
    ends.store(true, Ordering::Relaxed);
    storms.into_iter().for_each(|storm| storm.join().expect("a storm"));
}

fn everyone_who_waits_to_be_accepted_is_accepted(driver: Driver) {
    // More than a few turns accept, fewer than a backlog holds by default.
    const WAITING: u64 = 300;
    let (begin, begun) = mpsc::channel();
    let (resume, resumed) = mpsc::channel::<()>();
    let resumed = Arc::new(Mutex::new(resumed));
    let server = Server::start(config(driver), move |_| {
        let (begin, resumed) = (begin.clone(), Arc::clone(&resumed));
        Script::echo().on_message(move |_, _| {
            begin.send(()).expect("the test listens");
            resumed.lock().expect("no panic").recv().expect("the test goes on");
        })
    });
    let mut busy = server.connect();
    busy.send_text("hold the shard up");
    collect(&begun, 1);
    let waiting: Vec<_> = (0..WAITING).map(|_| Client::connect_raw(server.address)).collect();
    server.handle.stop(Duration::ZERO);
    resume.send(()).expect("the handler waits");
    for mut client in waiting {
        assert_eq!(client.receive(), Received::End, "reset, not closed");
    }
    assert_eq!(server.stop(Duration::ZERO).connections_accepted, 1 + WAITING);
}

fn paused_connections_are_closed(driver: Driver) {
    let server =
        Server::start(config(driver), |_| Script::echo().on_open(|connection| connection.pause_receive()));
    let clients: Vec<_> = (0..5)
        .map(|_| {
            let mut client = server.connect();
            client.send_text("never looked at");
            client
        })
        .collect();
    let ends: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                assert_eq!(client.receive_close(), Some(1001));
                client.send(OpCode::Close, &[]);
                client.receive_end();
            })
        })
        .collect();
    let start = Instant::now();
    server.stop(Duration::from_secs(25));
    assert!(start.elapsed() < Duration::from_secs(20), "their close frames were not seen");
    ends.into_iter().for_each(|end| end.join().expect("a close"));
}

fn futures_are_dropped(driver: Driver) {
    struct Tells(mpsc::Sender<&'static str>, &'static str);
    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(self.1);
        }
    }
    let (tell, told) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let (tell, begin) = (tell.clone(), begin.clone());
        let (tell_close, first) = (tell.clone(), Rc::new(Cell::new(true)));
        Script::echo()
            .on_message(move |connection, _| {
                for what in ["waits for ever", "sleeps"] {
                    let (guard, begin) = (Tells(tell.clone(), what), begin.clone());
                    connection.spawn(async move {
                        let _guard = guard;
                        begin.send(()).expect("the test listens");
                        match what {
                            "sleeps" => monoio::time::sleep(Duration::from_secs(3600)).await,
                            _ => std::future::pending().await,
                        }
                    });
                }
            })
            .on_close(move |connection, _| {
                if first.replace(false) {
                    let guard = Tells(tell_close.clone(), "began at the end");
                    connection.spawn(async move {
                        let _guard = guard;
                        std::future::pending::<()>().await;
                    });
                }
            })
    });
    let mut client = server.connect();
    client.send_text("go");
    collect(&begun, 2);
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
    server.stop(Duration::from_millis(100));
    let mut told: Vec<_> = told.try_iter().collect();
    told.sort_unstable();
    assert_eq!(told, ["began at the end", "sleeps", "waits for ever"]);
}

fn what_was_asked_before_a_stop_is_done_before_it(driver: Driver) {
    // Whether a shard that is woken finds all of it is up to chance.
    for _ in 0..20 {
        let (tell, told) = mpsc::channel();
        let server = Server::start(config(driver), move |_| {
            let tell = tell.clone();
            Script::echo().on_open(move |connection| tell.send(connection.id()).expect("the test listens"))
        });
        let [mut one, mut other] = [server.connect(), server.connect()];
        let ids = collect(&told, 2);
        let sent = server.handle.send(ids[0], "goodbye").expect("room");
        let closed = server.handle.close(ids[1], CloseCode::TRY_AGAIN_LATER, "full").expect("room");
        server.handle.stop(Duration::from_secs(20));
        assert_eq!(sent.wait(), Ok(Ok(SendStatus::Sent)));
        assert_eq!(closed.wait(), Ok(Ok(())));
        assert_eq!(one.receive_text(), "goodbye");
        assert_eq!((one.receive_close(), other.receive_close()), (Some(1001), Some(1013)));
        drop((one, other));
        assert_eq!(server.stop(Duration::ZERO).stale_ids, 0);
    }
}
