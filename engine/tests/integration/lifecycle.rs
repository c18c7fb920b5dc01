//! Starting and ending: errors that name their cause, and nothing left running after them.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use ringwire::{
    CloseCode, CloseReason, ConfigError, Cores, Driver, Engine, Error, Gone, Initiator, OutboxFull,
    SendStatus,
};

use crate::{
    client::{Client, eventually},
    script::Script,
    server::{Server, collect, config, ended_within},
};

on_both_drivers!(
    an_address_in_use_is_an_error,
    a_bad_configuration_is_an_error,
    a_core_outside_the_mask_is_an_error,
    a_panicking_factory_is_an_error,
    a_dropped_engine_ends,
    an_engine_starts_where_another_has_stopped,
    engines_started_at_once_all_take_buffers_back,
    every_shard_has_its_own_handler,
    an_id_of_another_engine_reaches_nobody,
    a_signal_that_is_handled_disturbs_nobody,
    an_abort_sends_nothing_more,
);

fn start(config: ringwire::Config) -> Result<Engine, Error> {
    Engine::start(config, |_| Script::echo())
}

fn an_address_in_use_is_an_error(driver: Driver) {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut config = config(driver);
    config.listen = taken.local_addr().expect("an address");
    let error = start(config.clone()).expect_err("somebody else listens there");
    assert!(matches!(error, Error::AddressInUse { address } if address == config.listen), "{error:?}");
    config.listen = ([203, 0, 113, 1], 0).into();
    let error = start(config).expect_err("not an address of this machine");
    assert!(matches!(error, Error::Listen { .. }), "{error:?}");
}

fn a_bad_configuration_is_an_error(driver: Driver) {
    const MIB: usize = 1024 * 1024;
    let mut zero = config(driver);
    zero.connections_max = 0;
    let mut marks = config(driver);
    marks.outbox_bytes_low = marks.outbox_bytes_max + 1;
    let mut code = config(driver);
    code.outbox_full = OutboxFull::Close(CloseCode::NO_STATUS);
    for (config, expected) in [
        (zero, ConfigError::Zero { field: "connections_max" }),
        (marks, ConfigError::OutboxMarks { low: 2 * MIB + 1, high: MIB / 4, max: 2 * MIB }),
        (code, ConfigError::CloseCode { code: 1005 }),
    ] {
        let error = start(config).expect_err("a contradiction");
        assert!(matches!(&error, Error::Config(found) if *found == expected), "{error:?}");
    }
}

fn a_core_outside_the_mask_is_an_error(driver: Driver) {
    let mut config = config(driver);
    config.cores = Cores::List(vec![0, 4000]);
    let error = start(config).expect_err("nobody has so many cores");
    assert!(matches!(error, Error::CoreUnavailable { core: 4000, .. }), "{error:?}");
}

fn a_panicking_factory_is_an_error(driver: Driver) {
    let mut config = config(driver);
    config.cores = Cores::All;
    let listen = {
        let engine = start(config.clone()).expect("the engine starts");
        engine.local_address()
    };
    config.listen = listen;
    // The last shard's factory panics: the others must not stay behind.
    let error = ended_within(Duration::from_secs(10), move || {
        Engine::start(config, |info| {
            assert!(info.index + 1 < info.shards, "in the factory");
            Script::echo()
        })
        .map(drop)
    });
    let error = error.expect("it must not hang").expect_err("a shard is missing");
    assert!(matches!(error, Error::ShardPanicked { .. }), "{error:?}");
    assert!(TcpStream::connect(listen).is_err(), "a shard still listens");
}

fn a_dropped_engine_ends(driver: Driver) {
    let engine = start(config(driver)).expect("the engine starts");
    let address = engine.local_address();
    let mut client = crate::client::Client::connect(address);
    client.echo("before");
    let dropping = thread::spawn(move || drop(engine));
    assert_eq!(client.receive_close(), Some(1001));
    drop(client);
    eventually("the end", || dropping.is_finished());
    assert!(TcpStream::connect(address).is_err(), "it still listens");
}

fn an_engine_starts_where_another_has_stopped(driver: Driver) {
    let server = Server::echo(driver);
    let mut again = config(driver);
    again.listen = server.address;
    let clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    // The server closes first, so it is its port that is in TIME_WAIT.
    let closing: Vec<_> = clients
        .into_iter()
        .map(|mut client| thread::spawn(move || assert_eq!(client.receive_close(), Some(1001))))
        .collect();
    server.stop(Duration::from_secs(5));
    closing.into_iter().for_each(|client| client.join().expect("a close"));
    let server = Server::start(again, |_| Script::echo());
    server.connect().echo("the second");
}

