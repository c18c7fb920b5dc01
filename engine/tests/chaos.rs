//! A thousand subscribers that come and go, of whom one in a hundred never reads: the others get everything,
//! and memory stays within what the limits say.
//!
//! One test, because the memory is that of the whole process. Nothing here measures speed.

#[path = "integration/client.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod client;
#[path = "integration/script.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod script;
#[path = "integration/server.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod server;

use std::{alloc::System, sync::mpsc, time::Instant};

use client::{Client, eventually};
use ringwire::{Config, Connection, Cores, Driver, Handler, Message, OutboxFull, Upgrade, UpgradeRequest};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::{Server, collect, run};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const OUTBOX_BYTES: usize = 128 * 1024;
/// Of each batch, what its messages have besides their number.
const FILLERS: [usize; 6] = [100, 5000, 100, 30_000, 100, 100];
/// What an entry of a queue takes besides the bytes of a publication.
const ENTRY_BYTES: usize = 64;
/// Buffers of either side that happen to be in use, and what allocators and maps grow by leaps.
const SLACK_BYTES: usize = 1024 * 1024;

#[test]
fn a_thousand_subscribers_stay_within_the_limits() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit");
    for driver in [Driver::IoUring, Driver::Epoll] {
        run(driver, |driver| {
            for full in [OutboxFull::DropNewest, OutboxFull::DropOldest] {
                those_who_never_read_take_what_they_may(driver, full);
            }
            memory_stays_where_it_is(driver);
        });
    }
}

/// Subscribes everybody. What a client sends is the name of a topic to visit for a moment; those who ask for
/// one topic stay, and are told past their outbox how much they have missed.
struct Subscribers(mpsc::Sender<u64>);

/// The topic of those who never read.
const FULL: &str = "full";

impl Handler for Subscribers {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        connection.subscribe("news").expect("below the limit");
        let _ = connection.send("subscribed");
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        let Message::Text(topic) = message else { panic!("a topic is a text") };
        if topic == FULL {
            connection.subscribe(FULL).expect("below the limit");
            return self.0.send(connection.drops().total()).expect("the test listens");
        }
        connection.subscribe(topic).expect("below the limit");
        connection.publish(topic, "nobody is there");
        connection.unsubscribe(topic);
        let _ = connection.send("seen");
    }
}

struct Crowd {
    server: Server,
    told: mpsc::Receiver<u64>,
    readers: Vec<Client>,
    published: usize,
    /// Spread the leaving over the readers.
    turns: usize,
}

fn live_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// What the process has in memory. Only the first run begins with an allocator that has nothing to spare:
/// what it keeps from that one hides as much growth in those that follow, where the bytes given out tell
/// more.
fn resident_bytes() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("procfs");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("the resident set");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

fn subscribed(mut client: Client) -> Client {
    assert_eq!(client.receive_text(), "subscribed");
    client
}

impl Crowd {
    fn gather(driver: Driver, wanted: usize, full: OutboxFull) -> Self {
        let mut config = Config::new(([127, 0, 0, 1], 0).into());
        config.driver = driver;
        config.cores = Cores::Count(2);
        config.outbox_bytes_max = OUTBOX_BYTES;
        config.outbox_bytes_high = OUTBOX_BYTES / 2;
        config.outbox_bytes_low = OUTBOX_BYTES / 4;
        config.outbox_full = full;
        // Those who never read would be taken for lost.
        config.ping_interval = None;
        let (tell, told) = mpsc::channel();
        let server = Server::start(config, move |_| Subscribers(tell.clone()));
        // Both ends are in this process.
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) as usize;
        let count = wanted.min((allowed - 100) / 2);
        println!("{driver:?}: {count} subscribers");
        let readers = (0..count).map(|_| subscribed(server.connect())).collect();
        Self { server, told, readers, published: 0, turns: 0 }
    }

    /// Publishes a batch that every reader gets, whole and in order.
    fn publish(&mut self) {
        let texts: Vec<String> = FILLERS
            .iter()
            .enumerate()
            .map(|(number, filler)| format!("{:08}{}", self.published + number, "x".repeat(*filler)))
            .collect();
        for text in &texts {
            self.server.handle.publish("news", text).expect("room");
        }
        self.published += texts.len();
        for client in &mut self.readers {
            for text in &texts {
                assert!(client.receive_text() == *text, "not message {}", &text[..8]);
            }
        }
    }

    /// Some leave in different ways, and as many come.
    fn mingle(&mut self) {
        for _ in 0..5 {
            self.turns += 1;
            let place = self.turns * 7919 % self.readers.len();
            let newcomer = subscribed(self.server.connect());
            let leaver = std::mem::replace(&mut self.readers[place], newcomer);
            match self.turns % 3 {
                0 => leaver.close(),
                1 => leaver.reset(),
                _ => drop(leaver),
            }
            let place = self.turns * 104_729 % self.readers.len();
            self.readers[place].send_text(&format!("visit/{}", self.turns));
            assert_eq!(self.readers[place].receive_text(), "seen");
        }
    }

    /// How many messages a client that need not read has missed.
    fn dropped(&self, client: &mut Client) -> u64 {
        client.send_text(FULL);
        collect(&self.told, 1)[0]
    }

    fn wait_for(&self, subscribers: usize) {
        eventually("the right number", || self.server.handle.subscribers("news") == subscribers);
    }
}

