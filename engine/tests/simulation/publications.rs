//! What must be true of topics: who is to hear which publication, and in which order (`docs/order.md`).
//!
//! A publication says which one it is. For every listener, topic and publishing shard, or the one thread
//! outside the shards, a queue has what is to come. What *must* come was published while the subscription was
//! in effect; what *may* come was published in a turn that had not ended when the subscription began, or had
//! not been heard when it ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringwire::{PublishStatus, SubscribeError};

use crate::{
    content::Content,
    model::{Model, NOBODY},
};

/// Everything that was published.
#[derive(Debug, Default)]
pub(crate) struct Publications {
    published: Vec<Publication>,
    /// By shard: what was published in the turn that has not ended yet.
    this_turn: BTreeMap<usize, Vec<usize>>,
}

#[derive(Clone, Copy, Debug)]
struct Publication {
    stream: Stream,
    /// The publisher, if it is not to hear itself.
    excluded: Option<usize>,
    length: usize,
}

/// Publications of one stream are heard in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stream {
    topic: usize,
    shard: usize,
    /// Of a topic that conflates; 0 with all others.
    key: u64,
}

/// What one client hears of topics.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    /// The subscriptions in effect.
    topics: BTreeSet<usize>,
    /// Made in a call of the handler that has not returned: subscribed or not any more.
    intents: Vec<(usize, bool)>,
    expected: BTreeMap<Stream, VecDeque<Expected>>,
    /// What must have come, and was passed over by what came instead.
    missed: u64,
    /// What did not come, and need not have.
    excused: u64,
    pub(crate) ever: bool,
}

#[derive(Clone, Copy, Debug)]
struct Expected {
    publication: usize,
    must: bool,
}

/// How many topics there are. What becomes of a subscriber whose outbox is full differs: see the plan.
pub(crate) const TOPICS: usize = 6;
/// The topic that conflates.
pub(crate) const CONFLATING: usize = 2;
/// In place of a shard, where a thread outside the shards publishes.
pub(crate) const OUTSIDE: usize = 3;
/// Tells publications from other messages.
const MAGIC: &[u8; 8] = b"\xFFpublish";
const HEAD_BYTES: usize = MAGIC.len() + 8;

pub(crate) fn topic_name(topic: usize) -> String {
    format!("topic/{topic}")
}

impl Listener {
    /// Of what must come, how much has not: at least, and at most.
    pub(crate) fn unheard(&self) -> (u64, u64) {
        let (mut least, mut most) = (self.missed, self.missed + self.excused);
        for queue in self.expected.values() {
            least += queue.iter().filter(|expected| expected.must).count() as u64;
            most += queue.len() as u64;
        }
        (least, most)
    }

    pub(crate) fn subscriptions(&self) -> usize {
        self.topics.len()
    }

    /// From now on nothing must come any more: the connection is closing, or has unsubscribed.
    fn excuse(&mut self, which: impl Fn(usize) -> bool) {
        for (_, queue) in self.expected.iter_mut().filter(|(stream, _)| which(stream.topic)) {
            queue.iter_mut().for_each(|expected| expected.must = false);
        }
    }
}

impl Model {
    /// The payload of the next publication.
    pub(crate) fn next_publication(&self, length: usize) -> Vec<u8> {
        let number = self.publications.published.len();
        let mut payload = MAGIC.to_vec();
        payload.extend_from_slice(&(number as u64).to_le_bytes());
        let filler = length.saturating_sub(HEAD_BYTES);
        payload.extend_from_slice(Content::numbered(number, filler).bytes);
        payload
    }

    /// A handler of `shard`, or somebody [`OUTSIDE`], published this payload; `excluded` is its connection if
    /// it is not to hear itself.
    pub(crate) fn published(
        &mut self,
        shard: usize,
        topic: usize,
        key: u64,
        excluded: Option<usize>,
        length: usize,
        status: PublishStatus,
    ) {
        let number = self.publications.published.len();
        self.narrate(|| {
            format!("shard {shard}: publication {number} to {topic}, {length} bytes: {status:?}")
        });
        if shard == OUTSIDE {
            self.tally.publications_outside += 1;
        } else {
            self.tally.publications += 1;
        }
        let stream = Stream { topic, shard, key: if topic == CONFLATING { key } else { 0 } };
        let publications = &mut self.publications;
        publications.published.push(Publication { stream, excluded, length });
        // From outside there are no turns: it is on its way at once.
        if status == PublishStatus::Published && shard != OUTSIDE {
            publications.this_turn.entry(shard).or_default().push(number);
        }
        let mut listened = false;
        for (peer, record) in self.records.iter_mut().enumerate() {
            let listener = &mut record.listener;
            if listener.topics.contains(&topic) {
                listened = true;
                if excluded != Some(peer) {
                    let expected = Expected { publication: number, must: true };
                    listener.expected.entry(stream).or_default().push_back(expected);
                }
            }
        }
        // A subscriber may have been given up while it subscribed.
        let agrees = status == PublishStatus::Published || !listened || self.gives_up();
        self.check(NOBODY, agrees, "a topic with subscribers has subscribers");
    }

