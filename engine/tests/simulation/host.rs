//! A shard with its transports: does for it what the runtime does, over virtual links.
//!
//! Like the runtime's, a transport has at most one receive and one send pending, leaves what little it has to
//! send to the end of the turn, and closes its socket only when nothing is pending.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use ringwire::{
    CloseCode, ConnectionId, Counters, Upgrade,
    buffer::{HEADROOM_BYTES, SendBuffer},
    connection::{Endpoint, Output, Phase, Timestamp},
    shard::{MeshSeat, Shard, TICK_MILLIS, TopicLimits, TopicRegistry},
};

use crate::{
    handler::{Session, Shared, SimulatedHandler, TOPICS_MAX},
    network::Link,
    plan::topic_rules,
};

/// An upgrade that is decided later.
type Decision = Pin<Box<dyn Future<Output = Upgrade<Session>>>>;

pub(crate) struct Host {
    pub(crate) shard: Shard<SimulatedHandler>,
    pub(crate) transports: Vec<Transport>,
    pub(crate) deferred: Vec<(ConnectionId, Decision)>,
    pub(crate) counters: Arc<Counters>,
    shared: Shared,
    index: usize,
    /// Something has happened here since the last turn ended.
    pub(crate) turn_open: bool,
    /// Another shard has something for this one.
    pub(crate) rung: bool,
    /// Topics that gather, and until when.
    windows: Vec<(u32, Timestamp)>,
    /// Grows with everything that happens.
    pub(crate) activity: u64,
    /// How often the wheel has been moved on.
    ticks: u64,
}

/// What the runtime's task of one connection holds.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) id: ConnectionId,
    pub(crate) peer: usize,
    sending: Option<SendBuffer>,
    /// A receive of up to so many bytes is pending.
    receiving: Option<usize>,
    closing: bool,
    /// There is something to do that nobody else does.
    pub(crate) woken: bool,
}

/// Sends from this size on go straight to the socket.
const DIRECT_SEND_BYTES_MIN: usize = 8 * 1024;

impl Host {
    pub(crate) fn new(
        index: usize,
        shared: &Shared,
        seat: MeshSeat,
        registry: &Arc<TopicRegistry>,
        now: Timestamp,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let shard = Shard::new(
            index as u16,
            SimulatedHandler(shared.clone()),
            shared.plan.settings,
            shared.plan.connections_max,
            Arc::clone(&counters),
            shared.random.bits(),
            now,
        );
        let limits = TopicLimits { name_bytes_max: 20, topics_max: TOPICS_MAX };
        let shard = shard.joined(seat, Arc::clone(registry), topic_rules(), limits);
        let ticks = now.as_millis() / TICK_MILLIS;
        Self {
            shard,
            transports: Vec::new(),
            deferred: Vec::new(),
            counters,
            shared: shared.clone(),
            index,
            turn_open: false,
            rung: false,
            windows: Vec::new(),
            activity: 0,
            ticks,
        }
    }

    /// A client connects.
    pub(crate) fn accept(&mut self, peer: usize, link: &mut Link, now: Timestamp) {
        let address = SocketAddr::from(([10, 0, 0, 1], peer as u16));
        let is_full = self.transports.len() >= self.shared.plan.connections_max;
        let mut model = self.shared.model.borrow_mut();
        match self.shard.handle_accepted(address, now) {
            Ok(id) => {
                model.tally.accepted += 1;
                model.check(peer, !is_full, "a connection is not accepted beyond the limit");
                drop(model);
                let (sending, receiving) = (None, None);
                self.transports.push(Transport { id, peer, sending, receiving, closing: false, woken: true });
            }
            Err(answer) => {
                model.tally.refused += 1;
                model.check(peer, is_full, "a connection is not refused below the limit");
                let _ = link.to_client.write(&answer);
                link.to_client.end();
                link.server_is_gone = true;
            }
        }
    }

