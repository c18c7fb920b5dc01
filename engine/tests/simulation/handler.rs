//! The handler under test: it does at random whatever a program may do, and tells the model.

use std::{
    cell::{Cell, RefCell},
    panic::panic_any,
    rc::Rc,
};

use ringwire::{
    CloseCode, CloseReason, Connection, Handler, HttpResponse, Message, PreparedMessage, PublishStatus,
    SendStatus, Upgrade,
    protocol::{HttpRequest, UpgradeRequest},
};

use crate::{
    content::Content,
    model::{Model, NOBODY, Observed},
    plan::Plan,
    publications::{CONFLATING, topic_name},
    random::Random,
};

/// A panic that is part of the plan: it is not printed.
pub(crate) struct Deliberate;

/// Subscriptions of one connection.
pub(crate) const TOPICS_MAX: usize = 4;
/// A reason that does not fit into a close frame.
const TOO_LONG: &str = "a reason of more than a hundred and twenty-three bytes, to be cut in the middle of \
                        a character: \u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}";

/// What all handlers and the world share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Rc<Plan>,
    pub(crate) random: Rc<Random>,
    pub(crate) model: Rc<RefCell<Model>>,
    /// Handlers and clients do nothing of their own accord any more.
    pub(crate) is_calm: Rc<Cell<bool>>,
    /// Sessions that have not been dropped.
    pub(crate) sessions: Rc<Cell<usize>>,
}

pub(crate) struct SimulatedHandler(pub(crate) Shared);

/// Knows whose it is, and that it is dropped.
pub(crate) struct Session {
    pub(crate) peer: usize,
    sessions: Rc<Cell<usize>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.set(self.sessions.get() - 1);
    }
}

impl Shared {
    fn session(&self, peer: usize) -> Session {
        self.sessions.set(self.sessions.get() + 1);
        Session { peer, sessions: Rc::clone(&self.sessions) }
    }

    /// Accepts or refuses the upgrade of `peer`.
    fn decide(&self, peer: usize) -> Upgrade<Session> {
        if self.random.chance(self.plan.odds.reject) {
            return Upgrade::reject(403, "not today");
        }
        Upgrade::accept(self.session(peer)).header("X-Peer", peer.to_string()).subprotocol("chat")
    }

    /// Sends, and compares the status with what the outbox held.
    pub(crate) fn send(
        &self,
        connection: &mut Connection<'_, Session>,
        message: Message<'_>,
        content: Content,
    ) -> SendStatus {
        let (was_open, before) = (connection.is_open(), connection.outbox_bytes());
        let dropped = connection.drops().total();
        let status = if self.random.chance(90) {
            connection.send(message)
        } else {
            connection.send_prepared(&PreparedMessage::new(message))
        };
        let (is_open, after) = (connection.is_open(), connection.outbox_bytes());
        let dropped = connection.drops().total() - dropped;
        let observed = Observed { was_open, is_open, before, after, dropped };
        self.model.borrow_mut().sent(connection.session().peer, content, status, observed);
        status
    }

