//! Futures on a shard's thread: decisions that take time, and ways back to a connection.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, OnceLock, mpsc},
    task::Poll,
    thread,
    time::Duration,
};

use ringwire::{
    Config, Connection, ConnectionId, Cores, Driver, EngineHandle, Handler, LocalError, Message, SendStatus,
    Upgrade, UpgradeRequest, protocol::OpCode,
};

use crate::{
    client::{Client, Received, exchange, request, status},
    script::Script,
    server::{Server, collect, config, wait_until_empty},
};

on_both_drivers!(
    a_deferred_decision_is_carried_out,
    frames_wait_for_a_deferred_decision,
    a_client_that_leaves_during_a_decision_is_let_go,
    a_future_finds_its_way_back,
    futures_begin_in_their_order,
    a_handle_to_what_is_gone_says_so,
    a_handle_inside_a_call_is_refused,
    a_handle_reaches_other_connections_of_its_shard,
    a_stale_id_reaches_no_stranger,
    an_id_of_another_shard_is_gone,
    a_future_that_never_rests_does_not_starve_the_others,
    a_future_that_awaits_its_own_shard_does_not_starve_the_others,
    a_future_is_woken_by_another_thread,
    a_future_awaits_the_answer_of_another_shard,
);

fn pause(milliseconds: u64) -> impl Future<Output = ()> {
    monoio::time::sleep(Duration::from_millis(milliseconds))
}

fn a_deferred_decision_is_carried_out(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_upgrade(|request| {
            let path = request.path().to_owned();
            Upgrade::defer(async move {
                match path.as_str() {
                    "/at-once" => Upgrade::accept(()),
                    "/later" => {
                        pause(100).await;
                        Upgrade::accept(()).subprotocol("b").header("X-Decided", "later")
                    }
                    "/twice" => Upgrade::defer(async {
                        pause(20).await;
                        Upgrade::accept(())
                    }),
                    _ => {
                        pause(20).await;
                        Upgrade::reject(401, "who are you?")
                    }
                }
            })
        })
    });
    for path in ["/at-once", "/later", "/twice"] {
        let (mut client, head) = Client::connect_to(server.address, path, &["a", "b"]);
        assert_eq!(head.contains("X-Decided: later\r\n"), path == "/later", "{head}");
        assert_eq!(head.contains("Sec-WebSocket-Protocol: b\r\n"), path == "/later", "{head}");
        client.echo("decided");
        client.close();
    }
    let answer = exchange(server.address, &request("/no", &[]));
    assert_eq!(status(&answer), 401);
    assert!(answer.ends_with("\r\n\r\nwho are you?"), "{answer}");
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!((counters.connections_opened, counters.upgrades_refused), (3, 1));
}

fn frames_wait_for_a_deferred_decision(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_upgrade(|_| {
            Upgrade::defer(async {
                pause(200).await;
                Upgrade::accept(())
            })
        })
    });
    for bytes in [1, 6000, 300_000] {
        let mut client = Client::connect_raw(server.address);
        let mut together = request("/", &[]);
        together.extend(client.frame(OpCode::Ping, b"early"));
        together.extend(client.frame(OpCode::Binary, &vec![9; bytes]));
        client.write(&together);
        client.send_text("a little later");
        client.read_upgrade();
        assert_eq!(client.receive(), Received::Pong(b"early".to_vec()));
        assert_eq!(client.receive_binary(), vec![9; bytes]);
        assert_eq!(client.receive_text(), "a little later");
        client.close();
    }
}

fn a_client_that_leaves_during_a_decision_is_let_go(driver: Driver) {
    let mut config: Config = config(driver);
    config.handshake_timeout = Duration::from_secs(2);
    let server = Server::start(config, |_| {
        Script::echo().on_upgrade(|request| {
            let accepts = request.path() == "/yes";
            Upgrade::defer(async move {
                pause(200).await;
                if accepts { Upgrade::accept(()) } else { Upgrade::reject(403, "") }
            })
        })
    });
    for path in ["/yes", "/no", "/yes", "/no"] {
        let mut client = Client::connect_raw(server.address);
        client.write(&request(path, &[]));
        std::thread::sleep(Duration::from_millis(50));
        client.reset();
    }
    server.eventually("all came", |counters| counters.connections_accepted == 4);
    wait_until_empty(&server);
    let (mut client, _) = Client::connect_to(server.address, "/yes", &[]);
    client.echo("still here");
    // Whether an accepted one was opened or not: the opens and the closes match, which `stop` looks at.
    client.close();
    server.stop(Duration::from_secs(5));
}