    /// The turn ends: what was published leaves, and what came from other shards is taken in. Answers whom to
    /// wake.
    pub(crate) fn end_turn(&mut self, links: &mut [Link], now: Timestamp) -> Vec<usize> {
        if self.shard.has_mesh_input() {
            self.activity += 1;
            self.shard.handle_mesh(now);
        }
        let waits = self.shard.flush_topics();
        self.shared.model.borrow_mut().turn_ended(self.index);
        let woken: Vec<usize> = std::iter::from_fn(|| self.shard.poll_wake()).collect();
        while let Some((topic, window)) = self.shard.poll_window() {
            self.windows.push((topic, now.after(window)));
        }
        self.observe_all();
        let called = self.send_dirty(links);
        self.carry_out();
        self.observe_all();
        self.rung = false;
        // More than a turn's worth, no room on the way to another shard, or a handler that was called and may
        // have published: once again.
        self.turn_open = called || waits || self.shard.has_mesh_input();
        woken
    }

    /// Sends what the connections have that became dirty: all together, or each on its own. Answers whether a
    /// handler was called.
    fn send_dirty(&mut self, links: &mut [Link]) -> bool {
        let (mut called, mut together) = (false, Vec::new());
        while let Some(id) = self.shard.poll_dirty() {
            self.activity += 1;
            let Some(at) = self.transports.iter().position(|transport| transport.id == id) else { continue };
            match self.shard.poll_buffer(id) {
                Some(buffer) => together.push((at, buffer)),
                None => self.wake_if_needed(at),
            }
            if !self.shared.random.chance(80) {
                for (at, buffer) in together.drain(..) {
                    called |= self.send(at, buffer, links);
                }
            }
        }
        for (at, buffer) in together {
            called |= self.send(at, buffer, links);
        }
        called
    }

    /// The socket takes what it has room for.
    fn send(&mut self, at: usize, buffer: SendBuffer, links: &mut [Link]) -> bool {
        let Transport { id, peer, .. } = self.transports[at];
        let idle = self.transports[at].sending.is_none() && !buffer.is_empty();
        self.shared.model.borrow_mut().check(peer, idle, "one buffer is in flight at most");
        let link = &mut links[peer];
        let random = &self.shared.random;
        let called = if link.is_reset {
            self.shard.handle_send_result(id, buffer, Err(io::ErrorKind::ConnectionReset.into()))
        } else {
            let is_full = random.chance(self.shared.plan.full_socket);
            let bytes = if is_full { 0 } else { random.share(buffer.len()) };
            let sent = link.to_client.write(&buffer.unsent()[..bytes]);
            let result = if sent > 0 { Ok(sent) } else { Err(io::ErrorKind::WouldBlock.into()) };
            self.report_sent(at, sent, |host| host.shard.handle_send_result(id, buffer, result))
        };
        self.observe_all();
        self.wake_if_needed(at);
        called
    }

    /// What the end of the turn cannot do is left to the transport.
    fn wake_if_needed(&mut self, at: usize) {
        let transport = &mut self.transports[at];
        transport.woken |= self.shard.wants_transport(transport.id, transport.receiving.is_some());
    }

    /// Runs a transport that was woken, as a scheduler does some time or other.
    pub(crate) fn run_woken(&mut self, links: &mut [Link]) -> bool {
        let Some(at) = self.transports.iter().position(|transport| transport.woken) else { return false };
        self.activity += 1;
        self.turn(at, links);
        true
    }

    /// A pending send makes progress, if it can.
    pub(crate) fn complete_send(&mut self, at: usize, links: &mut [Link]) -> bool {
        let transport = &mut self.transports[at];
        let link = &mut links[transport.peer];
        let (closing, failed) = (transport.closing, link.is_reset || link.to_client.has_ended());
        if !closing && !failed && link.to_client.room() == 0 {
            return false;
        }
        let Some(buffer) = transport.sending.take() else { return false };
        let id = transport.id;
        if self.is_cut_off(id) {
            self.shard.handle_sent(id, buffer, 0);
        } else if failed || closing && self.shared.random.chance(50) {
            self.shard.handle_sent(id, buffer, 0);
            self.shard.handle_transport_error(id, "send failed");
        } else {
            // At times there was no room after all.
            let random = &self.shared.random;
            let bytes = if random.chance(10) { 0 } else { random.share(buffer.len()) };
            let sent = link.to_client.write(&buffer.unsent()[..bytes]);
            self.report_sent(at, sent, |host| host.shard.handle_sent(id, buffer, sent));
        }
        self.after(at, links);
        true
    }

