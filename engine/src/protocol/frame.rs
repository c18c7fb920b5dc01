//! One WebSocket frame: its header both ways, and writers for whole frames.
//!
//! Invariants: `encoded_bytes` equals what `encode` writes; a header that `decode` accepts uses the
//! shortest length form. It does not know in which order frames may come (see [`super::decoder`]),
//! nor any limit but the ones RFC 6455 sets itself.

use super::error::ProtocolError;
use crate::simd;

/// The longest header a frame can have: 2 bytes, 8 of length, 4 of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// The longest payload a control frame can have (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// What a frame is for, by its number on the wire (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpCode {
    /// A further fragment of the message in progress.
    Continuation = 0x0,
    /// The first fragment of a text message.
    Text = 0x1,
    /// The first fragment of a binary message.
    Binary = 0x2,
    /// The peer will send nothing more.
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping, or comes unasked as a heartbeat.
    Pong = 0xA,
}

impl OpCode {
    /// Reads the low four bits of a frame's first byte; `None` for a reserved opcode.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xA => Some(Self::Pong),
            _ => None,
        }
    }

    /// The four bits that stand for this opcode on the wire.
    #[inline]
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// Whether this is a close, a ping or a pong.
    #[inline]
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// What a message's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

impl From<MessageKind> for OpCode {
    #[inline]
    fn from(kind: MessageKind) -> Self {
        match kind {
            MessageKind::Text => Self::Text,
            MessageKind::Binary => Self::Binary,
        }
    }
}

