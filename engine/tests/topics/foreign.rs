//! Threads that publish through handles while connections come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use ringwire::{Driver, EngineHandle};

use crate::{
    client::{Client, Received},
    commands::{Topics, config, subscribe},
};

on_both_drivers!(foreign_threads_keep_their_order_while_connections_come_and_go);

const THREADS: usize = 8;
const ROUNDS: usize = 12;

/// How many publications a thread has begun, and how many have returned.
#[derive(Default)]
struct Progress {
    begun: AtomicU64,
    done: AtomicU64,
}

type All = Arc<[Progress; THREADS]>;

fn publish(handle: &EngineHandle, thread: usize, progress: &All, stop: &AtomicBool) {
    let topic = handle.topic("news");
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let text = format!("{thread} {number}");
        progress[thread].begun.store(number + 1, Ordering::SeqCst);
        // Both ways by turns: they are one publisher.
        let published = if number % 2 == 0 { topic.publish(&text) } else { handle.publish("news", &text) };
        published.expect("room in the inboxes");
        number += 1;
        progress[thread].done.store(number, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(1));
    }
}

/// What one subscriber has heard of each thread: the number that has to come next.
#[derive(Default)]
struct Heard([Option<u64>; THREADS]);

impl Heard {
    fn hear(&mut self, text: &str, allowed: impl Fn(usize) -> std::ops::RangeInclusive<u64>) {
        let (thread, number) = text.split_once(' ').expect("two numbers");
        let thread: usize = thread.parse().expect("a thread");
        let number: u64 = number.parse().expect("a number");
        match self.0[thread] {
            Some(next) => assert_eq!(number, next, "of thread {thread}"),
            None => {
                let allowed = allowed(thread);
                assert!(allowed.contains(&number), "first {number} of thread {thread}, not in {allowed:?}");
            }
        }
        self.0[thread] = Some(number + 1);
    }

    fn has(&self, goal: &[u64; THREADS]) -> bool {
        self.0.iter().zip(goal).all(|(next, goal)| next.is_some_and(|next| next >= *goal))
    }
}

fn values(progress: &All, value: impl Fn(&Progress) -> u64) -> [u64; THREADS] {
    std::array::from_fn(|thread| value(&progress[thread]))
}

/// Subscribes, hears a while and leaves, again and again.
fn come_and_go(connect: impl Fn() -> Client, progress: &All) {
    for round in 0..ROUNDS {
        let mut client = connect();
        let mut heard = Heard::default();
        // Published before the subscription was asked for: not for it.
        let first_min = values(progress, |progress| progress.done.load(Ordering::SeqCst));
        subscribe(&mut client, "news");
        // Begun after the acknowledgement: for it.
        let first_max = values(progress, |progress| progress.begun.load(Ordering::SeqCst));
        let allowed = |thread: usize| first_min[thread]..=first_max[thread];
        thread::sleep(Duration::from_millis(10));
        let goal = values(progress, |progress| progress.begun.load(Ordering::SeqCst) + 1);
        while !heard.has(&goal) {
            heard.hear(&client.receive_text(), allowed);
        }
        if round % 4 == 3 {
            client.reset();
            continue;
        }
        client.send(ringwire::protocol::OpCode::Close, &1000u16.to_be_bytes());
        loop {
            match client.receive() {
                Received::Text(text) => heard.hear(&text, allowed),
                close => break assert_eq!(close.close_code(), Some(1000)),
            }
        }
        client.receive_end();
    }
}

fn foreign_threads_keep_their_order_while_connections_come_and_go(driver: Driver) {
    let topics = Topics::start(config(driver));
    let mut listeners = [topics.connect_on(0), topics.connect_on(1)];
    listeners.iter_mut().for_each(|client| subscribe(client, "news"));
    let progress = All::default();
    let stop = AtomicBool::new(false);
    let address = topics.server.address;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (handle, progress, stop) = (&topics.server.handle, &progress, &stop);
            scope.spawn(move || publish(handle, thread, progress, stop));
        }
        let comers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| come_and_go(|| Client::connect(address), &progress)))
            .chain(listeners.iter_mut().map(|client| scope.spawn(|| listen(client, &progress, &stop))))
            .collect();
        let mut ended = comers.into_iter();
        let results: Vec<_> = ended.by_ref().take(4).map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::SeqCst);
        results.into_iter().chain(ended.map(thread::ScopedJoinHandle::join)).for_each(|result| {
            result.expect("a subscriber heard what it had to");
        });
    });
    assert_eq!(topics.server.counters().dropped_by_close, 0);
    drop(listeners);
    topics.wait_for_subscribers("news", 0);
}

/// Hears everything from the first to the last.
fn listen(client: &mut Client, progress: &All, stop: &AtomicBool) {
    let mut heard = Heard::default();
    let mut total = 0;
    loop {
        match client.receive_within(Duration::from_millis(50)) {
            Some(Received::Text(text)) => {
                heard.hear(&text, |_| 0..=0);
                total += 1;
            }
            Some(other) => panic!("{other:?}"),
            None => {
                let goal = values(progress, |progress| progress.begun.load(Ordering::SeqCst));
                let done = values(progress, |progress| progress.done.load(Ordering::SeqCst));
                if stop.load(Ordering::SeqCst) && goal == done && heard.has(&goal) {
                    return assert_eq!(total, goal.iter().sum::<u64>());
                }
            }
        }
    }
}
