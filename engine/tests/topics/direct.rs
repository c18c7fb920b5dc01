//! What a handle does with one connection or one shard.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ringwire::{
    CloseCode, ConnectionId, Driver, EngineHandle, Gone, HandleError, PreparedMessage, SendStatus,
};

use crate::{
    client::{PATIENCE, Received, eventually},
    commands::{Commands, Topics, config, expect, subscribe},
    script::Script,
    server::{Server, ended_within, wait_until_empty},
};

on_both_drivers!(
    a_connection_is_reached_by_its_id,
    a_handler_reaches_the_connections_of_all_shards,
    stale_ids_reach_nobody,
    closures_run_on_the_shard_they_name,
    closures_reach_one_connection,
    requests_that_bring_about_requests_leave_the_others_their_turn,
    futures_that_requests_bring_about_leave_the_others_their_turn,
    a_panic_in_a_closure_is_counted,
    a_stopped_engine_leaves_nobody_waiting,
    a_full_inbox_refuses_and_counts,
);

fn a_connection_is_reached_by_its_id(driver: Driver) {
    let topics = Topics::start(config(driver));
    let handle = &topics.server.handle;
    let mut clients = [0, 1, 0, 1].map(|shard| topics.connect_on(shard));
    let prepared = PreparedMessage::new("prepared");
    for client in &mut clients {
        let id = topics.state(client).id;
        for number in 0..100 {
            let answer = handle.send(id, &number.to_string()).expect("room").wait();
            assert_eq!(answer, Ok(Ok(SendStatus::Sent)));
        }
        let answer = handle.send_prepared(id, prepared.clone()).expect("room").wait();
        assert_eq!(answer, Ok(Ok(SendStatus::Sent)));
        (0..100).for_each(|number| assert_eq!(client.receive_text(), number.to_string()));
        assert_eq!(client.receive_text(), "prepared");
        let answer = handle.close(id, CloseCode::GOING_AWAY, "bye").expect("room").wait();
        assert_eq!(answer, Ok(Ok(())));
        assert_eq!(client.receive(), Received::Close(Some((1001, "bye".to_owned()))));
    }
}

fn a_handler_reaches_the_connections_of_all_shards(driver: Driver) {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let theirs = Arc::clone(&ids);
    let server = Server::start(config(driver), move |shard| {
        let (opened, known) = (Arc::clone(&theirs), Arc::clone(&theirs));
        Script::echo()
            .on_open(move |connection| opened.lock().expect("nobody panicked").push(connection.id()))
            .on_message(move |_, message| {
                for id in known.lock().expect("nobody panicked").iter() {
                    let _under_way = shard.handle.send(*id, message).expect("room");
                }
            })
    });
    // The kernel puts them on either shard.
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    eventually("all are open", || ids.lock().expect("nobody panicked").len() == 10);
    for sender in 0..10 {
        let text = format!("from {sender}");
        clients[sender].send_text(&text);
        clients.iter_mut().for_each(|client| assert_eq!(client.receive_text(), text));
    }
}

fn stale_ids_reach_nobody(driver: Driver) {
    let topics = Topics::start(config(driver));
    let handle = &topics.server.handle;
    let mut stale = Vec::new();
    for shard in [0, 1] {
        let mut client = topics.connect_on(shard);
        stale.push(topics.state(&mut client).id);
        client.close();
    }
    wait_until_empty(&topics.server);
    // These may sit where the closed ones sat.
    let mut strangers = [0, 1].map(|shard| topics.connect_on(shard));
    let before = topics.server.counters().stale_ids;
    for id in &stale {
        assert_eq!(handle.send(*id, "stranger").expect("room").wait(), Ok(Err(Gone)));
        assert_eq!(handle.close(*id, CloseCode::NORMAL, "").expect("room").wait(), Ok(Err(Gone)));
        let reached = handle.with_connection(*id, |_: &mut Commands, _| panic!("a stranger"));
        assert_eq!(reached.expect("room").wait().map(|reached: Result<(), Gone>| reached), Ok(Err(Gone)));
    }
    assert_eq!(topics.server.counters().stale_ids, before + 6);
    strangers.iter_mut().for_each(|client| {
        client.send_text("echo mine");
        assert_eq!(client.receive_text(), "mine");
    });
}

fn closures_run_on_the_shard_they_name(driver: Driver) {
    let topics = Topics::start(config(driver));
    let handle = &topics.server.handle;
    assert_eq!(handle.shards(), 2);
    let mut client = topics.connect_on(1);
    let count = |shard| handle.run_on(shard, |handler: &mut Commands| handler.messages).expect("room").wait();
    let (zero, one) = (count(0).expect("an answer"), count(1).expect("an answer"));
    for _ in 0..10 {
        topics.state(&mut client);
    }
    assert_eq!((count(0), count(1)), (Ok(zero), Ok(one + 10)));
    let other_type = handle.run_on(0, |_: &mut Script| ()).expect("room").wait();
    assert_eq!(other_type, Err(HandleError::NoAnswer));
    let none = Some(HandleError::NoSuchShard { shard: 2, shards: 2 });
    assert_eq!(handle.run_on(2, |_: &mut Commands| ()).err(), none);
}

