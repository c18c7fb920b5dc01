//! The outbox: what waits to be sent to one peer, within an exact limit.
//!
//! Invariants: `bytes` is what the socket has not taken yet, the buffer in flight included; data frames never
//! raise it above `bytes_max`; control frames are exempt from that limit and bounded by `CONTROL_BYTES_MAX`
//! beyond it; at most one buffer is in flight; a frame whose first byte has left is never dropped or torn
//! apart; a queued buffer of frames that is not torn consists of whole frames; nothing follows a close frame.

use super::{
    OutboxLimits,
    drops::{self, Dropped},
    queue::{ConflationKey, Entry, Queue},
};
use crate::{
    buffer::{CorkPool, LocalFrame, SendBuffer},
    protocol::{
        OpCode,
        frame::{CONTROL_PAYLOAD_BYTES_MAX, append_frame, frame_bytes},
    },
};

/// What has become of a message given to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a dropped message is lost, and backpressure grows until it is heeded"]
pub enum SendStatus {
    /// It is on its way, and the peer keeps up.
    Sent,
    /// It is on its way, but more is waiting than the high mark allows: pause until `on_drain`.
    Backpressure,
    /// It was not queued: the outbox is full, or the connection is closing. Counted with its reason.
    Dropped,
}

impl SendStatus {
    /// The message is on its way.
    #[must_use]
    pub fn is_sent(self) -> bool {
        self != Self::Dropped
    }
}

/// What has become of frames that were given to several connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedStatus {
    /// Queued, or dropped because the connection is closing.
    Queued(SendStatus),
    /// They took the place of older ones with the same key.
    Replaced,
}

/// Queued buffers are joined into one send up to this size.
const COALESCED_BYTES_MAX: usize = 16 * 1024;
/// What control frames may take beyond the limit for data, and what they count for at most.
const CONTROL_BYTES_MAX: usize = 4096;
/// What a control frame counts for besides its bytes where it takes an entry of its own: so there are few to
/// walk when others are dropped.
const CONTROL_ENTRY_BYTES: usize = 64;
/// What pings and pongs leave of that for the one close frame.
const CLOSE_BYTES_MAX: usize = frame_bytes(CONTROL_PAYLOAD_BYTES_MAX);

/// What waits to be sent to one peer.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: Queue,
    bytes: usize,
    /// The newest ping answer that found no room (RFC 6455 section 5.5.3 allows to skip the older ones).
    pending_pong: Option<Box<[u8]>>,
    in_flight: bool,
    /// What the control frames that have not left count for.
    control: u16,
    /// The high mark was passed, or a frame refused, and the low mark has not been reached again.
    congested: bool,
}

