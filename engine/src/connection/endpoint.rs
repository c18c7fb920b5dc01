//! The endpoint (RFC 6455 section 2): one side of one connection, from the upgrade request to the end of the
//! transport.
//!
//! Invariants: phases only move forward; no frame is processed after a close frame was received, and no data
//! is queued after one was sent; `ended` is set exactly once, when the phase leaves `Open` and `Closing` for
//! good. Grammar: `handle_*` feeds it, plain verbs are commands, `poll_*` asks what comes of it.

mod closing;
mod receiving;

use std::ops::Range;

use self::receiving::Partial;
use super::{
    CloseReason, ConflationKey, DropCounts, Dropped, Full, Outbox, OutboxFull, SendStatus, Settings,
    SharedStatus, Timestamp,
};
use crate::{
    buffer::{CorkPool, LocalFrame, SendBuffer},
    protocol::{Decoder, MessageKind, OpCode, ProtocolError, Role, frame::frame_bytes},
};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The upgrade request has not arrived in full.
    Handshake,
    /// The request is there; the decision whether to accept it is being made.
    Deciding,
    /// Messages flow.
    Open,
    /// We sent a close frame and wait for the peer's.
    Closing,
    /// No more is received; what is queued is sent, then the write side is shut.
    Flushing,
    /// The write side is shut; the peer's end of the stream or a deadline is awaited.
    Lingering,
    /// The transport is to be closed.
    Closed,
}

/// Where the payload of a received message lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the input, at this range.
    Input(Range<usize>),
    /// In the assembly buffer: the message came in pieces. [`Endpoint::take_assembly`] has it.
    Assembly,
}

/// What came of received bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message is complete. Text has not been checked as a whole when it lies in the input.
    Message(MessageKind, Place),
    /// A ping was received; the pong is queued.
    Ping,
    /// The answer to our ping arrived.
    Pong,
    /// The peer's close frame was received, or its bytes broke the protocol: see [`Endpoint::phase`].
    Closed(Option<ProtocolError>),
}

/// What the transport is to do next.
#[derive(Debug)]
pub enum Output {
    /// Nothing.
    Idle,
    /// Send these bytes and report with [`Endpoint::handle_sent`].
    Send(SendBuffer),
    /// Shut the write side: everything has been sent.
    Shutdown,
    /// Close the socket.
    Close,
}

/// One side of one connection.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) phase: Phase,
    pub(super) paused: bool,
    resumed: bool,
    pub(super) awaiting_pong: bool,
    /// Bytes in front of the ping have left since its deadline was set.
    pub(super) ping_moved: bool,
    /// The peer has ended its side of the stream.
    peer_ended: bool,
    /// The write side was shut, or the close was reported: do not report it twice.
    reported: bool,
    pub(super) round_trip_millis: u32,
    /// What was queued before the ping and has not left.
    pub(super) bytes_before_ping: u32,
    decoder: Decoder,
    partial: Option<Box<Partial>>,
    pub(super) outbox: Outbox,
    ended: Option<Box<CloseReason>>,
    drops: DropCounts,
    /// In place of what the settings say for all.
    outbox_full: Option<OutboxFull>,
    pub(super) last_received: Timestamp,
    pub(super) last_message: Timestamp,
    /// Of the handshake, the pong or the close handshake, whichever the phase awaits.
    pub(super) awaited_until: Timestamp,
    pub(super) expires: Timestamp,
    pub(super) ping_sent: Timestamp,
}

const _: () = assert!(size_of::<Endpoint>() <= 256, "what every connection carries");
impl Endpoint {
    /// A connection accepted at `now`.
    #[must_use]
    pub fn new(settings: &Settings, lifetime_jitter: std::time::Duration, now: Timestamp) -> Self {
        let lifetime = settings.timeouts.lifetime.map(|lifetime| lifetime.saturating_add(lifetime_jitter));
        Self {
            phase: Phase::Handshake,
            paused: false,
            resumed: false,
            awaiting_pong: false,
            ping_moved: false,
            peer_ended: false,
            reported: false,
            round_trip_millis: u32::MAX,
            bytes_before_ping: 0,
            decoder: Decoder::new(Role::Server),
            partial: None,
            outbox: Outbox::default(),
            ended: None,
            drops: DropCounts::default(),
            outbox_full: None,
            last_received: now,
            last_message: now,
            awaited_until: now.after(settings.timeouts.handshake),
            expires: now.after_some(lifetime),
            ping_sent: Timestamp::NEVER,
        }
    }