    /// A pending receive completes, if there is something to receive.
    pub(crate) fn complete_receive(&mut self, at: usize, links: &mut [Link], now: Timestamp) -> bool {
        let transport = &mut self.transports[at];
        let Some(capacity) = transport.receiving else { return false };
        let link = &mut links[transport.peer];
        let id = transport.id;
        let arrived = link.to_server.len().min(capacity);
        if transport.closing {
            transport.receiving = None;
        } else if link.is_reset {
            transport.receiving = None;
            self.shard.handle_transport_error(id, "reset by the peer");
        } else if arrived > 0 {
            transport.receiving = None;
            let received = self.shared.random.share(arrived);
            let mut input = vec![0xEE; HEADROOM_BYTES];
            input.extend_from_slice(link.to_server.read(received));
            self.receive(at, link, &mut input, now);
        } else if link.to_server.is_at_end() {
            transport.receiving = None;
            // What was left to the end of the turn would be thrown away.
            if let Some(buffer) = self.shard.poll_buffer(id) {
                self.send(at, buffer, links);
            }
            self.shard.handle_end_of_stream(id);
        } else {
            return false;
        }
        self.after_receive(at, links);
        true
    }

    fn receive(&mut self, at: usize, link: &mut Link, input: &mut [u8], now: Timestamp) {
        let Transport { id, peer, .. } = self.transports[at];
        let received = input.len() - HEADROOM_BYTES;
        self.shared.model.borrow().narrate(|| format!("client {peer}: {received} bytes are received"));
        self.shared.model.borrow_mut().tally.bytes_received += received as u64;
        let relayed = self.shard.handle_received(id, input, now);
        self.observe_all();
        let is_lost = relayed.is_some() && self.is_cut_off(id);
        self.shared.model.borrow_mut().check(peer, !is_lost, "nothing is relayed of one that is cut off");
        let Some(range) = relayed else { return };
        let frame = &input[range];
        let bytes = if self.shared.random.chance(20) { 0 } else { self.shared.random.share(frame.len()) };
        let sent = link.to_client.write(&frame[..bytes]);
        self.shared.model.borrow().narrate(|| format!("client {peer}: {sent} of {} relayed", frame.len()));
        self.report_sent(at, sent, |host| host.shard.handle_relayed(id, sent, &frame[sent..]));
    }

