//! What is sent, and what must therefore come back.
//!
//! Every message of a run has the same length. Its content follows from its *number*: sixteen letters that
//! spell the number (if it is that long), then one of a few prepared variants. So a reply can be checked
//! piece by piece as it arrives, without keeping it, and a reply that is lost, doubled or out of order shows.

use std::fmt;

use clap::ValueEnum;
use ringwire::protocol::frame::HEADER_BYTES_MAX;
use ringwire::protocol::{FrameHeader, MessageKind, OpCode};
use serde::Serialize;

use crate::random::Random;

/// What the messages are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    /// Binary messages of random bytes.
    Binary,
    /// Text messages whose characters take one to four bytes of UTF-8.
    Text,
    /// Text messages of ASCII only.
    Ascii,
}

/// How closely replies are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verify {
    /// Opcode, length, every byte and with them the order.
    Full,
    /// Opcode and length.
    Length,
}

/// The prepared messages of one run.
#[derive(Debug)]
pub(crate) struct Payloads {
    header: FrameHeader,
    bytes: usize,
    variants: Vec<Box<[u8]>>,
    reply_header: [u8; HEADER_BYTES_MAX],
    reply_header_bytes: usize,
    verify: Verify,
}

/// A reply that is not what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// The number of the message that was due.
    pub(crate) number: u64,
    /// Where in its frame the difference lies: at this byte or after it in the same read.
    pub(crate) offset: usize,
}

impl Payloads {
    /// Prepares messages of `bytes` each. The same arguments give the same messages.
    pub(crate) fn new(content: Content, bytes: usize, verify: Verify) -> Self {
        let kind = match content {
            Content::Binary => MessageKind::Binary,
            Content::Text | Content::Ascii => MessageKind::Text,
        };
        let opcode = OpCode::from(kind);
        let header = FrameHeader { fin: true, rsv1: false, opcode, mask: None, payload_bytes: bytes as u64 };
        let mut reply_header = [0; HEADER_BYTES_MAX];
        let reply_header_bytes = header.encode(&mut reply_header);

        // Few enough to stay in the cache next to the buffers, so that the client stays light.
        let count = (VARIANTS_BYTES_MAX / bytes.max(1)).clamp(2, VARIANTS_MAX);
        let mut random = Random::new(0x5EED);
        let variants = (0..1 << count.ilog2()).map(|_| variant(content, bytes, &mut random)).collect();
        Self { header, bytes, variants, reply_header, reply_header_bytes, verify }
    }

    /// The size of one reply's frame.
    pub(crate) fn reply_bytes(&self) -> usize {
        self.reply_header_bytes + self.bytes
    }

    /// The first byte of every reply's frame.
    pub(crate) fn reply_first_byte(&self) -> u8 {
        self.reply_header[0]
    }

    /// Appends message `number` as a masked frame.
    pub(crate) fn append(&self, out: &mut Frames, number: u64, mask: [u8; 4]) {
        let header = FrameHeader { mask: Some(mask), ..self.header };
        let mut header_bytes = [0; HEADER_BYTES_MAX];
        let header_len = header.encode(&mut header_bytes);
        let payload = &self.variants[self.variant_of(number)];
        let (frame_header, frame_payload) = out.extend(header_len + self.bytes).split_at_mut(header_len);
        frame_header.copy_from_slice(&header_bytes[..header_len]);
        match frame_payload.split_first_chunk_mut::<STAMP_BYTES>() {
            Some((stamped, rest)) => {
                *stamped = stamp(number);
                mask_in_place(stamped, mask);
                // Sixteen is a multiple of four: the mask starts afresh.
                copy_masked(rest, &payload[STAMP_BYTES..], mask);
            }
            None => copy_masked(frame_payload, payload, mask),
        }
    }

