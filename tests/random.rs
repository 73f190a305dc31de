//! Numbers from a seed that every failure shows, so that a run can be had again.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    /// From `TEST_SEED`, else from the clock; the seed is printed either way.
    pub(crate) fn new() -> Random {
        let seed = seed();
        println!("TEST_SEED={seed} gives the same choices again");
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

fn seed() -> u64 {
    match std::env::var("TEST_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("TEST_SEED={text} is no seed: {error}")),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
            now.subsec_nanos().into()
        }
    }
}
