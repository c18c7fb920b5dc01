//! The handler under test: it does at random whatever a program may do, and tells the model.

use std::{
    cell::{Cell, RefCell},
    panic::panic_any,
    rc::Rc,
};

use ringwire::{
    CloseCode, CloseReason, Connection, Handler, HttpResponse, Message, PreparedMessage, SendStatus, Upgrade,
    protocol::{HttpRequest, UpgradeRequest},
};

use crate::{
    content::Content,
    model::{Model, Observed},
    plan::Plan,
    random::Random,
};

/// A panic that is part of the plan: it is not printed.
pub(crate) struct Deliberate;

/// A reason that does not fit into a close frame.
const TOO_LONG: &str = "a reason of more than a hundred and twenty-three bytes, to be cut in the middle of \
                        a character: \u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}\u{df}";

/// What all handlers and the world share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Rc<Plan>,
    pub(crate) random: Rc<Random>,
    pub(crate) model: Rc<RefCell<Model>>,
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
        let dropped = connection.dropped_messages();
        let status = if self.random.chance(90) {
            connection.send(message)
        } else {
            connection.send_prepared(&PreparedMessage::new(message))
        };
        let (is_open, after) = (connection.is_open(), connection.outbox_bytes());
        let dropped = connection.dropped_messages() - dropped;
        let observed = Observed { was_open, is_open, before, after, dropped };
        self.model.borrow_mut().sent(connection.session().peer, content, status, observed);
        status
    }

    /// Does what comes to mind; `urge` multiplies the likelihood of sending.
    pub(crate) fn act(&self, connection: &mut Connection<'_, Session>, urge: usize) {
        let (random, odds) = (&self.random, &self.plan.odds);
        let peer = connection.session().peer;
        if random.chance(odds.send * urge) {
            for _ in 0..random.within(1, 3) {
                let content =
                    Content::random(random, self.plan.message_bytes(random, self.plan.sent_bytes_max));
                let _ = self.send(connection, content.message(), content);
            }
        }
        if random.chance(odds.user_ping) {
            for _ in 0..if random.chance(odds.ping_flood) { 50 } else { 1 } {
                connection.ping(&vec![b'u'; random.below(140)]);
            }
        }
        if random.chance(odds.pause) {
            self.pause(connection);
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
            shared.model.borrow_mut().fail(usize::MAX, format!("a request for {}", request.path()));
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
    }

    fn on_message(&mut self, connection: &mut Connection<'_, Session>, message: Message<'_>) {
        let shared = &self.0;
        let peer = connection.session().peer;
        let expected = shared.model.borrow().records[peer].uploads.front().copied();
        shared.model.borrow_mut().delivered(peer, message, connection.is_open());
        if let Some(content) = expected.filter(|_| shared.random.chance(shared.plan.odds.echo)) {
            let _ = shared.send(connection, message, content);
        }
        shared.act(connection, 1);
    }

    fn on_drain(&mut self, connection: &mut Connection<'_, Session>) {
        let peer = connection.session().peer;
        self.0.model.borrow_mut().drained(peer, connection.outbox_bytes(), connection.is_open());
        self.0.act(connection, 2);
    }

    fn on_close(&mut self, connection: &mut Connection<'_, Session>, reason: &CloseReason) {
        let peer = connection.session().peer;
        self.0.model.borrow_mut().closed(peer, reason, connection.is_open());
        self.0.act(connection, 1);
    }

    fn on_http(&mut self, _: &HttpRequest<'_>) -> HttpResponse {
        if self.0.random.chance(self.0.plan.odds.panic) {
            self.0.model.borrow_mut().tally.panics += 1;
            panic_any(Deliberate);
        }
        HttpResponse::new(200).body(vec![b'.'; self.0.random.below(3000)])
    }
}
