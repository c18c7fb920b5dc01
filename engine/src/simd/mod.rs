//! Unmasking at the width of the machine.
//!
//! Invariant: every path gives exactly what the byte-by-byte loop of RFC 6455 section 5.3 gives, for any
//! length, alignment and phase. It knows nothing of frames.
//!
//! `unsafe` here has one use: calling a function compiled for AVX2 after the processor was seen to have it.

/// Applies `mask` to `payload`, whose first byte is byte `phase` of its frame's payload.
///
/// Masking and unmasking are the same operation (RFC 6455 section 5.3).
#[inline]
pub fn unmask(payload: &mut [u8], mask: [u8; 4], phase: usize) {
    let mask = MaskKey::new(mask).at(phase);
    if payload.len() <= TINY_BYTES_MAX {
        unmask_tiny(payload, mask);
    } else {
        unmask_wide(payload, mask);
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

    #[inline(always)]
    fn apply_8(self, bytes: [u8; 8]) -> [u8; 8] {
        (u64::from_le_bytes(bytes) ^ self.0).to_le_bytes()
    }

    #[inline(always)]
    fn apply_4(self, bytes: [u8; 4]) -> [u8; 4] {
        (u32::from_le_bytes(bytes) ^ self.0 as u32).to_le_bytes()
    }

    /// Compiles to one vector instruction where vectors are that wide.
    #[inline(always)]
    fn apply_block(self, block: &mut [u8; BLOCK_BYTES]) {
        for bytes in block.as_chunks_mut::<8>().0 {
            *bytes = self.apply_8(*bytes);
        }
    }
}

/// At most [`TINY_BYTES_MAX`] bytes: words from both ends, which may overlap in the middle.
///
/// The overlapping words are all read before one is written, so both write the same value there.
#[inline(always)]
fn unmask_tiny(payload: &mut [u8], mask: MaskKey) {
    let length = payload.len();
    if length >= 16 {
        let (Some(&head), Some(&tail)) = (payload.first_chunk::<16>(), payload.last_chunk::<16>()) else {
            return;
        };
        write_first(payload, apply_16(mask, head));
        write_last(payload, apply_16(mask.at(length - 16), tail));
    } else if let (Some(&head), Some(&tail)) = (payload.first_chunk(), payload.last_chunk()) {
        write_first(payload, mask.apply_8(head));
        write_last(payload, mask.at(length - 8).apply_8(tail));
    } else if let (Some(&head), Some(&tail)) = (payload.first_chunk(), payload.last_chunk()) {
        write_first(payload, mask.apply_4(head));
        write_last(payload, mask.at(length - 4).apply_4(tail));
    } else {
        for (byte, key) in payload.iter_mut().zip(mask.0.to_le_bytes()) {
            *byte ^= key;
        }
    }
}

#[inline(always)]
fn apply_16(mask: MaskKey, mut bytes: [u8; 16]) -> [u8; 16] {
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = mask.apply_8(*word);
    }
    bytes
}

#[inline(always)]
fn write_first<const N: usize>(payload: &mut [u8], bytes: [u8; N]) {
    if let Some(first) = payload.first_chunk_mut() {
        *first = bytes;
    }
}

#[inline(always)]
fn write_last<const N: usize>(payload: &mut [u8], bytes: [u8; N]) {
    if let Some(last) = payload.last_chunk_mut() {
        *last = bytes;
    }
}

#[inline]
fn unmask_wide(payload: &mut [u8], mask: MaskKey) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just seen to have AVX2, the only feature `unmask_avx2` is compiled for.
        return unsafe { unmask_avx2(payload, mask) };
    }
    unmask_blocks(payload, mask);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn unmask_avx2(payload: &mut [u8], mask: MaskKey) {
    unmask_blocks(payload, mask);
}

/// Whole blocks, aligned if that pays, between an unaligned first and last block that may overlap them.
#[inline(always)]
fn unmask_blocks(payload: &mut [u8], mask: MaskKey) {
    let length = payload.len();
    let (Some(&head), Some(&tail)) =
        (payload.first_chunk::<BLOCK_BYTES>(), payload.last_chunk::<BLOCK_BYTES>())
    else {
        return unmask_tiny(payload, mask);
    };
    // Both ends are worked out from the masked bytes before the loop changes any of them.
    let (mut first, mut last) = (head, tail);
    mask.apply_block(&mut first);
    mask.at(length - BLOCK_BYTES).apply_block(&mut last);

    let body_start = if length < ALIGN_BYTES_MIN {
        BLOCK_BYTES
    } else {
        payload.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES)
    };
    let body_mask = mask.at(body_start);
    for block in payload[body_start..].as_chunks_mut::<BLOCK_BYTES>().0 {
        body_mask.apply_block(block);
    }
    write_first(payload, first);
    write_last(payload, last);
}

/// The width of an AVX2 register.
const BLOCK_BYTES: usize = 32;
/// Up to here words beat the call of a function compiled for vectors.
const TINY_BYTES_MAX: usize = 32;
/// From here aligning the blocks pays for itself.
const ALIGN_BYTES_MIN: usize = 1024;

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

    fn unmask_portable(payload: &mut [u8], mask: [u8; 4], phase: usize) {
        unmask_blocks(payload, MaskKey::new(mask).at(phase));
    }

    fn assert_matches_naive(bytes: &[u8], offset: usize, mask: [u8; 4], phase: usize) {
        let mut expected = bytes.to_vec();
        unmask_naive(&mut expected[offset..], mask, phase);
        for path in [unmask, unmask_portable] {
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
        for length in ALIGN_BYTES_MIN - 40..ALIGN_BYTES_MIN + 40 {
            for offset in 0..33 {
                assert_matches_naive(&bytes[..offset + length], offset, [1, 2, 4, 8], offset);
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
