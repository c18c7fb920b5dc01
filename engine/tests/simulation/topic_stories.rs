//! Single stories of topics on several shards that chance tells too rarely, or never.

use std::{sync::Arc, time::Duration};

use ringwire::{
    CloseCode, Conflation, Connection, ConnectionId, CountersSnapshot, Handler, Message, OutboxFull,
    PublishStatus, SendStatus, SubscribeError, TopicRules, TopicSettings, Upgrade,
    buffer::HEADROOM_BYTES,
    connection::{OutboxLimits, Output, Settings, Timestamp},
    protocol::{Decoder, Item, Limits, Role, UpgradeRequest, handshake::append_client_request},
    shard::{MeshSeat, Shard, TopicLimits, TopicRegistry},
};

use crate::{handler::Deliberate, plan::Plan, quieten_deliberate_panics, random::Random};

/// Says nothing of its own accord but that something was missed.
#[derive(Default)]
struct Silent {
    /// How many messages had been dropped for whom when it was told.
    told_drops: Vec<(ConnectionId, u64)>,
}

impl Handler for Silent {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_message(&mut self, _: &mut Connection<'_, ()>, _: Message<'_>) {}

    fn on_dropped(&mut self, connection: &mut Connection<'_, ()>) {
        self.told_drops.push((connection.id(), connection.drops().total()));
        let _ = connection.send("missed");
    }
}

struct Story {
    shards: Vec<Shard<Silent>>,
    registry: Arc<TopicRegistry>,
    now: Timestamp,
    /// Windows that have opened, by shard.
    windows: Vec<(usize, u32)>,
}

const TOPICS_MAX: usize = 3;
const ROOMY: usize = 1 << 20;

impl Story {
    fn begin(shards: usize, outbox_bytes_max: usize, full: OutboxFull) -> Self {
        let (bytes_max, bytes_high) = (outbox_bytes_max, outbox_bytes_max / 2);
        Self::begin_with(shards, OutboxLimits { bytes_max, bytes_high, bytes_low: 0, full })
    }

    fn begin_with(shards: usize, outbox: OutboxLimits) -> Self {
        let now = Timestamp::from_millis(1000);
        let settings = Settings { outbox, ..Plan::new(&Random::new(0)).settings };
        let registry = TopicRegistry::new(shards);
        let rules = TopicRules::new(|name| {
            let mut rules = TopicSettings::default();
            match name.split('/').next() {
                Some("latest") => rules.conflation = Conflation::Latest,
                Some("oldest") => rules.full = Some(OutboxFull::DropOldest),
                Some("window") => rules.window = Some(Duration::from_millis(10)),
                Some("panic") => std::panic::panic_any(Deliberate),
                _ => {}
            }
            rules
        });
        let limits = TopicLimits { name_bytes_max: 100, topics_max: TOPICS_MAX };
        let seats = MeshSeat::connect(shards).into_iter().enumerate();
        let shards = seats.map(|(index, seat)| {
            Shard::new(index as u16, Silent::default(), settings, 10, Arc::default(), 1, now).joined(
                seat,
                Arc::clone(&registry),
                rules.clone(),
                limits,
            )
        });
        Self { shards: shards.collect(), registry, now, windows: Vec::new() }
    }

    fn connect(&mut self, shard: usize) -> ConnectionId {
        let id = self.shards[shard].handle_accepted(([10, 0, 0, 1], 1).into(), self.now).expect("room");
        let mut input = vec![0; HEADROOM_BYTES];
        append_client_request(&mut input, "ringwire", "/", "dGhlIHNhbXBsZSBub25jZQ==", &[]);
        assert!(self.shards[shard].handle_received(id, &mut input, self.now).is_none());
        assert!(self.take(id).starts_with(b"HTTP/1.1 101 "));
        id
    }