    /// Does what comes to mind; `urge` multiplies the likelihood of sending.
    pub(crate) fn act(&self, connection: &mut Connection<'_, Session>, urge: usize) {
        let (random, odds) = (&self.random, &self.plan.odds);
        let peer = connection.session().peer;
        if self.is_calm.get() {
            return;
        }
        if random.chance(odds.send * urge) {
            for _ in 0..random.within(1, 3) {
                let content =
                    Content::random(random, self.plan.message_bytes(random, self.plan.sent_bytes_max));
                let _ = self.send(connection, content.message(), content);
            }
        }
        if random.chance(odds.subscribe) {
            self.subscribe(connection);
        }
        if random.chance(odds.publish) {
            for _ in 0..random.within(1, 4) {
                let _ = self.publish(connection, *random.one_of(&self.plan.topics));
            }
        }
        if random.chance(odds.storm) {
            // As long as somebody subscribes.
            let _ = (0..1100).all(|_| self.publish(connection, CONFLATING) == PublishStatus::Published);
        }
        if random.chance(odds.user_ping) {
            let count = if random.chance(odds.ping_flood) { 50 } else { 1 };
            self.model.borrow_mut().records[peer].skips_pongs |= count > 1;
            for _ in 0..count {
                connection.ping(&vec![b'u'; random.below(140)]);
            }
        }
        if random.chance(odds.pause) {
            self.pause(connection);
        }
        if random.chance(odds.handler_abort) {
            self.model.borrow().narrate(|| format!("client {peer}: the handler aborts"));
            connection.abort("enough of it");
            self.note_close(peer, CloseCode::ABNORMAL);
            self.model.borrow_mut().records[peer].aborted = true;
        }
        if random.chance(odds.handler_close) {
            let code = CloseCode::new(*random.one_of(&[1000, 1001, 1005, 1011, 3000, 4999, 5000]));
            self.model.borrow().narrate(|| format!("client {peer}: the handler closes with {code}"));
            connection.close(code, if random.chance(50) { "enough" } else { TOO_LONG });
            self.note_close(peer, if code.is_allowed_on_wire() { code } else { CloseCode::NORMAL });
            if random.chance(20) {
                connection.pause_receive();
            }
        }
        if random.chance(odds.spawn) {
            let model = Rc::clone(&self.model);
            model.borrow_mut().tally.spawned += 1;
            connection.spawn(async move { model.borrow_mut().tally.finished += 1 });
        }
        self.panic(peer);
    }

    fn subscribe(&self, connection: &mut Connection<'_, Session>) {
        let (peer, topic) = (connection.session().peer, *self.random.one_of(&self.plan.topics));
        if self.random.chance(30) {
            connection.unsubscribe(&topic_name(topic));
            return self.model.borrow_mut().unsubscribes(peer, topic);
        }
        let outcome = connection.subscribe(&topic_name(topic));
        let is_open = connection.is_open();
        self.model.borrow_mut().subscribes(peer, topic, is_open, TOPICS_MAX, outcome);
        let forbidden = connection.subscribe("forbidden");
        self.model.borrow_mut().check(peer, forbidden.is_err(), "the handler has a say in subscriptions");
    }

    fn publish(&self, connection: &mut Connection<'_, Session>, topic: usize) -> PublishStatus {
        let (random, shard) = (&self.random, connection.id().shard());
        let peer = connection.session().peer;
        let length = 16 + self.plan.message_bytes(random, if topic == CONFLATING { 300 } else { 20_000 });
        let payload = self.model.borrow().next_publication(length);
        // Values of different shards would replace each other in an order that no model knows.
        let key = (shard * 4 + random.below(4)) as u64;
        let name = topic_name(topic);
        let (status, excluded) = match random.below(2) {
            _ if topic == CONFLATING => (connection.publish_keyed(&name, key, &payload), Some(peer)),
            0 if length.is_multiple_of(2) => {
                (connection.publish_prepared(&name, &PreparedMessage::new(&payload)), Some(peer))
            }
            0 => (connection.publish(&name, &payload), Some(peer)),
            _ => (connection.publish_to_all(&name, &payload), None),
        };
        self.model.borrow_mut().published(shard, topic, key, excluded, length, status);
        status
    }

    /// The handler returns: what it did to subscriptions takes effect.
    pub(crate) fn returns(&self, connection: &Connection<'_, Session>) {
        self.model.borrow_mut().returned(connection.session().peer, connection.is_open());
    }

    /// Pauses or resumes receipt, or both in a row.
    pub(crate) fn pause(&self, connection: &mut Connection<'_, Session>) {
        let peer = connection.session().peer;
        for _ in 0..self.random.within(1, 3) {
            let paused = self.random.chance(50);
            if paused {
                connection.pause_receive();
            } else {
                connection.resume_receive();
            }
            self.model.borrow().narrate(|| format!("client {peer}: paused is {paused}"));
            self.model.borrow_mut().records[peer].paused = paused && connection.is_open();
        }
    }

