//! The topics of one shard: who subscribes, and what has been published in this turn and not been delivered
//! yet.
//!
//! Invariants: a topic is known here while it has subscribers, something staged, or was used lately;
//! publications of a topic are delivered in the order in which they were staged; `Topic::staged` holds frames
//! of one kind only, either published here (to be forwarded to other shards) or received from elsewhere (not
//! to be), except in a window, where `Staged::forwarded` tells them apart.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use slab::Slab;

use super::{
    ConnectionId, Counters,
    envelope::{OwnFrame, Publication},
    registry::{TopicInterest, TopicRegistry},
    rules::{Conflation, TopicRules, TopicSettings},
};
use crate::{
    buffer::SharedFrame,
    protocol::{
        OpCode,
        frame::{append_frame, frame_bytes},
    },
};

/// Publications are gathered until there are this many bytes, then delivered together. Beyond that goes at
/// most the last one, or in a window, what another shard has gathered in the same way.
const GATHERED_BYTES_MAX: usize = 32 * 1024;
/// Topics looked at in one sweep.
const SWEPT_MAX: usize = 1024;
/// Topics looked at for each new one. Two rounds forget a topic, so those that are not used any more take at
/// most half of the places, however fast new ones are made up.
const SWEPT_PER_NEW: usize = 4;
/// Larger publications are delivered on their own.
const GATHERED_FRAME_BYTES_MAX: usize = 8 * 1024;

/// The topics of one shard.
#[derive(Debug)]
pub(super) struct TopicTable {
    names: HashMap<Box<str>, u32>,
    topics: Slab<Topic>,
    registry: Arc<TopicRegistry>,
    rules: TopicRules,
    counters: Arc<Counters>,
    shard: usize,
    /// How many topics there have been.
    made: u64,
    /// Publications whose turn has come.
    ready: VecDeque<Ready>,
    /// Topics with something staged that leaves at the end of the turn, at least for other shards.
    staged: Vec<u32>,
    /// Windows that have opened since somebody asked.
    opened: Vec<(u32, Duration)>,
    sweep_position: usize,
}

#[derive(Debug)]
pub(super) struct Topic {
    /// Never used again, other than its place in the table.
    pub(super) number: u64,
    pub(super) interest: Arc<TopicInterest>,
    pub(super) settings: TopicSettings,
    pub(super) subscribers: Vec<Subscriber>,
    /// How many subscribers have a fence.
    pub(super) fenced: u32,
    staged: Staged,
    /// A window has opened and its time is not over.
    gathers: bool,
    /// Looked up since the last sweep.
    used: bool,
}

#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) slot: u32,
    /// The place of this subscription among those of the slot.
    pub(super) entry: u32,
    /// What had been sent by each shard, and not arrived, when the subscription was made: that is not for
    /// it.
    pub(super) fence: Option<Rc<[u64]>>,
}

/// A connection's place among the subscribers of a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscription {
    pub(super) topic: u32,
    pub(super) position: u32,
}

#[derive(Debug, Default)]
struct Staged {
    frames: Vec<u8>,
    count: u32,
    own: Vec<OwnFrame>,
    is_foreign: bool,
    /// What of `frames` and `count` other shards have, because they were sent it or it came from there: a
    /// window is kept open where it is delivered.
    forwarded: (usize, u32),
}

/// A publication to be delivered.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) topic: u32,
    pub(super) publication: Publication,
    pub(super) route: Route,
}

/// Where a publication is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To the subscribers here, and to other shards.
    Everywhere,
    /// To the subscribers here: it comes from another shard, or other shards have it.
    Here,
    /// To other shards: the subscribers here get it with what else its window gathers.
    Elsewhere,
}

/// A message to be published.
#[derive(Clone, Copy)]
pub(super) struct Post<'a> {
    pub(super) content: Content<'a>,
    pub(super) publisher: Option<ConnectionId>,
    pub(super) key: u64,
}

