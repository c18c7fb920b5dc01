//! Unmasking 32 bytes at a time, for x86-64 processors with AVX2.
//!
//! Invariant: every load and store goes through a reference to a whole block, so bounds are the slice
//! methods' affair. It does not know whether the processor has AVX2: the caller must.
//!
//! The loop is written with intrinsics because the compiler, left to itself, transposes blocks as soon as
//! it has to look at them, which made a look three times as dear as it is. AVX-512 is not used: in the
//! caches the stores are the limit already, and behind them memory is.

use std::arch::x86_64::{
    __m256i, _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm256_xor_si256,
};

use super::{LOOK, MaskKey};

/// Unmasks at least one block; returns whether all bytes are ASCII if asked to look at them.
#[target_feature(enable = "avx2")]
pub(super) fn unmask<const LOOK_OR_IGNORE: bool>(payload: &mut [u8], mask: MaskKey) -> bool {
    let length = payload.len();
    let (Some(head), Some(tail)) = (payload.first_chunk(), payload.last_chunk()) else {
        return super::unmask_portable::<LOOK_OR_IGNORE>(payload, mask);
    };
    // The first and the last block may overlap those between them: both are worked out from the masked
    // bytes before any of them changes.
    let head = unmasked(head, mask);
    let tail = unmasked(tail, mask.at(length - BLOCK_BYTES));
    let mut seen = _mm256_or_si256(head, tail);

    let body_start = if length < ALIGN_BYTES_MIN {
        BLOCK_BYTES
    } else {
        payload.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES)
    };
    let key = vector(mask.at(body_start));
    let (groups, blocks) = payload[body_start..].as_chunks_mut().0.as_chunks_mut();
    let mut seen_in_groups = [_mm256_setzero_si256(); GROUP_BLOCKS];
    for group in groups {
        let group: &mut [Block; GROUP_BLOCKS] = group;
        for (block, seen) in group.iter_mut().zip(&mut seen_in_groups) {
            let bytes = _mm256_xor_si256(load(block), key);
            store(block, bytes);
            if LOOK_OR_IGNORE == LOOK {
                *seen = _mm256_or_si256(*seen, bytes);
            }
        }
    }
    for block in blocks {
        let bytes = _mm256_xor_si256(load(block), key);
        store(block, bytes);
        seen = _mm256_or_si256(seen, bytes);
    }

    if let Some(first) = payload.first_chunk_mut() {
        store(first, head);
    }
    if let Some(last) = payload.last_chunk_mut() {
        store(last, tail);
    }
    for seen_in_group in seen_in_groups {
        seen = _mm256_or_si256(seen, seen_in_group);
    }
    _mm256_movemask_epi8(seen) == 0
}

#[target_feature(enable = "avx2")]
fn unmasked(block: &Block, mask: MaskKey) -> __m256i {
    _mm256_xor_si256(load(block), vector(mask))
}

#[target_feature(enable = "avx2")]
fn vector(mask: MaskKey) -> __m256i {
    _mm256_set1_epi64x(mask.0.cast_signed())
}

#[target_feature(enable = "avx2")]
fn load(block: &Block) -> __m256i {
    // SAFETY: the reference vouches for 32 readable bytes; this load needs no alignment.
    unsafe { _mm256_loadu_si256(block.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store(block: &mut Block, bytes: __m256i) {
    // SAFETY: the reference vouches for 32 writable bytes; this store needs no alignment.
    unsafe { _mm256_storeu_si256(block.as_mut_ptr().cast(), bytes) }
}

type Block = [u8; BLOCK_BYTES];

const BLOCK_BYTES: usize = size_of::<__m256i>();
/// Blocks whose looks do not wait for each other.
const GROUP_BLOCKS: usize = 4;
/// From here aligning the blocks pays for itself.
const ALIGN_BYTES_MIN: usize = 1024;