    /// How far the connection has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Messages may be sent: the connection is open and no close frame has been sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Received bytes are wanted.
    #[must_use]
    pub fn wants_receive(&self) -> bool {
        !self.paused && !self.peer_ended && !matches!(self.phase, Phase::Deciding | Phase::Closed)
    }

    /// Frames in received bytes are to be processed.
    #[must_use]
    pub fn processes_frames(&self) -> bool {
        !self.paused && matches!(self.phase, Phase::Open | Phase::Closing)
    }

    /// The outbox.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The upgrade request is in the decision's hands.
    pub fn begin_deciding(&mut self) {
        debug_assert_eq!(self.phase, Phase::Handshake);
        self.phase = Phase::Deciding;
    }

    /// Answers the upgrade request with `response` (status 101) and opens the connection.
    pub fn accept(&mut self, response: Vec<u8>, now: Timestamp) {
        debug_assert!(self.phase <= Phase::Deciding);
        self.outbox.push_response(response);
        self.phase = Phase::Open;
        self.last_received = now;
        self.last_message = now;
        self.awaited_until = Timestamp::NEVER;
    }

    /// Answers a request with `response` and ends the connection.
    pub fn refuse(&mut self, response: Vec<u8>, settings: &Settings, now: Timestamp) {
        debug_assert!(self.phase <= Phase::Deciding);
        self.outbox.push_response(response);
        self.begin_flushing(settings, now);
    }

    /// Queues a message, if nothing has to be done for it but to write it behind others.
    #[inline]
    pub fn append(&mut self, opcode: OpCode, payload: &[u8], settings: &Settings) -> Option<SendStatus> {
        if !self.is_open() {
            return None;
        }
        self.outbox.append_data(opcode, payload, &settings.outbox)
    }

    /// Queues a message.
    pub fn send(
        &mut self,
        opcode: OpCode,
        payload: &[u8],
        settings: &Settings,
        corks: &mut CorkPool,
    ) -> Result<SendStatus, Full> {
        if !self.is_open() {
            return Ok(SendStatus::Dropped);
        }
        self.outbox.push_data(opcode, payload, &settings.outbox, corks)
    }

    /// Queues frames that others send as well. With a `key`, and while the outbox is congested or full, they
    /// replace what was queued with the same key.
    pub fn send_shared(
        &mut self,
        frame: &LocalFrame,
        key: Option<ConflationKey>,
        settings: &Settings,
    ) -> Result<SharedStatus, Full> {
        if !self.is_open() {
            return Ok(SharedStatus::Queued(SendStatus::Dropped));
        }
        let limits = &settings.outbox;
        if let Some(key) = key
            && (self.outbox.is_full_for(frame.bytes().len(), limits) || self.outbox.is_congested())
            && self.outbox.replace(frame, key, limits)
        {
            return Ok(SharedStatus::Replaced);
        }
        self.outbox.push_shared(frame, key, limits).map(SharedStatus::Queued)
    }

    /// Drops the oldest messages that have not begun to leave until there is room for `bytes` more, if that
    /// can be. Those are to take the place of the older value of `key`, if there is one.
    pub fn make_room(&mut self, bytes: usize, key: Option<ConflationKey>, settings: &Settings) -> Dropped {
        self.outbox.make_room(bytes, key, &settings.outbox)
    }

    /// Accounts for a message that will be sent from the memory where it lies, if nothing is in its way.
    pub fn reserve_relay(&mut self, payload_bytes: usize, settings: &Settings) -> Option<SendStatus> {
        if !self.is_open() || !self.outbox.is_idle() {
            return None;
        }
        self.outbox.reserve(frame_bytes(payload_bytes), &settings.outbox).ok()
    }

    /// `sent` bytes of a relayed frame have left; `rest` has not. Answers whether the outbox fell to its low
    /// mark.
    pub fn handle_relayed(&mut self, sent: usize, rest: SendBuffer, settings: &Settings) -> bool {
        self.note_sent(sent);
        self.outbox.sent_directly(sent, rest, &settings.outbox) && self.is_open()
    }

    /// A message was queued: the connection is not idle.
    pub fn note_message(&mut self, now: Timestamp) {
        self.last_message = now;
    }

