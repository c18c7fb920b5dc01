//! What is sent, and what must therefore come back.
//!
//! Every message of a run has the same length. Its mask key and its content follow from its *number*:
//! sixteen letters that spell the number (if it is that long), then its body. So a reply can be checked piece
//! by piece as it arrives, without keeping it, and a reply that is lost, doubled or out of order shows.
//!
//! A binary message's body is the same on its way to the server in every frame: it is the key, another one
//! for each message, that makes another payload of it. So nothing needs to be copied or masked to be sent,
//! and a reply is unmasked in the same pass that compares it. Text has to stay text: one of a few prepared
//! bodies is copied and masked for each message.

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

/// The messages of one client thread.
#[derive(Debug)]
pub(crate) struct Payloads {
    /// Of the mask keys.
    seed: u64,
    /// The frame that was sent last. In a binary one, header and body are every frame's but for the key.
    frame: Box<[u8]>,
    header_bytes: usize,
    /// What text messages are made of; none if they are binary.
    texts: Vec<Box<[u8]>>,
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
    /// Prepares messages of `bytes` each. The same arguments give the same messages and keys.
    pub(crate) fn new(content: Content, bytes: usize, verify: Verify, seed: u64) -> Self {
        let kind = match content {
            Content::Binary => MessageKind::Binary,
            Content::Text | Content::Ascii => MessageKind::Text,
        };
        let opcode = OpCode::from(kind);
        let header = FrameHeader { fin: true, rsv1: false, opcode, mask: None, payload_bytes: bytes as u64 };
        let mut reply_header = [0; HEADER_BYTES_MAX];
        let reply_header_bytes = header.encode(&mut reply_header);
        let mut header_buffer = [0; HEADER_BYTES_MAX];
        let header_bytes = FrameHeader { mask: Some([0; 4]), ..header }.encode(&mut header_buffer);

        let mut random = Random::new(0x5EED);
        let body = std::iter::repeat_with(|| random.next() as u8).take(bytes);
        let frame = header_buffer[..header_bytes].iter().copied().chain(body).collect();
        let texts = match content {
            Content::Binary => Vec::new(),
            Content::Text | Content::Ascii => {
                // Few enough to stay in the cache next to the buffers, so that the client stays light.
                let count = (TEXTS_BYTES_MAX / bytes.max(1)).clamp(2, TEXTS_MAX);
                (0..1 << count.ilog2()).map(|_| text(content, bytes, &mut random)).collect()
            }
        };
        Self { seed, frame, header_bytes, texts, reply_header, reply_header_bytes, verify }
    }

    /// The size of one reply's frame.
    pub(crate) fn reply_bytes(&self) -> usize {
        self.reply_header_bytes + self.frame.len() - self.header_bytes
    }

    /// The first byte of every reply's frame.
    pub(crate) fn reply_first_byte(&self) -> u8 {
        self.reply_header[0]
    }

    /// Message `number` as a masked frame.
    #[inline]
    pub(crate) fn frame(&mut self, number: u64) -> &[u8] {
        let mask = self.mask_of(number);
        let text = self.text_of(number);
        let (header, payload) = self.frame.split_at_mut(self.header_bytes);
        if let Some(key) = header.last_chunk_mut() {
            *key = mask;
        }
        if let Some(text) = text {
            copy_masked(payload, &self.texts[text], mask);
        }
        if let Some(stamped) = payload.first_chunk_mut() {
            *stamped = masked(stamp(number), mask);
        }
        &self.frame
    }

