//! From received bytes to handler calls.
//!
//! Every call about a connection goes through [`Visit::call`], which catches its panics; what a call brought
//! about is carried out by [`Shard::settle`] after it has returned.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{
    Connection, ConnectionId, Deciding, Handler, Shard, Upgrade, find,
    upgrade::{Acceptance, Decision},
    visit::{Visit, shield},
};
use crate::{
    buffer::SendBuffer,
    connection::{Event, Phase, Place},
    protocol::{HttpRequest, HttpResponse, SwitchingProtocols, UpgradeRequest},
};

/// What became of a request that is being received.
enum Head {
    /// More bytes are needed.
    Incomplete,
    /// It takes this many bytes, and this is to be done about it.
    Complete(usize),
}

impl<H: Handler> Shard<H> {
    pub(super) fn process_received(&mut self, id: ConnectionId, input: &mut [u8]) -> Option<Range<usize>> {
        let slot = find(&mut self.slots, id)?;
        let received = input.len().saturating_sub(crate::buffer::HEADROOM_BYTES);
        self.context.counters.bytes_received.add(received as u64);
        match slot.endpoint.handle_received(input, self.context.now) {
            Ok(mut position) => {
                let relay = self.process(id, input, &mut position);
                if position < input.len() {
                    find(&mut self.slots, id)?.endpoint.keep(&input[position..]);
                }
                relay
            }
            Err(joined) => {
                self.process_apart(id, (joined, 0));
                None
            }
        }
    }

    /// Processes bytes that do not stand in a receive buffer, from where they begin: nothing can be sent from
    /// there later on.
    fn process_apart(&mut self, id: ConnectionId, (mut bytes, mut position): (Vec<u8>, usize)) {
        let relay = self.process(id, &mut bytes, &mut position);
        let relay = relay.map(|range| self.context.corks.copy(&bytes[range]));
        // Before any other call to the handler, which may resume.
        if let Some(slot) = find(&mut self.slots, id) {
            slot.endpoint.keep_rest(bytes, position);
        }
        if let Some(unsent) = relay {
            self.take_back_relayed(id, 0, unsent);
        }
    }

    /// Queues what a relay has not sent. The caller settles.
    pub(super) fn take_back_relayed(&mut self, id: ConnectionId, sent: usize, rest: Vec<u8>) {
        let Some(mut visit) = self.visit(id) else { return };
        visit.handle_relayed(sent, SendBuffer::owned(rest, 0));
        self.carry_out_intents(id);
    }

    /// Processes `input` from `position` on, which moves to what is to be kept.
    fn process(&mut self, id: ConnectionId, input: &mut [u8], position: &mut usize) -> Option<Range<usize>> {
        if find(&mut self.slots, id)?.endpoint.phase() == Phase::Handshake {
            match self.process_request(id, &input[*position..]) {
                Head::Complete(bytes) => *position += bytes,
                Head::Incomplete => return None,
            }
        }
        let mut relay = None;
        while self.process_frames(id, input, position, &mut relay) {
            self.carry_out_intents(id);
        }
        relay
    }

    /// Processes frames until there are none, or a call has left intents: then it answers yes, and is to be
    /// called again when they have been carried out.
    fn process_frames(
        &mut self,
        id: ConnectionId,
        input: &mut [u8],
        position: &mut usize,
        relay: &mut Option<Range<usize>>,
    ) -> bool {
        let Some(mut visit) = self.visit(id) else { return false };
        while visit.context.intents.is_empty() {
            if let Some((kind, payload)) = visit.lend_small(input, position, relay.is_none()) {
                visit.lend(kind, input, payload, relay);
                continue;
            }
            let Visit { slot, context, wheel, .. } = &mut visit;
            if !context.intents.is_empty() {
                break;
            }
            let settings = &context.settings;
            match slot.endpoint.poll_event(input, position, settings, &mut context.corks, context.now) {
                Some(Event::Message(kind, Place::Input(payload))) => {
                    visit.lend(kind, input, payload, relay);
                }
                Some(Event::Message(kind, Place::Assembly)) => {
                    let (assembly, start) = slot.endpoint.take_assembly();
                    visit.lend_assembly(kind, assembly, start);
                }
                Some(Event::Ping) => context.counters.pings_received.add(1),
                Some(Event::Pong) => {
                    context.counters.pongs_received.add(1);
                    // The next ping may be due before the deadline of this one would have been.
                    wheel.schedule(id.index(), slot.endpoint.deadline(settings));
                }
                Some(Event::Closed(error)) => {
                    if let Some(error) = error {
                        tracing::debug!(%id, %error, "protocol error");
                        context.counters.protocol_errors.add(1);
                    }
                }
                None => return false,
            }
        }
        true
    }

