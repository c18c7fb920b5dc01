//! Unmasking at the width of the machine.
//!
//! Invariant: every path gives exactly what the byte-by-byte loop of RFC 6455 section 5.3 gives, for any
//! length, alignment and phase. It knows nothing of frames.
//!
//! `unsafe` has two uses: the call of a function compiled for AVX2 after the processor was seen to have it,
//! and that function's loads and stores.

#[cfg(target_arch = "x86_64")]
mod avx2;

/// Applies `mask` to `payload`, whose first byte is byte `phase` of its frame's payload.
///
/// Masking and unmasking are the same operation (RFC 6455 section 5.3).
#[inline]
pub fn unmask(payload: &mut [u8], mask: [u8; 4], phase: usize) {
    unmask_any::<IGNORE>(payload, MaskKey::new(mask).at(phase));
}

/// Does what [`unmask`] does, and returns whether all of the unmasked payload is ASCII.
///
/// The look costs next to nothing while the bytes are in registers, and spares most texts a second pass.
#[inline]
pub fn unmask_text(payload: &mut [u8], mask: [u8; 4], phase: usize) -> bool {
    unmask_any::<LOOK>(payload, MaskKey::new(mask).at(phase))
}

/// Returns whether all bytes are ASCII if asked to look at them, and anything if not.
#[inline(always)]
fn unmask_any<const LOOK_OR_IGNORE: bool>(payload: &mut [u8], mask: MaskKey) -> bool {
    if payload.len() <= TINY_BYTES_MAX {
        unmask_tiny(payload, mask)
    } else {
        unmask_wide::<LOOK_OR_IGNORE>(payload, mask)
    }
}

/// A masking key, repeated to eight bytes, that starts at some byte of the payload.
#[derive(Clone, Copy)]
struct MaskKey(u64);

impl MaskKey {
    #[inline(always)]
    fn new(mask: [u8; 4]) -> Self {
        let mask = u64::from(u32::from_le_bytes(mask));
        Self(mask << 32 | mask)
    }

    /// The key for the byte `offset` bytes further on.
    #[inline(always)]
    fn at(self, offset: usize) -> Self {
        Self(self.0.rotate_right((offset % 4 * 8) as u32))
    }

    /// Compiles to vector instructions where vectors are that wide.
    #[inline(always)]
    fn apply<const WORDS: usize>(self, words: [u64; WORDS]) -> [u64; WORDS] {
        words.map(|word| word ^ self.0)
    }
}

/// At most [`TINY_BYTES_MAX`] bytes: words from both ends, which may overlap in the middle.
///
/// The overlapping words are all read before one is written, so both write the same value there.
#[inline(always)]
fn unmask_tiny(payload: &mut [u8], mask: MaskKey) -> bool {
    let length = payload.len();
    let seen = if let (Some(head), Some(tail)) = (first_words::<2>(payload), last_words::<2>(payload)) {
        let (head, tail) = (mask.apply(head), mask.at(length - 16).apply(tail));
        write_first(payload, head);
        write_last(payload, tail);
        head[0] | head[1] | tail[0] | tail[1]
    } else if let (Some([head]), Some([tail])) = (first_words(payload), last_words(payload)) {
        let (head, tail) = (mask.apply([head]), mask.at(length - 8).apply([tail]));
        write_first(payload, head);
        write_last(payload, tail);
        head[0] | tail[0]
    } else if let (Some(&head), Some(&tail)) = (payload.first_chunk(), payload.last_chunk()) {
        let head = u32::from_le_bytes(head) ^ mask.0 as u32;
        let tail = u32::from_le_bytes(tail) ^ mask.at(length - 4).0 as u32;
        if let Some(first) = payload.first_chunk_mut() {
            *first = head.to_le_bytes();
        }
        if let Some(last) = payload.last_chunk_mut() {
            *last = tail.to_le_bytes();
        }
        u64::from(head | tail)
    } else {
        let mut seen = 0;
        for (byte, key) in payload.iter_mut().zip(mask.0.to_le_bytes()) {
            *byte ^= key;
            seen |= *byte;
        }
        u64::from(seen)
    };
    seen & NOT_ASCII == 0
}

#[inline]
fn unmask_wide<const LOOK_OR_IGNORE: bool>(payload: &mut [u8], mask: MaskKey) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just seen to have AVX2, the only feature the function is compiled for.
        return unsafe { avx2::unmask::<LOOK_OR_IGNORE>(payload, mask) };
    }
    unmask_portable::<LOOK_OR_IGNORE>(payload, mask)
}

/// Word by word, in a loop that the compiler turns into vectors of the width every such processor has.
fn unmask_portable<const LOOK_OR_IGNORE: bool>(payload: &mut [u8], mask: MaskKey) -> bool {
    let (words, rest) = payload.as_chunks_mut();
    let mut seen = 0;
    for bytes in words {
        let [word] = mask.apply([u64::from_le_bytes(*bytes)]);
        *bytes = word.to_le_bytes();
        if LOOK_OR_IGNORE == LOOK {
            seen |= word;
        }
    }
    // Words do not move the phase.
    unmask_tiny(rest, mask) && seen & NOT_ASCII == 0
}

