//! What a shard has to send, and whose turn it is.

use super::{ConnectionId, Handler, Shard, find};
use crate::{buffer::SendBuffer, connection::Output};

impl<H: Handler> Shard<H> {
    /// A buffer came back from the socket, which took `sent` bytes of it.
    pub fn handle_sent(&mut self, id: ConnectionId, buffer: SendBuffer, sent: usize) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        let context = &mut self.context;
        context.counters.bytes_sent.add(sent as u64);
        if slot.endpoint.handle_sent(buffer, sent, &context.settings, &mut context.corks) {
            self.call(id, |handler, connection| handler.on_drain(connection));
            self.settle(id);
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

    /// The next connection that has output although it was not its turn.
    pub fn poll_dirty(&mut self) -> Option<ConnectionId> {
        loop {
            let id = self.context.dirty.pop()?;
            if let Some(slot) = find(&mut self.slots, id) {
                slot.dirty = false;
                return Some(id);
            }
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