    /// A decision that took its time is made.
    pub(crate) fn decide(&mut self, now: Timestamp) {
        if self.deferred.is_empty() || self.shared.random.chance(self.shared.plan.odds.never_decide) {
            return;
        }
        let at = self.shared.random.below(self.deferred.len());
        let (id, mut decision) = self.deferred.swap_remove(at);
        let Poll::Ready(upgrade) = decision.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            unreachable!("decisions are ready when they are looked at")
        };
        self.shard.handle_upgrade(id, upgrade, now);
        self.carry_out();
        self.observe_all();
    }

    pub(crate) fn tick(&mut self, now: Timestamp) {
        self.shard.handle_tick(now);
        self.carry_out();
        self.observe_all();
        for (topic, _) in self.windows.extract_if(.., |(_, until)| *until <= now) {
            self.shard.close_window(topic);
            self.turn_open = true;
        }
        let ticks = now.as_millis() / TICK_MILLIS;
        if std::mem::replace(&mut self.ticks, ticks) == ticks {
            return;
        }
        let ticked = Timestamp::from_millis(ticks * TICK_MILLIS);
        // Who was woken sets a timer when it runs, and who was told of drops may have resumed just now.
        for transport in self.transports.iter().filter(|transport| !transport.woken) {
            if self.shared.model.borrow().records[transport.peer].told == now {
                continue;
            }
            let Some(endpoint) = self.shard.endpoint(transport.id) else { continue };
            let due = endpoint.deadline(&self.shared.plan.settings) <= ticked;
            self.shared.model.borrow_mut().check(transport.peer, !due, "a deadline passes unnoticed");
        }
    }

    /// Somebody who holds a handle to the connection does something with it.
    pub(crate) fn reach_in(&mut self, at: usize, now: Timestamp) {
        let Transport { id, peer, .. } = self.transports[at];
        let shared = self.shared.clone();
        let record_is_open = {
            let model = shared.model.borrow();
            model.records[peer].opened > model.records[peer].closed
        };
        let reached = self.shard.with_connection(id, now, &mut |connection| {
            if connection.is_open() {
                shared.pause(connection);
            }
            shared.act(connection, 3);
            shared.returns(connection);
        });
        let agrees = reached.is_ok() == record_is_open;
        shared.model.borrow_mut().check(peer, agrees, "a handle reaches a connection until on_close");
        self.carry_out();
        self.observe_all();
    }

    pub(crate) fn close_all(&mut self, code: CloseCode, now: Timestamp) {
        for transport in &self.transports {
            self.shared.note_close(transport.peer, code);
        }
        self.shard.close_all(code, "everybody", now);
        self.carry_out();
        self.observe_all();
    }

    pub(crate) fn abort_all(&mut self) {
        for transport in &self.transports {
            self.shared.note_close(transport.peer, CloseCode::ABNORMAL);
        }
        self.shard.abort_all("everybody out");
        self.carry_out();
        self.observe_all();
    }

    pub(crate) fn shrink(&mut self) {
        for transport in &self.transports {
            self.shard.shrink_connection(transport.id);
        }
        self.shard.shrink();
    }

    /// What follows a completion: the task goes on with its turn.
    fn after(&mut self, at: usize, links: &mut [Link]) {
        self.activity += 1;
        self.observe_all();
        self.carry_out();
        if self.shared.random.chance(90) {
            self.turn(at, links);
        } else {
            self.transports[at].woken = true;
        }
    }

    /// What follows a receive: what there is to send may be left to the end of the turn.
    fn after_receive(&mut self, at: usize, links: &mut [Link]) {
        let id = self.transports[at].id;
        self.observe_all();
        if !self.shard.leave_output(id, DIRECT_SEND_BYTES_MIN) {
            return self.after(at, links);
        }
        self.activity += 1;
        self.carry_out();
        self.go_on(at, links);
    }

    fn turn(&mut self, at: usize, links: &mut [Link]) {
        self.transports[at].woken = false;
        self.poll_output(at, links);
        self.go_on(at, links);
    }

    /// Receives or ends.
    fn go_on(&mut self, at: usize, links: &mut [Link]) {
        let transport = &mut self.transports[at];
        if transport.receiving.is_none() && !transport.closing && self.shard.wants_receive(transport.id) {
            transport.receiving = Some(*self.shared.random.one_of(&[1, 3904, 16_192, 512 * 1024]));
        }
        if transport.closing && transport.receiving.is_none() && transport.sending.is_none() {
            self.end(at, links);
        }
    }

    fn poll_output(&mut self, at: usize, links: &mut [Link]) {
        let id = self.transports[at].id;
        let link = &mut links[self.transports[at].peer];
        while !self.transports[at].closing {
            let output = self.shard.poll_output(id);
            let transport = &mut self.transports[at];
            match output {
                Output::Idle => return,
                Output::Shutdown => {
                    self.shared.model.borrow_mut().records[transport.peer].flushed = true;
                    link.to_client.end();
                }
                Output::Close => transport.closing = true,
                Output::Send(buffer) => {
                    let idle = transport.sending.is_none() && !buffer.is_empty();
                    let is_full = self.shared.random.chance(self.shared.plan.full_socket);
                    let full = link.to_client.room() == 0 || is_full;
                    if full || link.is_reset {
                        transport.sending = Some(buffer);
                    } else {
                        let bytes = self.shared.random.share(buffer.len());
                        let sent = link.to_client.write(&buffer.unsent()[..bytes]);
                        self.report_sent(at, sent, |host| host.shard.handle_sent(id, buffer, sent));
                    }
                    let peer = self.transports[at].peer;
                    self.shared.model.borrow_mut().check(peer, idle, "one buffer is in flight at most");
                    self.observe_all();
                    self.carry_out();
                }
            }
        }
        self.carry_out();
    }

    fn end(&mut self, at: usize, links: &mut [Link]) {
        let Transport { id, peer, .. } = self.transports.swap_remove(at);
        let endpoint = self.shard.endpoint(id);
        let unsent = endpoint.is_some_and(|endpoint| endpoint.outbox().bytes() > 0);
        let dropped = endpoint.map_or(0, |endpoint| endpoint.drops().total());
        self.shared.model.borrow_mut().records[peer].dropped = dropped;
        self.shared.model.borrow_mut().tally.dropped += dropped;
        self.shared.model.borrow().narrate(|| format!("client {peer}: the socket is closed"));
        self.shared.model.borrow_mut().records[peer].flushed |= !unsent;
        links[peer].close_server(unsent);
        let before = self.shard.counters().snapshot().dropped_unsent;
        self.shard.handle_closed(id);
        let in_vain = !unsent && self.shard.counters().snapshot().dropped_unsent != before;
        self.shared.model.borrow_mut().check(peer, !in_vain, "what has left is not dropped");
        if self.shared.random.chance(50) {
            self.deferred.retain(|(deferred, _)| *deferred != id);
        }
        self.carry_out();
    }

    /// Takes the futures; the turn is to end.
    fn carry_out(&mut self) {
        self.turn_open = true;
        while let Some(mut future) = self.shard.poll_spawned() {
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
        while let Some(deferred) = self.shard.poll_deferred() {
            self.deferred.push(deferred);
        }
    }

    /// Tells the shard of a send or relay of `bytes` by `report`.
    fn report_sent<R>(&mut self, at: usize, bytes: usize, report: impl FnOnce(&mut Self) -> R) -> R {
        let Transport { id, peer, .. } = self.transports[at];
        let model = Rc::clone(&self.shared.model);
        model.borrow_mut().tally.bytes_sent += bytes as u64;
        let endpoint = self.shard.endpoint(id).expect("a connection with a transport has a slot");
        let left = endpoint.outbox().bytes() - bytes;
        let drains = model.borrow().leaves(peer, left, endpoint.is_open());
        let told = model.borrow().tally.drains;
        let reported = report(self);
        let told = model.borrow().tally.drains - told;
        let as_expected = told == u64::from(drains) || model.borrow().records[peer].skips_pongs;
        model.borrow_mut().check(peer, as_expected, "a drain is told when the low mark is reached");
        reported
    }

    /// Nothing is to leave any more.
    fn is_cut_off(&self, id: ConnectionId) -> bool {
        self.shard.endpoint(id).is_none_or(|endpoint| endpoint.phase() == Phase::Closed)
    }

    fn observe(&mut self, at: usize) {
        let Transport { id, peer, .. } = self.transports[at];
        if let Some(endpoint) = self.shard.endpoint(id) {
            self.shared.model.borrow_mut().observe(peer, endpoint);
        }
    }

    fn observe_all(&mut self) {
        for at in 0..self.transports.len() {
            self.observe(at);
        }
    }

    /// The connections that messages can be sent to, each with its client.
    pub(crate) fn open_connections(&self) -> impl Iterator<Item = (&Endpoint, usize)> {
        self.transports.iter().filter_map(|transport| {
            let endpoint = self.shard.endpoint(transport.id).filter(|endpoint| endpoint.is_open())?;
            Some((endpoint, transport.peer))
        })
    }

    /// Something has come from another shard, and this one was not woken for it.
    pub(crate) fn oversleeps(&self) -> bool {
        self.shard.has_mesh_input() && !self.rung && !self.turn_open
    }

    /// Nobody waits for something that nobody will do.
    pub(crate) fn check_progress(&self) {
        if self.turn_open {
            // Its end may have something to do for each of them.
            return;
        }
        let mut model = self.shared.model.borrow_mut();
        for transport in &self.transports {
            let is_there = self.shard.endpoint(transport.id).is_some();
            model.check(transport.peer, is_there, "the slot is gone before its socket");
            if transport.woken || transport.closing {
                continue;
            }
            let rests = !self.shard.wants_transport(transport.id, transport.receiving.is_some());
            model.check(transport.peer, rests, "there is something to do, and nobody was woken for it");
        }
    }
}