    /// A handler subscribed its connection.
    pub(crate) fn subscribes(
        &mut self,
        peer: usize,
        topic: usize,
        is_open: bool,
        topics_max: usize,
        outcome: Result<(), SubscribeError>,
    ) {
        self.narrate(|| format!("client {peer}: subscribes to {topic}: {outcome:?}"));
        let listener = &mut self.records[peer].listener;
        let mut topics = listener.topics.clone();
        for (topic, subscribes) in &listener.intents {
            if *subscribes {
                topics.insert(*topic)
            } else {
                topics.remove(topic)
            };
        }
        let has_room = topics.contains(&topic) || topics.len() < topics_max;
        let expected = match (is_open, has_room) {
            (false, _) => Err(SubscribeError::Closing),
            (true, false) => Err(SubscribeError::TooMany { topics_max }),
            (true, true) => Ok(()),
        };
        if outcome.is_ok() {
            listener.intents.push((topic, true));
        }
        if outcome != expected {
            self.fail(peer, format!("subscribing: {outcome:?} in place of {expected:?}"));
        }
    }

    pub(crate) fn unsubscribes(&mut self, peer: usize, topic: usize) {
        self.narrate(|| format!("client {peer}: unsubscribes from {topic}"));
        self.records[peer].listener.intents.push((topic, false));
    }

    /// A call of the handler has returned: what it did about subscriptions is in effect.
    pub(crate) fn returned(&mut self, peer: usize, is_open: bool) {
        let intents = std::mem::take(&mut self.records[peer].listener.intents);
        for (topic, subscribes) in intents {
            let listener = &mut self.records[peer].listener;
            if !subscribes {
                listener.topics.remove(&topic);
                listener.excuse(|other| other == topic);
            } else if is_open && listener.topics.insert(topic) {
                listener.ever = true;
                self.tally.subscriptions += 1;
                for &number in self.publications.this_turn.values().flatten() {
                    let Publication { stream, excluded, .. } = self.publications.published[number];
                    let queue = listener.expected.entry(stream).or_default();
                    let known = queue.iter().any(|expected| expected.publication == number);
                    if stream.topic == topic && excluded != Some(peer) && !known {
                        queue.push_back(Expected { publication: number, must: false });
                    }
                }
            }
        }
        if !is_open {
            self.stops_listening(peer);
        }
    }

    /// The connection is closing: it gets no publication any more but those that are queued.
    pub(crate) fn stops_listening(&mut self, peer: usize) {
        let listener = &mut self.records[peer].listener;
        listener.topics.clear();
        listener.excuse(|_| true);
    }

    /// What was published by this shard is on its way.
    pub(crate) fn turn_ended(&mut self, shard: usize) {
        self.publications.this_turn.remove(&shard);
    }

    /// Whether a message that a client hears is a publication; if so, it is one that is to come.
    pub(crate) fn hears_publication(&mut self, peer: usize, payload: &[u8]) -> bool {
        let Some(number) = payload.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk()) else {
            return false;
        };
        let number = u64::from_le_bytes(*number) as usize;
        self.narrate(|| format!("client {peer}: hears publication {number}"));
        self.tally.heard += 1;
        let Some(&Publication { stream, length, .. }) = self.publications.published.get(number) else {
            self.fail(peer, format!("publication {number} was never made"));
            return true;
        };
        let whole = payload.len() == length
            && Content::numbered(number, length.saturating_sub(HEAD_BYTES)).bytes == &payload[HEAD_BYTES..];
        self.check(peer, whole, "a publication is heard as it was published");
        let listener = &mut self.records[peer].listener;
        let queue = listener.expected.entry(stream).or_default();
        let Some(position) = queue.iter().position(|expected| expected.publication == number) else {
            self.fail(peer, format!("publication {number} of {stream:?} is not to be heard, now or at all"));
            return true;
        };
        for passed in queue.drain(..=position).take(position) {
            if passed.must {
                listener.missed += 1;
                // A newer value of the same key takes the place of the older ones.
                self.tally.replaced += u64::from(stream.topic == CONFLATING);
            } else {
                listener.excused += 1;
            }
        }
        true
    }
}