fn those_who_never_read_take_what_they_may(driver: Driver, full: OutboxFull) {
    let mut crowd = Crowd::gather(driver, 990, full);
    for _ in 0..3 {
        crowd.mingle();
        crowd.publish();
    }
    crowd.wait_for(crowd.readers.len());
    let before = (live_bytes(), resident_bytes());
    let address = crowd.server.address;
    let mut stalled: Vec<Client> =
        (0..crowd.readers.len() / 99).map(|_| subscribed(Client::connect_narrow(address, 4096))).collect();
    let messages_max = OUTBOX_BYTES / (FILLERS.iter().sum::<usize>() / FILLERS.len());
    // A queue doubles, so half of its entries may be empty; frames that were parted from others may stand in
    // buffers that are half empty as well.
    let each = 2 * (OUTBOX_BYTES + 4096) + 2 * messages_max.max(OUTBOX_BYTES / 100) * ENTRY_BYTES;
    let bound = stalled.len() * each + SLACK_BYTES;
    let mut most = (0, 0);
    let mut check = |crowd: &Crowd| {
        let grown = live_bytes().saturating_sub(before.0);
        let resident = resident_bytes().saturating_sub(before.1);
        most = (most.0.max(grown), most.1.max(resident));
        assert!(
            grown <= bound && resident <= bound,
            "{grown} bytes more for those who never read, {resident} resident, {bound} allowed"
        );
        assert_eq!(crowd.server.counters().dropped_by_close, 0);
    };
    // Their sockets are filled by what is for them alone; each has dropped something in the end.
    let filler = "x".repeat(30_000);
    let mut fillings = 0;
    while stalled.iter_mut().any(|client| crowd.dropped(client) == 0) {
        fillings += 1;
        assert!(fillings < 2000, "the stalled were never full");
        for _ in 0..20 {
            crowd.server.handle.publish(FULL, &filler).expect("room");
        }
        check(&crowd);
    }
    for _ in 0..3 {
        crowd.mingle();
        crowd.publish();
        check(&crowd);
    }
    println!(
        "{driver:?}, {full:?}: {fillings} times twenty fillings, {} bytes more at most, {} resident, {bound} \
         allowed",
        most.0, most.1
    );
    let counters = crowd.server.counters();
    assert_eq!((counters.closed_outbox_full, counters.envelopes_refused), (0, 0));
    match full {
        OutboxFull::DropOldest => assert!(counters.dropped_oldest > 0),
        _ => assert_eq!(counters.dropped_oldest, 0),
    }
    crowd.wait_for(crowd.readers.len() + stalled.len());
    drop(stalled);
    crowd.wait_for(crowd.readers.len());
    crowd.publish();
}

/// The same for longer, with fewer, after it has been everything it will be. `RINGWIRE_SOAK_ROUNDS` makes it
/// as long as one likes.
fn memory_stays_where_it_is(driver: Driver) {
    let mut crowd = Crowd::gather(driver, 40, OutboxFull::DropNewest);
    let rounds = |crowd: &mut Crowd, count: usize| {
        for _ in 0..count {
            crowd.mingle();
            crowd.publish();
        }
        crowd.wait_for(crowd.readers.len());
        let connections = crowd.readers.len() as u64;
        eventually("closed sockets", || crowd.server.counters().connections_current == connections);
        (live_bytes(), resident_bytes())
    };
    let warm = rounds(&mut crowd, 20);
    let count = std::env::var("RINGWIRE_SOAK_ROUNDS").map_or(60, |count| count.parse().expect("a number"));
    let start = Instant::now();
    let end = rounds(&mut crowd, count);
    let (grown, resident) = (end.0.saturating_sub(warm.0), end.1.saturating_sub(warm.1));
    let seconds = start.elapsed().as_secs();
    println!(
        "{driver:?}: {} bytes in use, {grown} more after {count} rounds in {seconds} s, {resident} resident",
        warm.0
    );
    let told = format!("{grown} bytes more, {resident} resident, after {} connections and topics", 5 * count);
    assert!(grown < SLACK_BYTES / 4 && resident < SLACK_BYTES, "{told}");
}