fn closures_reach_one_connection(driver: Driver) {
    let mut topics = Topics::start(config(driver));
    topics.server = topics.server.expecting_panics(1);
    let handle = topics.server.handle.clone();
    let mut clients = [0, 1].map(|shard| topics.connect_on(shard));
    let ids = [0, 1].map(|index| topics.state(&mut clients[index]).id);
    for id in ids {
        let subscribed = handle.with_connection(id, |handler: &mut Commands, connection| {
            handler.messages = 100;
            connection.subscribe("news")
        });
        assert_eq!(subscribed.expect("room").wait(), Ok(Ok(Ok(()))));
    }
    // In effect with the answer, and what it sends leaves though its peer says nothing.
    handle.publish("news", "both").expect("room");
    clients.iter_mut().for_each(|client| expect(client, ["both".to_owned()]));
    let sent = handle.with_connection(ids[1], |handler: &mut Commands, connection| {
        connection.unsubscribe("news");
        let _ = connection.send(&handler.messages.to_string());
        connection.subscriptions()
    });
    assert_eq!(sent.expect("room").wait(), Ok(Ok(0)));
    handle.publish("news", "one").expect("room");
    expect(&mut clients[0], ["one".to_owned()]);
    expect(&mut clients[1], ["100".to_owned()]);
    let other_type = handle.with_connection(ids[0], |_: &mut Script, _| ());
    assert_eq!(other_type.expect("room").wait(), Err(HandleError::NoAnswer));
    let panicked = handle.with_connection(ids[0], |_: &mut Commands, _| panic!("on purpose"));
    assert_eq!(panicked.expect("room").wait().map(|_: Result<(), Gone>| ()), Err(HandleError::NoAnswer));
    assert_eq!(clients[0].receive(), Received::Close(Some((1011, "handler failed".to_owned()))));
}

/// Moves a connection from room to room. To subscribe it has the shard take what waits in its inbox.
fn move_on(engine: &EngineHandle, member: ConnectionId, room: usize) {
    let again = engine.clone();
    let moved = engine.with_connection(member, move |_: &mut Commands, connection| {
        connection.unsubscribe(&room.to_string());
        connection.subscribe(&(room + 1).to_string()).expect("a room");
        move_on(&again, member, room + 1);
    });
    // When the engine stops there is no next room.
    drop(moved);
}

fn requests_that_bring_about_requests_leave_the_others_their_turn(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = [0, 0].map(|_| topics.connect_on(0));
    let member = topics.state(&mut clients[0]).id;
    move_on(&topics.server.handle, member, 0);
    for _ in 0..20 {
        clients[1].send_text("echo am I heard?");
        expect(&mut clients[1], ["am I heard?".to_owned()]);
    }
    topics.server.stop(Duration::from_millis(100));
}

fn futures_that_requests_bring_about_leave_the_others_their_turn(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = [0, 0].map(|_| topics.connect_on(0));
    let member = topics.state(&mut clients[0]).id;
    let (handle, ends) = (&topics.server.handle, AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    // Where there is no room, there will be some.
                    let _under_way = handle.with_connection(member, |_: &mut Commands, connection| {
                        connection.spawn(async {});
                    });
                }
            });
        }
        for _ in 0..200 {
            clients[1].send_text("echo am I heard?");
            expect(&mut clients[1], ["am I heard?".to_owned()]);
        }
        ends.store(true, Ordering::Relaxed);
    });
}

fn a_panic_in_a_closure_is_counted(driver: Driver) {
    let mut topics = Topics::start(config(driver));
    topics.server = topics.server.expecting_panics(1);
    let handle = topics.server.handle.clone();
    let mut client = topics.connect_on(1);
    let answer = handle.run_on(1, |_: &mut Commands| panic!("on purpose")).expect("room").wait();
    assert_eq!(answer.map(|(): ()| ()), Err(HandleError::NoAnswer));
    topics.state(&mut client);
    topics.server.eventually("the panic", |counters| counters.handler_panics == 1);
}

fn a_stopped_engine_leaves_nobody_waiting(driver: Driver) {
    let topics = Topics::start(config(driver));
    let handle = topics.server.handle.clone();
    let mut client = topics.connect_on(0);
    let id = topics.state(&mut client).id;
    topics.server.stop(Duration::from_millis(100));
    let answers = ended_within(PATIENCE, move || {
        let sent = handle.send(id, "late").and_then(|answer| answer.wait().map(|_| ()));
        let ran = handle.run_on(1, |_: &mut Commands| ()).and_then(|answer| answer.wait());
        (sent, ran, handle.publish("news", "late"))
    });
    let (sent, ran, _) = answers.expect("an answer, or an error");
    assert!(sent.is_err() && ran.is_err(), "{sent:?} {ran:?}");
}

fn a_full_inbox_refuses_and_counts(driver: Driver) {
    let topics = Topics::start(config(driver));
    let handle = &topics.server.handle;
    let mut clients = [0, 1].map(|shard| topics.connect_on(shard));
    clients.iter_mut().for_each(|client| subscribe(client, "news"));
    let (resume, wait) = std::sync::mpsc::channel::<()>();
    let blocked = handle.run_on(0, move |_: &mut Commands| wait.recv().is_ok()).expect("room");
    let mut accepted = 0;
    let refused = loop {
        // The other shard is to keep up.
        match handle.publish("news", &accepted.to_string()) {
            Ok(()) => assert_eq!(clients[1].receive_text(), accepted.to_string()),
            Err(error) => break error,
        }
        accepted += 1;
    };
    assert_eq!(refused, HandleError::InboxFull { shard: 0 });
    assert_eq!(clients[1].receive_text(), accepted.to_string());
    assert_eq!(topics.server.counters().inbox_refused, 1);
    resume.send(()).expect("it waits");
    assert_eq!(blocked.wait(), Ok(true));
    for number in 0..accepted {
        assert_eq!(clients[0].receive_text(), number.to_string());
    }
}
