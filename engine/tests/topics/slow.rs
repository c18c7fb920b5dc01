//! Subscribers that do not read, under each policy.

use std::time::Duration;

use ringwire::{Config, Driver, OutboxFull, protocol::frame::frame_bytes};

use crate::{
    client::{Client, Received},
    commands::{State, Topics, config, subscribe},
};

on_both_drivers!(
    the_newest_are_dropped,
    the_oldest_are_dropped,
    the_connection_is_closed,
    a_subscriber_that_is_given_up_ends_in_time,
    a_topic_closes_whom_the_others_would_keep,
    the_latest_of_each_key_arrives,
    the_latest_of_each_key_arrives_from_a_foreign_thread,
    the_latest_of_a_topic_without_keys_arrives,
);

const OUTBOX_BYTES: usize = 100_000;
/// So large that each is delivered on its own.
const BYTES: usize = 9000;
const COUNT_MAX: usize = 4000;

fn tight(driver: Driver) -> Config {
    let mut config = config(driver);
    config.outbox_bytes_max = OUTBOX_BYTES;
    config.outbox_bytes_high = OUTBOX_BYTES / 2;
    config.outbox_bytes_low = OUTBOX_BYTES / 10;
    config
}

fn payload(number: usize) -> String {
    format!("{number:08}{}", "x".repeat(BYTES - 8))
}

fn number(text: &str) -> usize {
    let number = text[..8].parse().expect("a number");
    assert!(text == payload(number), "message {number} is damaged");
    number
}

/// Publishes until so many publications have been dropped, from the other shard; answers how many there were.
fn flood(topics: &Topics, slow: &mut Client, topic: &str, drops: u64, check: impl Fn(State)) -> usize {
    let publisher = &mut topics.connect_on(0);
    let reader = &mut topics.connect_on(1);
    subscribe(reader, topic);
    for count in 0..COUNT_MAX {
        publisher.send_text(&format!("pub {topic} {}", payload(count)));
        // It has been through the other shard when somebody there has got it.
        assert_eq!(number(&reader.receive_text()), count);
        let state = topics.state(slow);
        assert!(state.outbox_bytes <= OUTBOX_BYTES, "{state:?}");
        check(state);
        if state.drops.total() >= drops {
            return count + 1;
        }
    }
    panic!("the outbox was never full");
}

/// Reads numbered messages up to the last word, which is published when the outbox has room for it.
fn read_all(slow: &mut Client, until: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut numbers = Vec::new();
    while !numbers.last().is_some_and(|number| until(*number)) {
        numbers.push(number(&slow.receive_text()));
    }
    assert!(numbers.is_sorted_by(|left, right| left < right), "{numbers:?}");
    numbers
}

fn the_newest_are_dropped(driver: Driver) {
    let topics = Topics::start(tight(driver));
    let mut slow = topics.connect_narrow_on(1);
    subscribe(&mut slow, "newest/news");
    let count = flood(&topics, &mut slow, "newest/news", 50, |state| {
        assert!(
            state.drops.total() == 0 || state.outbox_bytes + frame_bytes(BYTES) > OUTBOX_BYTES,
            "{state:?}"
        );
    });
    let drops = topics.state(&mut slow).drops;
    let dropped = drops.total();
    assert_eq!((topics.server.counters().dropped_newest, u64::from(drops.newest)), (dropped, dropped));
    // The order and number of those that were kept, then what comes once there is room again.
    let kept: Vec<usize> = (0..count - dropped as usize).map(|_| number(&slow.receive_text())).collect();
    assert!(kept.is_sorted_by(|left, right| left < right) && kept[0] == 0);
    topics.server.handle.publish("newest/news", &payload(count)).expect("room");
    assert_eq!(read_all(&mut slow, |number| number == count), [count]);
    assert_eq!(topics.state(&mut slow).drops, drops);
}

fn the_oldest_are_dropped(driver: Driver) {
    let topics = Topics::start(tight(driver));
    let mut slow = topics.connect_narrow_on(1);
    subscribe(&mut slow, "oldest/news");
    let count = flood(&topics, &mut slow, "oldest/news", 50, |state| {
        assert!(
            state.drops.total() == 0 || state.outbox_bytes + frame_bytes(BYTES) > OUTBOX_BYTES,
            "{state:?}"
        );
    });
    let drops = topics.state(&mut slow).drops;
    let dropped = drops.total();
    assert_eq!((topics.server.counters().dropped_oldest, u64::from(drops.oldest)), (dropped, dropped));
    let numbers = read_all(&mut slow, |number| number == count - 1);
    assert_eq!(numbers.len(), count - dropped as usize);
    // What fits into the outbox at the end is without a gap.
    let last = numbers.len() - (OUTBOX_BYTES / frame_bytes(BYTES) - 1);
    assert!(numbers[last..].iter().copied().eq(numbers[last]..count), "{numbers:?}");
}

