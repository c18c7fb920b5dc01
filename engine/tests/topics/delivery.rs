//! Who gets a publication, and in which order.

use ringwire::{Driver, PreparedMessage, protocol::OpCode};

use crate::{
    client::Client,
    commands::{Topics, config, expect, subscribe},
};

on_both_drivers!(
    every_subscriber_hears_and_the_publisher_does_not,
    envelopes_and_wakes_are_counted,
    bursts_in_one_write_arrive_in_order,
    a_burst_to_all_reaches_the_publisher_once,
    large_and_small_publications_keep_their_order,
    a_subscription_begins_with_its_acknowledgement,
    what_was_encoded_before_is_published_like_the_rest,
);

fn subscribers(topics: &Topics, topic: &str) -> Vec<Client> {
    let mut clients: Vec<Client> = [0, 0, 0, 1, 1, 1].map(|shard| topics.connect_on(shard)).into();
    clients.iter_mut().for_each(|client| subscribe(client, topic));
    clients
}

fn every_subscriber_hears_and_the_publisher_does_not(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = subscribers(&topics, "news");
    for publisher in [0, 4] {
        for number in 0..200 {
            clients[publisher].send_text(&format!("pub news {publisher} {number}"));
        }
        clients[publisher].send_text("all news end");
        for (index, client) in clients.iter_mut().enumerate() {
            if index != publisher {
                expect(client, (0..200).map(|number| format!("{publisher} {number}")));
            }
            expect(client, ["end".to_owned()]);
        }
    }
    // Nothing else is on its way.
    clients.iter_mut().for_each(|client| {
        client.send_text("echo done");
        expect(client, ["done".to_owned()]);
    });
    let counters = topics.server.counters();
    assert_eq!((counters.publications, counters.deliveries), (2 * 201, 2 * (200 * 5 + 6)));
    assert_eq!(counters.envelopes_refused, 0);
}

fn envelopes_and_wakes_are_counted(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut publisher = topics.connect_on(0);
    let mut subscriber = topics.connect_on(1);
    subscribe(&mut subscriber, "news");
    let one_by_one = 10;
    for number in 0..one_by_one {
        publisher.send_text(&format!("pub news {number}"));
        expect(&mut subscriber, [number.to_string()]);
    }
    let counters = topics.server.counters();
    assert_eq!((counters.envelopes_sent, counters.envelopes_received), (one_by_one, one_by_one));
    assert_eq!(counters.wakes + counters.wakes_elided, one_by_one, "one batch each");
    assert!(counters.wakes >= 1, "nobody else wakes the other shard");
    assert!(counters.wakes_heard >= 1, "{counters:?}");
    // What comes in one turn goes in one envelope.
    let frames = burst(&mut publisher, "pub", 0);
    publisher.write(&frames);
    expect(&mut subscriber, (0..16).map(|number| number.to_string()));
    let sent = topics.server.counters().envelopes_sent - one_by_one;
    assert!((1..16).contains(&sent), "{sent} envelopes for 16 publications");
    // A thread that is nobody's shard wakes the one that has the subscriber, and is not counted as a shard.
    let before = topics.server.counters();
    for number in 16..26 {
        // The shard is asleep by then, mostly.
        std::thread::sleep(std::time::Duration::from_millis(5));
        topics.server.handle.publish("news", &number.to_string()).expect("room");
        expect(&mut subscriber, [number.to_string()]);
    }
    let after = topics.server.counters();
    assert_eq!(after.wakes, before.wakes);
    let heard = after.wakes_heard - before.wakes_heard;
    assert!((1..=20).contains(&heard), "{heard} wakes for ten publications");
}

fn burst(client: &mut Client, command: &str, round: usize) -> Vec<u8> {
    let frames = (0..16).map(|number| {
        let text = format!("{command} news {}", round * 16 + number);
        client.frame(OpCode::Text, text.as_bytes())
    });
    frames.collect::<Vec<_>>().concat()
}

