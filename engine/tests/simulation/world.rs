//! The world of one seed: shards, clients, the links between them and the clock, moved on by random steps.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use ringwire::{
    CloseCode, Initiator, OutboxFull, PreparedMessage, PublishStatus,
    connection::Timestamp,
    shard::{Inbox, MeshSeat, Publication, TopicRegistry},
};

use crate::{
    client::Client,
    handler::Shared,
    host::Host,
    model::{Model, NOBODY, Record},
    network::Link,
    plan::{Plan, WINDOW},
    publications::{CONFLATING, OUTSIDE, topic_name},
    random::Random,
};

pub(crate) struct World {
    now: Timestamp,
    shards: Vec<Host>,
    /// By shard: how a thread outside reaches it.
    inboxes: Vec<Inbox>,
    clients: Vec<Client>,
    /// By client.
    links: Vec<Link>,
    registry: Arc<TopicRegistry>,
    shared: Shared,
    /// Grows with every byte that a client moves.
    activity: u64,
}

/// What some runs did, to see that the interesting things happen at all.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) delivered: u64,
    pub(crate) heard: u64,
    pub(crate) drains: u64,
    pub(crate) closed: u64,
    pub(crate) publications: u64,
    pub(crate) publications_outside: u64,
    pub(crate) publications_heard: u64,
}

impl Summary {
    pub(crate) fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.heard += other.heard;
        self.drains += other.drains;
        self.closed += other.closed;
        self.publications += other.publications;
        self.publications_outside += other.publications_outside;
        self.publications_heard += other.publications_heard;
    }
}

impl World {
    pub(crate) fn new(seed: u64, narrates: bool) -> Self {
        let random = Rc::new(Random::new(seed));
        let plan = Rc::new(Plan::new(&random));
        let model = Model::new(plan.settings, narrates);
        model.narrate(|| format!("{plan:#?}"));
        let shared = Shared {
            plan,
            random,
            model: Rc::new(RefCell::new(model)),
            is_calm: Rc::default(),
            sessions: Rc::default(),
        };
        let now = Timestamp::from_millis(shared.random.below(1 << 40) as u64);
        let registry = TopicRegistry::new(shared.plan.shards);
        let seats = MeshSeat::connect(shared.plan.shards);
        let inboxes = seats.iter().map(MeshSeat::inbox).collect();
        let seats = seats.into_iter().enumerate();
        let shards = seats.map(|(index, seat)| Host::new(index, &shared, seat, &registry, now)).collect();
        Self { now, shards, inboxes, clients: Vec::new(), links: Vec::new(), registry, shared, activity: 0 }
    }

    /// Lives through everything, to the end of the last connection.
    pub(crate) fn run(mut self) -> Result<Summary, Vec<String>> {
        for _ in 0..self.shared.random.within(1, self.shared.plan.clients) {
            self.connect();
        }
        for _ in 0..self.shared.plan.steps {
            self.step();
            self.look()?;
        }
        self.wind_down()?;
        for peer in 0..self.clients.len() {
            self.check_client(peer);
        }
        self.check_counters();
        self.shards.clear();
        let sessions = self.shared.sessions.get();
        let mut model = self.shared.model.borrow_mut();
        model.check(NOBODY, sessions == 0, "every session is dropped");
        let tally = &model.tally;
        let summary = Summary {
            delivered: tally.delivered,
            heard: tally.sent - model.records.iter().map(|record| record.downloads.len() as u64).sum::<u64>(),
            drains: tally.drains,
            closed: tally.closed,
            publications: tally.publications,
            publications_outside: tally.publications_outside,
            publications_heard: tally.heard,
        };
        if model.failures.is_empty() { Ok(summary) } else { Err(std::mem::take(&mut model.failures)) }
    }

