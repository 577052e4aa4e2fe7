//! The word between a sleeping engine and those who wake it. Owns: one atomic. Invariant: a wake-up
//! is never lost, and the descriptor is written at most once per sleep. Compiled twice: here over
//! std's atomics, in `tests/loom_waker.rs` over loom's.

use super::atomic::{AtomicU8, Ordering};

/// The engine runs and will look at the word before it sleeps.
const AWAKE: u8 = 0;
/// The engine sleeps, or is about to: whoever changes this must write the descriptor.
const SLEEPING: u8 = 1;
/// Somebody called; the engine has not seen it yet.
const CALLED: u8 = 2;

#[derive(Debug)]
pub(crate) struct Signal(AtomicU8);

impl Signal {
    pub(crate) fn new() -> Signal {
        Signal(AtomicU8::new(AWAKE))
    }

    /// From any thread. True if the caller must now make the descriptor readable.
    #[must_use]
    pub(crate) fn call(&self) -> bool {
        self.0.swap(CALLED, Ordering::AcqRel) == SLEEPING
    }

    /// Before the engine sleeps. False if somebody called: then it must not sleep.
    #[must_use]
    pub(crate) fn may_sleep(&self) -> bool {
        match self.0.compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => found == SLEEPING,
        }
    }

    /// While the engine looks for something to do: true if somebody called.
    #[must_use]
    pub(crate) fn is_called(&self) -> bool {
        self.0.load(Ordering::Acquire) == CALLED
    }

    /// After the engine slept, or instead. True if somebody called since the last time. With
    /// `stay_asleep` later calls write the descriptor although the engine is running: for engines
    /// that sit in a foreign loop.
    #[must_use]
    pub(crate) fn take(&self, stay_asleep: bool) -> bool {
        let rest = if stay_asleep { SLEEPING } else { AWAKE };
        if self.0.load(Ordering::Relaxed) == rest {
            return false;
        }
        self.0.swap(rest, Ordering::AcqRel) == CALLED
    }
}
