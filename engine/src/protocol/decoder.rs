//! The incoming stream of frames, decoded in place into messages and control frames.
//!
//! Invariants: `remaining > 0` only inside a data frame's payload; `message_bytes` counts every frame of
//! the message in progress, the current one included, and never exceeds the limit; bytes handed out are
//! unmasked exactly once. It keeps no payload: what is incomplete stays with the caller. It does not
//! know close codes' meaning, deadlines or what anybody does with a message.

use std::ops::Range;

use super::error::ProtocolError;
use super::frame::{FrameHeader, MessageKind, OpCode, Role};
use super::utf8::Utf8Validator;
use crate::simd;

/// What a peer may send; see [`Decoder::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message, in bytes of payload over all its fragments.
    pub message_bytes_max: usize,
    /// The largest number of fragments in a fragmented message, empty ones included.
    pub fragments_max: u32,
}

/// What one call of [`Decoder::decode`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// How many bytes at the start of the input are done with. An item's payload lies within them.
    pub consumed: usize,
    /// What was found; `None` if more bytes are needed.
    pub item: Option<Item>,
}

/// One thing found in the stream. Ranges index into the input of the call that returned it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole message, unmasked in place; text is checked to be UTF-8.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// Where the message lies.
        payload: Range<usize>,
    },
    /// A piece of the message in progress, never empty, unmasked in place: the caller appends it to what
    /// it has of the message. Text is checked up to here, but a piece may end inside a character.
    Part {
        /// Where the piece lies.
        payload: Range<usize>,
    },
    /// The end of the message that came in parts; may be empty. The message is complete, and UTF-8 if text.
    LastPart {
        /// Text or binary.
        kind: MessageKind,
        /// Where the last piece lies.
        payload: Range<usize>,
    },
    /// A ping, to be answered with the same payload.
    Ping {
        /// Where the payload lies.
        payload: Range<usize>,
    },
    /// A pong.
    Pong {
        /// Where the payload lies.
        payload: Range<usize>,
    },
    /// A close frame, whose payload is for [`parse_close`](super::close::parse_close). Nothing follows it.
    Close {
        /// Where the payload lies.
        payload: Range<usize>,
    },
}

/// Turns the bytes of a connection into messages and control frames, in place and without buffering.
///
/// Call [`decode`](Self::decode) until its item is `None`, then present what was not consumed again, in
/// front of the bytes that came since.
///
/// ```
/// use ringwire::protocol::decoder::{Decoder, Item, Limits};
/// use ringwire::protocol::frame::{MessageKind, OpCode, Role, append_masked_frame};
///
/// let limits = Limits { message_bytes_max: 1024, fragments_max: 16 };
/// let mut stream = Vec::new();
/// append_masked_frame(&mut stream, OpCode::Text, b"hello", [1, 2, 3, 4]);
///
/// let decoded = Decoder::new(Role::Server).decode(&mut stream, &limits)?;
/// let Some(Item::Message { kind: MessageKind::Text, payload }) = decoded.item else { panic!() };
/// assert_eq!(&stream[payload], b"hello");
/// # Ok::<(), ringwire::protocol::ProtocolError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decoder {
    message_bytes: u64,
    remaining: u64,
    fragments: u32,
    mask: [u8; 4],
    utf8: Utf8Validator,
    mask_phase: u8,
    fin: bool,
    stage: Stage,
    message: Option<MessageKind>,
    role: Role,
}

impl Decoder {
    /// A decoder at the start of a stream; `role` is the side we are.
    pub const fn new(role: Role) -> Self {
        Self {
            message_bytes: 0,
            remaining: 0,
            fragments: 0,
            mask: [0; 4],
            utf8: Utf8Validator::new(),
            mask_phase: 0,
            fin: false,
            stage: Stage::Header,
            message: None,
            role,
        }
    }

    /// Takes the next item from the start of `input`, unmasking its payload in place.
    ///
    /// An incomplete header or control frame is left alone, so at most 139 bytes have to be presented
    /// again; of an incomplete data frame what is there is consumed as a part. Bytes after a close frame or
    /// an error are consumed and ignored.
    ///
    /// # Errors
    /// The first violation of the protocol or of `limits`. Items found in earlier calls stand.
    #[inline]
    pub fn decode(&mut self, input: &mut [u8], limits: &Limits) -> Result<Decoded, ProtocolError> {
        let Some((kind, payload)) = self.decode_whole(input, limits) else {
            return self.decode_any(input, limits);
        };
        if kind == MessageKind::Text && !is_utf8(&input[payload.clone()]) {
            self.stage = Stage::Finished;
            return Err(ProtocolError::InvalidUtf8);
        }
        Ok(Decoded { consumed: payload.end, item: Some(Item::Message { kind, payload }) })
    }

