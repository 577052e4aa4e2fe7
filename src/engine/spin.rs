//! Busy polling before a blocking wait (`Config::spin`). Owns: the decision whether to spin, from
//! the results of earlier spins. Invariant: while spins find nothing, they become rarer. Must not
//! know a clock: time comes from the backend.

use super::Core;
use crate::backend::Backend;
use crate::error::Error;

/// The number of recent spins that the decision depends on.
const HISTORY: u32 = 16;
/// Spinning continues while at least this many of the recent spins found a completion.
const HITS_MIN: u32 = 4;
/// After too few hits, this many waits are not preceded by a spin. The number doubles after each
/// further round with too few hits.
const SKIP_MIN: u32 = 64;
const SKIP_MAX: u32 = 1 << 16;

/// Decides whether to spin before a wait.
#[derive(Debug)]
pub(super) struct Spin {
    /// The longest spin; zero turns spinning off.
    window_ns: u64,
    /// One bit per recent spin, the latest in the lowest bit: set if it found a completion.
    hits: u16,
    /// The number of spins in `hits`.
    spins: u32,
    /// The number of coming waits without a spin.
    skip: u32,
    /// The value of `skip` after the next round with too few hits.
    next_skip: u32,
}

impl Spin {
    pub(super) fn new(window_ns: u64) -> Spin {
        Spin { window_ns, hits: 0, spins: 0, skip: 0, next_skip: SKIP_MIN }
    }

    /// How long to spin before this wait.
    #[inline]
    fn next_window_ns(&mut self) -> Option<u64> {
        if self.window_ns == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        Some(self.window_ns)
    }

    fn record(&mut self, hit: bool) {
        self.hits = self.hits << 1 | u16::from(hit);
        self.spins += 1;
        if self.spins < HISTORY {
            return;
        }
        if self.hits.count_ones() >= HITS_MIN {
            self.next_skip = SKIP_MIN;
            return;
        }
        (self.hits, self.spins) = (0, 0);
        self.skip = self.next_skip;
        self.next_skip = (self.next_skip * 2).min(SKIP_MAX);
    }
}

impl Core {
    /// Polls the backend and the waker without blocking, until one has something, the window ends,
    /// or the time is `until`. True if one has something.
    pub(super) fn spin_before_wait<B: Backend>(
        &mut self,
        backend: &mut B,
        until: Option<u64>,
    ) -> Result<bool, Error> {
        let Some(window_ns) = self.spin.next_window_ns().filter(|_| B::CAN_SPIN) else {
            return Ok(false);
        };
        let start = backend.now();
        let end = until.unwrap_or(u64::MAX).min(start.saturating_add(window_ns));
        if end <= start {
            return Ok(false);
        }
        let hit = loop {
            backend.wait(Some(0))?;
            if backend.has_next() || self.waker_shared.signal.is_called() {
                break true;
            }
            if backend.now() >= end {
                break false;
            }
            std::hint::spin_loop();
        };
        self.stats.spins += 1;
        self.stats.spins_found += u64::from(hit);
        self.spin.record(hit);
        Ok(hit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of spins before `waits` waits, if every `period`th spin is a hit.
    fn spins(waits: u32, period: u32) -> u32 {
        let (mut spin, mut spins) = (Spin::new(1000), 0);
        for _ in 0..waits {
            if spin.next_window_ns().is_some() {
                spins += 1;
                spin.record(spins % period == 0);
            }
        }
        spins
    }

    #[test]
    fn spins_with_enough_hits_continue() {
        assert_eq!(spins(100_000, 1), 100_000);
        assert_eq!(spins(100_000, 3), 100_000);
    }

    #[test]
    fn spins_with_too_few_hits_become_rarer() {
        let (few, many) = (spins(10_000, 10), spins(1_000_000, 10));
        assert!((16..=160).contains(&few), "{few} of 10,000");
        assert!(many < 500, "{many} of 1,000,000");
    }

    #[test]
    fn a_window_of_zero_turns_spinning_off() {
        let mut spin = Spin::new(0);
        assert!((0..1000).all(|_| spin.next_window_ns().is_none()));
    }
}
