//! Bugs that can be planted, to show that the tests find bugs. Owns: their names, and which one is
//! planted. Only with the feature `mutants`, which is for the tests of this crate; without it every
//! question is answered "no" when compiling.

macro_rules! mutants {
    ($($(#[$doc:meta])* $mutant:ident $name:literal;)*) => {
        /// A bug that can be planted. Only with the feature `mutants`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(not(feature = "mutants"), expect(unreachable_pub, reason = "public with the feature"))]
        #[repr(u8)]
        pub enum Mutant { $($(#[$doc])* $mutant,)* }

        #[cfg(feature = "mutants")]
        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$mutant,)*];

            /// The name, for command lines.
            pub fn name(self) -> &'static str {
                match self { $(Mutant::$mutant => $name,)* }
            }
        }
    };
}

mutants! {
    /// The end of a connection does not cancel what is in flight.
    LostCancel "lost-cancel";
    /// A receive buffer that came back is free twice.
    DoubleFree "double-free";
    /// After a partial send the second and third payload change places.
    ReorderedSend "reordered-send";
    /// Every third turn forgets that somebody called the waker.
    MissedWakeup "missed-wakeup";
    /// An end with unsent bytes is told twice.
    TerminalTwice "terminal-twice";
    /// What is told now overtakes what of the same connection waits for the next poll.
    Overtaking "overtaking";
    /// A stale id reaches the next connection in its slot.
    StaleHit "stale-hit";
    /// After a partial send the rest is forgotten until somebody sends again.
    LostRest "lost-rest";
    /// Data is delivered although reads are paused.
    LeakyPause "leaky-pause";
    /// The FIN does not wait for a send in flight.
    EarlyFin "early-fin";
    /// Timers fire a millisecond early.
    EarlyTimer "early-timer";
    /// A cancelled timer fires all the same.
    UndeadTimer "undead-timer";
    /// A connection that waited for a receive buffer is forgotten.
    ForgottenPark "forgotten-park";
    /// Unsent bytes are not reported.
    UnsentForgotten "unsent-forgotten";
    /// What is left of a lease when a caller's buffer is full is dropped.
    LostTail "lost-tail";
    /// A connection is closed while operations on it are in flight.
    CloseInFlight "close-in-flight";
    /// An operation that found no room is not started again.
    LostQueueFull "lost-queue-full";
    /// Some connections are told closed, and their socket stays open.
    LeakedSocket "leaked-socket";
    /// `Drained` is never told.
    NoDrained "no-drained";
    /// The end of the stream is forgotten if it comes while reads are paused.
    LostEof "lost-eof";
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use std::sync::atomic::{AtomicU8, Ordering};

    const NONE: u8 = u8::MAX;
    static PLANTED: AtomicU8 = AtomicU8::new(NONE);

    /// Plants a bug in all engines of this process, or takes it out again.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.store(mutant.map_or(NONE, |mutant| mutant as u8), Ordering::SeqCst);
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        PLANTED.load(Ordering::Relaxed) == mutant as u8
    }
}

#[cfg(feature = "mutants")]
pub(crate) use switch::is;
#[cfg(feature = "mutants")]
pub use switch::plant;

/// Whether this bug is planted.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}