    /// Takes a message of one frame that lies wholly at the start of `input`, as nearly all do, unmasking it
    /// in place. Its text is left to be checked, and everything else to [`decode`](Self::decode).
    #[inline(always)]
    pub(crate) fn decode_whole(
        &mut self,
        input: &mut [u8],
        limits: &Limits,
    ) -> Option<(MessageKind, Range<usize>)> {
        if self.stage != Stage::Header || self.message.is_some() {
            return None;
        }
        let SmallFrame { kind, mask, payload } = SmallFrame::find(input, self.role, limits)?;
        if self.role == Role::Server {
            simd::unmask(input.get_mut(payload.clone())?, mask, 0);
        }
        Some((kind, payload))
    }

    /// Whether a message has begun and not ended.
    #[inline]
    pub const fn is_mid_message(&self) -> bool {
        self.message.is_some()
    }

    /// How many bytes of the current data frame are still to come.
    #[inline]
    pub const fn remaining_payload(&self) -> u64 {
        self.remaining
    }

    #[inline(never)]
    fn decode_any(&mut self, input: &mut [u8], limits: &Limits) -> Result<Decoded, ProtocolError> {
        let result = self.advance(input, limits);
        if result.is_err() {
            self.stage = Stage::Finished;
        }
        result
    }

    fn advance(&mut self, input: &mut [u8], limits: &Limits) -> Result<Decoded, ProtocolError> {
        let mut consumed = 0;
        loop {
            let rest = input.get_mut(consumed..).unwrap_or_default();
            match self.stage {
                // RFC 6455 section 5.5.1: after a close frame the peer "MUST NOT send any more data frames";
                // whatever still comes is not looked at.
                Stage::Finished => return Ok(Decoded { consumed: input.len(), item: None }),
                Stage::Header => {
                    let Some((header, header_bytes)) = FrameHeader::decode(rest)? else {
                        return Ok(Decoded { consumed, item: None });
                    };
                    self.check_masking(&header)?;
                    if header.opcode.is_control() {
                        return Ok(self.take_control_frame(&header, header_bytes, consumed, rest));
                    }
                    self.begin_data_frame(&header, limits)?;
                    consumed += header_bytes;
                }
                Stage::Payload => {
                    let start = consumed;
                    let taken = self.take_payload(rest)?;
                    consumed += taken.bytes;
                    let payload = start..consumed;
                    let item = match taken.end {
                        // An empty fragment was counted; there is nothing to hand out.
                        PayloadEnd::Fragment if payload.is_empty() => continue,
                        PayloadEnd::Input if payload.is_empty() => None,
                        PayloadEnd::Fragment | PayloadEnd::Input => Some(Item::Part { payload }),
                        PayloadEnd::WholeMessage(kind) => Some(Item::Message { kind, payload }),
                        PayloadEnd::Message(kind) => Some(Item::LastPart { kind, payload }),
                    };
                    return Ok(Decoded { consumed, item });
                }
            }
        }
    }

    fn check_masking(&self, header: &FrameHeader) -> Result<(), ProtocolError> {
        // RFC 6455 section 5.1: "The server MUST close the connection upon receiving a frame that is not
        // masked. [...] A client MUST close a connection if it detects a masked frame."
        match (self.role, header.mask) {
            (Role::Server, None) => Err(ProtocolError::UnmaskedFrame),
            (Role::Client, Some(_)) => Err(ProtocolError::MaskedFrame),
            _ => Ok(()),
        }
    }

    /// Takes a control frame if it is all there. The message in progress is not touched: RFC 6455 section
    /// 5.4, "Control frames MAY be injected in the middle of a fragmented message."
    fn take_control_frame(
        &mut self,
        header: &FrameHeader,
        header_bytes: usize,
        start: usize,
        rest: &mut [u8],
    ) -> Decoded {
        // At most 125: the header was accepted.
        let frame_bytes = header_bytes + header.payload_bytes as usize;
        let Some(bytes) = rest.get_mut(header_bytes..frame_bytes) else {
            return Decoded { consumed: start, item: None };
        };
        if let Some(mask) = header.mask {
            simd::unmask(bytes, mask, 0);
        }
        let payload = start + header_bytes..start + frame_bytes;
        let consumed = payload.end;
        let item = match header.opcode {
            OpCode::Ping => Item::Ping { payload },
            OpCode::Pong => Item::Pong { payload },
            _ => {
                self.stage = Stage::Finished;
                Item::Close { payload }
            }
        };
        Decoded { consumed, item: Some(item) }
    }