fn the_connection_is_closed(driver: Driver) {
    let topics = Topics::start(tight(driver));
    let mut publisher = topics.connect_on(0);
    let mut slow = topics.connect_narrow_on(1);
    let mut reader = topics.connect_on(1);
    subscribe(&mut slow, "news");
    subscribe(&mut reader, "news");
    let full = |topics: &Topics| topics.server.counters().closed_outbox_full == 1;
    let count = (0..COUNT_MAX).find(|count| {
        publisher.send_text(&format!("pub news {}", payload(*count)));
        assert_eq!(number(&reader.receive_text()), *count);
        full(&topics)
    });
    let count = count.expect("the outbox was never full") + 1;
    let mut arrived = 0;
    let end = loop {
        match slow.receive() {
            Received::Text(text) => {
                assert_eq!(number(&text), arrived);
                arrived += 1;
            }
            end => break end,
        }
    };
    assert_eq!(end.close_code(), Some(1013), "{end:?}");
    drop(slow);
    topics.wait_for_subscribers("news", 1);
    let counters = topics.server.counters();
    assert_eq!(counters.dropped_by_close as usize, count - arrived);
    assert_eq!((counters.dropped_newest, counters.dropped_oldest), (0, 0));
    topics.server.handle.publish("news", &payload(count)).expect("room");
    assert_eq!(number(&reader.receive_text()), count);
}

fn a_subscriber_that_is_given_up_ends_in_time(driver: Driver) {
    let mut config = tight(driver);
    // No other deadline is due.
    config.close_timeout = Duration::from_millis(300);
    config.handshake_timeout = Duration::from_secs(3600);
    config.ping_interval = None;
    let topics = Topics::start(config);
    let handle = &topics.server.handle;
    let mut slow = topics.connect_narrow_on(1);
    subscribe(&mut slow, "news");
    let is_full = |number: usize| {
        handle.publish("news", &payload(number)).expect("room");
        topics.server.counters().closed_outbox_full == 1
    };
    assert!((0..COUNT_MAX).any(is_full), "the outbox was never full");
    topics.server.eventually("the close timeout", |counters| counters.timeouts_close == 1);
    topics.server.eventually("the end of the connection", |counters| counters.connections_current == 0);
}

fn a_topic_closes_whom_the_others_would_keep(driver: Driver) {
    let mut config = tight(driver);
    config.outbox_full = OutboxFull::DropNewest;
    let topics = Topics::start(config);
    let handle = &topics.server.handle;
    let mut slow = topics.connect_narrow_on(1);
    subscribe(&mut slow, "news");
    subscribe(&mut slow, "close/news");
    flood(&topics, &mut slow, "news", 1, |_| {});
    assert_eq!(topics.server.counters().closed_outbox_full, 0);
    handle.publish("close/news", &payload(0)).expect("room");
    while let Received::Text(_) = slow.receive() {}
    topics.server.eventually("the close", |counters| counters.closed_outbox_full == 1);
    topics.wait_for_subscribers("close/news", 0);
    assert!(topics.server.counters().dropped_by_close >= 1);
}

fn the_latest_of_each_key_arrives(driver: Driver) {
    latest_arrives(driver, 4, |_, publisher, key, text| {
        publisher.send_text(&format!("key latest/prices {key} {text}"));
    });
}

fn the_latest_of_each_key_arrives_from_a_foreign_thread(driver: Driver) {
    // Both ways by turns: they are one publisher.
    latest_arrives(driver, 4, |topics, _, key, text| {
        let (handle, number) = (&topics.server.handle, key as u64);
        let published = if key % 2 == 0 {
            handle.topic("latest/prices").clone().publish_keyed(number, text)
        } else {
            handle.publish_keyed("latest/prices", number, text)
        };
        published.expect("room");
    });
}

fn the_latest_of_a_topic_without_keys_arrives(driver: Driver) {
    latest_arrives(driver, 1, |topics, _, _, text| {
        topics.server.handle.publish("latest/prices", text).expect("room");
    });
}

fn latest_arrives(driver: Driver, keys: usize, publish: impl Fn(&Topics, &mut Client, usize, &str)) {
    let mut config = tight(driver);
    config.outbox_full = OutboxFull::DropNewest;
    let topics = Topics::start(config);
    let mut publisher = topics.connect_on(0);
    let mut slow = topics.connect_narrow_on(1);
    let mut reader = topics.connect_on(1);
    subscribe(&mut slow, "latest/prices");
    subscribe(&mut reader, "latest/prices");
    let mut count = 0;
    while topics.server.counters().conflated < 100 {
        assert!(count < COUNT_MAX, "nothing was conflated");
        for _ in 0..keys {
            publish(&topics, &mut publisher, count % keys, &payload(count));
            assert_eq!(number(&reader.receive_text()), count);
            count += 1;
        }
        // The mark, the keys above it, and the message that passed it.
        let bound = OUTBOX_BYTES / 2 + (keys + 1) * frame_bytes(BYTES);
        let state = topics.state(&mut slow);
        assert!(state.outbox_bytes <= bound, "{state:?}");
        // The handler sees what its peer has missed.
        assert_eq!(u64::from(state.drops.conflated), topics.server.counters().conflated);
        assert_eq!(state.drops.total(), u64::from(state.drops.conflated));
    }
    let conflated = topics.server.counters().conflated as usize;
    let mut last = vec![None; keys];
    for _ in 0..count - conflated {
        let number = number(&slow.receive_text());
        let key = number % keys;
        assert!(last[key] < Some(number), "{number} after {last:?}");
        last[key] = Some(number);
    }
    assert!(last.iter().copied().flatten().eq((0..keys).map(|key| count - keys + key)), "{last:?}");
    topics.server.handle.publish("latest/prices", "end").expect("room");
    assert_eq!(slow.receive_text(), "end");
}