    fn process_request(&mut self, id: ConnectionId, bytes: &[u8]) -> Head {
        let Some(slot) = find(&mut self.slots, id) else { return Head::Incomplete };
        let context = &mut self.context;
        let peer_address = slot.peer_address;
        let (request, consumed) = match HttpRequest::parse(bytes, context.settings.header_bytes_max) {
            Ok(None) => return Head::Incomplete,
            Ok(Some(parsed)) => parsed,
            Err(error) => {
                tracing::debug!(%id, %error, "request refused");
                self.refuse(id, &error.response());
                return Head::Complete(bytes.len());
            }
        };
        if !request.wants_upgrade() {
            context.counters.http_requests.add(1);
            let handler = &mut self.handler;
            let response = catch_unwind(AssertUnwindSafe(|| handler.on_http(&request)));
            let response = response.unwrap_or_else(|_| self.panicked(id));
            let mut answer = Vec::with_capacity(256);
            // RFC 9110 section 9.3.2: an answer to HEAD has no content, but says how much there would be.
            if request.method() == "HEAD" {
                response.append_head_to(&mut answer);
            } else {
                response.append_to(&mut answer);
            }
            self.answer(id, answer);
            return Head::Complete(bytes.len());
        }
        match UpgradeRequest::check(&request, peer_address) {
            Err(error) => {
                tracing::debug!(%id, %error, "upgrade refused");
                self.refuse(id, &error.response());
            }
            Ok(upgrade_request) => {
                slot.deciding = Some(Box::new(Deciding {
                    accept_key: upgrade_request.accept_key(),
                    offered: upgrade_request.subprotocols().map(str::to_owned).collect(),
                }));
                let handler = &mut self.handler;
                let upgrade = catch_unwind(AssertUnwindSafe(|| handler.on_upgrade(&upgrade_request)));
                let upgrade = upgrade.unwrap_or_else(|_| Upgrade::reject_with(self.panicked(id)));
                self.decide(id, upgrade);
            }
        }
        Head::Complete(consumed)
    }

    pub(super) fn decide(&mut self, id: ConnectionId, upgrade: Upgrade<H::Session>) {
        let undecided = find(&mut self.slots, id).filter(|slot| slot.endpoint.phase() <= Phase::Deciding);
        let Some(slot) = undecided else { return shield(&self.context.counters, || drop(upgrade)) };
        match upgrade.0 {
            Decision::Reject(response) => self.refuse(id, &response),
            Decision::Defer(decision) => {
                if slot.endpoint.phase() == Phase::Handshake {
                    slot.endpoint.begin_deciding();
                }
                self.deferred.push((id, decision));
            }
            Decision::Accept(acceptance) => self.accept(id, acceptance),
        }
    }

    fn accept(&mut self, id: ConnectionId, acceptance: Acceptance<H::Session>) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        let Some(deciding) = slot.deciding.take() else { return };
        let subprotocol = acceptance.subprotocol.filter(|name| {
            let offered = deciding.offered.contains(name);
            if !offered {
                tracing::warn!(%id, subprotocol = name, "not offered by the client, left out");
            }
            offered
        });
        let mut response = self.context.corks.take(256);
        SwitchingProtocols {
            accept_key: &deciding.accept_key,
            subprotocol: subprotocol.as_deref(),
            headers: &acceptance.headers,
        }
        .append_to(&mut response);
        slot.endpoint.accept(response, self.context.now);
        slot.session = Some(acceptance.session);
        self.context.counters.connections_opened.add(1);
        self.call(id, |handler, connection| handler.on_open(connection));
        // What came behind the request belongs to the stream; during a deferred decision it was kept.
        if let Some(slot) = find(&mut self.slots, id) {
            let kept = slot.endpoint.take_kept();
            self.process_apart(id, kept);
        }
    }

    fn refuse(&mut self, id: ConnectionId, response: &HttpResponse) {
        self.context.counters.upgrades_refused.add(u64::from(response.status() >= 400));
        let mut answer = Vec::with_capacity(256);
        response.append_to(&mut answer);
        self.answer(id, answer);
    }

    fn answer(&mut self, id: ConnectionId, answer: Vec<u8>) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        slot.deciding = None;
        slot.endpoint.refuse(answer, &self.context.settings, self.context.now);
    }

    fn panicked(&mut self, id: ConnectionId) -> HttpResponse {
        tracing::error!(%id, "the handler panicked deciding on a request");
        self.context.counters.handler_panics.add(1);
        HttpResponse::new(500)
    }

    /// Calls user code with the connection lent to it, and carries out what it did to subscriptions.
    pub(super) fn call(
        &mut self,
        id: ConnectionId,
        action: impl FnOnce(&mut H, &mut Connection<'_, H::Session>),
    ) {
        if let Some(mut visit) = self.visit(id) {
            visit.call(action);
            self.carry_out_intents(id);
        }
    }

    pub(super) fn visit(&mut self, id: ConnectionId) -> Option<Visit<'_, H>> {
        let slot = find(&mut self.slots, id)?;
        let Self { handler, context, wheel, local, .. } = self;
        Some(Visit { id, slot, handler, context, wheel, local })
    }

    /// Carries out what the last call or event brought about for this connection: mostly nothing.
    #[inline]
    pub(super) fn settle(&mut self, id: ConnectionId) {
        if find(&mut self.slots, id).is_some_and(|slot| slot.is_unsettled()) {
            self.settle_changes(id);
        }
    }

    fn settle_changes(&mut self, id: ConnectionId) {
        loop {
            let Some(slot) = find(&mut self.slots, id) else { return };
            if !slot.endpoint.take_resumed(&self.context.settings, self.context.now) {
                break;
            }
            self.wheel.schedule(id.index(), slot.endpoint.deadline(&self.context.settings));
            let kept = slot.endpoint.take_kept();
            self.process_apart(id, kept);
        }
        let Some(slot) = find(&mut self.slots, id) else { return };
        let phase = slot.endpoint.phase();
        if phase == slot.scheduled {
            return;
        }
        slot.scheduled = phase;
        let ended = slot.endpoint.take_ended();
        self.wheel.schedule(id.index(), slot.endpoint.deadline(&self.context.settings));
        if let Some(reason) = ended.filter(|_| slot.session.is_some()) {
            self.call(id, |handler, connection| handler.on_close(connection, &reason));
            self.context.counters.connections_closed.add(1);
            self.unsubscribe_all(id);
            if let Some(slot) = find(&mut self.slots, id) {
                let session = slot.session.take();
                shield(&self.context.counters, || drop(session));
            }
        }
    }
}
