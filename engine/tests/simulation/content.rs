//! What messages consist of: slices of two tables of noise, so that telling any two apart is a comparison of
//! bytes and making one costs nothing.

use std::sync::OnceLock;

use ringwire::{Message, protocol::MessageKind};

use crate::random::Random;

/// The payload of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) kind: MessageKind,
    pub(crate) bytes: &'static [u8],
}

const LONGEST: usize = 128 * 1024;
const TABLE_BYTES: usize = 2 * LONGEST;

impl Content {
    /// `length` bytes, or up to three less where a text would end inside a character.
    pub(crate) fn random(random: &Random, length: usize) -> Self {
        let start = random.below(TABLE_BYTES - LONGEST);
        let length = length.min(LONGEST);
        // Long texts are rare: checking them takes most of the time in a build without optimisation.
        if random.chance(if length < 500 { 50 } else { 97 }) {
            return Self { kind: MessageKind::Binary, bytes: &noise()[start..start + length] };
        }
        let text = text();
        let start = character_border(text, start);
        let end = character_border(text, start + length);
        Self { kind: MessageKind::Text, bytes: &text.as_bytes()[start..end] }
    }

    /// `length` bytes that are always the same for `number`.
    pub(crate) fn numbered(number: usize, length: usize) -> Self {
        let start = number * 7919 % (TABLE_BYTES - LONGEST);
        Self { kind: MessageKind::Binary, bytes: &noise()[start..start + length.min(LONGEST)] }
    }

    pub(crate) fn is(&self, kind: MessageKind, bytes: &[u8]) -> bool {
        self.kind == kind && self.bytes == bytes
    }

    pub(crate) fn message(&self) -> Message<'static> {
        match self.kind {
            MessageKind::Binary => Message::Binary(self.bytes),
            MessageKind::Text => Message::Text(std::str::from_utf8(self.bytes).expect("cut at characters")),
        }
    }
}

/// The last border between characters at or before `index`.
fn character_border(text: &str, mut index: usize) -> usize {
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let random = Random::new(1);
        (0..TABLE_BYTES / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
    })
}

fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let random = Random::new(2);
        let mut text = String::with_capacity(TABLE_BYTES + 4);
        while text.len() < TABLE_BYTES {
            // Characters of one to four bytes, in runs of one length.
            let (first, last) =
                *random.one_of(&[(0x20, 0x7E), (0xA1, 0x7FF), (0x3041, 0xD7FF), (0x1F300, 0x1FAFF)]);
            for _ in 0..random.within(1, 60) {
                text.extend(char::from_u32(random.within(first, last) as u32));
            }
        }
        text
    })
}