    /// This side has begun a close.
    pub(crate) fn note_close(&self, peer: usize, code: CloseCode) {
        let mut model = self.model.borrow_mut();
        let record = &mut model.records[peer];
        record.causes.push(code);
        record.paused = false;
        record.must_close = record.opened > 0;
        model.returned(peer, false);
    }

    /// Panics at random, for this connection's account.
    fn panic(&self, peer: usize) {
        if self.random.chance(self.plan.odds.panic) {
            self.note_close(peer, CloseCode::INTERNAL_ERROR);
            self.model.borrow_mut().tally.panics += 1;
            self.model.borrow().narrate(|| format!("client {peer}: the handler panics"));
            panic_any(Deliberate);
        }
    }
}

impl Handler for SimulatedHandler {
    type Session = Session;

    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<Session> {
        let shared = &self.0;
        let peer = request.path().strip_prefix("/peer/").and_then(|peer| peer.parse().ok());
        let Some(peer) = peer else {
            shared.model.borrow_mut().fail(NOBODY, format!("a request for {}", request.path()));
            return Upgrade::reject(404, "");
        };
        shared.model.borrow_mut().tally.upgrades += 1;
        shared.panic(peer);
        if shared.random.chance(shared.plan.odds.defer) {
            let shared = shared.clone();
            return Upgrade::defer(async move {
                match shared.random.below(10) {
                    0 => Upgrade::defer(async move { shared.decide(peer) }),
                    _ => shared.decide(peer),
                }
            });
        }
        shared.decide(peer)
    }

    fn on_open(&mut self, connection: &mut Connection<'_, Session>) {
        let peer = connection.session().peer;
        self.0.model.borrow_mut().opened(peer);
        self.0.act(connection, 1);
        self.0.returns(connection);
    }

    fn on_message(&mut self, connection: &mut Connection<'_, Session>, message: Message<'_>) {
        let shared = &self.0;
        let peer = connection.session().peer;
        let expected = shared.model.borrow().records[peer].uploads.front().copied();
        let subscriptions = shared.model.borrow().records[peer].listener.subscriptions();
        let in_effect = connection.subscriptions() == subscriptions;
        shared.model.borrow_mut().check(
            peer,
            in_effect,
            "subscriptions are in effect when the handler returns",
        );
        shared.model.borrow_mut().delivered(peer, message, connection.is_open());
        if let Some(content) = expected.filter(|_| shared.random.chance(shared.plan.odds.echo)) {
            let _ = shared.send(connection, message, content);
        }
        shared.act(connection, 1);
        shared.returns(connection);
    }

    fn on_drain(&mut self, connection: &mut Connection<'_, Session>) {
        let peer = connection.session().peer;
        self.0.model.borrow_mut().drained(peer, connection.outbox_bytes(), connection.is_open());
        self.0.act(connection, 2);
        self.0.returns(connection);
    }

    fn on_dropped(&mut self, connection: &mut Connection<'_, Session>) {
        let peer = connection.session().peer;
        self.0.model.borrow_mut().hears_of_drops(peer, connection.drops().total());
        self.0.act(connection, 1);
        self.0.returns(connection);
    }

    fn on_close(&mut self, connection: &mut Connection<'_, Session>, reason: &CloseReason) {
        let peer = connection.session().peer;
        self.0.model.borrow_mut().closed(peer, reason, connection.is_open());
        self.0.act(connection, 1);
    }

    fn allows_subscription(_: &Session, topic: &str) -> bool {
        topic != "forbidden"
    }

    fn on_http(&mut self, _: &HttpRequest<'_>) -> HttpResponse {
        if self.0.random.chance(self.0.plan.odds.panic) {
            self.0.model.borrow_mut().tally.panics += 1;
            panic_any(Deliberate);
        }
        HttpResponse::new(200).body(vec![b'.'; self.0.random.below(3000)])
    }
}