    fn look(&mut self) -> Result<(), Vec<String>> {
        self.shards.iter().for_each(Host::check_progress);
        // A shard rings for the others when its turn ends.
        let is_quiet = !self.shards.iter().any(|host| host.turn_open);
        let oversleeps = is_quiet && self.shards.iter().any(Host::oversleeps);
        self.shared.model.borrow_mut().check(NOBODY, !oversleeps, "a shard is woken for what comes to it");
        let failures = std::mem::take(&mut self.shared.model.borrow_mut().failures);
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    fn step(&mut self) {
        let random = Rc::clone(&self.shared.random);
        match random.below(100) {
            0..=1 => self.connect(),
            2..=19 => self.with_client(|client, shared, link| client.act(shared, link)),
            20..=34 => self.with_client(Client::flush),
            35..=49 => self.with_client(Client::read),
            50..=64 => self.complete_receive(),
            65..=79 => self.complete_send(),
            80..=89 => {
                let shard = random.below(self.shards.len());
                self.shards[shard].run_woken(&mut self.links);
            }
            90..=92 => self.pass(random.within(0, self.shared.plan.pause_millis_max)),
            93..=94 => {
                let shard = random.below(self.shards.len());
                self.shards[shard].decide(self.now);
            }
            95 => self.publish_from_outside(),
            96..=97 => self.reach_in(),
            _ => self.intervene(),
        }
        self.end_turns(self.shared.plan.turn_ends);
    }

    /// Ends the turns of shards where something happened, each with this likelihood.
    fn end_turns(&mut self, percent: usize) {
        for shard in 0..self.shards.len() {
            let host = &mut self.shards[shard];
            if (host.turn_open || host.rung) && self.shared.random.chance(percent) {
                for woken in host.end_turn(&mut self.links, self.now) {
                    self.shards[woken].rung = true;
                }
            }
        }
    }

    fn connect(&mut self) {
        let (random, peer) = (&self.shared.random, self.clients.len());
        if peer >= self.shared.plan.clients {
            return;
        }
        let capacity = || *random.one_of(&[1, 100, 5000, 5000, 70_000, 70_000, 400_000]);
        let mut link = Link::new(capacity(), capacity());
        let gives_up = matches!(self.shared.plan.settings.outbox.full, OutboxFull::Close(_));
        let causes = if gives_up { vec![CloseCode::TRY_AGAIN_LATER] } else { Vec::new() };
        self.shared.model.borrow_mut().records.push(Record { causes, ..Record::default() });
        self.clients.push(Client::new(peer, &self.shared));
        let shard = random.below(self.shards.len());
        self.shards[shard].accept(peer, &mut link, self.now);
        self.links.push(link);
    }

    fn with_client<R>(&mut self, action: impl FnOnce(&mut Client, &Shared, &mut Link) -> R) {
        if self.clients.is_empty() {
            return;
        }
        let peer = self.shared.random.below(self.clients.len());
        action(&mut self.clients[peer], &self.shared, &mut self.links[peer]);
    }

    /// A random transport of a random shard, if there is one.
    fn transport(&self) -> Option<(usize, usize)> {
        let shard = self.shared.random.below(self.shards.len());
        let transports = self.shards[shard].transports.len();
        (transports > 0).then(|| (shard, self.shared.random.below(transports)))
    }

    /// Looks from a random transport on for one whose receive can complete.
    fn complete_receive(&mut self) {
        let Some((shard, first)) = self.transport() else { return };
        let shard = &mut self.shards[shard];
        let transports = shard.transports.len();
        let mut order = (0..transports).map(|step| (first + step) % transports);
        order.any(|at| shard.complete_receive(at, &mut self.links, self.now));
    }

    fn complete_send(&mut self) {
        let Some((shard, first)) = self.transport() else { return };
        let shard = &mut self.shards[shard];
        let transports = shard.transports.len();
        let mut order = (0..transports).map(|step| (first + step) % transports);
        order.any(|at| shard.complete_send(at, &mut self.links));
    }

    fn reach_in(&mut self) {
        if let Some((shard, at)) = self.transport() {
            self.shards[shard].reach_in(at, self.now);
        }
    }

    /// A thread outside the shards publishes, as an engine's handle does it.
    fn publish_from_outside(&mut self) {
        let (random, plan) = (&self.shared.random, &self.shared.plan);
        if !random.chance(plan.odds.outside) {
            return;
        }
        for _ in 0..random.within(1, 5) {
            let topic = *random.one_of(&plan.topics);
            let length = 16 + plan.message_bytes(random, if topic == CONFLATING { 300 } else { 20_000 });
            let key = if topic == CONFLATING { (OUTSIDE * 4 + random.below(4)) as u64 } else { 0 };
            let interest =
                self.registry.find(&topic_name(topic)).filter(|interest| interest.subscribers() > 0);
            let status =
                if interest.is_some() { PublishStatus::Published } else { PublishStatus::NoSubscribers };
            let mut model = self.shared.model.borrow_mut();
            let payload = model.next_publication(length);
            model.published(OUTSIDE, topic, key, None, length, status);
            let Some(interest) = interest else { continue };
            let publication = Publication::foreign(&interest, PreparedMessage::new(&payload), key);
            for shard in (0..self.shards.len()).filter(|shard| interest.interests(*shard)) {
                let published = self.inboxes[shard].publish(publication.clone());
                model.check(NOBODY, published.is_ok(), "an inbox has room for a few");
                self.shards[shard].rung = true;
            }
        }
    }

    /// What happens rarely.
    fn intervene(&mut self) {
        let random = Rc::clone(&self.shared.random);
        let odds = &self.shared.plan.odds;
        let shard = random.below(self.shards.len());
        if random.chance(odds.clock_jump) {
            self.pass(random.within(1000, 200_000));
        } else if random.chance(odds.close_all) {
            self.shards[shard].close_all(CloseCode::SERVICE_RESTART, self.now);
        } else if random.chance(odds.abort_all) {
            self.shards[shard].abort_all();
        } else {
            self.shards[shard].shrink();
        }
    }

    /// Time passes, and the shards are told of it.
    fn pass(&mut self, millis: usize) {
        self.now = self.now.after(Duration::from_millis(millis as u64));
        self.shared.model.borrow_mut().now = self.now;
        self.expect_timeouts();
        for shard in &mut self.shards {
            shard.tick(self.now);
        }
    }

    /// From now on a connection may end because a deadline passed.
    fn expect_timeouts(&self) {
        let timeouts = self.shared.plan.settings.timeouts;
        let mut model = self.shared.model.borrow_mut();
        for record in model.records.iter_mut().filter(|record| record.causes.len() < 20) {
            if timeouts.idle.is_some() || timeouts.lifetime.is_some() {
                record.causes.push(CloseCode::GOING_AWAY);
            }
            if timeouts.ping_interval.is_some() {
                record.causes.push(CloseCode::ABNORMAL);
            }
        }
    }

    /// Lets everything arrive that is on its way, and looks whether it did.
    fn calm_down(&mut self) -> Result<(), Vec<String>> {
        self.shared.is_calm.set(true);
        self.widen_links();
        self.rest()?;
        // What some topics gather leaves when its time is over.
        self.pass(2 * WINDOW.as_millis() as usize);
        self.rest()?;
        // What that drops is told with the next tick.
        self.pass(1);
        self.rest()?;
        for host in &self.shards {
            for (endpoint, peer) in host.open_connections() {
                let mut model = self.shared.model.borrow_mut();
                let record = &model.records[peer];
                let vanished = record.vanished || !self.clients[peer].is_fair();
                let (least, most) = record.listener.unheard();
                let direct = record.downloads.len() as u64 + record.skipped;
                let dropped = endpoint.drops().total() - record.refused;
                if !vanished && !(direct + least..=direct + most).contains(&dropped) {
                    let unheard = format!("{direct} and {least} to {most} published");
                    model
                        .fail(peer, format!("{dropped} messages were dropped, but not heard were {unheard}"));
                }
                model.check(peer, vanished || endpoint.outbox().is_idle(), "everything leaves");
                let told = model.records[peer].told_dropped;
                model.check(peer, told == endpoint.drops().total(), "all drops are told");
            }
        }
        self.look()
    }

    /// Rounds without any time passing, until nothing happens any more.
    fn rest(&mut self) -> Result<(), Vec<String>> {
        for _ in 0..100_000 {
            let activity =
                |world: &Self| world.activity + world.shards.iter().map(|host| host.activity).sum::<u64>();
            let before = activity(self);
            self.round(0)?;
            if activity(self) == before {
                return Ok(());
            }
        }
        Err(vec!["the world does not come to rest".to_owned()])
    }

    fn widen_links(&mut self) {
        for link in &mut self.links {
            link.to_server.widen();
            link.to_client.widen();
        }
    }

    /// Lets everybody finish: first those who want to, then everybody.
    fn wind_down(&mut self) -> Result<(), Vec<String>> {
        if self.shared.random.chance(50) {
            self.calm_down()?;
        }
        if self.shared.random.chance(70) {
            for client in &mut self.clients {
                client.close(&self.shared);
            }
            for _ in 0..self.shared.random.below(40) {
                self.round(0)?;
            }
        }
        for shard in &mut self.shards {
            shard.close_all(CloseCode::GOING_AWAY, self.now);
        }
        self.finish_the_fair()?;
        // There are two deadlines in a row: for the peer's close frame, and for the end of the stream.
        let until = self.now.after(self.shared.plan.settings.timeouts.close * 2 + Duration::from_secs(1));
        while self.now < until {
            self.round(self.shared.random.within(20, 250))?;
            if self.shards.iter().all(|shard| shard.shard.is_empty()) {
                return Ok(());
            }
        }
        let left: Vec<String> = self.shards.iter().map(|shard| format!("{:?}", shard.transports)).collect();
        Err(vec![format!("connections do not end: {left:?}")])
    }

    /// With clients that answer, and room for everything, connections end without any time passing.
    fn finish_the_fair(&mut self) -> Result<(), Vec<String>> {
        self.widen_links();
        for _ in 0..10_000 {
            let transports = self.shards.iter().flat_map(|shard| &shard.transports);
            if !transports.map(|transport| transport.peer).any(|peer| self.clients[peer].is_fair()) {
                return Ok(());
            }
            self.round(0)?;
        }
        let left: Vec<String> = self.shards.iter().map(|shard| format!("{:?}", shard.transports)).collect();
        Err(vec![format!("connections wait for a deadline although their clients answered: {left:?}")])
    }

    /// Everybody does what there is to do.
    fn round(&mut self, millis: usize) -> Result<(), Vec<String>> {
        for peer in 0..self.clients.len() {
            let (client, link) = (&mut self.clients[peer], &mut self.links[peer]);
            self.activity += u64::from(client.flush(&self.shared, link));
            self.activity += u64::from(client.read(&self.shared, link));
        }
        for shard in &mut self.shards {
            while shard.run_woken(&mut self.links) {}
            for at in (0..shard.transports.len()).rev() {
                shard.complete_receive(at, &mut self.links, self.now);
            }
            for at in (0..shard.transports.len()).rev() {
                shard.complete_send(at, &mut self.links);
            }
        }
        self.end_turns(100);
        self.look()?;
        if millis > 0 {
            self.pass(millis);
        }
        self.look()
    }

    fn check_counters(&mut self) {
        let mut counted = ringwire::CountersSnapshot::default();
        for shard in &mut self.shards {
            counted += shard.counters.snapshot();
            // Nothing is left that could still happen.
            shard.tick(self.now.after(Duration::from_secs(1 << 20)));
            shard.end_turn(&mut self.links, self.now);
            (0..4).for_each(|_| shard.shard.shrink());
            let quiet = shard.shard.poll_dirty().is_none() && shard.shard.poll_deferred().is_none();
            self.shared.model.borrow_mut().check(NOBODY, quiet, "an empty shard is quiet");
        }
        // The first shard clears up behind the others, a part of the topics at a time.
        (0..64).for_each(|_| self.shards[0].shard.shrink());
        let mut model = self.shared.model.borrow_mut();
        model.check(NOBODY, self.registry.is_empty(), "topics that nobody uses are forgotten");
        let tally = std::mem::take(&mut model.tally);
        let reasons = |reason: &str| tally.reasons.get(reason).copied().unwrap_or_default();
        for (name, counted, expected) in [
            ("connections_accepted", counted.connections_accepted, tally.accepted),
            ("connections_refused", counted.connections_refused, tally.refused),
            ("connections_opened", counted.connections_opened, tally.opened),
            ("connections_closed", counted.connections_closed, tally.closed),
            ("connections_closed", counted.connections_closed, tally.opened),
            ("connections_current", counted.connections_current, 0),
            ("messages_sent", counted.messages_sent, tally.sent + counted.deliveries),
            ("publications", counted.publications, tally.publications),
            ("envelopes_refused", counted.envelopes_refused, 0),
            ("bytes_received", counted.bytes_received, tally.bytes_received),
            ("bytes_sent", counted.bytes_sent, tally.bytes_sent),
            ("handler_panics", counted.handler_panics, tally.panics),
            ("closed_outbox_full", counted.closed_outbox_full, reasons("outbox full")),
            ("timeouts_idle", counted.timeouts_idle, reasons("idle timeout")),
            ("timeouts_pong", counted.timeouts_pong, reasons("ping not answered")),
            ("lifetimes_reached", counted.lifetimes_reached, reasons("connection lifetime reached")),
            ("spawned futures", tally.spawned, tally.finished),
        ] {
            if counted != expected {
                model.fail(NOBODY, format!("{name} is {counted} in place of {expected}"));
            }
        }
        for (name, least, most) in [
            ("messages_received", tally.delivered, counted.messages_received),
            ("dropped_newest", tally.dropped_newest, counted.dropped_newest),
            ("dropped_oldest", tally.dropped_oldest, counted.dropped_oldest),
            ("dropped_closing", tally.dropped_closing, counted.dropped_closing),
            ("closed_outbox_full", tally.given_up, counted.closed_outbox_full),
            // What a new subscriber is not to hear goes to the others first, and may end its connection.
            ("subscriptions", counted.subscriptions, tally.subscriptions),
            ("subscriptions", tally.subscriptions, counted.subscriptions + counted.closed_outbox_full),
            ("publications heard", tally.heard, counted.deliveries),
            ("values replaced", tally.replaced, counted.conflated + tally.dropped),
            ("protocol_errors", counted.protocol_errors, tally.broken),
            ("pongs", tally.pongs, counted.pings_received),
        ] {
            if least > most {
                model.fail(NOBODY, format!("{name}: {least} is above {most}"));
            }
        }
        let at_the_limit = counted.dropped_newest + counted.dropped_oldest + counted.dropped_by_close;
        let dropped = at_the_limit + counted.conflated;
        if dropped != tally.dropped {
            model.fail(NOBODY, format!("{dropped} dropped in all, {} by connection", tally.dropped));
        }
        model.tally = tally;
    }

    fn check_client(&mut self, peer: usize) {
        let (client, link) = (&mut self.clients[peer], &mut self.links[peer]);
        client.read_all(&self.shared, link);
        let mut model = self.shared.model.borrow_mut();
        let record = &model.records[peer];
        let arrives = record.opened == 1 && record.flushed && !link.is_reset;
        let direct = record.downloads.len() as u64 + record.skipped;
        let (least, most) = record.listener.unheard();
        let all_heard = (direct + least..=direct + most).contains(&(record.dropped - record.refused));
        let all_answered = record.pings.is_empty() || record.skips_pongs;
        let (opened, closed, server_close) = (record.opened, record.closed, record.server_close);
        let reason = record.reason.clone();
        model.check(peer, opened == closed, "every opened connection is closed");
        model.check(peer, link.server_is_gone, "every socket is closed");
        let Some(reason) = reason.filter(|_| arrives) else { return };
        model.check(peer, client.knows_the_end(link), "the client reads the end of the stream");
        model.check(peer, client.has_switched(), "an open connection was answered with 101");
        model.check(peer, all_heard, "everything sent is heard, except what was dropped");
        let by_peer = reason.initiator == Initiator::Peer;
        model.check(peer, all_answered || !by_peer, "every ping in front of the close frame is answered");
        if reason.code != CloseCode::ABNORMAL && server_close != Some(reason.code) {
            model.fail(peer, format!("hears {server_close:?} in place of {:?}", reason.code));
        }
    }
}
