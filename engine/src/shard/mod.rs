//! A shard: everything that one core owns, deterministic and without I/O.
//!
//! Grammar: `handle_*` feeds it (bytes, completions, time, decisions), `poll_*` asks what is to be done. The
//! runtime moves bytes between it and the kernel; a test can feed any number of shards from a seed in one
//! thread.

#![forbid(unsafe_code)]

mod connection;
mod counters;
mod deliver;
mod envelope;
mod handler;
mod id;
mod output;
mod process;
mod publish;
mod registry;
mod rules;
mod seat;
mod subscribe;
mod topics;
mod upgrade;
mod visit;
mod wheel;

use std::{collections::VecDeque, net::SocketAddr, ops::Range, rc::Weak, sync::Arc};

use slab::Slab;

use self::{
    connection::Lent,
    subscribe::Intents,
    topics::{Subscription, TopicTable},
    upgrade::LocalFuture,
};
pub(crate) use self::{
    connection::LocalShard,
    envelope::{Envelope, Errand},
};
pub use self::{
    connection::{Connection, LocalError, LocalHandle},
    counters::{Counter, Counters, CountersSnapshot},
    envelope::{Gone, Publication},
    handler::{Handler, Message},
    id::ConnectionId,
    publish::{PreparedMessage, PublishStatus},
    registry::{TopicInterest, TopicRegistry},
    rules::{Conflation, TopicRules, TopicSettings},
    seat::{Inbox, MeshSeat, TopicLimits},
    subscribe::SubscribeError,
    upgrade::Upgrade,
    wheel::{TICK_MILLIS, TimerWheel},
};
use crate::{
    buffer::CorkPool,
    connection::{Endpoint, Expired, Initiator, Phase, Settings, Timestamp},
    mesh::{MeshEnd, mesh},
    protocol::{CloseCode, HttpResponse},
};

/// The connections of one core with everything they share.
pub struct Shard<H: Handler> {
    handler: H,
    slots: Slab<Slot<H::Session>>,
    wheel: TimerWheel,
    deferred: Vec<(ConnectionId, LocalFuture<Upgrade<H::Session>>)>,
    local: LocalHandle<H::Session>,
    context: Context,
    mesh: MeshEnd<Envelope>,
    /// Envelopes that were taken out of the mesh before their turn.
    pending: VecDeque<Envelope>,
    due: Vec<usize>,
    connections_max: usize,
    /// The generation of the newest connection.
    generation: u32,
}

/// Slots whose addresses are reserved at the start, for memory to be taken when a slot is first used.
pub(crate) const RESERVED_SLOTS_MAX: usize = 64 * 1024;

/// What the connections of a shard share, whatever their session is.
pub(crate) struct Context {
    shard: u16,
    settings: Settings,
    counters: Arc<Counters>,
    corks: CorkPool,
    now: Timestamp,
    /// Connections that have output, or whose transport has something else to do.
    dirty: Vec<ConnectionId>,
    /// A message was dropped, and whose it was is not listed yet.
    has_dropped: bool,
    /// Connections of which messages were dropped that their handler has not been told of.
    deprived: Vec<ConnectionId>,
    /// In the order of their calls.
    spawned: VecDeque<LocalFuture<()>>,
    lent: Lent,
    topics: TopicTable,
    topic_limits: TopicLimits,
    intents: Intents,
    random: u64,
}

#[derive(Debug)]
struct Slot<S> {
    endpoint: Endpoint,
    /// There from the moment the upgrade is accepted until `on_close` has been called.
    session: Option<S>,
    peer_address: SocketAddr,
    generation: u32,
    /// Listed in `Context::dirty`.
    dirty: bool,
    /// Listed in `Context::deprived`.
    deprived: bool,
    /// The phase for which the timer was last set.
    scheduled: Phase,
    deciding: Option<Box<Deciding>>,
    subscriptions: Vec<Subscription>,
}

/// What is kept of an upgrade request while its decision is made.
#[derive(Debug)]
struct Deciding {
    accept_key: [u8; 28],
    offered: Vec<String>,
}

impl<S> Slot<S> {
    /// Something has happened that [`Shard::settle`] has not carried out yet.
    fn is_unsettled(&self) -> bool {
        self.endpoint.is_resumed() || self.endpoint.phase() != self.scheduled
    }
}

const _: () = assert!(size_of::<Slot<()>>() <= 320, "what every connection carries");

