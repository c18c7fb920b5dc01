//! Topics in the script: what was published, and who may hear it.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use ringwire::{Conflation, Connection, ConnectionId, Message, OutboxFull, TopicRules, TopicSettings};

/// Subscriptions of one connection.
pub(super) const TOPICS_MAX: usize = 3;
const TOPICS: u8 = 5;
const DROPS_OLDEST: u8 = 1;
const CONFLATES: u8 = 2;
const GATHERS: u8 = 3;
/// Begins every publication; its number follows.
const MAGIC: [u8; 2] = [0xff, b'p'];

/// Everything that was published, and every subscription that was made.
#[derive(Debug, Default)]
pub(super) struct Publications {
    published: Vec<Published>,
    /// How many had been published when last all turns had ended.
    settled: usize,
    /// From which publication on a connection may hear a topic.
    since: HashMap<(ConnectionId, u8), usize>,
}

#[derive(Debug)]
struct Published {
    publisher: ConnectionId,
    topic: u8,
    key: u64,
    hears_itself: bool,
    bytes: Vec<u8>,
}

/// What a peer got.
pub(super) struct Heard;

impl Heard {
    pub(super) fn is_publication(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }
}

pub(super) fn topic_rules() -> TopicRules {
    TopicRules::new(|name| {
        let mut settings = TopicSettings::default();
        match name.as_bytes()[0] - b'0' {
            DROPS_OLDEST => settings.full = Some(OutboxFull::DropOldest),
            CONFLATES => settings.conflation = Conflation::Latest,
            GATHERS => settings.window = Some(Duration::from_millis(1)),
            _ => {}
        }
        settings
    })
}

impl Publications {
    /// A command: what to do, with which topic, and what to publish.
    pub(super) fn obey(&mut self, connection: &mut Connection<'_, ()>, command: &[u8]) {
        let topic = command.get(1).map_or(0, |topic| topic % TOPICS);
        let name = char::from(b'0' + topic).to_string();
        let id = connection.id();
        match command[0] {
            b'S' => {
                if connection.subscribe(&name).is_ok() {
                    self.since.entry((id, topic)).or_insert(self.settled);
                }
                return;
            }
            b'U' => return connection.unsubscribe(&name),
            _ => {}
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(self.published.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&command[1..]);
        let key = if topic == CONFLATES { u64::from(command.len() as u8 % 3) } else { 0 };
        let message = Message::Binary(&bytes);
        let hears_itself = command[0] == b'A' && topic != CONFLATES;
        if topic == CONFLATES {
            connection.publish_keyed(&name, key, message);
        } else if hears_itself {
            connection.publish_to_all(&name, message);
        } else {
            connection.publish(&name, message);
        }
        self.published.push(Published { publisher: id, topic, key, hears_itself, bytes });
    }

    /// All that was published is on its way.
    pub(super) fn turns_ended(&mut self) {
        self.settled = self.published.len();
    }

    /// A topic of this connection's may drop what was sent otherwise.
    pub(super) fn drops_oldest(&self, id: ConnectionId) -> bool {
        self.since.contains_key(&(id, DROPS_OLDEST))
    }

    /// What a peer has heard is what it was to hear, in order and once.
    pub(super) fn check<'a>(&self, id: ConnectionId, heard: impl Iterator<Item = &'a [u8]>) {
        let mut last: HashMap<(u8, usize, u64), usize> = HashMap::new();
        let mut numbers = BTreeSet::new();
        for bytes in heard {
            let number = bytes[2..6].try_into().map(u32::from_le_bytes).expect("a number") as usize;
            let published = self.published.get(number).expect("it was published");
            assert_eq!(published.bytes, bytes, "not as it was published");
            assert!(published.publisher != id || published.hears_itself, "a publisher hears itself");
            let since = self.since.get(&(id, published.topic)).expect("a subscription");
            assert!(number >= *since, "published before the subscription");
            assert!(numbers.insert(number), "heard twice");
            let stream = (published.topic, published.publisher.shard(), published.key);
            let before = last.insert(stream, number);
            assert!(before < Some(number), "{number} of {stream:?} is heard behind {before:?}");
        }
    }
}