    /// The number that a whole reply's frame says it has, if its messages are long enough to say it.
    pub(crate) fn number_in(&self, reply: &[u8]) -> Option<u64> {
        let letters = reply.get(self.reply_header_bytes..)?.first_chunk::<STAMP_BYTES>()?;
        Some(letters.iter().fold(0, |number, letter| number << 4 | u64::from(letter.wrapping_sub(b'a') & 15)))
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

    #[inline]
    fn payload_matches(&self, number: u64, offset: usize, received: &[u8]) -> bool {
        let body = &self.frame[self.header_bytes..];
        if body.len() < STAMP_BYTES || offset >= STAMP_BYTES {
            return self.body_matches(number, offset, received);
        }
        let (stamped, rest) = received.split_at((STAMP_BYTES - offset).min(received.len()));
        let stamp_matches = stamped == &stamp(number)[offset..][..stamped.len()];
        stamp_matches && self.body_matches(number, STAMP_BYTES, rest)
    }

    #[inline]
    fn body_matches(&self, number: u64, offset: usize, received: &[u8]) -> bool {
        match self.text_of(number) {
            Some(text) => received == &self.texts[text][offset..][..received.len()],
            None => {
                let mut mask = self.mask_of(number);
                mask.rotate_left(offset % 4);
                is_masked(&self.frame[self.header_bytes + offset..][..received.len()], received, mask)
            }
        }
    }

    #[inline]
    fn mask_of(&self, number: u64) -> [u8; 4] {
        Random::new(self.seed ^ number).mask()
    }

    #[inline]
    fn text_of(&self, number: u64) -> Option<usize> {
        (!self.texts.is_empty()).then(|| number as usize & (self.texts.len() - 1))
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
const TEXTS_MAX: usize = 64;
const TEXTS_BYTES_MAX: usize = 128 * 1024;

/// Copies and masks in one go.
///
/// Not a copy and then a mask: a frame's header shifts its payload by a few bytes, and that is where some
/// processors' `rep movsb`, which `memcpy` takes for a few KiB, is twenty times slower than usual.
#[inline]
fn copy_masked(to: &mut [u8], from: &[u8], mask: [u8; 4]) {
    let (to_words, to_rest) = to.as_chunks_mut::<8>();
    let (from_words, from_rest) = from.as_chunks::<8>();
    let key = wide(mask);
    for (to, from) in to_words.iter_mut().zip(from_words) {
        *to = (u64::from_ne_bytes(*from) ^ key).to_ne_bytes();
    }
    for ((to, from), key) in to_rest.iter_mut().zip(from_rest).zip(mask.iter().cycle()) {
        *to = from ^ key;
    }
}

/// Whether `masked` is `plain` of the same length, masked.
#[inline]
fn is_masked(masked: &[u8], plain: &[u8], mask: [u8; 4]) -> bool {
    let (masked_words, masked_rest) = masked.as_chunks::<8>();
    let (plain_words, plain_rest) = plain.as_chunks::<8>();
    let key = wide(mask);
    // To the end in any case: that is what the compiler can do with wide registers.
    let differing = masked_words.iter().zip(plain_words).fold(0, |differing, (masked, plain)| {
        differing | (u64::from_ne_bytes(*masked) ^ u64::from_ne_bytes(*plain) ^ key)
    });
    let mut rest = masked_rest.iter().zip(plain_rest).zip(mask.iter().cycle());
    differing == 0 && rest.all(|((masked, plain), key)| *masked == plain ^ key)
}

#[inline]
fn masked(bytes: [u8; STAMP_BYTES], mask: [u8; 4]) -> [u8; STAMP_BYTES] {
    let key = u128::from(wide(mask)) * 0x1_0000_0000_0000_0001;
    (u128::from_ne_bytes(bytes) ^ key).to_ne_bytes()
}

#[inline]
fn wide(mask: [u8; 4]) -> u64 {
    u64::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001
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

fn text(content: Content, bytes: usize, random: &mut Random) -> Box<[u8]> {
    if content == Content::Ascii {
        return (0..bytes).map(|_| b' ' + (random.next() % 95) as u8).collect();
    }
    // The stamp overwrites whole characters: it is ASCII, and so is what it replaces.
    let mut text = if bytes < STAMP_BYTES { String::new() } else { "a".repeat(STAMP_BYTES) };
    while text.len() + 4 <= bytes {
        text.push(CHARACTERS[random.next() as usize % CHARACTERS.len()]);
    }
    text.extend(std::iter::repeat_n('.', bytes - text.len()));
    text.into_bytes().into_boxed_slice()
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
            let mut payloads = Payloads::new(Content::Text, bytes, Verify::Full, 1);
            for number in 0..8 {
                let payload = payload(&mut payloads, number);
                assert_eq!(payload.len(), bytes);
                assert!(std::str::from_utf8(&payload).is_ok(), "{bytes} bytes");
            }
        }
    }

    #[test]
    fn reply_is_checked_at_every_split_point() {
        for content in [Content::Binary, Content::Text] {
            for bytes in [0, 1, 15, 16, 17, 125, 126, 300] {
                let mut payloads = Payloads::new(content, bytes, Verify::Full, 2);
                let reply = reply(&mut payloads, 77);
                payloads.frame(78);
                for split in 0..=reply.len() {
                    let (head, tail) = reply.split_at(split);
                    assert_eq!(payloads.check(77, 0, head), Ok(()));
                    assert_eq!(payloads.check(77, split, tail), Ok(()));
                }
            }
        }
    }

    #[test]
    fn every_wrong_byte_is_noticed() {
        for content in [Content::Binary, Content::Text] {
            for bytes in [11, 64, 101] {
                let mut payloads = Payloads::new(content, bytes, Verify::Full, 3);
                let reply = reply(&mut payloads, 5);
                for wrong in 0..reply.len() {
                    let mut spoiled = reply.clone();
                    spoiled[wrong] ^= 1;
                    assert!(payloads.check(5, 0, &spoiled).is_err(), "byte {wrong} of {bytes}");
                }
                assert!(payloads.check(6, 0, &reply).is_err(), "the reply before");
            }
        }
    }

    #[test]
    fn reply_to_another_connection_is_noticed() {
        for content in [Content::Binary, Content::Text] {
            let mut payloads = Payloads::new(content, 64, Verify::Full, 4);
            let reply = reply(&mut payloads, 5);
            assert!(payloads.check(5 + (1 << 40), 0, &reply).is_err());
        }
    }

    #[test]
    fn keys_and_payloads_differ_from_message_to_message() {
        let mut payloads = Payloads::new(Content::Binary, 1000, Verify::Full, 5);
        let (first, second) = (payloads.frame(0).to_vec(), payloads.frame(1).to_vec());
        let key = |frame: &[u8]| FrameHeader::decode(frame).unwrap().unwrap().0.mask;
        assert_ne!(key(&first), key(&second));
        assert_ne!(payload(&mut payloads, 0)[STAMP_BYTES..], payload(&mut payloads, 1)[STAMP_BYTES..]);
    }

    #[test]
    fn frame_unmasks_to_what_is_expected_back() {
        for content in [Content::Binary, Content::Ascii] {
            for bytes in [0, 3, 15, 16, 17, 31, 125, 126, 1000, 70_000] {
                let mut payloads = Payloads::new(content, bytes, Verify::Full, 6);
                let frame = payloads.frame(3).to_vec();
                let (header, header_bytes) = FrameHeader::decode(&frame).unwrap().unwrap();
                assert_eq!((header.payload_bytes, header_bytes + bytes), (bytes as u64, frame.len()));
                let payload = payload(&mut payloads, 3);
                if bytes >= STAMP_BYTES {
                    assert_eq!(payload[..STAMP_BYTES], stamp(3));
                }
                let reply = reply(&mut payloads, 3);
                assert_eq!(payloads.check(3, 0, &reply), Ok(()));
                assert_eq!(payloads.number_in(&reply), (bytes >= STAMP_BYTES).then_some(3));
            }
        }
    }

    /// As a server sees it: unmasked byte by byte.
    fn payload(payloads: &mut Payloads, number: u64) -> Vec<u8> {
        let frame = payloads.frame(number);
        let (header, header_bytes) = FrameHeader::decode(frame).unwrap().unwrap();
        let mask = header.mask.unwrap();
        frame[header_bytes..].iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
    }

    fn reply(payloads: &mut Payloads, number: u64) -> Vec<u8> {
        let mut reply = payloads.reply_header[..payloads.reply_header_bytes].to_vec();
        reply.append(&mut payload(payloads, number));
        reply
    }
}