    /// Checks `received`, which starts at byte `offset` of the frame that answers message `number` and does
    /// not reach beyond it.
    ///
    /// # Errors
    /// Something differs.
    #[inline]
    pub(crate) fn check(&self, number: u64, offset: usize, received: &[u8]) -> Result<(), Mismatch> {
        let (header, payload) =
            received.split_at(self.reply_header_bytes.saturating_sub(offset).min(received.len()));
        let payload_offset = offset.saturating_sub(self.reply_header_bytes);
        let header_matches = header.is_empty() || header == &self.reply_header[offset..][..header.len()];
        let payload_matches = match self.verify {
            Verify::Full => self.payload_matches(number, payload_offset, payload),
            Verify::Length => true,
        };
        if header_matches && payload_matches { Ok(()) } else { Err(Mismatch { number, offset }) }
    }

    fn payload_matches(&self, number: u64, offset: usize, received: &[u8]) -> bool {
        let expected = &self.variants[self.variant_of(number)];
        if self.bytes < STAMP_BYTES || offset >= STAMP_BYTES {
            return received == &expected[offset..][..received.len()];
        }
        let (stamped, rest) = received.split_at((STAMP_BYTES - offset).min(received.len()));
        stamped == &stamp(number)[offset..][..stamped.len()] && rest == &expected[STAMP_BYTES..][..rest.len()]
    }

    fn variant_of(&self, number: u64) -> usize {
        number as usize & (self.variants.len() - 1)
    }
}

/// Frames to be sent, one behind the other, in memory that is kept.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    len: usize,
}

impl Frames {
    /// Forgets the frames, not the memory.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// What is to be sent.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Room for `bytes` more; what is in it is old.
    #[inline]
    fn extend(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.len;
        self.len += bytes;
        if self.buffer.len() < self.len {
            self.buffer.resize(self.len.next_power_of_two(), 0);
        }
        &mut self.buffer[start..self.len]
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "reply {:#x} differs from what was sent, at byte {} of its frame or after it",
            self.number, self.offset
        )
    }
}

impl std::error::Error for Mismatch {}

const STAMP_BYTES: usize = 16;
const VARIANTS_MAX: usize = 64;
const VARIANTS_BYTES_MAX: usize = 128 * 1024;

/// Copies and masks in one go.
///
/// Not a copy and then a mask: a frame's header shifts its payload by a few bytes, and that is where some
/// processors' `rep movsb`, which `memcpy` takes for a few KiB, is twenty times slower than usual.
#[inline]
fn copy_masked(to: &mut [u8], from: &[u8], mask: [u8; 4]) {
    let (to_words, to_rest) = to.as_chunks_mut::<8>();
    let (from_words, from_rest) = from.as_chunks::<8>();
    let key = u64::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001;
    for (to, from) in to_words.iter_mut().zip(from_words) {
        *to = (u64::from_ne_bytes(*from) ^ key).to_ne_bytes();
    }
    for ((to, from), key) in to_rest.iter_mut().zip(from_rest).zip(mask.iter().cycle()) {
        *to = from ^ key;
    }
}

#[inline]
fn mask_in_place(bytes: &mut [u8; STAMP_BYTES], mask: [u8; 4]) {
    let key = u128::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001_0000_0001_0000_0001;
    *bytes = (u128::from_ne_bytes(*bytes) ^ key).to_ne_bytes();
}

/// Spells a number in sixteen letters from `a` to `p`, which are both binary and text.
fn stamp(number: u64) -> [u8; STAMP_BYTES] {
    let spread = |half: u32| {
        let mut nibbles = u64::from(half);
        nibbles = (nibbles | nibbles << 16) & 0x0000_FFFF_0000_FFFF;
        nibbles = (nibbles | nibbles << 8) & 0x00FF_00FF_00FF_00FF;
        nibbles = (nibbles | nibbles << 4) & 0x0F0F_0F0F_0F0F_0F0F;
        nibbles + u64::from_ne_bytes([b'a'; 8])
    };
    let letters = u128::from(spread((number >> 32) as u32)) << 64 | u128::from(spread(number as u32));
    letters.to_be_bytes()
}