fn engines_started_at_once_all_take_buffers_back(driver: Driver) {
    let starting: Vec<_> = (0..6).map(|_| thread::spawn(move || Server::echo(driver))).collect();
    let servers: Vec<_> = starting.into_iter().map(|server| server.join().expect("it starts")).collect();
    let mut clients: Vec<_> = servers.iter().map(Server::connect).collect();
    for client in &mut clients {
        (0..10).for_each(|_| client.echo("active"));
    }
    if driver == Driver::IoUring {
        for server in &servers {
            server.eventually("its buffer", |counters| counters.receives_cancelled == 1);
        }
    }
    clients.iter_mut().for_each(|client| client.echo("still here"));
}

fn every_shard_has_its_own_handler(driver: Driver) {
    let mut config = config(driver);
    config.cores = Cores::All;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let engine = Engine::start(config, move |info| {
        counted.fetch_add(1, Ordering::Relaxed);
        assert!(info.index < info.shards);
        assert!(thread::current().name().is_some_and(|name| name == format!("ringwire-{}", info.index)));
        Script::echo()
    })
    .expect("the engine starts");
    assert_eq!(made.load(Ordering::Relaxed), engine.cores().len());
    assert_eq!(engine.handle().counters_by_shard().len(), engine.cores().len());
    assert_eq!(engine.driver_name(), if driver == Driver::Epoll { "epoll" } else { "io_uring" });
    let mut clients: Vec<_> =
        (0..50).map(|_| crate::client::Client::connect(engine.local_address())).collect();
    clients.iter_mut().for_each(|client| client.echo("anywhere"));
}

fn an_id_of_another_engine_reaches_nobody(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let [(one, mut client), (other, mut stranger)] = [(); 2].map(|()| {
        let tell = tell.clone();
        let server = Server::start(config(driver), move |_| {
            let tell = tell.clone();
            Script::echo().on_open(move |connection| tell.send(connection.id()).expect("the test listens"))
        });
        let client = server.connect();
        (server, client)
    });
    let ids = collect(&told, 2);
    assert_eq!(ids[0].shard(), ids[1].shard());
    let sent = |server: &Server, id| server.handle.send(id, "mine").expect("room").wait();
    assert_eq!([sent(&one, ids[1]), sent(&other, ids[0])], [Ok(Err(Gone)), Ok(Err(Gone))]);
    assert_eq!([sent(&one, ids[0]), sent(&other, ids[1])], [Ok(Ok(SendStatus::Sent)); 2]);
    for client in [&mut client, &mut stranger] {
        assert_eq!(client.receive_text(), "mine");
        assert_eq!(client.receive_within(Duration::from_millis(50)), None);
    }
}

fn a_signal_that_is_handled_disturbs_nobody(driver: Driver) {
    // As a profiler does it: the thread of the shard is interrupted again and again.
    let ignored = Arc::new(AtomicBool::new(false));
    let handler = signal_hook::flag::register(signal_hook::consts::SIGUSR1, ignored).expect("a handler");
    let (tell, threads) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        tell.send(rustix::thread::gettid()).expect("the test listens");
        Script::echo()
    });
    let thread = threads.recv().expect("the shard has started");
    let (ends, start) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            // Not for ever, should the rest fail.
            while !ends.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(10) {
                // A process's signal goes to the thread that it names, if it may.
                rustix::process::kill_process(thread, rustix::process::Signal::USR1).expect("it runs");
            }
        });
        let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        while start.elapsed() < Duration::from_millis(700) {
            clients.iter_mut().for_each(|client| client.send_text("undisturbed"));
            clients.iter_mut().for_each(|client| assert_eq!(client.receive_text(), "undisturbed"));
        }
        ends.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(Client::close);
    });
    signal_hook::low_level::unregister(handler);
    server.stop(Duration::from_secs(1));
}

fn an_abort_sends_nothing_more(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let tell = tell.clone();
        Script::echo()
            .on_message(|connection, message| {
                assert!(connection.send(message).is_sent());
                connection.abort("enough");
                assert!(!connection.is_open());
                assert_eq!(connection.send(message), SendStatus::Dropped);
            })
            .on_close(move |_, reason| tell.send(reason.clone()).expect("the test listens"))
    });
    // One that is copied, one that would be sent from where it lies, and one that comes in pieces.
    for bytes in [20, 5000, 700_000] {
        let mut client = server.connect();
        client.send_binary(&vec![1; bytes]);
        let mut received = Vec::new();
        let _reset = client.stream.read_to_end(&mut received);
        assert!(received.is_empty(), "{} bytes", received.len());
        let reason =
            CloseReason { code: CloseCode::ABNORMAL, reason: "enough".into(), initiator: Initiator::Local };
        assert_eq!(collect(&told, 1), [reason]);
    }
    server.eventually("the end of all", |counters| counters.connections_current == 0);
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.connections_closed, counters.dropped_closing, counters.dropped_unsent), (3, 3, 3));
}