    fn reach_in(&mut self, id: ConnectionId, mut action: impl FnMut(&mut Connection<'_, ()>)) {
        assert_eq!(self.shards[id.shard()].with_connection(id, self.now, &mut action), Ok(()));
    }

    fn subscribe(&mut self, id: ConnectionId, topic: &str) {
        self.reach_in(id, |connection| assert_eq!(connection.subscribe(topic), Ok(())));
    }

    fn publish(&mut self, id: ConnectionId, topic: &str, payload: &[u8]) {
        self.reach_in(id, |connection| {
            connection.publish(topic, payload);
        });
    }

    /// Publishes a value of a key and lets it arrive.
    fn publish_value(&mut self, id: ConnectionId, topic: &str, key: u64, payload: &[u8]) {
        self.reach_in(id, |connection| {
            connection.publish_keyed(topic, key, payload);
        });
        self.end_turns();
    }

    /// Publishes a value for each of so many keys, in one call.
    fn publish_snapshot(&mut self, id: ConnectionId, topic: &str, keys: u64) {
        self.reach_in(id, |connection| {
            for key in 0..keys {
                connection.publish_keyed(topic, key, &key.to_be_bytes());
            }
        });
    }

    /// Every shard ends turns until nothing is on its way. Answers how many connections had something to
    /// send.
    fn end_turns(&mut self) -> usize {
        let mut dirty = 0;
        for _ in 0..30 {
            for (index, shard) in self.shards.iter_mut().enumerate() {
                shard.handle_mesh(self.now);
                shard.flush_topics();
                while shard.poll_wake().is_some() {}
                self.windows
                    .extend(std::iter::from_fn(|| shard.poll_window()).map(|(topic, _)| (index, topic)));
                dirty += std::iter::from_fn(|| shard.poll_dirty()).count();
            }
        }
        dirty
    }

    /// A tick. Answers for whom the handler of `shard` was told of drops, and how many there had been.
    fn tick(&mut self, shard: usize) -> Vec<(ConnectionId, u64)> {
        let before = self.shards[shard].handler().told_drops.len();
        self.shards[shard].handle_tick(self.now);
        self.end_turns();
        self.shards[shard].handler().told_drops[before..].to_vec()
    }

    fn take(&mut self, id: ConnectionId) -> Vec<u8> {
        let mut sent = Vec::new();
        while let Output::Send(buffer) = self.shards[id.shard()].poll_output(id) {
            sent.extend_from_slice(buffer.unsent());
            let bytes = buffer.len();
            self.shards[id.shard()].handle_sent(id, buffer, bytes);
        }
        sent
    }

    /// What the peer of a connection gets: messages, and the code of a close frame behind them.
    fn hear(&mut self, id: ConnectionId) -> (Vec<Vec<u8>>, Option<u16>) {
        let mut bytes = self.take(id);
        let (mut decoder, mut messages) = (Decoder::new(Role::Client), Vec::new());
        let limits = Limits { message_bytes_max: ROOMY, fragments_max: 1 };
        while !bytes.is_empty() {
            let decoded = decoder.decode(&mut bytes, &limits).expect("frames");
            let taken: Vec<u8> = bytes.drain(..decoded.consumed).collect();
            match decoded.item.expect("whole frames") {
                Item::Message { payload, .. } => messages.push(taken[payload].to_vec()),
                Item::Close { payload } => {
                    let code = &taken[payload];
                    return (messages, Some(u16::from_be_bytes([code[0], code[1]])));
                }
                other => panic!("{other:?}"),
            }
        }
        (messages, None)
    }

    fn counters(&self) -> CountersSnapshot {
        let mut sum = CountersSnapshot::default();
        self.shards.iter().for_each(|shard| sum += shard.counters().snapshot());
        sum
    }
}

#[test]
fn names_that_nobody_uses_any_more_cost_nothing() {
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let clients = [story.connect(0), story.connect(1)];
    story.subscribe(clients[0], "kept");
    let mut known = 0;
    for number in 0..20_000 {
        let client = clients[number % 2];
        let (subscribed, published) = (format!("subscribed/{number}"), format!("published/{number}"));
        story.subscribe(client, &subscribed);
        story.reach_in(client, |connection| connection.unsubscribe(&subscribed));
        story.publish(client, &published, b"nobody");
        known = known.max(story.registry.len());
    }
    // No second has passed yet in which anybody could clear up.
    assert!(known < 100, "{known} topics are known");
    // In one turn with many others, and with nobody here who subscribes.
    story.publish(clients[1], "kept", b"still here");
    for number in 0..1000 {
        story.publish(clients[1], &format!("published/{number}"), b"nobody");
    }
    story.end_turns();
    assert_eq!(story.hear(clients[0]).0, [b"still here"]);
}

#[test]
fn a_new_topic_does_not_replace_the_values_of_a_forgotten_one() {
    let mut story = Story::begin(1, 1000, OutboxFull::DropNewest);
    let (slow, publisher) = (story.connect(0), story.connect(0));
    story.subscribe(slow, "latest/old");
    (0..2).for_each(|_| story.publish_value(publisher, "latest/old", 1, &[1; 300]));
    story.reach_in(slow, |connection| connection.unsubscribe("latest/old"));
    // Long enough for it to be forgotten.
    (0..10).for_each(|_| story.shards[0].shrink());
    story.subscribe(slow, "latest/new");
    story.publish_value(publisher, "latest/new", 1, &[2; 300]);
    assert_eq!(story.hear(slow).0, [[1u8; 300], [1; 300], [2; 300]]);
}

#[test]
fn a_larger_value_of_a_key_drops_no_more_than_it_takes() {
    let frame = |payload: usize| payload + if payload < 126 { 2 } else { 4 };
    let (small, large) = (vec![0u8; 48], vec![1u8; 496]);
    // Twenty small values and a large one fit, to the byte.
    let mut story = Story::begin(1, 20 * frame(48) + frame(496), OutboxFull::DropOldest);
    let (slow, publisher) = (story.connect(0), story.connect(0));
    story.subscribe(slow, "latest/news");
    let publish = |story: &mut Story, key: u64, payload: &[u8]| {
        story.publish_value(publisher, "latest/news", key, payload);
    };
    (0..10).for_each(|key| publish(&mut story, key, &small));
    publish(&mut story, 100, &large);
    (10..20).for_each(|key| publish(&mut story, key, &small));
    // One byte more: one small value makes room for it.
    let larger = vec![2u8; 497];
    publish(&mut story, 100, &larger);
    story.reach_in(slow, |connection| {
        let drops = connection.drops();
        assert_eq!((drops.oldest, drops.newest, drops.conflated), (1, 0, 1));
    });
    let (messages, _) = story.hear(slow);
    assert_eq!(messages.len(), 20);
    assert_eq!(messages.iter().filter(|message| **message == larger).count(), 1);
    // Where the oldest is the value itself, it is replaced all the same.
    publish(&mut story, 100, &large);
    (0..20).for_each(|key| publish(&mut story, key, &small));
    publish(&mut story, 100, &larger);
    let (messages, _) = story.hear(slow);
    assert_eq!(messages.iter().filter(|message| **message == larger).count(), 1);
    assert!(!messages.contains(&large));
}

#[test]
fn a_value_that_cannot_fit_leaves_the_older_one() {
    let mut story = Story::begin(1, 1000, OutboxFull::DropOldest);
    let (slow, publisher) = (story.connect(0), story.connect(0));
    story.subscribe(slow, "latest/news");
    let publish = |story: &mut Story, key: u64, payload: &[u8]| {
        story.publish_value(publisher, "latest/news", key, payload);
    };
    publish(&mut story, 1, &[1; 300]);
    // On its way: nothing drops it.
    let Output::Send(in_flight) = story.shards[0].poll_output(slow) else { panic!("nothing to send") };
    publish(&mut story, 2, &[2; 300]);
    publish(&mut story, 2, &[3; 800]);
    story.reach_in(slow, |connection| {
        let drops = connection.drops();
        assert_eq!((drops.oldest, drops.newest, drops.conflated), (0, 1, 0));
    });
    let bytes = in_flight.len();
    story.shards[0].handle_sent(slow, in_flight, bytes);
    assert_eq!(story.hear(slow).0, [[2; 300]]);
}

#[test]
fn of_publications_that_came_together_those_are_dropped_that_do_not_fit() {
    let block: Vec<Vec<u8>> = (0..20u8).map(|number| vec![number; 98]).collect();
    // Ten frames of a hundred bytes fit.
    for (full, heard) in [(OutboxFull::DropNewest, &block[..10]), (OutboxFull::DropOldest, &block[10..])] {
        let mut story = Story::begin(2, 1000, full);
        let (near, far, publisher) = (story.connect(0), story.connect(1), story.connect(0));
        story.subscribe(near, "news");
        story.subscribe(far, "news");
        block.iter().for_each(|payload| story.publish(publisher, "news", payload));
        story.end_turns();
        for client in [near, far] {
            story.reach_in(client, |connection| {
                assert_eq!((connection.outbox_bytes(), connection.drops().total()), (1000, 10));
            });
            assert_eq!(story.hear(client).0, heard, "{full:?}");
        }
        let counters = story.counters();
        assert_eq!(counters.dropped_newest + counters.dropped_oldest, 20);
        assert_eq!((counters.dropped_newest == 0), full == OutboxFull::DropOldest);
    }
}

#[test]
fn rules_that_panic_spoil_nothing() {
    quieten_deliberate_panics();
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let (listener, publisher) = (story.connect(0), story.connect(1));
    story.subscribe(listener, "panic/attack");
    story.publish(publisher, "panic/attack", b"keep calm");
    story.end_turns();
    assert_eq!(story.hear(listener), (vec![b"keep calm".to_vec()], None));
    story.reach_in(publisher, |connection| assert!(connection.is_open()));
    assert_eq!(story.counters().handler_panics, 2);
}

#[test]
fn what_was_published_before_everybody_is_closed_arrives() {
    let mut story = Story::begin(1, ROOMY, OutboxFull::DropNewest);
    let (listener, publisher) = (story.connect(0), story.connect(0));
    story.subscribe(listener, "news");
    story.subscribe(listener, "window/news");
    story.publish(publisher, "window/news", b"gathered");
    story.end_turns();
    story.publish(publisher, "news", b"the last");
    let now = story.now;
    story.shards[0].close_all(CloseCode::GOING_AWAY, "server stops", now);
    story.end_turns();
    let (mut messages, code) = story.hear(listener);
    messages.sort();
    assert_eq!((messages, code), (vec![b"gathered".to_vec(), b"the last".to_vec()], Some(1001)));
}

#[test]
fn what_reaches_a_shard_after_it_has_closed_everybody_is_counted() {
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let (near, far, publisher) = (story.connect(0), story.connect(1), story.connect(0));
    story.subscribe(near, "news");
    story.subscribe(far, "news");
    let now = story.now;
    story.shards[1].close_all(CloseCode::GOING_AWAY, "server stops", now);
    story.publish(publisher, "news", b"the last");
    story.shards[0].close_all(CloseCode::GOING_AWAY, "server stops", now);
    story.end_turns();
    assert_eq!(story.hear(near), (vec![b"the last".to_vec()], Some(1001)));
    assert_eq!(story.hear(far), (vec![], Some(1001)));
    assert_eq!(story.counters().dropped_closing, 1);
}

#[test]
fn the_limit_counts_the_subscriptions_that_there_will_be() {
    let mut story = Story::begin(1, ROOMY, OutboxFull::DropNewest);
    let client = story.connect(0);
    let too_many = Err(SubscribeError::TooMany { topics_max: TOPICS_MAX });
    story.reach_in(client, |connection| {
        // What is said twice counts once.
        for topic in ["a", "b", "a", "b", "c", "a"] {
            assert_eq!(connection.subscribe(topic), Ok(()), "{topic}");
        }
        assert_eq!(connection.subscribe("d"), too_many);
    });
    story.reach_in(client, |connection| {
        assert_eq!(connection.subscriptions(), TOPICS_MAX);
        assert_eq!(connection.subscribe("a"), Ok(()));
        assert_eq!(connection.subscribe("d"), too_many);
        connection.unsubscribe("never");
        assert_eq!(connection.subscribe("d"), too_many);
        connection.unsubscribe("b");
        connection.unsubscribe("b");
        assert_eq!(connection.subscribe("d"), Ok(()));
        assert_eq!(connection.subscribe("b"), too_many);
    });
    story.reach_in(client, |connection| assert_eq!(connection.subscriptions(), TOPICS_MAX));
    assert_eq!(["a", "b", "c", "d"].map(|topic| story.registry.intern(topic).subscribers()), [1, 0, 1, 1]);
}

#[test]
fn a_call_may_change_its_mind_about_many_topics() {
    const PAIRS: u32 = 100_000;
    let mut story = Story::begin(1, ROOMY, OutboxFull::DropNewest);
    let client = story.connect(0);
    story.subscribe(client, "kept");
    story.reach_in(client, |connection| {
        for number in 0..PAIRS {
            let topic = number.to_string();
            assert_eq!(connection.subscribe(&topic), Ok(()));
            assert!(connection.is_subscribed(&topic));
            connection.unsubscribe(&topic);
        }
        assert_eq!(connection.subscribe("other"), Ok(()));
        connection.unsubscribe("kept");
        assert_eq!(connection.subscribe("kept"), Ok(()));
        assert!(!connection.is_subscribed("0") && connection.is_subscribed("kept"));
    });
    story.reach_in(client, |connection| {
        assert_eq!(connection.subscriptions(), 2);
        assert!(connection.is_subscribed("other") && connection.is_subscribed("kept"));
    });
    assert!(story.registry.len() < 100, "topics that nobody subscribes to");
}

#[test]
fn a_window_gathers_from_all_shards() {
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let (listener, near, far) = (story.connect(0), story.connect(0), story.connect(1));
    let elsewhere = story.connect(1);
    story.subscribe(listener, "window/news");
    story.subscribe(elsewhere, "window/news");
    story.end_turns();
    for number in 0..50u8 {
        story.publish(near, "window/news", &[0, number]);
        story.publish(far, "window/news", &[1, number]);
        assert_eq!(story.end_turns(), 2, "only the publishers were touched");
    }
    assert_eq!(story.windows.len(), 2, "a window on either shard: {:?}", story.windows);
    for (shard, topic) in std::mem::take(&mut story.windows) {
        story.shards[shard].close_window(topic);
    }
    assert_eq!(story.end_turns(), 2);
    for client in [listener, elsewhere] {
        let (messages, _) = story.hear(client);
        for publisher in 0..2 {
            let heard = messages.iter().filter(|message| message[0] == publisher).map(|message| message[1]);
            assert!(heard.eq(0..50), "{messages:?}");
        }
    }
}

#[test]
fn a_window_takes_in_what_a_whole_turn_has_gathered_elsewhere() {
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let (listener, publisher) = (story.connect(0), story.connect(1));
    story.subscribe(listener, "window/news");
    story.end_turns();
    let payload = |number: u8| [number; 100];
    for numbers in [0..100, 100..200] {
        numbers.for_each(|number| story.publish(publisher, "window/news", &payload(number)));
        assert_eq!(story.end_turns(), 1, "only the publisher was touched");
    }
    for (shard, topic) in std::mem::take(&mut story.windows) {
        story.shards[shard].close_window(topic);
    }
    story.end_turns();
    assert!(story.hear(listener).0.into_iter().eq((0..200).map(payload)));
    // A block is sent when it is full, and does not grow without a limit before.
    (0..100).for_each(|_| {
        (0..=255).for_each(|number| story.publish(publisher, "window/news", &payload(number)));
        story.end_turns();
    });
    let mut blocks = Vec::new();
    while let Output::Send(buffer) = story.shards[0].poll_output(listener) {
        blocks.push(buffer.len());
        let bytes = buffer.len();
        story.shards[0].handle_sent(listener, buffer, bytes);
    }
    assert!(blocks.len() > 10 && blocks.iter().all(|bytes| *bytes < 72 * 1024), "{blocks:?}");
}

#[test]
fn everybody_leaves_many_topics_at_once() {
    let mut story = Story::begin(1, ROOMY, OutboxFull::DropNewest);
    let clients: Vec<_> = (0..10).map(|_| story.connect(0)).collect();
    for (number, client) in clients.iter().enumerate() {
        // Not in the same order, and with gaps.
        for topic in 0..TOPICS_MAX {
            story.subscribe(*client, &format!("topic/{}", (number * 7 + topic * 3) % 4));
        }
        if number % 3 == 0 {
            let first = format!("topic/{}", number * 7 % 4);
            story.reach_in(*client, |connection| connection.unsubscribe(&first));
        }
    }
    let subscribers = |story: &Story| -> usize {
        (0..4).map(|topic| story.registry.intern(&format!("topic/{topic}")).subscribers()).sum()
    };
    let mut left = subscribers(&story);
    assert_eq!(left, 10 * TOPICS_MAX - 4);
    for (number, client) in clients.iter().enumerate() {
        story.shards[0].handle_closed(*client);
        left -= TOPICS_MAX - usize::from(number % 3 == 0);
        assert_eq!(subscribers(&story), left);
        let publisher = story.connect(0);
        (0..4).for_each(|topic| story.publish(publisher, &format!("topic/{topic}"), b"x"));
        story.end_turns();
        let heard: usize = clients[number + 1..].iter().map(|client| story.hear(*client).0.len()).sum();
        assert_eq!(heard, left);
        story.shards[0].handle_closed(publisher);
    }
}

#[test]
fn what_waits_for_room_on_its_way_is_not_for_newcomers() {
    const COUNT: u16 = 1500;
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let (listener, newcomer, publisher) = (story.connect(1), story.connect(1), story.connect(0));
    // Each in an envelope of its own: more than a ring holds.
    story.subscribe(listener, "latest/news");
    (0..COUNT).for_each(|number| story.publish(publisher, "latest/news", &number.to_be_bytes()));
    assert!(story.shards[0].flush_topics(), "there is room for all");
    story.subscribe(newcomer, "latest/news");
    story.end_turns();
    assert_eq!(story.hear(newcomer).0.len(), 0);
    story.publish(publisher, "latest/news", b"new");
    story.end_turns();
    assert_eq!(story.hear(newcomer).0, [b"new"]);
    let old = (0..COUNT).map(|number| number.to_be_bytes().to_vec());
    assert!(story.hear(listener).0.into_iter().eq(old.chain([b"new".to_vec()])));
    assert_eq!(story.counters().envelopes_refused, 0);
}

#[test]
fn a_snapshot_of_many_keys_reaches_other_shards_whole() {
    const KEYS: u64 = 20_000;
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let (far, publisher) = (story.connect(1), story.connect(0));
    story.subscribe(far, "latest/news");
    story.publish_snapshot(publisher, "latest/news", KEYS);
    story.end_turns();
    let (messages, _) = story.hear(far);
    assert!(messages.into_iter().eq((0..KEYS).map(|key| key.to_be_bytes().to_vec())));
    assert_eq!(story.counters().envelopes_refused, 0);
}

#[test]
fn what_a_full_mesh_refuses_is_counted() {
    // By bytes: 64 MiB, headers of frames included, are on the way at most.
    const COUNT: u8 = 70;
    let mut story = Story::begin(2, 100 * ROOMY, OutboxFull::DropNewest);
    let (near, far, publisher) = (story.connect(0), story.connect(1), story.connect(0));
    story.subscribe(near, "news");
    story.subscribe(far, "news");
    let payload = |number: u8| vec![number; ROOMY];
    for number in 0..COUNT {
        story.publish(publisher, "news", &payload(number));
        // The other shard does nothing all the while.
        story.shards[0].flush_topics();
        assert_eq!(story.hear(near).0, [payload(number)]);
    }
    assert_eq!(story.counters().envelopes_refused, u64::from(COUNT) - 63);
    story.end_turns();
    assert!(story.hear(far).0.into_iter().eq((0..63).map(payload)));
    // It goes on with the next.
    story.publish(publisher, "news", b"next");
    story.end_turns();
    assert_eq!((story.hear(near).0, story.hear(far).0), (vec![b"next".to_vec()], vec![b"next".to_vec()]));
}

#[test]
fn what_is_on_its_way_when_a_shard_ends_is_counted() {
    const KEYS: u64 = 5000;
    let mut story = Story::begin(2, ROOMY, OutboxFull::DropNewest);
    let (far, publisher) = (story.connect(1), story.connect(0));
    story.subscribe(far, "latest/news");
    story.publish_snapshot(publisher, "latest/news", KEYS);
    // The other shard does nothing all the while: a ring's worth is on its way to it.
    assert!(story.shards[0].flush_topics());
    story.shards[0].abandon_staged();
    let refused = story.counters().envelopes_refused;
    assert!(refused > 0 && refused < KEYS, "{refused}");
    story.end_turns();
    assert_eq!(story.hear(far).0.len() as u64, KEYS - refused);
    // Nobody misses what nobody subscribes to any more.
    story.publish_snapshot(publisher, "latest/news", KEYS);
    story.shards[0].flush_topics();
    story.shards[1].handle_closed(far);
    story.shards[0].abandon_staged();
    assert_eq!(story.counters().envelopes_refused, refused);
}

#[test]
fn a_full_outbox_conflates_wherever_its_high_mark_is() {
    for full in [OutboxFull::DropNewest, OutboxFull::DropOldest, OutboxFull::Close(CloseCode::NORMAL)] {
        // Two frames.
        let outbox = OutboxLimits { bytes_max: 20, bytes_high: 20, bytes_low: 20, full };
        let mut story = Story::begin_with(1, outbox);
        let (publisher, listener) = (story.connect(0), story.connect(0));
        story.subscribe(listener, "latest/prices");
        for (key, value) in [(1, b"old, one"), (2, b"the  two"), (1, b"new, one")] {
            story.publish_value(publisher, "latest/prices", key, value);
        }
        assert_eq!(story.counters().conflated, 1, "{full:?}");
        let (heard, _) = story.hear(listener);
        assert_eq!(heard, [b"new, one", b"the  two"], "{full:?}");
    }
}

#[test]
fn a_connection_has_its_own_policy_where_a_topic_has_none() {
    let mut story = Story::begin(1, 40, OutboxFull::Close(CloseCode::NORMAL));
    let (publisher, plain) = (story.connect(0), story.connect(0));
    let (newest, oldest) = (story.connect(0), story.connect(0));
    story.reach_in(newest, |connection| connection.set_outbox_full(OutboxFull::DropNewest));
    story.reach_in(oldest, |connection| connection.set_outbox_full(OutboxFull::DropOldest));
    for topic in ["news", "oldest/news"] {
        for listener in [plain, newest, oldest] {
            story.subscribe(listener, topic);
        }
    }
    let publish = |story: &mut Story, topic, numbers: std::ops::Range<u8>| {
        for number in numbers {
            story.publish(publisher, topic, &[number; 8]);
            story.end_turns();
        }
    };
    // Four frames of ten bytes fit.
    publish(&mut story, "oldest/news", 0..6);
    for listener in [plain, newest, oldest] {
        assert_eq!(story.hear(listener).0, [2, 3, 4, 5].map(|number| [number; 8]), "the topic's policy");
    }
    publish(&mut story, "news", 0..6);
    assert_eq!(story.hear(newest).0, [0, 1, 2, 3].map(|number| [number; 8]));
    assert_eq!(story.hear(oldest).0, [2, 3, 4, 5].map(|number| [number; 8]));
    let (heard, closed) = story.hear(plain);
    assert_eq!((heard.len(), closed), (0, Some(1000)));
    // What is sent to it alone meets the same policy.
    let mut statuses = Vec::new();
    story.reach_in(newest, |connection| {
        statuses = (0..5).map(|number| connection.send(&[number; 8])).collect();
        assert_eq!(connection.drops().newest, 3);
    });
    assert_eq!((statuses[4], statuses[3].is_sent()), (SendStatus::Dropped, true));
}

#[test]
fn drops_are_told_with_the_next_tick() {
    let mut story = Story::begin(2, 40, OutboxFull::DropNewest);
    let (slow, gone, publisher) = (story.connect(0), story.connect(0), story.connect(1));
    for listener in [slow, gone] {
        story.subscribe(listener, "news");
    }
    // Four frames of ten bytes fit.
    (0..6).for_each(|number| story.publish(publisher, "news", &[number; 8]));
    story.end_turns();
    story.shards[0].handle_closed(gone);
    assert!(story.shards[0].handler().told_drops.is_empty());
    assert_eq!(story.tick(0), [(slow, 2)]);
    // What it sent in answer was dropped as well.
    assert_eq!(story.tick(0), [(slow, 3)]);
    assert_eq!(story.hear(slow).0.len(), 4);
    assert_eq!(story.tick(0), [(slow, 4)]);
    assert_eq!(story.hear(slow).0, [b"missed"]);
    assert_eq!(story.tick(0), []);
    // A value that is replaced counts as well, and what it sends itself.
    story.subscribe(slow, "latest/news");
    (0..4).for_each(|_| story.publish_value(publisher, "latest/news", 0, &[1; 28]));
    story.reach_in(slow, |connection| assert_eq!(connection.send(&[0; 50]), SendStatus::Dropped));
    assert_eq!(story.tick(0), [(slow, 8)]);
    assert_eq!(story.hear(slow).0, [&[1; 28][..], b"missed"]);
    assert_eq!(story.tick(1), []);
}

#[test]
fn a_name_that_no_topic_can_have_is_not_kept() {
    let mut story = Story::begin(1, ROOMY, OutboxFull::DropNewest);
    let client = story.connect(0);
    let known = story.registry.len();
    for name in [String::new(), "x".repeat(101), "x".repeat(1 << 20)] {
        story.reach_in(client, |connection| {
            assert_eq!(connection.publish(&name, "nobody"), PublishStatus::NoSubscribers);
        });
    }
    assert_eq!(story.registry.len(), known);
    assert_eq!(story.counters().publications, 3);
}
