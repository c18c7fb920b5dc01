//! What can be subscribed to, and how subscriptions end.

use ringwire::{Connection, Driver, SubscribeError};

use crate::{
    client::{Client, eventually},
    commands::{Topics, config, expect, subscribe},
    script::Script,
    server::Server,
};

on_both_drivers!(
    refused_subscriptions_say_why,
    subscribing_twice_changes_nothing,
    unsubscribing_ends_it_for_one,
    closed_connections_are_no_subscribers,
    a_handler_knows_who_subscribes_to_what,
);

fn refused(client: &mut Client, topic: &str, error: SubscribeError) {
    client.send_text(&format!("sub {topic}"));
    assert_eq!(client.receive_text(), format!("{error:?}"));
}

fn refused_subscriptions_say_why(driver: Driver) {
    let mut config = config(driver);
    config.topic_name_bytes_max = 20;
    config.topics_per_connection_max = 3;
    let topics = Topics::start(config);
    let mut client = topics.server.connect();
    refused(&mut client, "", SubscribeError::Name { bytes: 0, bytes_max: 20 });
    refused(&mut client, &"x".repeat(21), SubscribeError::Name { bytes: 21, bytes_max: 20 });
    refused(&mut client, "secret/plans", SubscribeError::NotAllowed);
    let longest = "x".repeat(20);
    for topic in [longest.as_str(), "b", "c"] {
        subscribe(&mut client, topic);
    }
    refused(&mut client, "d", SubscribeError::TooMany { topics_max: 3 });
    assert_eq!(topics.state(&mut client).subscriptions, 3);
    client.send_text("unsub b");
    expect(&mut client, ["unsubscribed".to_owned()]);
    subscribe(&mut client, "d");
    let handle = &topics.server.handle;
    let counts = [&longest, "b", "c", "d", "secret/plans", ""].map(|topic| handle.subscribers(topic));
    assert_eq!(counts, [1, 0, 1, 1, 0, 0]);
    assert_eq!(topics.server.counters().subscriptions, 4);
    // Names that were refused can still be published to, in vain.
    assert_eq!(handle.publish("secret/plans", "nobody"), Ok(()));
    handle.publish("d", "heard").expect("room");
    expect(&mut client, ["heard".to_owned()]);
}

fn subscribing_twice_changes_nothing(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut client = topics.connect_on(0);
    subscribe(&mut client, "news");
    subscribe(&mut client, "news");
    assert_eq!(topics.server.handle.subscribers("news"), 1);
    assert_eq!(topics.state(&mut client).subscriptions, 1);
    client.send_text("all news once");
    client.send_text("echo done");
    let mut heard = [client.receive_text(), client.receive_text()];
    // A direct send may overtake a publication.
    heard.sort();
    assert_eq!(heard, ["done", "once"]);
    client.send_text("unsub news");
    expect(&mut client, ["unsubscribed".to_owned()]);
    assert_eq!(topics.server.handle.subscribers("news"), 0);
}

fn unsubscribing_ends_it_for_one(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = [0, 0, 1, 1].map(|shard| topics.connect_on(shard));
    clients.iter_mut().for_each(|client| {
        subscribe(client, "news");
        subscribe(client, "other");
    });
    for left in (0..4).rev() {
        clients[left].send_text("unsub news");
        expect(&mut clients[left], ["unsubscribed".to_owned()]);
        assert_eq!(topics.server.handle.subscribers("news"), left);
        topics.server.handle.publish("news", &format!("news {left}")).expect("room");
        clients[..left].iter_mut().for_each(|client| expect(client, [format!("news {left}")]));
    }
    // Unsubscribing from what is not subscribed to is nothing.
    clients[0].send_text("unsub news");
    expect(&mut clients[0], ["unsubscribed".to_owned()]);
    topics.server.handle.publish("other", "end").expect("room");
    clients.iter_mut().for_each(|client| expect(client, ["end".to_owned()]));
}

fn closed_connections_are_no_subscribers(driver: Driver) {
    let topics = Topics::start(config(driver));
    let names: Vec<String> = (0..20).map(|number| format!("topic {number}").replace(' ', "-")).collect();
    let topic = topics.server.handle.topic("topic-0");
    for round in 0..3 {
        let mut clients: Vec<Client> = (0..24).map(|_| topics.server.connect()).collect();
        for client in &mut clients {
            names.iter().for_each(|name| subscribe(client, name));
        }
        assert!(names.iter().all(|name| topics.server.handle.subscribers(name) == 24));
        for (index, client) in clients.into_iter().enumerate() {
            match (index + round) % 3 {
                0 => client.close(),
                1 => client.reset(),
                _ => drop(client),
            }
        }
        names.iter().for_each(|name| topics.wait_for_subscribers(name, 0));
        assert_eq!(topic.subscribers(), 0);
        topic.publish("nobody").expect("nobody to refuse it");
    }
    crate::server::wait_until_empty(&topics.server);
    let mut last = topics.server.connect();
    subscribe(&mut last, "topic-0");
    topic.publish("you").expect("room");
    expect(&mut last, ["you".to_owned()]);
}

/// Tells the others when one leaves, and how many of them there are.
fn a_handler_knows_who_subscribes_to_what(driver: Driver) {
    let mut config = config(driver);
    config.topics_per_connection_max = 3;
    let server = Server::start(config, |_| {
        Script::echo()
            .on_open(|connection| {
                assert_eq!((connection.topics().count(), connection.subscriptions()), (0, 0));
                for topic in ["left", "rooms", "kept"] {
                    assert_eq!(connection.subscribe(topic), Ok(()));
                }
                connection.unsubscribe("left");
                assert_eq!((sorted(connection), connection.subscriptions()), ("kept rooms".to_owned(), 2));
            })
            .on_message(|connection, _| {
                let _ = connection.subscribe("more");
                connection.unsubscribe("kept");
                let counts = ["rooms", "more", "nobody's"].map(|topic| connection.subscribers(topic));
                let answer = format!("{} {counts:?}", sorted(connection));
                let _ = connection.send(&answer);
            })
            .on_close(|connection, _| {
                let left = format!("{} of {} left", sorted(connection), connection.subscribers("rooms"));
                connection.publish("rooms", &left);
            })
    });
    let mut clients: Vec<Client> = (0..6).map(|_| server.connect()).collect();
    eventually("all subscribe", || server.handle.subscribers("rooms") == 6);
    assert_eq!(server.handle.subscribers("left"), 0);
    for (others, client) in clients.iter_mut().enumerate() {
        client.send_text("?");
        expect(client, [format!("more rooms [6, {others}, 0]")]);
    }
    clients.pop().expect("six").close();
    clients.iter_mut().for_each(|client| expect(client, ["more rooms of 6 left".to_owned()]));
    assert_eq!(server.handle.subscribers("rooms"), 5);
}

fn sorted(connection: &Connection<'_, ()>) -> String {
    let mut topics: Vec<&str> = connection.topics().collect();
    topics.sort_unstable();
    topics.join(" ")
}