/// Which side of the connection *we* are.
///
/// RFC 6455 section 5.1: a server refuses frames that are not masked, a client refuses those that are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// We accepted the connection: the peer masks.
    Server,
    /// We opened the connection: the peer does not mask.
    Client,
}

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Whether this frame ends its message.
    pub fin: bool,
    /// The first reserved bit; an extension may give it a meaning.
    pub rsv1: bool,
    /// What the frame is for.
    pub opcode: OpCode,
    /// The key the payload is masked with, if it is.
    pub mask: Option<[u8; 4]>,
    /// How many payload bytes follow the header.
    pub payload_bytes: u64,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes` and says how long it is; `None` if more bytes are needed.
    ///
    /// A header is refused at the first byte that condemns it, not once it is complete.
    ///
    /// # Errors
    /// The violation of RFC 6455 section 5.2 or 5.5 that was found first.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        check_reserved_bits(first)?;
        // RFC 6455 section 5.2: "If an unknown opcode is received, the receiving endpoint MUST _Fail the
        // WebSocket Connection_."
        let opcode = OpCode::from_bits(first & OPCODE_BITS).ok_or(ProtocolError::ReservedOpCode)?;
        let fin = first & FIN_BIT != 0;
        // RFC 6455 section 5.5: control frames "MUST NOT be fragmented".
        if opcode.is_control() && !fin {
            return Err(ProtocolError::FragmentedControlFrame);
        }

        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        let short_length = second & LENGTH_BITS;
        // RFC 6455 section 5.5: control frames "MUST have a payload length of 125 bytes or less".
        if opcode.is_control() && usize::from(short_length) > CONTROL_PAYLOAD_BYTES_MAX {
            return Err(ProtocolError::ControlFrameTooLong);
        }
        let Some((payload_bytes, length_end)) = decode_length(short_length, bytes)? else {
            return Ok(None);
        };

        let (mask, header_bytes) = if second & MASK_BIT == 0 {
            (None, length_end)
        } else {
            let Some(mask) = array_at::<4>(bytes, length_end) else {
                return Ok(None);
            };
            (Some(mask), length_end + 4)
        };
        let header = Self { fin, rsv1: first & RSV1_BIT != 0, opcode, mask, payload_bytes };
        Ok(Some((header, header_bytes)))
    }

    /// Writes the header to the start of `out` and returns how many bytes it took.
    #[inline]
    pub fn encode(&self, out: &mut [u8; HEADER_BYTES_MAX]) -> usize {
        let fin = if self.fin { FIN_BIT } else { 0 };
        let rsv1 = if self.rsv1 { RSV1_BIT } else { 0 };
        let mask_bit = if self.mask.is_some() { MASK_BIT } else { 0 };
        out[0] = fin | rsv1 | self.opcode.bits();
        let length_end = match self.payload_bytes {
            short @ 0..=125 => {
                out[1] = mask_bit | short as u8;
                2
            }
            medium @ 126..=0xFFFF => {
                out[1] = mask_bit | LENGTH_IS_16_BIT;
                out[2..4].copy_from_slice(&(medium as u16).to_be_bytes());
                4
            }
            long => {
                out[1] = mask_bit | LENGTH_IS_64_BIT;
                out[2..10].copy_from_slice(&long.to_be_bytes());
                10
            }
        };
        match self.mask {
            None => length_end,
            Some(mask) => {
                out[length_end..length_end + 4].copy_from_slice(&mask);
                length_end + 4
            }
        }
    }

    /// How many bytes [`encode`](Self::encode) writes.
    #[inline]
    pub const fn encoded_bytes(&self) -> usize {
        unmasked_header_bytes(self.payload_bytes) + if self.mask.is_some() { 4 } else { 0 }
    }
}

/// Appends one whole, unmasked frame: what a server sends.
#[inline(never)]
pub fn append_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    match payload.len() {
        short @ 0..=125 => {
            // A header of a constant size is stored without a call.
            out.extend_from_slice(&[FIN_BIT | opcode.bits(), short as u8]);
            out.extend_from_slice(payload);
        }
        _ => append_long_frame(out, opcode, payload),
    }
}

#[inline(never)]
fn append_long_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let (header, header_bytes) = encoded_header(opcode, None, payload.len());
    out.reserve(header_bytes + payload.len());
    out.extend_from_slice(&header[..header_bytes]);
    out.extend_from_slice(payload);
}

/// Appends one whole, masked frame: what a client sends.
///
/// RFC 6455 section 5.3 asks a real client for a fresh, unpredictable `mask` per frame.
#[inline]
pub fn append_masked_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], mask: [u8; 4]) {
    let (header, header_bytes) = encoded_header(opcode, Some(mask), payload.len());
    out.reserve(header_bytes + payload.len());
    out.extend_from_slice(&header[..header_bytes]);
    let payload_start = out.len();
    out.extend_from_slice(payload);
    simd::unmask(&mut out[payload_start..], mask, 0);
}

/// The size of an unmasked frame with `payload_bytes` of payload, header included; also for a limit that is
/// none.
#[inline]
pub const fn frame_bytes(payload_bytes: usize) -> usize {
    payload_bytes.saturating_add(unmasked_header_bytes(payload_bytes as u64))
}

/// Writes the header of a whole, unmasked frame so that it ends where the payload starts, and returns
/// where the header starts; `None`, with nothing written, if there is no room for it.
///
/// A received frame can so be relayed in place: the header a server writes is always shorter than the
/// one it received, because it carries no mask.
///
/// ```
/// use ringwire::protocol::frame::{OpCode, write_header_before};
///
/// let mut buffer = *b"\x81\x82mask Hi";
/// assert_eq!(write_header_before(&mut buffer, 7, OpCode::Text, 2), Some(5));
/// assert_eq!(&buffer[5..], b"\x81\x02Hi");
/// ```
#[inline]
pub fn write_header_before(
    buffer: &mut [u8],
    payload_start: usize,
    opcode: OpCode,
    payload_bytes: usize,
) -> Option<usize> {
    let (header, header_bytes) = encoded_header(opcode, None, payload_bytes);
    let header_start = payload_start.checked_sub(header_bytes)?;
    buffer.get_mut(header_start..payload_start)?.copy_from_slice(&header[..header_bytes]);
    Some(header_start)
}

/// The one place that judges reserved bits.
///
/// RFC 6455 section 5.2: RSV1, RSV2 and RSV3 "MUST be 0 unless an extension is negotiated that defines
/// meanings for non-zero values". No extension is spoken yet, so all three are refused.
#[inline]
fn check_reserved_bits(first: u8) -> Result<(), ProtocolError> {
    if first & RSV_BITS == 0 { Ok(()) } else { Err(ProtocolError::ReservedBits) }
}