fn bursts_in_one_write_arrive_in_order(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = subscribers(&topics, "news");
    let mut publisher = topics.connect_on(1);
    for round in 0..50 {
        let bytes = burst(&mut publisher, "pub", round);
        publisher.write(&bytes);
    }
    for client in &mut clients {
        expect(client, (0..50 * 16).map(|number| number.to_string()));
    }
}

fn a_burst_to_all_reaches_the_publisher_once(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = subscribers(&topics, "news");
    for round in 0..20 {
        // In one write, some for all and some for all the others.
        let mut bytes = burst(&mut clients[2], "pub", round);
        bytes.extend(burst(&mut clients[2], "all", round));
        bytes.extend(burst(&mut clients[2], "pub", round));
        clients[2].write(&bytes);
        for (index, client) in clients.iter_mut().enumerate() {
            for _ in 0..if index == 2 { 1 } else { 3 } {
                expect(client, (round * 16..round * 16 + 16).map(|number| number.to_string()));
            }
        }
    }
}

fn large_and_small_publications_keep_their_order(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut clients = subscribers(&topics, "news");
    let texts: Vec<String> = (0..60)
        .map(|number| format!("{number} {}", "x".repeat([1, 200, 9000, 40_000][number % 4])))
        .collect();
    let mut bytes = Vec::new();
    for text in &texts {
        let frame = clients[0].frame(OpCode::Text, format!("pub news {text}").as_bytes());
        bytes.extend(frame);
    }
    clients[0].write(&bytes);
    for client in &mut clients[1..] {
        expect(client, texts.iter().cloned());
    }
}

fn a_subscription_begins_with_its_acknowledgement(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut publishers = [topics.connect_on(0), topics.connect_on(1)];
    let mut listener = topics.connect_on(1);
    subscribe(&mut listener, "news");
    let mut late: Vec<Client> = Vec::new();
    for round in 0..40 {
        // Before: not heard by the new one, once somebody else has got it.
        publishers[round % 2].send_text(&format!("pub news before {round}"));
        for client in late.iter_mut().chain([&mut listener]) {
            expect(client, [format!("before {round}")]);
        }
        let mut client = topics.connect_on(round / 2 % 2);
        subscribe(&mut client, "news");
        late.push(client);
        publishers[round % 2].send_text(&format!("pub news after {round}"));
        for client in late.iter_mut().chain([&mut listener]) {
            expect(client, [format!("after {round}")]);
        }
    }
}

fn what_was_encoded_before_is_published_like_the_rest(driver: Driver) {
    let topics = Topics::start(config(driver));
    let (mut near, mut far) = (topics.connect_on(0), topics.connect_on(1));
    let mut publisher = topics.connect_on(0);
    // Topics that conflate deliver each publication on its own, as they do a large one.
    let names = ["news", "latest/price", "window/prices"];
    for client in [&mut near, &mut far, &mut publisher] {
        names.iter().for_each(|name| subscribe(client, name));
    }
    let handle = &topics.server.handle;
    let topic = handle.topic("news");
    for payload in ["small".to_owned(), "l".repeat(20_000)] {
        publisher.send_text(&format!("prep {} {payload}", names.join(",")));
        for client in [&mut near, &mut far] {
            expect(client, names.map(|_| payload.clone()));
        }
        let prepared = PreparedMessage::new(&payload);
        assert_eq!(topic.publish_prepared(&prepared), Ok(()));
        assert_eq!(handle.publish_prepared("news", &prepared), Ok(()));
        assert_eq!(handle.publish_prepared("nobody's", &prepared), Ok(()));
        // All that the publisher hears of it: it is nobody's own.
        for client in [&mut near, &mut far, &mut publisher] {
            expect(client, [payload.clone(), payload.clone()]);
        }
    }
    let order = [("pub", "one"), ("prep", "two"), ("pub", "three"), ("prep", "four")];
    for (command, number) in order {
        publisher.send_text(&format!("{command} news {number}"));
    }
    for client in [&mut near, &mut far] {
        expect(client, order.map(|(_, number)| number.to_owned()));
    }
}
