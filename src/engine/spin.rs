//! Looking before sleeping (`Config::spin`). Owns: the decision whether to look, from what earlier
//! looks found. Invariant: while looking does not pay, it is tried less and less often. Reads no
//! clock: time comes from the backend.

use super::Core;
use crate::backend::Backend;
use crate::error::Error;

/// Looking goes on while at least so many of the last 16 looks found something.
const LEAST_FOUND: u32 = 4;
const REMEMBERED: u32 = 16;
/// The first rest, in sleeps; it doubles each time that a trial after it fails, up to the longest.
const REST_MIN: u32 = 64;
const REST_MAX: u32 = 1 << 16;

/// Whether to look before sleeping.
#[derive(Debug)]
pub(super) struct Spin {
    /// How long to look; zero is never.
    window_ns: u64,
    /// What the last looks found, the latest in the lowest bit, and how many of them there were.
    found: u16,
    looks: u32,
    /// Sleeps to come without a look.
    resting: u32,
    next_rest: u32,
}

impl Spin {
    pub(super) fn new(window_ns: u64) -> Spin {
        Spin { window_ns, found: 0, looks: 0, resting: 0, next_rest: REST_MIN }
    }

    /// How long to look before this sleep.
    #[inline]
    fn window(&mut self) -> Option<u64> {
        if self.window_ns == 0 {
            return None;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return None;
        }
        Some(self.window_ns)
    }

    fn looked(&mut self, found: bool) {
        self.found = self.found << 1 | u16::from(found);
        self.looks += 1;
        if self.looks < REMEMBERED {
            return;
        }
        if self.found.count_ones() >= LEAST_FOUND {
            self.next_rest = REST_MIN;
            return;
        }
        (self.found, self.looks) = (0, 0);
        self.resting = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(REST_MAX);
    }
}

impl Core {
    /// Looks for something to do, without sleeping, for as long as that is allowed and seems to
    /// pay. True if there is something.
    pub(super) fn spin_before_wait<B: Backend>(
        &mut self,
        backend: &mut B,
        until: Option<u64>,
    ) -> Result<bool, Error> {
        let Some(window) = self.spin.window().filter(|_| B::CAN_SPIN) else { return Ok(false) };
        let start = backend.now();
        let end = until.unwrap_or(u64::MAX).min(start.saturating_add(window));
        if end <= start {
            return Ok(false);
        }
        let found = loop {
            backend.wait(Some(0))?;
            if backend.has_next() || self.inbox.signal.is_called() {
                break true;
            }
            if backend.now() >= end {
                break false;
            }
            std::hint::spin_loop();
        };
        self.stats.spins += 1;
        self.stats.spins_found += u64::from(found);
        self.spin.looked(found);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many sleeps are looked before, if every `period`th look finds something.
    fn looks(sleeps: u32, period: u32) -> u32 {
        let (mut spin, mut looks) = (Spin::new(1000), 0);
        for _ in 0..sleeps {
            if spin.window().is_some() {
                looks += 1;
                spin.looked(looks % period == 0);
            }
        }
        looks
    }

    #[test]
    fn looking_that_pays_goes_on() {
        assert_eq!(looks(100_000, 1), 100_000);
        assert_eq!(looks(100_000, 3), 100_000);
    }

    #[test]
    fn looking_that_does_not_pay_is_tried_less_and_less_often() {
        let (few, many) = (looks(10_000, 10), looks(1_000_000, 10));
        assert!((16..=160).contains(&few), "{few} of 10,000");
        assert!(many < 500, "{many} of 1,000,000");
    }

    #[test]
    fn without_a_window_nobody_looks() {
        let mut spin = Spin::new(0);
        assert!((0..1000).all(|_| spin.window().is_none()));
    }
}
