//! The state that an engine shares with its wakers. Owns: one atomic. Invariant: no wake-up is
//! lost, and the eventfd is written at most once per sleep. Must not know the eventfd: the results
//! say when to write it. Compiled twice: here with the atomics of std, in `tests/loom_waker.rs`
//! with those of loom.

use super::atomic::{AtomicU8, Ordering};

/// The engine runs. It reads the state before it sleeps.
const AWAKE: u8 = 0;
/// The engine sleeps or is about to. A waker that changes this state must write the eventfd.
const SLEEPING: u8 = 1;
/// A waker was called, and the engine has not yet taken the wake-up.
const CALLED: u8 = 2;

/// One of the states above.
#[derive(Debug)]
pub(crate) struct Signal(AtomicU8);

impl Signal {
    pub(crate) fn new() -> Signal {
        Signal(AtomicU8::new(AWAKE))
    }

    /// Records a wake-up. Any thread may call it. If the result is true, the caller must write the
    /// eventfd.
    #[must_use]
    pub(crate) fn call(&self) -> bool {
        self.0.swap(CALLED, Ordering::AcqRel) == SLEEPING
    }

    /// The engine calls this before it sleeps. False if a wake-up is pending: the engine must not
    /// sleep.
    #[must_use]
    pub(crate) fn may_sleep(&self) -> bool {
        match self.0.compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => found == SLEEPING,
        }
    }

    /// True if a wake-up is pending. Read while the engine spins.
    #[must_use]
    pub(crate) fn is_called(&self) -> bool {
        self.0.load(Ordering::Acquire) == CALLED
    }

    /// Takes the pending wake-up. The engine calls this once per turn. True if there was one.
    ///
    /// With `stay_asleep` the state is afterwards `SLEEPING`, so that a waker writes the eventfd
    /// although the engine runs. An engine in another event loop needs this.
    #[must_use]
    pub(crate) fn take(&self, stay_asleep: bool) -> bool {
        let idle = if stay_asleep { SLEEPING } else { AWAKE };
        if self.0.load(Ordering::Relaxed) == idle {
            return false;
        }
        self.0.swap(idle, Ordering::AcqRel) == CALLED
    }
}