fn variant(content: Content, bytes: usize, random: &mut Random) -> Box<[u8]> {
    match content {
        Content::Binary => (0..bytes).map(|_| random.next() as u8).collect(),
        Content::Ascii => (0..bytes).map(|_| b' ' + (random.next() % 95) as u8).collect(),
        Content::Text => {
            // The stamp overwrites whole characters: it is ASCII, and so is what it replaces.
            let mut text = "a".repeat(bytes.min(STAMP_BYTES));
            while text.len() + 4 <= bytes {
                text.push(CHARACTERS[random.next() as usize % CHARACTERS.len()]);
            }
            text.extend(std::iter::repeat_n('.', bytes - text.len()));
            text.into_bytes().into_boxed_slice()
        }
    }
}

/// One to four bytes of UTF-8 each.
const CHARACTERS: [char; 16] =
    ['e', 'n', ' ', '7', 'é', 'ß', 'Ж', 'ع', '€', '語', '한', 'ก', '😀', '🦀', '𝄞', '🚀'];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_spells_the_number() {
        assert_eq!(&stamp(0), b"aaaaaaaaaaaaaaaa");
        assert_eq!(&stamp(0x0123_4567_89AB_CDEF), b"abcdefghijklmnop");
    }

    #[test]
    fn text_stays_text_with_its_stamp() {
        for bytes in [0, 1, 15, 16, 17, 20, 1000] {
            let payloads = Payloads::new(Content::Text, bytes, Verify::Full);
            for number in 0..8 {
                let frame = sent(&payloads, number, [0; 4]);
                assert!(std::str::from_utf8(&frame[frame.len() - bytes..]).is_ok(), "{bytes} bytes");
            }
        }
    }

    #[test]
    fn reply_is_checked_at_every_split_point() {
        for bytes in [0, 1, 15, 16, 17, 125, 126, 300] {
            let payloads = Payloads::new(Content::Binary, bytes, Verify::Full);
            let reply = reply(&payloads, 77);
            for split in 0..=reply.len() {
                let (head, tail) = reply.split_at(split);
                assert_eq!(payloads.check(77, 0, head), Ok(()));
                assert_eq!(payloads.check(77, split, tail), Ok(()));
            }
        }
    }

    #[test]
    fn every_wrong_byte_is_noticed() {
        let payloads = Payloads::new(Content::Text, 64, Verify::Full);
        let reply = reply(&payloads, 5);
        for wrong in 0..reply.len() {
            let mut spoiled = reply.clone();
            spoiled[wrong] ^= 1;
            assert!(payloads.check(5, 0, &spoiled).is_err(), "byte {wrong}");
        }
        assert!(payloads.check(5 + (1 << 40), 0, &reply).is_err(), "another connection's reply");
    }

    #[test]
    fn sent_frame_unmasks_to_the_payload() {
        for bytes in [0, 3, 15, 16, 17, 31, 125, 126, 1000, 70_000] {
            let payloads = Payloads::new(Content::Binary, bytes, Verify::Full);
            let mask = [0x12, 0x34, 0x56, 0x78];
            let mut masked = sent(&payloads, 3, mask);
            let (header, header_bytes) = FrameHeader::decode(&masked).unwrap().unwrap();
            assert_eq!((header.mask, header.payload_bytes), (Some(mask), bytes as u64));
            let payload = &mut masked[header_bytes..];
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
            assert_eq!(payload, &sent(&payloads, 3, [0; 4])[header_bytes..]);
        }
    }

    fn sent(payloads: &Payloads, number: u64, mask: [u8; 4]) -> Vec<u8> {
        let mut frames = Frames::default();
        payloads.append(&mut frames, number, mask);
        frames.as_bytes().to_vec()
    }

    fn reply(payloads: &Payloads, number: u64) -> Vec<u8> {
        let mut reply = payloads.reply_header[..payloads.reply_header_bytes].to_vec();
        reply.extend_from_slice(&sent(payloads, number, [0; 4])[payloads.reply_header_bytes + 4..]);
        reply
    }
}