/// Reads the payload length and says where it ends; `None` if more bytes are needed.
#[inline]
fn decode_length(short_length: u8, bytes: &[u8]) -> Result<Option<(u64, usize)>, ProtocolError> {
    match short_length {
        LENGTH_IS_16_BIT => {
            let Some(length) = array_at::<2>(bytes, 2).map(u16::from_be_bytes) else {
                return Ok(None);
            };
            // RFC 6455 section 5.2: "the minimal number of bytes MUST be used to encode the length".
            if length < 126 {
                return Err(ProtocolError::NonMinimalLength);
            }
            Ok(Some((u64::from(length), 4)))
        }
        LENGTH_IS_64_BIT => {
            let Some(length) = array_at::<8>(bytes, 2).map(u64::from_be_bytes) else {
                return Ok(None);
            };
            // RFC 6455 section 5.2: of the 64-bit length "the most significant bit MUST be 0".
            if length > i64::MAX as u64 {
                return Err(ProtocolError::LengthTopBitSet);
            }
            if length <= 0xFFFF {
                return Err(ProtocolError::NonMinimalLength);
            }
            Ok(Some((length, 10)))
        }
        short => Ok(Some((u64::from(short), 2))),
    }
}

#[inline]
fn array_at<const N: usize>(bytes: &[u8], start: usize) -> Option<[u8; N]> {
    bytes.get(start..)?.first_chunk().copied()
}

#[inline]
fn encoded_header(
    opcode: OpCode,
    mask: Option<[u8; 4]>,
    payload_bytes: usize,
) -> ([u8; HEADER_BYTES_MAX], usize) {
    let header = FrameHeader { fin: true, rsv1: false, opcode, mask, payload_bytes: payload_bytes as u64 };
    let mut bytes = [0; HEADER_BYTES_MAX];
    let header_bytes = header.encode(&mut bytes);
    (bytes, header_bytes)
}

#[inline]
const fn unmasked_header_bytes(payload_bytes: u64) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

