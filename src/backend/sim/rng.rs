//! Pseudo-random numbers: splitmix64. Owns: 64 bits of state. Invariant: a seed gives the same
//! sequence on every machine.

#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True with a probability of `chance` in 2^32.
    pub(crate) fn chance(&mut self, chance: u64) -> bool {
        chance != 0 && (self.next_u64() >> 32) < chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_sequence() {
        // The published first outputs of splitmix64 for the seed 0.
        let mut rng = Rng::new(0);
        assert_eq!(
            [rng.next_u64(), rng.next_u64()],
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]
        );
        let mut rng = Rng::new(7);
        assert!((0..1000).all(|_| rng.below(10) < 10) && rng.below(0) == 0);
        assert!(!rng.chance(0) && rng.chance(1 << 32));
        let hits = (0..100_000).filter(|_| rng.chance(1 << 30)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
    }
}