impl<H: Handler> Shard<H> {
    /// A shard without connections. `seed` feeds the jitter of lifetimes, and its upper half is where the
    /// generations of ids begin: drawn at random, it keeps the ids of two engines apart.
    #[must_use]
    pub fn new(
        shard: u16,
        handler: H,
        settings: Settings,
        connections_max: usize,
        counters: Arc<Counters>,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            handler,
            slots: Slab::with_capacity(connections_max.min(RESERVED_SLOTS_MAX)),
            wheel: TimerWheel::new(now, connections_max.min(RESERVED_SLOTS_MAX)),
            deferred: Vec::new(),
            local: LocalHandle(None),
            context: Context {
                shard,
                settings,
                counters,
                corks: CorkPool::new(),
                now,
                dirty: Vec::new(),
                has_dropped: false,
                deprived: Vec::new(),
                spawned: VecDeque::new(),
                lent: Lent::default(),
                topics: TopicTable::new(0, TopicRegistry::new(1), TopicRules::default(), Arc::default()),
                topic_limits: TopicLimits::default(),
                intents: Intents::default(),
                random: seed | 1,
            },
            mesh: mesh(1).remove(0),
            pending: VecDeque::new(),
            due: Vec::new(),
            connections_max,
            generation: (seed >> 32) as u32,
        }
    }

    /// Joins this shard to others.
    #[must_use]
    pub fn joined(
        mut self,
        seat: MeshSeat,
        registry: Arc<TopicRegistry>,
        rules: TopicRules,
        limits: TopicLimits,
    ) -> Self {
        let counters = Arc::clone(&self.context.counters);
        self.context.topics = TopicTable::new(seat.0.index(), registry, rules, counters);
        self.context.topic_limits = limits;
        self.mesh = seat.0;
        self
    }

    /// Tells the shard who owns it, so that futures find their way back.
    pub(crate) fn set_owner(&mut self, owner: Weak<dyn LocalShard<H::Session>>) {
        self.local = LocalHandle(Some(owner));
    }

    /// How many connections there are, in whatever phase.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// There are no connections.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What this shard has counted.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.context.counters
    }

    /// The user's handler.
    #[must_use]
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// A socket was accepted.
    ///
    /// # Errors
    /// At `connections_max`, with the bytes of the answer to turn it away with.
    pub fn handle_accepted(
        &mut self,
        peer_address: SocketAddr,
        now: Timestamp,
    ) -> Result<ConnectionId, Vec<u8>> {
        let context = &mut self.context;
        if self.slots.len() >= self.connections_max {
            context.counters.connections_refused.add(1);
            let mut answer = Vec::new();
            HttpResponse::service_unavailable().append_to(&mut answer);
            return Err(answer);
        }
        self.generation = self.generation.wrapping_add(1);
        let jitter = context.lifetime_jitter();
        let endpoint = Endpoint::new(&context.settings, jitter, now);
        self.wheel.schedule(self.slots.vacant_key(), endpoint.deadline(&context.settings));
        let index = self.slots.insert(Slot {
            endpoint,
            session: None,
            peer_address,
            generation: self.generation,
            dirty: false,
            deprived: false,
            scheduled: Phase::Handshake,
            deciding: None,
            subscriptions: Vec::new(),
        });
        context.counters.connections_accepted.add(1);
        context.counters.connections_current.set(self.slots.len() as u64);
        Ok(ConnectionId::new(context.shard, index as u32, self.generation))
    }

    /// Bytes arrived; they stand in `input` behind [`HEADROOM_BYTES`](crate::buffer::HEADROOM_BYTES).
    ///
    /// Answers the range of a frame in `input` that is to be sent before anything else and reported with
    /// [`handle_relayed`](Self::handle_relayed).
    pub fn handle_received(
        &mut self,
        id: ConnectionId,
        input: &mut [u8],
        now: Timestamp,
    ) -> Option<Range<usize>> {
        self.context.now = now;
        let relay = self.process_received(id, input);
        self.settle(id);
        let relay = relay?;
        if find(&mut self.slots, id)?.endpoint.phase() < Phase::Closed {
            return Some(relay);
        }
        // Cut off meanwhile.
        self.handle_relayed(id, 0, &input[relay]);
        None
    }

    /// `sent` bytes of the frame that [`handle_received`](Self::handle_received) named have left, `rest` has
    /// not.
    pub fn handle_relayed(&mut self, id: ConnectionId, sent: usize, rest: &[u8]) {
        let rest = self.context.corks.copy(rest);
        self.take_back_relayed(id, sent, rest);
        self.settle(id);
    }

    /// The peer ended its side of the stream.
    pub fn handle_end_of_stream(&mut self, id: ConnectionId) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        slot.endpoint.handle_end_of_stream();
        self.settle(id);
    }

    /// The transport failed.
    pub fn handle_transport_error(&mut self, id: ConnectionId, description: &str) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        slot.endpoint.handle_transport_error(description);
        self.settle(id);
    }

    /// A deferred decision was made.
    pub fn handle_upgrade(&mut self, id: ConnectionId, upgrade: Upgrade<H::Session>, now: Timestamp) {
        self.context.now = now;
        self.decide(id, upgrade);
        self.settle(id);
        self.mark_dirty(id);
    }

    /// The socket is closed: the slot is free for another connection.
    pub fn handle_closed(&mut self, id: ConnectionId) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        slot.endpoint.handle_transport_error("closed");
        self.settle(id);
        self.unsubscribe_all(id);
        self.wheel.cancel(id.index());
        let slot = self.slots.remove(id.index());
        self.context.counters.dropped_unsent.add(slot.endpoint.unsent_messages());
        self.context.counters.connections_current.set(self.slots.len() as u64);
    }

    /// Time has passed: deadlines are looked at, and handlers told what was dropped. To be called every
    /// [`TICK_MILLIS`].
    pub fn handle_tick(&mut self, now: Timestamp) {
        self.context.now = now;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, &mut due);
        for index in due.drain(..) {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            let id = ConnectionId::new(self.context.shard, index as u32, slot.generation);
            let context = &mut self.context;
            match slot.endpoint.handle_deadline(&context.settings, &mut context.corks, now) {
                Some(Expired::Close) => context.counters.timeouts_close.add(1),
                Some(Expired::Handshake) => context.counters.timeouts_handshake.add(1),
                Some(Expired::Idle) => context.counters.timeouts_idle.add(1),
                Some(Expired::Lifetime) => context.counters.lifetimes_reached.add(1),
                Some(Expired::Pong) => context.counters.timeouts_pong.add(1),
                None => {}
            }
            self.wheel.schedule(index, slot.endpoint.deadline(&context.settings));
            self.settle(id);
            self.mark_dirty(id);
        }
        self.due = due;
        self.tell_drops();
    }

    /// Closes every connection with `code`, behind what has been published so far; an upgrade in progress is
    /// cut off.
    pub fn close_all(&mut self, code: CloseCode, reason: &str, now: Timestamp) {
        self.context.now = now;
        self.deliver_all();
        for id in self.ids() {
            let context = &mut self.context;
            let Some(slot) = find(&mut self.slots, id) else { continue };
            slot.endpoint.close(code, reason, &context.settings, &mut context.corks, now);
            self.settle(id);
            self.mark_dirty(id);
        }
    }

    /// Cuts every connection off.
    pub fn abort_all(&mut self, reason: &str) {
        for id in self.ids() {
            let Some(slot) = find(&mut self.slots, id) else { continue };
            slot.endpoint.abort(CloseCode::ABNORMAL, reason, Initiator::Local);
            self.settle(id);
            self.mark_dirty(id);
        }
    }

    /// The next future to run for a connection's sake.
    pub fn poll_spawned(&mut self) -> Option<LocalFuture<()>> {
        self.context.spawned.pop_front()
    }

    /// The next decision that takes time; its result goes to [`handle_upgrade`](Self::handle_upgrade).
    pub fn poll_deferred(&mut self) -> Option<(ConnectionId, LocalFuture<Upgrade<H::Session>>)> {
        self.deferred.pop()
    }

    /// Received bytes of this connection are wanted.
    #[must_use]
    pub fn wants_receive(&self, id: ConnectionId) -> bool {
        self.endpoint(id).is_some_and(Endpoint::wants_receive)
    }

    /// The state machine of a connection.
    #[must_use]
    pub fn endpoint(&self, id: ConnectionId) -> Option<&Endpoint> {
        let slot = self.slots.get(id.index()).filter(|slot| slot.generation == id.generation())?;
        Some(&slot.endpoint)
    }

    /// Lends a connection to `action`, as a handler would see it: one that is closing as well, until
    /// `on_close` has been called.
    ///
    /// # Errors
    /// [`LocalError::Gone`] when there is no such connection, or it has ended.
    pub fn with_connection(
        &mut self,
        id: ConnectionId,
        now: Timestamp,
        action: &mut dyn FnMut(&mut Connection<'_, H::Session>),
    ) -> Result<(), LocalError> {
        self.context.now = now;
        // Slots and generations are counted by each shard for itself.
        let own = id.shard() == usize::from(self.context.shard);
        let open = find(&mut self.slots, id).is_some_and(|slot| slot.session.is_some());
        if !own || !open {
            return Err(LocalError::Gone);
        }
        self.call(id, |_, connection| action(connection));
        self.settle(id);
        self.mark_dirty(id);
        Ok(())
    }

    /// Gives memory back that a quiet connection does not need.
    pub fn shrink_connection(&mut self, id: ConnectionId) {
        if let Some(slot) = find(&mut self.slots, id) {
            slot.endpoint.shrink();
        }
    }

    /// Gives memory back that a quiet shard does not need.
    pub fn shrink(&mut self) {
        self.context.topics.sweep();
        self.context.counters.topics_current.set(self.context.topics.len() as u64);
        self.context.corks.shrink();
    }

    fn ids(&self) -> Vec<ConnectionId> {
        let shard = self.context.shard;
        let id = |(index, slot): (usize, &Slot<_>)| ConnectionId::new(shard, index as u32, slot.generation);
        self.slots.iter().map(id).collect()
    }
}

fn find<S>(slots: &mut Slab<Slot<S>>, id: ConnectionId) -> Option<&mut Slot<S>> {
    slots.get_mut(id.index()).filter(|slot| slot.generation == id.generation())
}

impl Context {
    fn lifetime_jitter(&mut self) -> std::time::Duration {
        let jitter = self.settings.timeouts.lifetime_jitter;
        // Xorshift: spreads lifetimes, guards nothing.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        jitter.mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

impl<H: Handler> std::fmt::Debug for Shard<H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shard")
            .field("shard", &self.context.shard)
            .field("connections", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Context").field("shard", &self.shard).finish_non_exhaustive()
    }
}
