//! From received bytes to events, and what is kept between two receives.

use std::ops::Range;

use super::{Endpoint, Event, Phase, Place};
use crate::{
    buffer::{CorkPool, HEADROOM_BYTES},
    connection::{Settings, Timestamp},
    protocol::{Item, MessageKind, frame::HEADER_BYTES_MAX},
};

/// What an idle connection does not have: bytes left over between two receives.
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// Undecoded bytes: the beginning of a request, a frame header or a control frame, or what came during a
    /// pause.
    carry: Vec<u8>,
    /// How much at the beginning of `carry` is done with.
    carry_start: usize,
    /// Room for a frame header, then the payload of the message in progress.
    assembly: Vec<u8>,
}

/// Room in front of an assembled message for the header of a server's frame, so that it can be sent on in
/// place.
const ASSEMBLY_HEADER_BYTES: usize = 10;
const _: () = assert!(HEADER_BYTES_MAX + 125 <= HEADROOM_BYTES);

impl Endpoint {
    /// Notes that bytes arrived and puts what an earlier input left over in front of them. The new bytes
    /// stand in `input` from [`HEADROOM_BYTES`] on; answers where decoding begins, or a buffer to decode
    /// instead of `input`, when what was left over does not fit in front.
    pub fn handle_received(&mut self, input: &mut [u8], now: Timestamp) -> Result<usize, Vec<u8>> {
        self.last_received = now;
        let Some(partial) = self.partial.as_mut().filter(|partial| !partial.carry.is_empty()) else {
            return Ok(HEADROOM_BYTES);
        };
        let carried = &partial.carry[partial.carry_start..];
        if carried.len() <= HEADROOM_BYTES {
            let start = HEADROOM_BYTES - carried.len();
            input[start..HEADROOM_BYTES].copy_from_slice(carried);
            partial.carry.clear();
            partial.carry_start = 0;
            self.free_partial();
            return Ok(start);
        }
        let (mut joined, start) = self.take_kept();
        joined.drain(..start);
        joined.extend_from_slice(&input[HEADROOM_BYTES..]);
        Err(joined)
    }

    /// Keeps `rest` for the next input, unless no more is processed.
    pub fn keep(&mut self, rest: &[u8]) {
        if !rest.is_empty() && self.phase <= Phase::Closing {
            self.partial.get_or_insert_default().carry.extend_from_slice(rest);
        }
    }

    /// The same for bytes in a buffer of their own that are done with up to `start`. What is still to come of
    /// it is copied only if it is at most half the buffer: so a pause behind each of many messages costs no
    /// more than two copies of them all, and no rest keeps much more memory than it has bytes.
    pub fn keep_rest(&mut self, kept: Vec<u8>, start: usize) {
        let rest = &kept[start..];
        if rest.len() <= kept.capacity() / 2 {
            self.keep(rest);
        } else if self.phase <= Phase::Closing {
            let partial = self.partial.get_or_insert_default();
            debug_assert!(partial.carry.is_empty(), "everything kept was taken");
            (partial.carry, partial.carry_start) = (kept, start);
        }
    }

    /// What was kept, to go on after a pause without new bytes, and where it begins.
    #[must_use]
    pub fn take_kept(&mut self) -> (Vec<u8>, usize) {
        let kept = self
            .partial
            .as_mut()
            .map(|partial| (std::mem::take(&mut partial.carry), std::mem::take(&mut partial.carry_start)))
            .unwrap_or_default();
        self.free_partial();
        kept
    }

    /// The next message, where it is of one frame and lies wholly in `input` from `position` on, which moves
    /// past it. Nearly all do; for everything else ask [`poll_event`](Self::poll_event). Text has not been
    /// checked.
    #[inline]
    pub fn poll_message(
        &mut self,
        input: &mut [u8],
        position: &mut usize,
        settings: &Settings,
        now: Timestamp,
    ) -> Option<(MessageKind, Range<usize>)> {
        if !self.processes_frames() {
            return None;
        }
        let start = *position;
        let (kind, payload) = self.decoder.decode_whole(input.get_mut(start..)?, &settings.message)?;
        *position += payload.end;
        self.last_message = now;
        Some((kind, start + payload.start..start + payload.end))
    }

