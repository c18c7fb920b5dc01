//! Many subscribers, a few of which never read.

use ringwire::{Driver, OutboxFull};

use crate::{
    client::Client,
    commands::{Topics, config, subscribe},
};

on_both_drivers!(those_who_never_read_cost_the_others_nothing);

const SUBSCRIBERS: usize = 200;
const STALLED: usize = SUBSCRIBERS / 100;
const BATCH: usize = 8;
const BYTES: usize = 6000;
const ROUNDS_MAX: usize = 400;

fn those_who_never_read_cost_the_others_nothing(driver: Driver) {
    let mut config = config(driver);
    config.outbox_bytes_max = 2 * BATCH * BYTES;
    config.outbox_bytes_high = BATCH * BYTES;
    config.outbox_bytes_low = BYTES;
    config.outbox_full = OutboxFull::DropNewest;
    let topics = Topics::start(config);
    let mut stalled: Vec<Client> = (0..STALLED).map(|index| topics.connect_narrow_on(index % 2)).collect();
    let mut readers: Vec<Client> = (STALLED..SUBSCRIBERS).map(|_| topics.server.connect()).collect();
    stalled.iter_mut().chain(&mut readers).for_each(|client| subscribe(client, "news"));
    assert_eq!(topics.server.handle.subscribers("news"), SUBSCRIBERS);
    let topic = topics.server.handle.topic("news");
    let filler = "x".repeat(BYTES - 8);
    let mut number = 0;
    let mut rounds_left = 5;
    while rounds_left > 0 {
        assert!(number < ROUNDS_MAX * BATCH, "the stalled were never full");
        let texts: Vec<String> =
            (number..number + BATCH).map(|number| format!("{number:08}{filler}")).collect();
        texts.iter().for_each(|text| topic.publish(text).expect("room"));
        number += BATCH;
        for client in &mut readers {
            texts
                .iter()
                .for_each(|text| assert!(client.receive_text() == *text, "not message {}", &text[..8]));
        }
        // On for a while after both have been full.
        let full = stalled.iter_mut().all(|client| topics.state(client).drops.total() > 0);
        rounds_left -= usize::from(full);
    }
    let dropped: u64 = stalled.iter_mut().map(|client| topics.state(client).drops.total()).sum();
    let counters = topics.server.counters();
    // All that was dropped was theirs, and they are there still.
    assert_eq!(counters.dropped_newest, dropped);
    assert_eq!(counters.deliveries + dropped, (number * SUBSCRIBERS) as u64);
    assert_eq!(topic.subscribers(), SUBSCRIBERS);
    for client in &mut stalled {
        let kept = number - topics.state(client).drops.total() as usize;
        let mut last = None;
        for _ in 0..kept {
            let text = client.receive_text();
            let number: Option<usize> = Some(text[..8].parse().expect("a number"));
            assert!(last < number && text[8..] == filler);
            last = number;
        }
    }
}
