//! The outbox: what waits to be sent to one peer, within an exact limit.
//!
//! Invariants: `bytes` is what the socket has not taken yet, the buffer in flight included; data frames never raise it
//! above `bytes_max`; control frames are exempt from that limit and bounded by `CONTROL_BYTES_MAX` beyond it; at most one
//! buffer is in flight; a frame whose first byte has left is never dropped or torn apart; a queued buffer that is not torn
//! consists of whole frames; nothing follows a close frame.

use std::collections::VecDeque;

use super::{OutboxFull, OutboxLimits};
use crate::{
    buffer::{CorkPool, SendBuffer, SharedFrame},
    protocol::{
        FrameHeader, OpCode,
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

/// Data frames up to this size are copied into a cork buffer; larger ones get a buffer of their own.
const CORKED_PAYLOAD_BYTES_MAX: usize = 8 * 1024;
/// Queued buffers are joined into one send up to this size.
const COALESCED_BYTES_MAX: usize = 16 * 1024;
/// What control frames may take beyond the limit for data.
const CONTROL_BYTES_MAX: usize = 4096;
/// What pings and pongs leave of that for the one close frame.
const CLOSE_BYTES_MAX: usize = frame_bytes(CONTROL_PAYLOAD_BYTES_MAX);

/// What waits to be sent to one peer.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<SendBuffer>,
    bytes: usize,
    /// The newest ping answer that found no room (RFC 6455 section 5.5.3 allows to skip the older ones).
    pending_pong: Option<Box<[u8]>>,
    in_flight: bool,
    /// The high mark was passed and the low mark has not been reached again.
    congested: bool,
}

/// The outbox had no room for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Outbox {
    /// Bytes of encoded frames that the socket has not taken yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing waits and nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.in_flight && self.pending_pong.is_none()
    }

    /// Something could be sent now.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.in_flight && !(self.queue.is_empty() && self.pending_pong.is_none())
    }

    /// Accounts for a data frame of `bytes` that the caller sends past the queue; the caller has seen that it
    /// [is idle](Self::is_idle) and reports with [`sent`](Self::sent).
    pub(super) fn reserve(&mut self, bytes: usize, limits: &OutboxLimits) -> Result<SendStatus, Full> {
        if self.bytes.saturating_add(bytes) > limits.bytes_max {
            return Err(Full);
        }
        self.bytes += bytes;
        if self.bytes > limits.bytes_high {
            self.congested = true;
            return Ok(SendStatus::Backpressure);
        }
        Ok(SendStatus::Sent)
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

    /// Queues a frame that others send from the same memory.
    pub(super) fn push_shared(
        &mut self,
        frame: &SharedFrame,
        limits: &OutboxLimits,
    ) -> Result<SendStatus, Full> {
        let status = self.reserve(frame.bytes().len(), limits)?;
        self.queue.push_back(SendBuffer::shared(frame.clone()));
        Ok(status)
    }

    /// Queues bytes that are no frame: the answer to the upgrade request.
    pub(super) fn push_response(&mut self, mut response: Vec<u8>) {
        self.bytes += response.len();
        // As if a first byte had left: the answer is never dropped.
        response.insert(0, 0);
        self.queue.push_back(SendBuffer::owned(response, 1));
    }

    /// Queues the close frame, behind which nothing more is queued.
    pub(super) fn push_close(&mut self, payload: &[u8], corks: &mut CorkPool) {
        self.pending_pong = None;
        self.push_control(OpCode::Close, payload, corks);
    }

    /// Queues a ping. Where the peer does not read, it is left out: it would tell nothing.
    pub(super) fn push_ping(&mut self, payload: &[u8], limits: &OutboxLimits, corks: &mut CorkPool) {
        if self.has_room_for_control(payload, limits) {
            self.push_control(OpCode::Ping, payload, corks);
        }
    }

    /// Queues a pong. Where the peer does not read, only the newest is kept.
    pub(super) fn push_pong(&mut self, payload: &[u8], limits: &OutboxLimits, corks: &mut CorkPool) {
        if self.has_room_for_control(payload, limits) {
            self.pending_pong = None;
            self.push_control(OpCode::Pong, payload, corks);
        } else {
            self.pending_pong = Some(payload.into());
        }
    }

    /// Drops what has not begun to leave; answers how many messages and bytes went.
    pub(super) fn drop_unsent(&mut self, corks: &mut CorkPool) -> (u64, usize) {
        let mut dropped = (0, 0);
        let torn = self.queue.pop_front_if(|front| front.is_torn());
        for buffer in self.queue.drain(..) {
            dropped.0 += count_messages(buffer.unsent());
            dropped.1 += buffer.len();
            if let Some(memory) = buffer.into_owned() {
                corks.give(memory);
            }
        }
        self.queue.extend(torn);
        self.pending_pong = None;
        self.bytes -= dropped.1;
        dropped
    }

    /// The next bytes for the socket, unless some are in flight. Hand the buffer back with [`sent`](Self::sent).
    pub(super) fn poll(&mut self, corks: &mut CorkPool) -> Option<SendBuffer> {
        if self.in_flight {
            return None;
        }
        if self.queue.is_empty() {
            let payload = self.pending_pong.take()?;
            self.push_control(OpCode::Pong, &payload, corks);
        }
        let mut front = self.queue.pop_front()?;
        if let Some(next) = self.queue.front()
            && front.len() + next.len() <= COALESCED_BYTES_MAX
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
        } else if let Some(memory) = buffer.into_owned() {
            corks.give(memory);
        }
        let drained = self.reached_low_mark(bytes, limits);
        if let Some(payload) = self.pending_pong.take() {
            self.push_pong(&payload, limits, corks);
        }
        drained
    }

    /// `bytes` left that had been [reserved](Self::reserve); `rest` is what the socket did not take.
    pub(super) fn sent_directly(&mut self, bytes: usize, rest: &[u8], limits: &OutboxLimits) -> bool {
        if !rest.is_empty() {
            // The frame's beginning has left: `advance` past a first byte marks the rest as torn.
            let mut memory = Vec::with_capacity(1 + rest.len());
            memory.push(0);
            memory.extend_from_slice(rest);
            self.queue.push_front(SendBuffer::owned(memory, 1));
        }
        self.reached_low_mark(bytes, limits)
    }

    /// Gives back the memory of an empty queue; called while the connection is quiet.
    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    fn reached_low_mark(&mut self, sent: usize, limits: &OutboxLimits) -> bool {
        debug_assert!(sent <= self.bytes, "more was sent than queued");
        self.bytes -= sent;
        let drained = self.congested && self.bytes <= limits.bytes_low;
        self.congested &= !drained;
        drained
    }

    fn has_room_for_control(&self, payload: &[u8], limits: &OutboxLimits) -> bool {
        let bytes = self.bytes + frame_bytes(payload.len()) + CLOSE_BYTES_MAX;
        bytes <= limits.bytes_max.saturating_add(CONTROL_BYTES_MAX)
    }

    fn push_control(&mut self, opcode: OpCode, payload: &[u8], corks: &mut CorkPool) {
        let bytes = frame_bytes(payload.len());
        self.bytes += bytes;
        self.write_frame(opcode, payload, bytes, corks);
    }

    fn write_frame(&mut self, opcode: OpCode, payload: &[u8], bytes: usize, corks: &mut CorkPool) {
        if let Some(cork) = self.queue.back_mut().and_then(SendBuffer::cork)
            && cork.len() + bytes <= COALESCED_BYTES_MAX
        {
            append_frame(cork, opcode, payload);
            return;
        }
        let mut cork = if payload.len() <= CORKED_PAYLOAD_BYTES_MAX {
            corks.take(bytes)
        } else {
            Vec::with_capacity(bytes)
        };
        append_frame(&mut cork, opcode, payload);
        self.queue.push_back(SendBuffer::owned(cork, 0));
    }

    fn coalesce(&mut self, mut front: SendBuffer, corks: &mut CorkPool) -> SendBuffer {
        // A torn front stays torn: its place in front of the unsent bytes is held by one that has left.
        let offset = usize::from(front.is_torn());
        let mut joined = match front.cork() {
            Some(cork) => std::mem::take(cork),
            None => {
                let mut cork = corks.take(COALESCED_BYTES_MAX);
                cork.resize(offset, 0);
                cork.extend_from_slice(front.unsent());
                cork
            }
        };
        if let Some(memory) = front.into_owned() {
            corks.give(memory);
        }
        while let Some(next) =
            self.queue.pop_front_if(|next| joined.len() - offset + next.len() <= COALESCED_BYTES_MAX)
        {
            joined.extend_from_slice(next.unsent());
            if let Some(memory) = next.into_owned() {
                corks.give(memory);
            }
        }
        SendBuffer::owned(joined, offset)
    }
}

/// How many data frames there are in `bytes`, which are whole frames.
fn count_messages(mut bytes: &[u8]) -> u64 {
    let mut messages = 0;
    while let Ok(Some((header, header_bytes))) = FrameHeader::decode(bytes) {
        messages += u64::from(!header.opcode.is_control());
        bytes = bytes.get(header_bytes + header.payload_bytes as usize..).unwrap_or_default();
    }
    messages
}

impl OutboxFull {
    /// Whether a full outbox ends the connection.
    #[must_use]
    pub fn closes(self) -> bool {
        matches!(self, Self::Close(_))
    }
}
