//! The one source of chance: a run is a function of its seed.

use std::cell::Cell;

/// A xorshift generator, shared by everything in a world.
#[derive(Debug)]
pub(crate) struct Random(Cell<u64>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // The finaliser of SplitMix64: neighbouring seeds have nothing in common.
        let mut state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self(Cell::new((state ^ (state >> 31)) | 1))
    }

    pub(crate) fn bits(&self) -> u64 {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub(crate) fn below(&self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }

    /// A number from `first` to `last`.
    pub(crate) fn within(&self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_of<'a, T>(&self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// A share of `whole`: often all of it, often very little, else anything from 1 on.
    pub(crate) fn share(&self, whole: usize) -> usize {
        match self.below(4) {
            0 | 1 => whole,
            2 => self.within(1, 8).min(whole),
            _ => self.within(1, whole.max(1)).min(whole),
        }
    }
}