#[inline(always)]
fn first_words<const WORDS: usize>(payload: &[u8]) -> Option<[u64; WORDS]> {
    payload.as_chunks().0.first_chunk().map(|chunks| chunks.map(u64::from_le_bytes))
}

#[inline(always)]
fn last_words<const WORDS: usize>(payload: &[u8]) -> Option<[u64; WORDS]> {
    payload.as_rchunks().1.last_chunk().map(|chunks| chunks.map(u64::from_le_bytes))
}

#[inline(always)]
fn write_first<const WORDS: usize>(payload: &mut [u8], words: [u64; WORDS]) {
    if let Some(first) = payload.as_chunks_mut().0.first_chunk_mut() {
        *first = words.map(u64::to_le_bytes);
    }
}

#[inline(always)]
fn write_last<const WORDS: usize>(payload: &mut [u8], words: [u64; WORDS]) {
    if let Some(last) = payload.as_rchunks_mut().1.last_chunk_mut() {
        *last = words.map(u64::to_le_bytes);
    }
}

const LOOK: bool = true;
const IGNORE: bool = false;
/// The top bit of each byte of a word.
const NOT_ASCII: u64 = 0x8080_8080_8080_8080;
/// Up to here words beat the call of a function compiled for vectors.
const TINY_BYTES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 6455 section 5.3: "transformed-octet-i = original-octet-i XOR masking-key-octet-j, j = i MOD 4".
    fn unmask_naive(payload: &mut [u8], mask: [u8; 4], phase: usize) {
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= mask[(index + phase) % 4];
        }
    }

    fn unmask_portably(payload: &mut [u8], mask: [u8; 4], phase: usize) {
        let is_ascii = unmask_portable::<LOOK>(payload, MaskKey::new(mask).at(phase));
        assert_eq!(is_ascii, payload.is_ascii());
    }

    fn unmask_text_and_judge(payload: &mut [u8], mask: [u8; 4], phase: usize) {
        let is_ascii = unmask_text(payload, mask, phase);
        assert_eq!(is_ascii, payload.is_ascii());
    }

    fn assert_matches_naive(bytes: &[u8], offset: usize, mask: [u8; 4], phase: usize) {
        let mut expected = bytes.to_vec();
        unmask_naive(&mut expected[offset..], mask, phase);
        for path in [unmask, unmask_portably, unmask_text_and_judge] {
            let mut actual = bytes.to_vec();
            path(&mut actual[offset..], mask, phase);
            assert_eq!(actual, expected, "length {}, offset {offset}, phase {phase}", bytes.len() - offset);
        }
    }

    #[test]
    fn every_short_length_offset_and_phase_matches_the_naive_loop() {
        let bytes: Vec<u8> = (0..400).map(|index: u32| (index * 151 % 251) as u8).collect();
        let step = if cfg!(miri) { 37 } else { 1 };
        for length in (0..300).step_by(step) {
            for offset in (0..64).step_by(step) {
                for phase in 0..4 {
                    assert_matches_naive(&bytes[..offset + length], offset, [0x11, 0xA2, 0x5C, 0xFF], phase);
                }
            }
        }
    }

    #[test]
    fn lengths_around_the_alignment_threshold_match_the_naive_loop() {
        let bytes: Vec<u8> = (0..1200).map(|index: u32| (index * 57 % 253) as u8).collect();
        for length in 1024 - 40..1024 + 40 {
            for offset in 0..33 {
                assert_matches_naive(&bytes[..offset + length], offset, [1, 2, 4, 8], offset);
            }
        }
    }

    #[test]
    fn one_byte_that_is_not_ascii_is_seen_wherever_it_is() {
        let mask = [0x91, 0x02, 0xF3, 0x04];
        for length in (1..200).chain([1023, 1024, 1025, 1100]) {
            let mut masked = vec![b'a'; length];
            unmask_naive(&mut masked, mask, 0);
            assert!(unmask_text(&mut masked.clone(), mask, 0));
            for index in 0..length {
                let mut payload = masked.clone();
                payload[index] ^= 0x80;
                assert!(!unmask_text(&mut payload, mask, 0), "byte {index} of {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_payload_matches_the_naive_loop(
            bytes in proptest::collection::vec(any::<u8>(), 0..5000),
            offset in 0_usize..64,
            mask: [u8; 4],
            phase in 0_usize..9,
        ) {
            assert_matches_naive(&bytes, offset.min(bytes.len()), mask, phase);
        }

        #[test]
        fn masking_twice_is_identity(mut bytes: Vec<u8>, mask: [u8; 4], phase in 0_usize..4) {
            let original = bytes.clone();
            unmask(&mut bytes, mask, phase);
            unmask(&mut bytes, mask, phase);
            prop_assert_eq!(bytes, original);
        }
    }
}