/// What is published.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    /// To be encoded.
    Message(OpCode, &'a [u8]),
    /// Encoded before: one frame.
    Prepared(&'a SharedFrame),
}

impl Content<'_> {
    fn frame_bytes(self) -> usize {
        match self {
            Self::Message(_, payload) => frame_bytes(payload.len()),
            Self::Prepared(frame) => frame.bytes().len(),
        }
    }

    fn append_to(self, frames: &mut Vec<u8>) {
        match self {
            Self::Message(opcode, payload) => append_frame(frames, opcode, payload),
            Self::Prepared(frame) => frames.extend_from_slice(frame.bytes()),
        }
    }

    fn into_frame(self) -> Arc<Vec<u8>> {
        match self {
            Self::Message(opcode, payload) => {
                let mut frame = Vec::with_capacity(frame_bytes(payload.len()));
                append_frame(&mut frame, opcode, payload);
                Arc::new(frame)
            }
            Self::Prepared(frame) => frame.clone().into(),
        }
    }
}

impl TopicTable {
    pub(super) fn new(
        shard: usize,
        registry: Arc<TopicRegistry>,
        rules: TopicRules,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            names: HashMap::new(),
            topics: Slab::new(),
            registry,
            rules,
            counters,
            shard,
            made: 0,
            ready: VecDeque::new(),
            staged: Vec::new(),
            opened: Vec::new(),
            sweep_position: 0,
        }
    }

    /// The number of a topic, which is made known here if it was not.
    pub(super) fn intern(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.names.get(name) {
            self.topics[index as usize].used = true;
            return index;
        }
        self.sweep_some(SWEPT_PER_NEW);
        self.made += 1;
        let index = self.topics.insert(Topic {
            number: self.made,
            interest: self.registry.intern(name),
            settings: self.settings_of(name),
            subscribers: Vec::new(),
            fenced: 0,
            staged: Staged::default(),
            gathers: false,
            used: true,
        }) as u32;
        self.names.insert(name.into(), index);
        index
    }

    fn settings_of(&self, name: &str) -> TopicSettings {
        catch_unwind(AssertUnwindSafe(|| self.rules.settings(name))).unwrap_or_else(|_| {
            tracing::error!(topic = name, "the rules of topics panicked, the defaults apply");
            self.counters.handler_panics.add(1);
            TopicSettings::default()
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// How many subscribers a topic has on all shards, whether or not it is known here.
    pub(super) fn subscribers(&self, name: &str) -> usize {
        match self.find(name).and_then(|index| self.topic(index)) {
            Some(topic) => topic.interest.subscribers(),
            None => self.registry.find(name).map_or(0, |interest| interest.subscribers()),
        }
    }

    pub(super) fn topic(&self, index: u32) -> Option<&Topic> {
        self.topics.get(index as usize)
    }

    /// Adds a subscriber; answers its position.
    pub(super) fn subscribe(&mut self, index: u32, subscriber: Subscriber) -> u32 {
        let topic = &mut self.topics[index as usize];
        topic.fenced += u32::from(subscriber.fence.is_some());
        topic.subscribers.push(subscriber);
        topic.interest.set_subscribers(self.shard, topic.subscribers.len());
        topic.subscribers.len() as u32 - 1
    }

    /// Ends a subscription; answers the slot and the entry of the one whose position is now that of this one.
    pub(super) fn unsubscribe(&mut self, subscription: Subscription) -> Option<(u32, u32)> {
        let topic = self.topics.get_mut(subscription.topic as usize)?;
        let position = subscription.position as usize;
        let removed = topic.subscribers.swap_remove(position);
        topic.fenced -= u32::from(removed.fence.is_some());
        topic.interest.set_subscribers(self.shard, topic.subscribers.len());
        topic.subscribers.get(position).map(|subscriber| (subscriber.slot, subscriber.entry))
    }

    /// A subscription stands elsewhere among those of its slot.
    pub(super) fn move_entry(&mut self, subscription: Subscription, entry: usize) {
        let Some(topic) = self.topics.get_mut(subscription.topic as usize) else { return };
        if let Some(subscriber) = topic.subscribers.get_mut(subscription.position as usize) {
            subscriber.entry = entry as u32;
        }
    }

    /// Lets the fences go that everything sent before has passed.
    pub(super) fn lower_fences(&mut self, index: u32, received: impl Fn(usize) -> u64) {
        let Some(topic) = self.topics.get_mut(index as usize).filter(|topic| topic.fenced > 0) else {
            return;
        };
        for subscriber in &mut topic.subscribers {
            let passed =
                |fence: &Rc<[u64]>| fence.iter().enumerate().all(|(from, sent)| received(from) >= *sent);
            if subscriber.fence.as_ref().is_some_and(passed) {
                subscriber.fence = None;
                topic.fenced -= 1;
            }
        }
    }

    /// Takes a message that is published here. Answers whether anybody will get it.
    pub(super) fn post(&mut self, index: u32, post: Post<'_>) -> bool {
        let topic = &mut self.topics[index as usize];
        if topic.interest.subscribers() == 0 {
            return false;
        }
        if topic.settings.conflation == Conflation::Latest
            || post.content.frame_bytes() > GATHERED_FRAME_BYTES_MAX
        {
            self.push_alone(index, post, post.content.into_frame());
            return true;
        }
        let staged = self.stage(index, false);
        let start = staged.frames.len();
        post.content.append_to(&mut staged.frames);
        staged.count += 1;
        if let Some(publisher) = post.publisher {
            staged.own.push(OwnFrame { publisher, start, end: staged.frames.len() });
        }
        self.seal_if_full(index);
        true
    }

    /// Takes a message whose frame is [handed in](Self::hand_in) before anything is delivered. Answers
    /// whether anybody will get it.
    pub(super) fn post_lent(&mut self, index: u32, post: Post<'_>) -> bool {
        let wanted = self.topics[index as usize].interest.subscribers() > 0;
        if wanted {
            self.push_alone(index, post, Arc::default());
        }
        wanted
    }

    /// The frame of what was [lent](Self::post_lent).
    pub(super) fn hand_in(&mut self, frame: &Arc<Vec<u8>>) {
        // No frame is empty.
        for ready in self.ready.iter_mut().filter(|ready| ready.publication.frames.is_empty()) {
            ready.publication.frames = Arc::clone(frame);
        }
    }

    /// Takes frames that were published elsewhere.
    pub(super) fn post_foreign(&mut self, index: u32, publication: Publication) {
        let settings = &self.topics[index as usize].settings;
        let (conflates, gathers) = (settings.conflation == Conflation::Latest, settings.window.is_some());
        // Small ones that were gathered elsewhere do not end a window; without one, they are spared the copy.
        let is_window_gathered = gathers && publication.count > 1;
        let is_large = publication.frames.len() > GATHERED_FRAME_BYTES_MAX && !is_window_gathered;
        if conflates || is_large {
            self.seal(index);
            self.ready.push_back(Ready { topic: index, publication, route: Route::Here });
            return;
        }
        let staged = self.stage(index, true);
        staged.frames.extend_from_slice(&publication.frames);
        staged.count += publication.count;
        if gathers {
            staged.forwarded = (staged.frames.len(), staged.count);
        }
        self.seal_if_full(index);
    }

    /// A block that is full waits for nothing more.
    fn seal_if_full(&mut self, index: u32) {
        if self.topics[index as usize].staged.frames.len() >= GATHERED_BYTES_MAX {
            self.seal(index);
        }
    }

    /// Makes everything ready that is to leave at the end of this turn.
    pub(super) fn seal_staged(&mut self) {
        while let Some(index) = self.staged.pop() {
            let gathers =
                self.topics.get(index as usize).is_some_and(|topic| topic.settings.window.is_some());
            if gathers { self.forward_staged(index) } else { self.seal(index) }
        }
    }

    /// Makes everything ready that is staged, windows or not.
    pub(super) fn seal_all(&mut self) {
        for index in 0..self.topics.capacity() {
            self.seal(index as u32);
        }
    }

    /// The time of a window is over.
    pub(super) fn end_window(&mut self, index: u32) {
        if let Some(topic) = self.topics.get_mut(index as usize) {
            topic.gathers = false;
            self.seal(index);
        }
    }

    /// Makes what is staged for a topic ready.
    pub(super) fn seal(&mut self, index: u32) {
        let gathers = self.topics.get(index as usize).is_some_and(|topic| topic.settings.window.is_some());
        if gathers {
            self.forward_staged(index);
        }
        let Some(topic) = self.topics.get_mut(index as usize) else { return };
        if topic.staged.count == 0 {
            return;
        }
        let mut staged = std::mem::take(&mut topic.staged);
        staged.own.sort_by_key(|own| own.publisher);
        let publication = Publication {
            topic: Arc::clone(&topic.interest),
            frames: Arc::new(staged.frames),
            count: staged.count,
            own: (!staged.own.is_empty()).then(|| staged.own.into()),
            key: 0,
        };
        let route = if staged.is_foreign || gathers { Route::Here } else { Route::Everywhere };
        self.ready.push_back(Ready { topic: index, publication, route });
    }

    /// Makes what a window gathers and other shards have not got ready for them. Who subscribes there later
    /// is not to get what was published in an earlier turn, so it does not wait.
    fn forward_staged(&mut self, index: u32) {
        let Some(topic) = self.topics.get_mut(index as usize) else { return };
        let staged = &mut topic.staged;
        let (bytes, count) = staged.forwarded;
        if staged.is_foreign || staged.count == count {
            return;
        }
        staged.forwarded = (staged.frames.len(), staged.count);
        let publication = Publication {
            topic: Arc::clone(&topic.interest),
            frames: Arc::new(staged.frames[bytes..].to_vec()),
            count: staged.count - count,
            own: None,
            key: 0,
        };
        self.ready.push_back(Ready { topic: index, publication, route: Route::Elsewhere });
    }

    pub(super) fn poll_ready(&mut self) -> Option<Ready> {
        self.ready.pop_front()
    }

    /// The next window that has opened: after its time it is to be [ended](Self::end_window).
    pub(super) fn poll_window(&mut self) -> Option<(u32, Duration)> {
        self.opened.pop()
    }

    /// Forgets topics that nobody has used since the last round of sweeps; each looks at a part of them.
    pub(super) fn sweep(&mut self) {
        self.sweep_some(SWEPT_MAX);
        if self.shard == 0 {
            self.registry.sweep_some();
        }
    }

    fn sweep_some(&mut self, most: usize) {
        for _ in 0..most.min(self.topics.capacity()) {
            let index = self.sweep_position;
            self.sweep_position = if index + 1 < self.topics.capacity() { index + 1 } else { 0 };
            let Some(topic) = self.topics.get_mut(index) else { continue };
            let used = std::mem::take(&mut topic.used);
            let is_idle = topic.subscribers.is_empty() && topic.staged.count == 0 && !topic.gathers;
            if !used && is_idle {
                let topic = self.topics.remove(index);
                self.names.remove(topic.interest.name());
                self.registry.release(topic.interest);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    fn push_alone(&mut self, index: u32, post: Post<'_>, frame: Arc<Vec<u8>>) {
        self.seal(index);
        let end = post.content.frame_bytes();
        let publication = Publication {
            topic: Arc::clone(&self.topics[index as usize].interest),
            frames: frame,
            count: 1,
            own: post.publisher.map(|publisher| [OwnFrame { publisher, start: 0, end }].into()),
            key: post.key,
        };
        self.ready.push_back(Ready { topic: index, publication, route: Route::Everywhere });
    }

    /// Where the next frame of a topic goes.
    fn stage(&mut self, index: u32, is_foreign: bool) -> &mut Staged {
        let topic = &self.topics[index as usize];
        let (staged, window) = (&topic.staged, topic.settings.window);
        let mixes = window.is_none() && staged.is_foreign != is_foreign;
        if staged.count > 0 && mixes {
            self.seal(index);
        } else if window.is_some() && is_foreign {
            self.forward_staged(index);
        }
        let topic = &mut self.topics[index as usize];
        let staged = &mut topic.staged;
        let is_first = staged.count == 0;
        if is_first {
            staged.is_foreign = is_foreign && window.is_none();
        }
        if let Some(window) = window.filter(|_| !topic.gathers) {
            topic.gathers = true;
            self.opened.push((index, window));
        }
        // Once a turn.
        if window.map_or(is_first, |_| !is_foreign && staged.forwarded.1 == staged.count) {
            self.staged.push(index);
        }
        &mut topic.staged
    }
}
