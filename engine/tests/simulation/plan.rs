//! What a seed decides before anything happens: limits, timeouts, and which misfortunes there are at all.
//! Leaving most of them out lets the others get further.

use std::time::Duration;

use ringwire::{
    CloseCode, Conflation, OutboxFull, TopicRules, TopicSettings,
    connection::{OutboxLimits, Settings, Timeouts},
    protocol::Limits,
};

use crate::{
    publications::{CONFLATING, TOPICS},
    random::Random,
};

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) shards: usize,
    /// Connections that a shard takes.
    pub(crate) connections_max: usize,
    /// Clients over the whole run.
    pub(crate) clients: usize,
    pub(crate) steps: usize,
    /// How likely a socket has no room: then a send is in flight for a while.
    pub(crate) full_socket: usize,
    /// The largest message of a handler's own.
    pub(crate) sent_bytes_max: usize,
    /// The largest message of a well-behaved client's.
    pub(crate) uploaded_bytes_max: usize,
    /// Most messages are so large that they are relayed from where they were received.
    pub(crate) is_bulk: bool,
    /// The topics that are used.
    pub(crate) topics: Vec<usize>,
    /// How likely a turn ends behind a step, in percent.
    pub(crate) turn_ends: usize,
    /// The longest time between two looks at the clock.
    pub(crate) pause_millis_max: usize,
    pub(crate) odds: Odds,
}

/// How often things happen, in percent of their occasions.
#[derive(Clone, Debug)]
pub(crate) struct Odds {
    pub(crate) echo: usize,
    pub(crate) send: usize,
    pub(crate) pause: usize,
    pub(crate) subscribe: usize,
    pub(crate) publish: usize,
    /// More publications at once than a ring of the mesh holds.
    pub(crate) storm: usize,
    /// Of publications by a thread outside the shards.
    pub(crate) outside: usize,
    pub(crate) user_ping: usize,
    /// Of pings on either side: they come by the dozen.
    pub(crate) ping_flood: usize,
    pub(crate) handler_close: usize,
    pub(crate) handler_abort: usize,
    pub(crate) panic: usize,
    pub(crate) spawn: usize,
    pub(crate) defer: usize,
    pub(crate) never_decide: usize,
    pub(crate) reject: usize,
    pub(crate) bad_request: usize,
    pub(crate) client_close: usize,
    pub(crate) client_ping: usize,
    pub(crate) broken_frame: usize,
    pub(crate) half_close: usize,
    pub(crate) reset: usize,
    /// Clients that never read.
    pub(crate) deaf: usize,
    /// Clients that never answer a ping or a close frame.
    pub(crate) mute: usize,
    pub(crate) clock_jump: usize,
    pub(crate) close_all: usize,
    pub(crate) abort_all: usize,
}

impl Plan {
    pub(crate) fn new(random: &Random) -> Self {
        let settings = settings(random);
        let mut plan = Self {
            settings,
            shards: random.within(1, 3),
            connections_max: if random.chance(15) { random.within(1, 3) } else { 100 },
            clients: random.within(1, 6),
            steps: random.within(100, 1000),
            full_socket: *random.one_of(&[2, 10, 60]),
            sent_bytes_max: if random.chance(50) { 100 * 1024 } else { settings.outbox.bytes_max / 2 },
            uploaded_bytes_max: settings.message.message_bytes_max,
            is_bulk: random.chance(30),
            pause_millis_max: *random.one_of(&[150, 150, 1000, 5000]),
            topics: (0..random.within(1, TOPICS)).map(|_| random.below(TOPICS)).collect(),
            turn_ends: *random.one_of(&[100, 60, 20, 3]),
            odds: odds(random),
        };
        if plan.odds.storm > 0 {
            // A full ring is rare enough: there are to be others to notice.
            plan.shards = 2;
            plan.topics = vec![CONFLATING, CONFLATING, 0];
            plan.odds.subscribe = random.within(20, 60);
            plan.odds.publish = random.within(1, 40);
            plan.turn_ends = *random.one_of(&[3, 10]);
        }
        plan
    }

    /// The size of a message: mostly small, at times beyond every buffer.
    pub(crate) fn message_bytes(&self, random: &Random, most: usize) -> usize {
        let size = match random.below(100) {
            0..=69 if self.is_bulk => random.within(4096, 12_000),
            0..=4 => 0,
            5..=39 => random.within(1, 130),
            40..=69 => random.within(100, 2000),
            70..=89 => random.within(2000, 9000),
            90..=97 => random.within(4000, 20_000),
            _ => random.within(60_000, 100 * 1024),
        };
        size.min(most)
    }
}

fn settings(random: &Random) -> Settings {
    let message_bytes_max = *random.one_of(&[200, 5000, 20_000, 100 * 1024]);
    let bytes_max = *random.one_of(&[300, 5000, 30_000, 200_000, 1 << 20]);
    let bytes_high = random.within(0, bytes_max);
    let policies =
        [OutboxFull::Close(CloseCode::TRY_AGAIN_LATER), OutboxFull::DropNewest, OutboxFull::DropOldest];
    let full = *random.one_of(&policies);
    let millis = |first, last| Duration::from_millis(random.within(first, last) as u64);
    let some = |percent, first, last| random.chance(percent).then(|| millis(first, last));
    Settings {
        message: Limits { message_bytes_max, fragments_max: random.within(2, 40) as u32 },
        header_bytes_max: 1024,
        outbox: OutboxLimits { bytes_max, bytes_high, bytes_low: random.within(0, bytes_high), full },
        timeouts: Timeouts {
            handshake: millis(500, 10_000),
            idle: some(30, 1000, 100_000),
            ping_interval: some(50, 300, 30_000),
            pong: millis(300, 10_000),
            close: millis(300, 5000),
            lifetime: some(20, 3000, 100_000),
            lifetime_jitter: millis(0, 2000),
        },
    }
}

/// What becomes of subscribers who do not keep up, topic by topic.
pub(crate) fn topic_rules() -> TopicRules {
    TopicRules::new(|name| {
        let mut settings = TopicSettings::default();
        match name.strip_prefix("topic/").and_then(|topic| topic.parse().ok()) {
            Some(1) => settings.full = Some(OutboxFull::DropOldest),
            Some(CONFLATING) => settings.conflation = Conflation::Latest,
            Some(3) => settings.window = Some(WINDOW),
            Some(4) => settings.full = Some(OutboxFull::DropNewest),
            _ => {}
        }
        settings
    })
}

/// How long publications to some topics are gathered.
pub(crate) const WINDOW: Duration = Duration::from_millis(30);

fn odds(random: &Random) -> Odds {
    let some = |percent, most| if random.chance(percent) { random.within(1, most) } else { 0 };
    Odds {
        echo: some(70, 100),
        send: some(80, 60),
        pause: some(40, 20),
        subscribe: some(50, 40),
        publish: some(50, 50),
        storm: some(8, 5),
        outside: some(50, 100),
        user_ping: some(30, 20),
        ping_flood: some(30, 50),
        handler_close: some(25, 10),
        handler_abort: some(10, 5),
        panic: some(15, 3),
        spawn: some(20, 10),
        defer: some(40, 100),
        never_decide: some(30, 50),
        reject: some(20, 30),
        bad_request: some(20, 30),
        client_close: some(40, 10),
        client_ping: some(60, 30),
        broken_frame: some(20, 5),
        half_close: some(15, 3),
        reset: some(15, 3),
        deaf: some(20, 50),
        mute: some(15, 50),
        clock_jump: some(25, 10),
        close_all: some(10, 1),
        abort_all: some(5, 1),
    }
}
