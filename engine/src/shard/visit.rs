//! A visit to one connection: it has been looked up, and its handler can be called any number of times.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    Connection, ConnectionId, Context, Counters, Handler, LocalHandle, Message, Slot, TimerWheel,
    connection::{Lent, RELAYED_BYTES_MIN},
};
use crate::{
    buffer::{LocalFrame, SendBuffer, SharedFrame},
    protocol::{
        CloseCode, MessageKind, OpCode,
        frame::{append_frame, write_header_before},
    },
};

/// A connection with everything of its shard's that calling its handler takes.
pub(super) struct Visit<'a, H: Handler> {
    pub(super) id: ConnectionId,
    pub(super) slot: &'a mut Slot<H::Session>,
    pub(super) handler: &'a mut H,
    pub(super) context: &'a mut Context,
    pub(super) wheel: &'a mut TimerWheel,
    pub(super) local: &'a LocalHandle<H::Session>,
}

impl<H: Handler> Visit<'_, H> {
    /// Calls user code with the connection lent to it. A panic ends the connection with 1011.
    pub(super) fn call(&mut self, action: impl FnOnce(&mut H, &mut Connection<'_, H::Session>)) {
        let Some(session) = &mut self.slot.session else { return };
        let handler = &mut *self.handler;
        let mut connection = Connection {
            id: self.id,
            peer_address: self.slot.peer_address,
            endpoint: &mut self.slot.endpoint,
            session,
            context: self.context,
            local: self.local,
            subscriptions: &self.slot.subscriptions,
            allows_subscription: H::allows_subscription,
        };
        if catch_unwind(AssertUnwindSafe(|| action(handler, &mut connection))).is_err() {
            tracing::error!(id = %self.id, "the handler panicked");
            self.context.counters.handler_panics.add(1);
            self.fail(CloseCode::INTERNAL_ERROR, "handler failed");
        }
        self.context.list_deprived(self.id, &mut self.slot.deprived);
    }

    /// Lends the messages that lie whole in `input` from `position` on, as long as nothing else comes and no
    /// call leaves intents. Answers with a message that may be relayed: it is still to be
    /// [lent](Self::lend), with its effects carried out even if the handler panics.
    #[inline]
    pub(super) fn lend_small(
        &mut self,
        input: &mut [u8],
        position: &mut usize,
        may_relay: bool,
    ) -> Option<(MessageKind, Range<usize>)> {
        let mut large = None;
        self.call(|handler, connection| {
            while connection.context.intents.is_empty() {
                let Context { settings, now, .. } = &*connection.context;
                let polled = connection.endpoint.poll_message(input, position, settings, *now);
                let Some((kind, payload)) = polled else { return };
                if may_relay && payload.len() >= RELAYED_BYTES_MIN {
                    large = Some((kind, payload));
                    return;
                }
                let Some(message) = receive_message(connection, kind, &input[payload]) else { continue };
                handler.on_message(connection, message);
            }
        });
        large
    }

    /// Lends a message to the handler. If `relay` is empty, the handler can have the message sent from where
    /// it lies: then `relay` becomes the range of the frame.
    pub(super) fn lend(
        &mut self,
        kind: MessageKind,
        input: &mut [u8],
        payload: Range<usize>,
        relay: &mut Option<Range<usize>>,
    ) {
        let bytes = &input[payload.clone()];
        let lent = if relay.is_none() { Lent::new(bytes) } else { Lent::default() };
        if let Some(opcode) = self.lend_as(lent, kind, bytes).relayed {
            *relay = self.settle_relay(opcode, input, payload);
        }
    }

    /// Lends a message that was put together in a buffer of its own, from `start` on, which the handler can
    /// have sent and published.
    pub(super) fn lend_assembly(&mut self, kind: MessageKind, mut assembly: Vec<u8>, start: usize) {
        // One that is given away takes its memory along: not much more than it has.
        let fits = assembly.capacity() <= 2 * assembly.len();
        let bytes = &assembly[start..];
        let lent = if fits { Lent::in_buffer(bytes, start) } else { Lent::new(bytes) };
        let Lent { relayed, published, .. } = self.lend_as(lent, kind, &assembly[start..]);
        let payload_bytes = assembly.len() - start;
        let Some(opcode) = published.or(relayed) else { return self.context.corks.give(assembly) };
        // There is room in front of every assembly.
        let frame_start = write_header_before(&mut assembly, start, opcode, payload_bytes).unwrap_or(start);
        if published.is_none() {
            return self.handle_relayed(0, SendBuffer::owned(assembly, frame_start));
        }
        let frame = Arc::new(assembly);
        self.context.topics.hand_in(&frame);
        if relayed.is_some() {
            self.handle_relayed(0, SendBuffer::shared(LocalFrame::new(SharedFrame::new(frame))));
        }
    }

    /// Lends a message, and answers what the handler did with its payload.
    fn lend_as(&mut self, lent: Lent, kind: MessageKind, bytes: &[u8]) -> Lent {
        self.context.lent = lent;
        self.call(|handler, connection| {
            if let Some(message) = receive_message(connection, kind, bytes) {
                handler.on_message(connection, message);
            }
        });
        std::mem::take(&mut self.context.lent)
    }

    /// `sent` bytes of a relayed frame have left, `rest` has not.
    pub(super) fn handle_relayed(&mut self, sent: usize, rest: SendBuffer) {
        self.context.counters.bytes_sent.add(sent as u64);
        if self.slot.endpoint.handle_relayed(sent, rest, &self.context.settings) {
            self.call(|handler, connection| handler.on_drain(connection));
        }
    }

    fn settle_relay(
        &mut self,
        opcode: OpCode,
        input: &mut [u8],
        payload: Range<usize>,
    ) -> Option<Range<usize>> {
        if let Some(start) = write_header_before(input, payload.start, opcode, payload.len()) {
            return Some(start..payload.end);
        }
        // No room in front: what was kept during a pause can begin with a payload whose header came before
        // it.
        let mut frame = Vec::with_capacity(payload.len() + 14);
        append_frame(&mut frame, opcode, &input[payload]);
        self.handle_relayed(0, SendBuffer::owned(frame, 0));
        None
    }

    fn fail(&mut self, code: CloseCode, reason: &str) {
        let context = &mut *self.context;
        self.slot.endpoint.fail(code, reason, &mut context.corks, &context.settings, context.now);
    }
}

/// Runs or drops what the user made, and so may panic, where no connection is to end for it.
pub(super) fn shield(counters: &Counters, action: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(action)).is_err() {
        tracing::error!("what the program gave to a shard panicked");
        counters.handler_panics.add(1);
    }
}

/// Counts a received message, and says whether and as what it is to be lent.
#[inline(always)]
fn receive_message<'m, S>(
    connection: &mut Connection<'_, S>,
    kind: MessageKind,
    bytes: &'m [u8],
) -> Option<Message<'m>> {
    let Context { settings, corks, counters, now, .. } = &mut *connection.context;
    let message = match kind {
        MessageKind::Binary => Message::Binary(bytes),
        MessageKind::Text => match simdutf8::basic::from_utf8(bytes) {
            Ok(text) => Message::Text(text),
            Err(_) => {
                counters.protocol_errors.add(1);
                let code = CloseCode::INVALID_PAYLOAD;
                connection.endpoint.fail(code, "text is not UTF-8", corks, settings, *now);
                return None;
            }
        },
    };
    counters.messages_received.add(1);
    // RFC 6455 section 1.4: after sending a close frame, what still arrives is discarded.
    connection.endpoint.is_open().then_some(message)
}