    /// The next event in `input` from `position` on, which moves past it. `None` when more bytes are needed;
    /// what lies behind `position` then must be [kept](Self::keep).
    pub fn poll_event(
        &mut self,
        input: &mut [u8],
        position: &mut usize,
        settings: &Settings,
        corks: &mut CorkPool,
        now: Timestamp,
    ) -> Option<Event> {
        while self.processes_frames() && *position < input.len() {
            let start = *position;
            let decoded = match self.decoder.decode(&mut input[start..], &settings.message) {
                Ok(decoded) => decoded,
                Err(error) => {
                    *position = input.len();
                    self.fail(error.close_code(), &error.to_string(), corks, settings, now);
                    return Some(Event::Closed(Some(error)));
                }
            };
            *position += decoded.consumed;
            let place = |range: Range<usize>| start + range.start..start + range.end;
            match decoded.item {
                None => return None,
                Some(Item::Message { kind, payload }) => {
                    self.last_message = now;
                    return Some(Event::Message(kind, Place::Input(place(payload))));
                }
                Some(Item::Part { payload }) => self.assemble(&input[place(payload)], corks),
                Some(Item::LastPart { kind, payload }) => {
                    self.assemble(&input[place(payload)], corks);
                    self.last_message = now;
                    return Some(Event::Message(kind, Place::Assembly));
                }
                Some(Item::Ping { payload }) => {
                    if self.is_open() {
                        self.outbox.push_pong(&input[place(payload)], corks);
                    }
                    return Some(Event::Ping);
                }
                Some(Item::Pong { payload }) => {
                    if self.is_answered_by(&input[place(payload)], now) {
                        return Some(Event::Pong);
                    }
                }
                Some(Item::Close { payload }) => {
                    *position = input.len();
                    let error = self.handle_close(&input[place(payload)], settings, corks, now).err();
                    return Some(Event::Closed(error));
                }
            }
        }
        None
    }

    /// The payload of a message that came in pieces, behind room for a frame header.
    #[must_use]
    pub fn take_assembly(&mut self) -> (Vec<u8>, usize) {
        let assembly =
            self.partial.as_mut().map(|partial| std::mem::take(&mut partial.assembly)).unwrap_or_default();
        self.free_partial();
        let start = ASSEMBLY_HEADER_BYTES.min(assembly.len());
        (assembly, start)
    }

    /// Whether a pong answers. Any ends the wait for one, since a peer may answer the newest ping alone (RFC
    /// 6455 section 5.5.3), which need not be ours; only the answer to ours tells the round trip.
    fn is_answered_by(&mut self, payload: &[u8], now: Timestamp) -> bool {
        let awaited = std::mem::take(&mut self.awaiting_pong);
        let is_ours =
            self.ping_sent != Timestamp::NEVER && payload == self.ping_sent.as_millis().to_be_bytes();
        if is_ours {
            let millis = now.since(self.ping_sent).as_millis();
            self.round_trip_millis = u32::try_from(millis).unwrap_or(u32::MAX - 1);
            self.ping_sent = Timestamp::NEVER;
        }
        awaited || is_ours
    }

    fn assemble(&mut self, payload: &[u8], corks: &mut CorkPool) {
        let remaining = usize::try_from(self.decoder.remaining_payload()).unwrap_or(usize::MAX);
        let assembly = &mut self.partial.get_or_insert_default().assembly;
        if assembly.is_empty() {
            let expected = payload.len() + remaining.min(ASSEMBLY_RESERVED_BYTES_MAX);
            *assembly = corks.take(ASSEMBLY_HEADER_BYTES + expected);
            assembly.resize(ASSEMBLY_HEADER_BYTES, 0);
        }
        assembly.extend_from_slice(payload);
    }

    fn free_partial(&mut self) {
        if self
            .partial
            .as_ref()
            .is_some_and(|partial| partial.carry.is_empty() && partial.assembly.is_empty())
        {
            self.partial = None;
        }
    }
}

/// How much is reserved at once for a message whose header announces more than has arrived: a peer must send
/// bytes to make this side allocate them.
const ASSEMBLY_RESERVED_BYTES_MAX: usize = 256 * 1024;