fn a_future_finds_its_way_back(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_message(|connection, message| {
            let (handle, id, text) = (connection.handle(), connection.id(), message.to_string());
            connection.spawn(async move {
                for count in 0..3 {
                    pause(20).await;
                    let told = handle.with(id, |connection| {
                        assert_eq!(connection.id(), id);
                        let (second_handle, second_text) = (connection.handle(), text.clone());
                        // A future may start another.
                        connection.spawn(async move {
                            pause(1).await;
                            let _ = second_handle.with(id, |connection| {
                                let _ = connection.send(&format!("{second_text} {count}"));
                            });
                        });
                        connection.outbox_bytes()
                    });
                    assert_eq!(told, Ok(0));
                }
            });
            let _ = connection.send("heard");
        })
    });
    let mut client = server.connect();
    for text in ["one", "two"] {
        client.send_text(text);
        assert_eq!(client.receive_text(), "heard");
        for count in 0..3 {
            assert_eq!(client.receive_text(), format!("{text} {count}"));
        }
    }
    client.close();
}

fn futures_begin_in_their_order(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_message(|connection, message| {
            for part in ["a", "b"] {
                let (handle, id, text) = (connection.handle(), connection.id(), format!("{message}{part}"));
                connection.spawn(async move {
                    let _ = handle.with(id, |connection| connection.send(&text));
                });
            }
        })
    });
    let mut client = server.connect();
    let numbers: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    // Received together, so that all of them are spawned before the first begins.
    let frames: Vec<u8> =
        numbers.iter().flat_map(|number| client.frame(OpCode::Text, number.as_bytes())).collect();
    client.write(&frames);
    for number in numbers {
        assert_eq!(client.receive_text(), format!("{number}a"));
        assert_eq!(client.receive_text(), format!("{number}b"));
    }
}

fn a_handle_to_what_is_gone_says_so(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let tell = tell.clone();
        Script::echo().on_close(move |connection, _| {
            let (handle, id, tell) = (connection.handle(), connection.id(), tell.clone());
            connection.spawn(async move {
                tell.send(handle.with(id, |_| ())).expect("the test listens");
            });
        })
    });
    server.connect().close();
    server.connect().reset();
    assert_eq!(collect(&told, 2), [Err(LocalError::Gone), Err(LocalError::Gone)]);
}

fn a_handle_inside_a_call_is_refused(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let tell = tell.clone();
        Script::echo().on_message(move |connection, _| {
            let (handle, id) = (connection.handle(), connection.id());
            tell.send(handle.with(id, |_| ())).expect("the test listens");
            let tell = tell.clone();
            connection.spawn(async move {
                let outer = handle.with(id, |_| {
                    tell.send(handle.with(id, |_| ())).expect("the test listens");
                });
                tell.send(outer).expect("the test listens");
            });
        })
    });
    let mut client = server.connect();
    client.send_text("try");
    assert_eq!(collect(&told, 3), [Err(LocalError::InHandler), Err(LocalError::InHandler), Ok(())]);
    client.close();
}

/// From whom, to whom, and what came of it.
type Reached = (ConnectionId, ConnectionId, Result<(), LocalError>);

/// A handler that knows everybody, on every shard.
struct Crowd {
    everybody: Arc<Mutex<Vec<ConnectionId>>>,
    told: mpsc::Sender<Reached>,
}

impl Handler for Crowd {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        self.everybody.lock().expect("no panic").push(connection.id());
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        let (handle, own) = (connection.handle(), connection.id());
        let (everybody, told) = (self.everybody.lock().expect("no panic").clone(), self.told.clone());
        let text = message.to_string();
        connection.spawn(async move {
            for id in everybody {
                let result = handle.with(id, |connection| {
                    assert_eq!(connection.id(), id);
                    let _ = connection.send(&text);
                });
                told.send((own, id, result)).expect("the test listens");
            }
        });
    }
}

fn crowd(config: Config) -> (Server, mpsc::Receiver<Reached>) {
    let (tell, told) = mpsc::channel();
    let everybody = Arc::default();
    let factory = move |_| Crowd { everybody: Arc::clone(&everybody), told: tell.clone() };
    (Server::start(config, factory), told)
}

fn a_handle_reaches_other_connections_of_its_shard(driver: Driver) {
    let (server, told) = crowd(config(driver));
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for round in 0..10 {
        let text = format!("round {round}");
        clients[round].send_text(&text);
        for client in &mut clients {
            assert_eq!(client.receive_text(), text);
        }
    }
    assert!(collect(&told, 200).iter().all(|(_, _, result)| result.is_ok()));
}

fn a_stale_id_reaches_no_stranger(driver: Driver) {
    let (server, told) = crowd(config(driver));
    // Each takes the slot of the one before.
    for _ in 0..5 {
        server.connect().close();
        wait_until_empty(&server);
    }
    let mut last = server.connect();
    last.send_text("hello");
    assert_eq!(last.receive_text(), "hello");
    for (own, id, result) in collect(&told, 6) {
        assert_eq!(result, if id == own { Ok(()) } else { Err(LocalError::Gone) });
    }
    assert_eq!(last.receive_within(Duration::from_millis(50)), None);
}