    /// Sends a ping with a payload of the user's.
    pub fn ping(&mut self, payload: &[u8], corks: &mut CorkPool) {
        if self.is_open() {
            self.outbox.push_ping(payload, corks);
        }
    }

    /// What the transport is to do now. Each answer is given once.
    pub fn poll_output(&mut self, corks: &mut CorkPool) -> Output {
        if self.phase == Phase::Closed {
            return if std::mem::replace(&mut self.reported, true) { Output::Idle } else { Output::Close };
        }
        if let Some(buffer) = self.poll_buffer(corks) {
            return Output::Send(buffer);
        }
        if self.phase == Phase::Flushing && self.outbox.is_idle() {
            if self.peer_ended {
                self.phase = Phase::Closed;
                return self.poll_output(corks);
            }
            self.phase = Phase::Lingering;
            return Output::Shutdown;
        }
        Output::Idle
    }

    /// The next bytes for the socket. Whatever else [`poll_output`](Self::poll_output) would say is left.
    pub fn poll_buffer(&mut self, corks: &mut CorkPool) -> Option<SendBuffer> {
        if self.phase == Phase::Closed { None } else { self.outbox.poll(corks) }
    }

    /// Whether [`poll_output`](Self::poll_output) would answer anything but idle.
    #[must_use]
    pub fn has_output(&self) -> bool {
        match self.phase {
            Phase::Closed => !self.reported,
            Phase::Flushing => self.outbox.has_output() || self.outbox.is_idle(),
            _ => self.outbox.has_output(),
        }
    }

    /// Takes back a buffer of which `sent` bytes have left. Answers whether the outbox fell to its low mark.
    pub fn handle_sent(
        &mut self,
        buffer: SendBuffer,
        sent: usize,
        settings: &Settings,
        corks: &mut CorkPool,
    ) -> bool {
        self.note_sent(sent);
        self.outbox.sent(buffer, sent, &settings.outbox, corks) && self.is_open()
    }

    /// Stops or resumes the receipt of messages; the kernel's buffers and so the peer's sends then fill up. A
    /// connection that is closing is not paused: it has to see the peer's close frame or the end of the
    /// stream.
    pub fn pause_receive(&mut self, paused: bool) {
        self.resumed |= self.paused && !paused;
        self.paused = paused && self.is_open();
    }

    /// Receipt was resumed: [`take_resumed`](Self::take_resumed) would say so.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Receipt was resumed since the last call: what was [kept](Self::take_kept) is to be processed. A pong
    /// that is still awaited may lie behind it, so the wait for it begins anew.
    pub fn take_resumed(&mut self, settings: &Settings, now: Timestamp) -> bool {
        let resumed = std::mem::take(&mut self.resumed);
        if resumed && self.is_open() && self.awaiting_pong {
            self.awaited_until = now.after(settings.timeouts.pong);
        }
        resumed
    }

    /// How many messages for this connection were dropped.
    #[must_use]
    pub fn drops(&self) -> DropCounts {
        self.drops
    }

    /// Messages for this connection were dropped, for the reason that `count` chooses.
    pub fn note_dropped(&mut self, count: fn(&mut DropCounts) -> &mut u32, messages: u64) {
        DropCounts::add(count(&mut self.drops), messages);
    }

    /// What happens to a message for which there is no room.
    #[must_use]
    pub fn outbox_full(&self, settings: &Settings) -> OutboxFull {
        self.outbox_full.unwrap_or(settings.outbox.full)
    }

    /// Chooses what happens to a message for which there is no room.
    pub fn set_outbox_full(&mut self, full: OutboxFull) {
        self.outbox_full = Some(full);
    }

    /// The handler does not receive at the moment.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The last measured round trip of a keepalive ping.
    #[must_use]
    pub fn round_trip(&self) -> Option<std::time::Duration> {
        (self.round_trip_millis != u32::MAX)
            .then(|| std::time::Duration::from_millis(self.round_trip_millis.into()))
    }

    /// When bytes last came, or the connection was opened.
    #[must_use]
    pub fn last_received(&self) -> Timestamp {
        self.last_received
    }

    /// Gives back memory that an idle connection does not need.
    pub fn shrink(&mut self) {
        self.outbox.shrink();
    }
}

#[cfg(test)]
mod tests;
