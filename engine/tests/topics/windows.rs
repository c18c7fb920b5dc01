//! Topics whose publications are gathered for a while.

use std::time::Duration;

use ringwire::{Driver, protocol::OpCode};

use crate::{
    client::Client,
    commands::{Topics, config, expect, subscribe},
};

on_both_drivers!(
    a_window_delivers_everything_in_order,
    windows_of_two_shards_lose_nothing_to_newcomers,
    an_open_window_does_not_hold_up_a_stop,
    a_window_that_is_full_leaves_at_once,
    a_window_is_not_held_up_by_one_that_opened_before,
);

fn a_window_delivers_everything_in_order(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = [0, 0, 1, 1].map(|shard| topics.connect_on(shard));
    clients.iter_mut().for_each(|client| subscribe(client, "window/news"));
    let mut publisher = topics.connect_on(0);
    for number in 0..300 {
        publisher.send_text(&format!("pub window/news {number}"));
    }
    // The window closes although nothing more happens.
    clients.iter_mut().for_each(|client| expect(client, (0..300).map(|number| number.to_string())));
    let topic = topics.server.handle.topic("window/news");
    for number in 0..300 {
        topic.publish(&number.to_string()).expect("room");
    }
    clients.iter_mut().for_each(|client| expect(client, (0..300).map(|number| number.to_string())));
    // One's own are left out, the others' stay.
    let own = publisher_burst(&mut clients[3], "pub");
    clients[3].write(&own);
    let all = publisher_burst(&mut clients[3], "all");
    clients[3].write(&all);
    let burst = || (0..16).map(|number| number.to_string());
    clients[..3].iter_mut().for_each(|client| expect(client, burst().chain(burst())));
    expect(&mut clients[3], burst());
}

fn a_window_that_is_full_leaves_at_once(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = [0, 1].map(|shard| topics.connect_on(shard));
    clients.iter_mut().for_each(|client| subscribe(client, "hour/news"));
    let mut publisher = topics.connect_on(0);
    // Five of them are more than 32 KiB.
    let payload = "x".repeat(7000);
    for _ in 0..5 {
        publisher.send_text(&format!("pub hour/news {payload}"));
    }
    clients.iter_mut().for_each(|client| expect(client, vec![payload.clone(); 5]));
    // From a foreign thread as well.
    for _ in 0..5 {
        topics.server.handle.publish("hour/news", &payload).expect("room");
    }
    clients.iter_mut().for_each(|client| expect(client, vec![payload.clone(); 5]));
}

fn a_window_is_not_held_up_by_one_that_opened_before(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut client = topics.connect_on(0);
    let names = ["hour/news", "window/news"];
    names.iter().for_each(|name| subscribe(&mut client, name));
    for round in 0..5 {
        // The first stays open until a newcomer has it flushed.
        names.iter().for_each(|name| client.send_text(&format!("all {name} {name} {round}")));
        expect(&mut client, [format!("window/news {round}")]);
        subscribe(&mut topics.connect_on(0), "hour/news");
        expect(&mut client, [format!("hour/news {round}")]);
    }
}

fn an_open_window_does_not_hold_up_a_stop(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = [0, 1].map(|shard| topics.connect_on(shard));
    clients.iter_mut().for_each(|client| subscribe(client, "hour/news"));
    topics.server.handle.publish("hour/news", "gathered").expect("room");
    clients[0].send_text("all hour/news gathered");
    let counters = || topics.server.counters();
    crate::client::eventually("a window on each shard", || counters().envelopes_received == 3);
    topics.server.handle.publish("hour/news", "and the last").expect("room");
    topics.server.handle.stop(Duration::from_secs(5));
    for client in &mut clients {
        expect(client, ["gathered", "gathered", "and the last"].map(str::to_owned));
        assert_eq!(client.receive().close_code(), Some(1001));
    }
    drop(clients);
    topics.server.stop(Duration::ZERO);
}

fn publisher_burst(client: &mut Client, command: &str) -> Vec<u8> {
    let frames = (0..16).map(|number| {
        let text = format!("{command} window/news {number}");
        client.frame(OpCode::Text, text.as_bytes())
    });
    frames.collect::<Vec<_>>().concat()
}

/// Both shards have something gathered while subscriptions begin that are not to get all of it.
fn windows_of_two_shards_lose_nothing_to_newcomers(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut publishers = [topics.connect_on(0), topics.connect_on(1)];
    let mut clients: Vec<Client> = Vec::new();
    let rounds = 60;
    for round in 0..rounds {
        for (index, publisher) in publishers.iter_mut().enumerate() {
            let frames: Vec<Vec<u8>> = (0..8)
                .map(|number| {
                    let text = format!("all window/news {index} {}", round * 8 + number);
                    publisher.frame(OpCode::Text, text.as_bytes())
                })
                .collect();
            publisher.write(&frames.concat());
        }
        if round % 3 == 0 {
            let mut client = topics.server.connect();
            client.send_text("sub window/news");
            clients.push(client);
        }
    }
    for client in &mut clients {
        assert_eq!(client.receive_text(), "subscribed");
    }
    // Whoever subscribed behind everything above gets these.
    let last = rounds * 8;
    for (index, publisher) in publishers.iter_mut().enumerate() {
        publisher.send_text(&format!("all window/news {index} {last}"));
    }
    for client in &mut clients {
        let mut next: [Option<usize>; 2] = [None, None];
        while next != [Some(last + 1); 2] {
            let text = client.receive_text();
            let (publisher, number) = text.split_once(' ').expect("two numbers");
            let publisher: usize = publisher.parse().expect("a publisher");
            let number: usize = number.parse().expect("a number");
            assert_eq!(number, next[publisher].unwrap_or(number), "of publisher {publisher}");
            next[publisher] = Some(number + 1);
        }
    }
}