fn an_id_of_another_shard_is_gone(driver: Driver) {
    let mut config = config(driver);
    config.cores = Cores::Count(2);
    let (server, told) = crowd(config);
    if server.handle.counters_by_shard().len() < 2 {
        eprintln!("skipped: there is one core only");
        return;
    }
    // The kernel spreads them, evenly or not.
    let mut clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
    clients[0].send_text("hello");
    assert_eq!(clients[0].receive_text(), "hello");
    let told = collect(&told, 40);
    assert!(told.iter().any(|(own, id, _)| own.shard() != id.shard()), "all on one shard");
    for (own, id, result) in told {
        let expected = if own.shard() == id.shard() { Ok(()) } else { Err(LocalError::Gone) };
        assert_eq!(result, expected, "{id} through the handle of shard {}", own.shard());
    }
}

fn a_future_that_never_rests_does_not_starve_the_others(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let tell = tell.clone();
        Script::echo().on_open(move |connection| {
            let (tell, mut polls) = (tell.clone(), 0);
            connection.spawn(poll_fn(move |context| {
                polls += 1;
                if polls == 1000 {
                    tell.send(()).expect("the test listens");
                }
                context.waker().wake_by_ref();
                Poll::Pending
            }));
        })
    });
    for _ in 0..3 {
        let mut client = server.connect();
        collect(&told, 1);
        client.echo("am I heard?");
    }
    server.stop(Duration::from_secs(5));
}

/// Each answer wakes the future at the end of the turn in which it has asked, so that one turn brings about
/// the next.
fn a_future_that_awaits_its_own_shard_does_not_starve_the_others(driver: Driver) {
    const ANSWERS: usize = 200_000;
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |shard| {
        let tell = tell.clone();
        Script::echo().on_open(move |connection| {
            let (engine, own, tell) = (shard.handle.clone(), connection.id(), tell.clone());
            connection.spawn(async move {
                for _ in 0..ANSWERS {
                    let ran = engine.run_on(own.shard(), |_: &mut Script| 7).expect("there is room").await;
                    assert_eq!(ran, Ok(7));
                }
                let _ = tell.send(());
            });
        })
    });
    let mut client = server.connect();
    let mut heard = 0;
    while told.try_recv().is_err() {
        client.echo("am I heard?");
        heard += 1;
    }
    assert!(heard >= 200, "heard {heard} times during {ANSWERS} answers");
}

fn a_future_is_woken_by_another_thread(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo()
            .on_upgrade(|_| {
                let (decide, decided) = oneshot::channel();
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(50));
                    decide.send(()).expect("it is waited for");
                });
                Upgrade::defer(async move {
                    decided.await.expect("a decision");
                    Upgrade::accept(())
                })
            })
            .on_message(|connection, _| {
                let (handle, id) = (connection.handle(), connection.id());
                let (answer, answered) = oneshot::channel::<&str>();
                let (forget, forgotten) = oneshot::channel::<()>();
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(50));
                    drop(forget);
                    thread::sleep(Duration::from_millis(50));
                    answer.send("computed").expect("it is waited for");
                });
                connection.spawn(async move {
                    forgotten.await.expect_err("it was dropped");
                    let answer = answered.await.expect("an answer");
                    let sent = handle.with(id, |connection| connection.send(answer));
                    assert!(sent.expect("it is there").is_sent());
                });
            })
    });
    for _ in 0..3 {
        let mut client = server.connect();
        client.send_text("compute");
        assert_eq!(client.receive_text(), "computed");
        client.close();
    }
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!(counters.handler_panics, 0);
}

fn a_future_awaits_the_answer_of_another_shard(driver: Driver) {
    let mut config = config(driver);
    config.cores = Cores::Count(2);
    let engine = Arc::new(OnceLock::<EngineHandle>::new());
    let everybody = Arc::new(Mutex::new(Vec::new()));
    let (shared, ids) = (Arc::clone(&engine), Arc::clone(&everybody));
    let server = Server::start(config, move |_| {
        let (engine, ids) = (Arc::clone(&shared), Arc::clone(&ids));
        let entered = Arc::clone(&ids);
        Script::echo()
            .on_open(move |connection| entered.lock().expect("no panic").push(connection.id()))
            .on_message(move |connection, _| {
                let engine = engine.get().expect("it has started").clone();
                let ids = ids.lock().expect("no panic").clone();
                let (handle, own) = (connection.handle(), connection.id());
                connection.spawn(async move {
                    for id in ids {
                        let ran = engine.run_on(id.shard(), |_: &mut Script| 7).expect("there is room").await;
                        assert_eq!(ran, Ok(7));
                        let sent = engine.send(id, "hello").expect("there is room").await;
                        assert_eq!(sent, Ok(Ok(SendStatus::Sent)));
                    }
                    let sent = handle.with(own, |connection| connection.send("greeted"));
                    assert!(sent.expect("it is there").is_sent());
                });
            })
    });
    let _ = engine.set(server.handle.clone());
    // The kernel spreads them, evenly or not.
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let mut asking = clients.split_off(10);
    for asking in &mut asking {
        asking.send_text("greet everybody");
        while asking.receive_text() != "greeted" {}
    }
    for client in &mut clients {
        for _ in 0..10 {
            assert_eq!(client.receive_text(), "hello");
        }
    }
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!(counters.handler_panics, 0);
}