/// The outbox had no room for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Outbox {
    /// Bytes of encoded frames that the socket has not taken yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The high mark was passed, or a frame refused, and the low mark has not been reached since.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.congested
    }

    /// Nothing waits and nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.in_flight && self.pending_pong.is_none()
    }

    /// Something could be sent now.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.in_flight && (!self.queue.is_empty() || self.pending_pong.is_some())
    }

    /// Whether `bytes` of data frames could be queued now, older ones being dropped for them if `drops`.
    #[must_use]
    pub(crate) fn has_room(&self, bytes: usize, limits: &OutboxLimits, drops: bool) -> bool {
        let excess = self.bytes.saturating_add(bytes).saturating_sub(limits.bytes_max);
        excess == 0 || drops && drops::can_drop(&self.queue, excess)
    }

    /// Whether there is no room for a data frame of `bytes`. Then the outbox is congested, wherever its high
    /// mark is: who was refused waits for the drain.
    pub(super) fn is_full_for(&mut self, bytes: usize, limits: &OutboxLimits) -> bool {
        let is_full = self.bytes.saturating_add(bytes) > limits.bytes_max;
        // Behind an empty one nothing would come.
        self.congested |= is_full && self.bytes > 0;
        is_full
    }

    /// Accounts for a data frame of `bytes` that the caller sends past the queue; the caller has seen that it
    /// [is idle](Self::is_idle) and reports with [`sent_directly`](Self::sent_directly).
    pub(super) fn reserve(&mut self, bytes: usize, limits: &OutboxLimits) -> Result<SendStatus, Full> {
        if self.is_full_for(bytes, limits) {
            return Err(Full);
        }
        self.bytes += bytes;
        if self.bytes > limits.bytes_high {
            self.congested = true;
            return Ok(SendStatus::Backpressure);
        }
        Ok(SendStatus::Sent)
    }

    /// Writes a data frame behind others that wait already, as all but the first of a batch can be; `None`
    /// where that cannot be done at once.
    #[inline]
    pub(super) fn append_data(
        &mut self,
        opcode: OpCode,
        payload: &[u8],
        limits: &OutboxLimits,
    ) -> Option<SendStatus> {
        let frame_bytes = frame_bytes(payload.len());
        let bytes = self.bytes + frame_bytes;
        let cork = self.queue.back_mut()?.buffer.cork()?;
        if bytes > limits.bytes_high
            || bytes > limits.bytes_max
            || cork.len() + frame_bytes > COALESCED_BYTES_MAX
        {
            return None;
        }
        append_frame(cork, opcode, payload);
        self.bytes = bytes;
        Some(SendStatus::Sent)
    }

    /// Queues a data frame.
    pub(super) fn push_data(
        &mut self,
        opcode: OpCode,
        payload: &[u8],
        limits: &OutboxLimits,
        corks: &mut CorkPool,
    ) -> Result<SendStatus, Full> {
        let bytes = frame_bytes(payload.len());
        let status = self.reserve(bytes, limits)?;
        self.write_frame(opcode, payload, bytes, corks);
        Ok(status)
    }

    /// Queues frames that others send from the same memory.
    pub(super) fn push_shared(
        &mut self,
        frame: &LocalFrame,
        key: Option<ConflationKey>,
        limits: &OutboxLimits,
    ) -> Result<SendStatus, Full> {
        let status = self.reserve(frame.bytes().len(), limits)?;
        self.queue.push_back(Entry { buffer: SendBuffer::shared(frame.clone()), key });
        Ok(status)
    }

    /// Puts `frame` in the place of the queued one with the same key, if there is one and the limit allows
    /// it.
    pub(super) fn replace(&mut self, frame: &LocalFrame, key: ConflationKey, limits: &OutboxLimits) -> bool {
        let Some(entry) = self.queue.newest(key) else { return false };
        let bytes = self.bytes - entry.buffer.len() + frame.bytes().len();
        // Control frames may have raised it above the limit: what does not raise it further is welcome.
        if bytes > limits.bytes_max.max(self.bytes) {
            return false;
        }
        entry.buffer = SendBuffer::shared(frame.clone());
        self.bytes = bytes;
        true
    }

    /// Queues bytes that are no frame: the answer to the upgrade request.
    pub(super) fn push_response(&mut self, response: Vec<u8>) {
        self.bytes += response.len();
        let bytes = response.len();
        let mut buffer = SendBuffer::owned(response, 0);
        // Nothing may drop it or be written into it.
        buffer.mark_torn(bytes);
        self.queue.push_back(Entry { buffer, key: None });
    }

    /// Queues the close frame, behind which nothing more is queued.
    pub(super) fn push_close(&mut self, payload: &[u8], corks: &mut CorkPool) {
        self.pending_pong = None;
        self.push_control(OpCode::Close, payload, corks);
    }

    /// Queues a ping. Where the peer does not read, it is left out: it would tell nothing.
    pub(super) fn push_ping(&mut self, payload: &[u8], corks: &mut CorkPool) {
        if self.has_room_for_control(payload) {
            self.push_control(OpCode::Ping, payload, corks);
        }
    }

    /// Queues a pong. Where the peer does not read, only the newest is kept.
    pub(super) fn push_pong(&mut self, payload: &[u8], corks: &mut CorkPool) {
        if self.has_room_for_control(payload) {
            self.pending_pong = None;
            self.push_control(OpCode::Pong, payload, corks);
        } else {
            self.pending_pong = Some(payload.into());
        }
    }

    /// Drops every data frame that has not begun to leave.
    pub(super) fn drop_unsent(&mut self) -> Dropped {
        let dropped = drops::drop_all(&mut self.queue);
        self.pending_pong = None;
        self.bytes -= dropped.bytes;
        dropped
    }

    /// How many data frames have not begun to leave.
    pub(super) fn unsent_messages(&self) -> u64 {
        drops::whole_messages(&self.queue)
    }

    /// Drops the oldest data frames that have not begun to leave until there is room for `bytes`, if that can
    /// be. An older value of `key` will make room as well: these bytes take its place.
    pub(super) fn make_room(
        &mut self,
        bytes: usize,
        key: Option<ConflationKey>,
        limits: &OutboxLimits,
    ) -> Dropped {
        let excess = self.bytes.saturating_add(bytes).saturating_sub(limits.bytes_max);
        let older = key.filter(|_| self.congested).and_then(|key| self.queue.newest(key));
        let older_bytes = older.map_or(0, |entry| entry.buffer.len());
        // What is torn or in flight stays: nothing is dropped in vain.
        let dropped = if drops::can_drop(&self.queue, excess) {
            drops::drop_oldest(&mut self.queue, excess.saturating_sub(older_bytes))
        } else {
            Dropped::default()
        };
        self.bytes -= dropped.bytes;
        dropped
    }

    /// The next bytes for the socket, unless some are in flight. Hand the buffer back with
    /// [`sent`](Self::sent).
    pub(super) fn poll(&mut self, corks: &mut CorkPool) -> Option<SendBuffer> {
        if self.in_flight {
            return None;
        }
        if self.queue.is_empty() {
            let payload = self.pending_pong.take()?;
            self.push_control(OpCode::Pong, &payload, corks);
        }
        let mut front = self.queue.pop_front()?.buffer;
        if let Some(next) = self.queue.front()
            && front.len() + next.buffer.len() <= COALESCED_BYTES_MAX
        {
            front = self.coalesce(front, corks);
        }
        self.in_flight = true;
        Some(front)
    }

    /// Takes back a buffer of which `bytes` have been sent. Answers whether the outbox fell to its low mark.
    pub(super) fn sent(
        &mut self,
        mut buffer: SendBuffer,
        bytes: usize,
        limits: &OutboxLimits,
        corks: &mut CorkPool,
    ) -> bool {
        debug_assert!(self.in_flight, "no buffer was in flight");
        self.in_flight = false;
        buffer.advance(bytes);
        if !buffer.is_empty() {
            self.queue.push_front(buffer);
        } else {
            self.control = self.control.saturating_sub(buffer.control());
            if let Some(memory) = buffer.into_owned() {
                corks.give(memory);
            }
        }
        self.note_sent(bytes);
        if let Some(payload) = self.pending_pong.take() {
            self.push_pong(&payload, corks);
        }
        self.reached_low_mark(limits)
    }

    /// `bytes` left that had been [reserved](Self::reserve); `rest` is what the socket did not take.
    pub(super) fn sent_directly(
        &mut self,
        bytes: usize,
        mut rest: SendBuffer,
        limits: &OutboxLimits,
    ) -> bool {
        if !rest.is_empty() {
            if bytes > 0 {
                rest.mark_torn(rest.len());
            }
            self.queue.push_front(rest);
        }
        self.note_sent(bytes);
        self.reached_low_mark(limits)
    }

    /// Gives back the memory of an empty queue; called while the connection is quiet.
    pub(super) fn shrink(&mut self) {
        self.queue.shrink();
    }

    fn note_sent(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes, "more was sent than queued");
        self.bytes -= bytes;
    }

    fn reached_low_mark(&mut self, limits: &OutboxLimits) -> bool {
        let drained = self.congested && self.bytes <= limits.bytes_low;
        if drained {
            self.congested = false;
            self.queue.forget_index();
        }
        drained
    }

    fn has_room_for_control(&self, payload: &[u8]) -> bool {
        let counted = frame_bytes(payload.len()) + CONTROL_ENTRY_BYTES;
        usize::from(self.control) + counted + CLOSE_BYTES_MAX <= CONTROL_BYTES_MAX
    }

    fn push_control(&mut self, opcode: OpCode, payload: &[u8], corks: &mut CorkPool) {
        let bytes = frame_bytes(payload.len());
        self.bytes += bytes;
        let is_apart = self.write_frame(opcode, payload, bytes, corks);
        let counted = (bytes + if is_apart { CONTROL_ENTRY_BYTES } else { 0 }) as u16;
        self.control = self.control.saturating_add(counted);
        if let Some(entry) = self.queue.back_mut() {
            entry.buffer.add_control(counted);
        }
    }

    /// Answers whether the frame took an entry of its own.
    #[inline]
    fn write_frame(&mut self, opcode: OpCode, payload: &[u8], bytes: usize, corks: &mut CorkPool) -> bool {
        if let Some(entry) = self.queue.back_mut()
            && let Some(cork) = entry.buffer.cork()
            && cork.len() + bytes <= COALESCED_BYTES_MAX
        {
            append_frame(cork, opcode, payload);
            return false;
        }
        self.begin_cork(opcode, payload, bytes, corks);
        true
    }

    #[inline(never)]
    fn begin_cork(&mut self, opcode: OpCode, payload: &[u8], bytes: usize, corks: &mut CorkPool) {
        // Behind publications a cork would hold much more than it has: what waits stays in proportion.
        let mut cork = if self.queue.is_empty() { corks.take(bytes) } else { Vec::with_capacity(bytes) };
        append_frame(&mut cork, opcode, payload);
        self.queue.push_back(Entry { buffer: SendBuffer::owned(cork, 0), key: None });
    }

    fn coalesce(&mut self, mut front: SendBuffer, corks: &mut CorkPool) -> SendBuffer {
        let torn = front.is_torn().then(|| drops::begun_bytes(&front));
        let mut control = front.control();
        let joins = |bytes: &usize| *bytes <= COALESCED_BYTES_MAX;
        let sums = self.queue.iter().scan(front.len(), |sum, next| {
            *sum += next.buffer.len();
            Some(*sum)
        });
        let bytes = sums.take_while(joins).last().unwrap_or(front.len());
        let mut joined = match front.cork() {
            Some(cork) => std::mem::take(cork),
            None => {
                let mut cork = corks.take(bytes);
                cork.extend_from_slice(front.unsent());
                if let Some(memory) = front.into_owned() {
                    corks.give(memory);
                }
                cork
            }
        };
        joined.reserve(bytes - joined.len());
        while joined.len() < bytes
            && let Some(next) = self.queue.pop_front()
        {
            joined.extend_from_slice(next.buffer.unsent());
            control += next.buffer.control();
            if let Some(memory) = next.buffer.into_owned() {
                corks.give(memory);
            }
        }
        let mut joined = SendBuffer::owned(joined, 0);
        joined.add_control(control);
        if let Some(begun) = torn {
            joined.mark_torn(begun);
        }
        joined
    }
}

#[cfg(test)]
mod tests;