const FIN_BIT: u8 = 0x80;
const RSV1_BIT: u8 = 0x40;
const RSV_BITS: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0F;
const MASK_BIT: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7F;
const LENGTH_IS_16_BIT: u8 = 126;
const LENGTH_IS_64_BIT: u8 = 127;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTHS: [u64; 9] = [0, 1, 125, 126, 127, 0xFFFF, 0x1_0000, 0x1_0001, i64::MAX as u64];

    #[test]
    fn every_length_form_survives_the_round_trip() {
        for payload_bytes in LENGTHS {
            for mask in [None, Some([1, 2, 3, 4])] {
                let header =
                    FrameHeader { fin: true, rsv1: false, opcode: OpCode::Binary, mask, payload_bytes };
                let mut out = [0; HEADER_BYTES_MAX];
                let written = header.encode(&mut out);
                assert_eq!(written, header.encoded_bytes());
                assert_eq!(FrameHeader::decode(&out[..written]), Ok(Some((header, written))));
            }
        }
    }

    #[test]
    fn header_sizes_are_those_of_section_5_2() {
        let sizes = LENGTHS.map(unmasked_header_bytes);
        assert_eq!(sizes, [2, 2, 2, 4, 4, 4, 10, 10, 10]);
        assert_eq!(frame_bytes(usize::MAX), usize::MAX, "of a limit that is none");
    }

    #[test]
    fn incomplete_header_asks_for_more() {
        for payload_bytes in LENGTHS {
            let header = FrameHeader {
                fin: false,
                rsv1: false,
                opcode: OpCode::Text,
                mask: Some([9; 4]),
                payload_bytes,
            };
            let mut out = [0; HEADER_BYTES_MAX];
            let written = header.encode(&mut out);
            for end in 0..written {
                assert_eq!(FrameHeader::decode(&out[..end]), Ok(None), "{end} of {written} bytes");
            }
        }
    }

    #[test]
    fn violations_are_refused_at_the_byte_that_commits_them() {
        use ProtocolError::*;
        let table: [(&[u8], ProtocolError); 18] = [
            (&[0xC1], ReservedBits),
            (&[0xA1], ReservedBits),
            (&[0x91], ReservedBits),
            (&[0x83], ReservedOpCode),
            (&[0x87], ReservedOpCode),
            (&[0x8B], ReservedOpCode),
            (&[0x8F], ReservedOpCode),
            (&[0x08], FragmentedControlFrame),
            (&[0x09], FragmentedControlFrame),
            (&[0x0A], FragmentedControlFrame),
            (&[0x88, 0xFE], ControlFrameTooLong),
            (&[0x89, 0x7E], ControlFrameTooLong),
            (&[0x8A, 0xFF], ControlFrameTooLong),
            (&[0x82, 0xFE, 0, 125], NonMinimalLength),
            (&[0x82, 0x7E, 0, 0], NonMinimalLength),
            (&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], NonMinimalLength),
            (&[0x82, 0x7F, 0, 0, 0, 0, 0, 0, 0, 1], NonMinimalLength),
            (&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], LengthTopBitSet),
        ];
        for (bytes, error) in table {
            assert_eq!(FrameHeader::decode(bytes), Err(error), "{bytes:x?}");
            assert_eq!(FrameHeader::decode(&bytes[..bytes.len() - 1]), Ok(None), "{bytes:x?} cut by one");
        }
    }

    #[test]
    fn opcode_bits_survive_the_round_trip() {
        let known: Vec<u8> = (0..16).filter(|&bits| OpCode::from_bits(bits).is_some()).collect();
        assert_eq!(known, [0, 1, 2, 8, 9, 10]);
        for bits in known {
            let opcode = OpCode::from_bits(bits).unwrap();
            assert_eq!(opcode.bits(), bits);
            assert_eq!(opcode.is_control(), bits >= 8);
        }
    }

    #[test]
    fn example_frames_of_section_5_7_are_written() {
        let mut out = Vec::new();
        append_frame(&mut out, OpCode::Text, b"Hello");
        assert_eq!(out, b"\x81\x05Hello");

        out.clear();
        append_masked_frame(&mut out, OpCode::Text, b"Hello", [0x37, 0xFA, 0x21, 0x3D]);
        assert_eq!(out, [0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58]);

        out.clear();
        append_frame(&mut out, OpCode::Binary, &[0; 256]);
        assert_eq!(out[..4], [0x82, 0x7E, 0x01, 0x00]);

        out.clear();
        append_frame(&mut out, OpCode::Binary, &[0; 65536]);
        assert_eq!(out[..10], [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn frame_bytes_is_what_append_frame_appends() {
        for payload_bytes in [0, 1, 125, 126, 127, 0xFFFF, 0x1_0000] {
            let mut out = Vec::new();
            append_frame(&mut out, OpCode::Binary, &vec![0; payload_bytes]);
            assert_eq!(out.len(), frame_bytes(payload_bytes));
        }
    }

    #[test]
    fn header_before_the_payload_always_fits_in_the_received_header() {
        for payload_bytes in [0, 1, 125, 126, 127, 0xFFFF, 0x1_0000] {
            let payload = vec![7; payload_bytes];
            let mut buffer = Vec::new();
            append_masked_frame(&mut buffer, OpCode::Binary, &payload, [0; 4]);
            let payload_start = buffer.len() - payload_bytes;
            let start = write_header_before(&mut buffer, payload_start, OpCode::Binary, payload_bytes);

            let mut expected = Vec::new();
            append_frame(&mut expected, OpCode::Binary, &payload);
            assert_eq!(start, Some(4));
            assert_eq!(buffer[4..], expected);
        }
    }

    #[test]
    fn header_without_room_is_not_written() {
        let mut buffer = [0xAA; 8];
        assert_eq!(write_header_before(&mut buffer, 1, OpCode::Text, 3), None);
        assert_eq!(write_header_before(&mut buffer, 3, OpCode::Text, 126), None);
        assert_eq!(write_header_before(&mut buffer, 9, OpCode::Text, 3), None);
        assert_eq!(write_header_before(&mut buffer, usize::MAX, OpCode::Text, 3), None);
        assert_eq!(buffer, [0xAA; 8]);
    }

    proptest! {
        #[test]
        fn encoding_then_decoding_is_identity(
            fin: bool,
            bits in prop::sample::select(vec![0_u8, 1, 2]),
            mask: Option<[u8; 4]>,
            payload_bytes in 0..=i64::MAX as u64,
            shift in 0_u32..63,
        ) {
            let opcode = OpCode::from_bits(bits).unwrap();
            let payload_bytes = payload_bytes >> shift;
            let header = FrameHeader { fin, rsv1: false, opcode, mask, payload_bytes };
            let mut out = [0; HEADER_BYTES_MAX];
            let written = header.encode(&mut out);
            prop_assert_eq!(FrameHeader::decode(&out), Ok(Some((header, written))));
        }

        #[test]
        fn accepted_header_encodes_to_the_same_bytes(bytes: [u8; HEADER_BYTES_MAX]) {
            if let Ok(Some((header, header_bytes))) = FrameHeader::decode(&bytes) {
                let mut out = [0; HEADER_BYTES_MAX];
                prop_assert_eq!(header.encode(&mut out), header_bytes);
                prop_assert_eq!(&out[..header_bytes], &bytes[..header_bytes]);
            }
        }
    }
}