    fn begin_data_frame(&mut self, header: &FrameHeader, limits: &Limits) -> Result<(), ProtocolError> {
        // RFC 6455 section 5.4: a message is one frame with an opcode and then continuations; "The fragments
        // of one message MUST NOT be interleaved between the fragments of another message".
        let kind = match (header.opcode, self.message) {
            (OpCode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (OpCode::Continuation, Some(kind)) => kind,
            (_, Some(_)) => return Err(ProtocolError::InterruptedMessage),
            (OpCode::Text, None) => MessageKind::Text,
            (_, None) => MessageKind::Binary,
        };
        // RFC 6455 section 10.4: limit "the total message size after reassembly from multiple frames". Empty
        // fragments cost work as well, so they count too.
        let fragments = self.fragments.saturating_add(1);
        let is_fragmented = fragments > 1 || !header.fin;
        if is_fragmented && fragments > limits.fragments_max {
            return Err(ProtocolError::TooManyFragments);
        }
        let message_bytes = self.message_bytes.saturating_add(header.payload_bytes);
        if message_bytes > limits.message_bytes_max as u64 {
            return Err(ProtocolError::MessageTooBig);
        }

        self.message = Some(kind);
        self.message_bytes = message_bytes;
        self.fragments = fragments;
        self.remaining = header.payload_bytes;
        self.fin = header.fin;
        self.mask = header.mask.unwrap_or_default();
        self.mask_phase = 0;
        self.stage = Stage::Payload;
        Ok(())
    }

    /// Takes what `rest` has of the current data frame's payload.
    fn take_payload(&mut self, rest: &mut [u8]) -> Result<TakenPayload, ProtocolError> {
        let bytes = usize::try_from(self.remaining).map_or(rest.len(), |bytes| bytes.min(rest.len()));
        let payload = rest.get_mut(..bytes).unwrap_or_default();
        let is_text = self.message == Some(MessageKind::Text);
        let mut is_ascii = false;
        if self.role == Role::Server {
            let phase = usize::from(self.mask_phase);
            if is_text {
                is_ascii = simd::unmask_text(payload, self.mask, phase);
            } else {
                simd::unmask(payload, self.mask, phase);
            }
            self.mask_phase = ((usize::from(self.mask_phase) + bytes) % 4) as u8;
        }
        let is_first_piece = self.message_bytes == self.remaining;
        self.remaining -= bytes as u64;
        let ends_frame = self.remaining == 0;
        let ends_message = ends_frame && self.fin;
        if is_text {
            // RFC 6455 section 8.1: text that is not UTF-8 fails the connection; as early as possible, so
            // with every piece.
            let is_valid = if is_first_piece && ends_message {
                is_ascii || is_utf8(payload)
            } else {
                (is_ascii && !self.utf8.is_mid_character() || self.utf8.feed(payload).is_ok())
                    && (!ends_message || self.utf8.finish().is_ok())
            };
            if !is_valid {
                return Err(ProtocolError::InvalidUtf8);
            }
        }

        if ends_frame {
            self.stage = Stage::Header;
        }
        let end = match self.message {
            Some(kind) if ends_message => {
                self.message = None;
                self.message_bytes = 0;
                self.fragments = 0;
                if is_first_piece { PayloadEnd::WholeMessage(kind) } else { PayloadEnd::Message(kind) }
            }
            _ if ends_frame => PayloadEnd::Fragment,
            _ => PayloadEnd::Input,
        };
        Ok(TakenPayload { bytes, end })
    }
}

/// A data frame that is a whole message with a length of at most 16 bits and lies wholly in the input:
/// what nearly every frame is, found with a handful of branches.
struct SmallFrame {
    kind: MessageKind,
    mask: [u8; 4],
    payload: Range<usize>,
}

impl SmallFrame {
    /// `None` for everything else, right or wrong: that is for the complete decoder to judge.
    #[inline]
    fn find(input: &[u8], role: Role, limits: &Limits) -> Option<Self> {
        let head: &[u8; 8] = input.first_chunk()?;
        // The first byte of a final text or binary frame without reserved bits.
        let kind = match head[0] {
            0x81 => MessageKind::Text,
            0x82 => MessageKind::Binary,
            _ => return None,
        };
        let (mask_bit, mask_bytes) = match role {
            Role::Server => (0x80, 4),
            Role::Client => (0, 0),
        };
        let (payload_bytes, length_end, mask) = match head[1] ^ mask_bit {
            short @ 0..=125 => (usize::from(short), 2, [head[2], head[3], head[4], head[5]]),
            126 => {
                let length = u16::from_be_bytes([head[2], head[3]]);
                if length < 126 {
                    return None;
                }
                (usize::from(length), 4, [head[4], head[5], head[6], head[7]])
            }
            _ => return None,
        };
        let start = length_end + mask_bytes;
        let end = start + payload_bytes;
        if payload_bytes > limits.message_bytes_max || end > input.len() {
            return None;
        }
        Some(Self { kind, mask, payload: start..end })
    }
}

/// Whether a whole message is UTF-8.
#[inline]
fn is_utf8(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// At a frame's first byte.
    Header,
    /// In a data frame's payload.
    Payload,
    /// Behind a close frame or an error.
    Finished,
}

struct TakenPayload {
    bytes: usize,
    end: PayloadEnd,
}

enum PayloadEnd {
    /// The input ended first.
    Input,
    /// The frame ended, its message goes on.
    Fragment,
    /// The message ended, and all of it is in this piece.
    WholeMessage(MessageKind),
    /// The message ended, and parts of it were handed out before.
    Message(MessageKind),
}

// Every connection carries one.
const _: () = assert!(size_of::<Decoder>() <= 48);

#[cfg(test)]
mod tests;
