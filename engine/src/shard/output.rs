//! What a shard has to send, whose turn it is, and whose messages were dropped.

use std::io;

use super::{ConnectionId, Context, Handler, Shard, find};
use crate::{
    buffer::SendBuffer,
    connection::{DropCounts, Endpoint, Output},
    protocol::frame::frame_bytes,
};

impl<H: Handler> Shard<H> {
    /// A buffer came back from the socket, which took `sent` bytes of it. Answers whether the handler was
    /// called: it may have published, which leaves at the end of a turn.
    pub fn handle_sent(&mut self, id: ConnectionId, buffer: SendBuffer, sent: usize) -> bool {
        let Some(slot) = find(&mut self.slots, id) else { return false };
        let context = &mut self.context;
        context.counters.bytes_sent.add(sent as u64);
        let drained = slot.endpoint.handle_sent(buffer, sent, &context.settings, &mut context.corks);
        if drained {
            self.call(id, |handler, connection| handler.on_drain(connection));
            self.settle(id);
        }
        drained
    }

    /// The same with the result of a send that was not to wait.
    pub fn handle_send_result(
        &mut self,
        id: ConnectionId,
        buffer: SendBuffer,
        result: io::Result<usize>,
    ) -> bool {
        match result {
            Ok(sent) => self.handle_sent(id, buffer, sent),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                self.handle_sent(id, buffer, 0)
            }
            Err(error) => {
                self.handle_sent(id, buffer, 0);
                self.handle_transport_error(id, &error.to_string());
                true
            }
        }
    }

    /// What the transport of a connection is to do now. The caller polls until it hears [`Output::Idle`].
    pub fn poll_output(&mut self, id: ConnectionId) -> Output {
        loop {
            let Some(slot) = find(&mut self.slots, id) else { return Output::Idle };
            let output = slot.endpoint.poll_output(&mut self.context.corks);
            if matches!(output, Output::Send(_)) || !slot.is_unsettled() {
                return output;
            }
            self.settle(id);
            // What had been kept during a pause may have brought about more.
            let more = find(&mut self.slots, id).is_some_and(|slot| slot.endpoint.has_output());
            if !(more && matches!(output, Output::Idle)) {
                return output;
            }
        }
    }

    /// The next bytes for the socket, where that is what the transport is to do: hand the buffer back with
    /// [`handle_sent`](Self::handle_sent). The rest of what [`poll_output`](Self::poll_output) says is left.
    pub fn poll_buffer(&mut self, id: ConnectionId) -> Option<SendBuffer> {
        let slot = find(&mut self.slots, id)?;
        slot.endpoint.poll_buffer(&mut self.context.corks)
    }

    /// Whether something is left for the transport of a connection: what [`poll_output`](Self::poll_output)
    /// would say, or, unless it `comes_back` by itself, to receive.
    #[must_use]
    pub fn wants_transport(&self, id: ConnectionId, comes_back: bool) -> bool {
        let slot = self.slots.get(id.index()).filter(|slot| slot.generation == id.generation());
        slot.is_some_and(|slot| {
            slot.endpoint.has_output() || slot.is_unsettled() || !comes_back && slot.endpoint.wants_receive()
        })
    }

    /// Leaves what a connection has to send to the end of the turn, if that is less than `bytes_max` and in
    /// the way of nothing: [`poll_dirty`](Self::poll_dirty) will name the connection. Answers whether it
    /// does.
    pub fn leave_output(&mut self, id: ConnectionId, bytes_max: usize) -> bool {
        let Some(slot) = find(&mut self.slots, id) else { return true };
        let settings = &self.context.settings;
        let outbox = slot.endpoint.outbox();
        // More may be received in this turn: the answer to it is to find the room that it would find else.
        let largest = frame_bytes(settings.message.message_bytes_max);
        let leaves = outbox.bytes() < bytes_max
            && !outbox.is_congested()
            && outbox.has_room(largest, &settings.outbox, false);
        if leaves && slot.endpoint.has_output() {
            self.mark_dirty(id);
        }
        leaves
    }

    /// The next connection that has output, or whose transport has something else to do.
    /// [`poll_buffer`](Self::poll_buffer) tells what is to be sent, and
    /// [`wants_transport`](Self::wants_transport) whether there is more to do.
    pub fn poll_dirty(&mut self) -> Option<ConnectionId> {
        loop {
            let id = self.context.dirty.pop()?;
            if let Some(slot) = find(&mut self.slots, id) {
                slot.dirty = false;
                return Some(id);
            }
        }
    }

    /// Tells the handler of connections whose messages were dropped. Those that are dropped meanwhile are for
    /// the next time.
    pub(super) fn tell_drops(&mut self) {
        for id in std::mem::take(&mut self.context.deprived) {
            let Some(slot) = find(&mut self.slots, id) else { continue };
            slot.deprived = false;
            self.call(id, |handler, connection| handler.on_dropped(connection));
            self.settle(id);
            self.mark_dirty(id);
        }
    }

    pub(super) fn mark_dirty(&mut self, id: ConnectionId) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        // Resumed receipt needs the transport as well.
        if !slot.dirty {
            slot.dirty = true;
            self.context.dirty.push(id);
        }
    }
}

impl Context {
    /// Counts messages for a connection that were dropped, for the reason that `count` chooses.
    /// [`list_deprived`](Self::list_deprived) has to follow.
    pub(super) fn note_dropped(
        &mut self,
        endpoint: &mut Endpoint,
        count: fn(&mut DropCounts) -> &mut u32,
        messages: u64,
    ) {
        endpoint.note_dropped(count, messages);
        self.has_dropped |= messages > 0;
    }

    /// Lists connection `id`, if messages of it were dropped just now.
    #[inline]
    pub(super) fn list_deprived(&mut self, id: ConnectionId, deprived: &mut bool) {
        if std::mem::take(&mut self.has_dropped) && !std::mem::replace(deprived, true) {
            self.deprived.push(id);
        }
    }
}
