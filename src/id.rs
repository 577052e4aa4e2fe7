//! Identifiers with a generation. Owns: the 8-byte ids handed to callers and the [`Key`] behind them. Invariant: a slot and
//! a generation together are never used twice (a slot whose generations ran out is retired by the table). Must not know
//! what the ids name.

use std::fmt;
use std::num::NonZeroU32;

/// A slot of a table and the generation of its occupant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: NonZeroU32,
}

impl Key {
    pub(crate) const NONE: Key = Key { slot: u32::MAX, generation: NonZeroU32::MAX };

    /// The part of the generation that travels through the kernel.
    pub(crate) fn generation24(self) -> u32 {
        self.generation.get() & 0x00ff_ffff
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Key::NONE { f.write_str("none") } else { write!(f, "{}#{}", self.slot, self.generation) }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) Key);

        impl $name {
            /// An id that names nothing; every call refuses it as stale.
            pub const NONE: $name = $name(Key::NONE);

            /// The dense slot number: small integers that are used again, fit to index a `Vec` of the caller's own state.
            /// Another occupant of the same slot has another id.
            pub fn slot(self) -> usize {
                self.0.slot as usize
            }

            /// How often the slot was given out before, plus one.
            pub fn generation(self) -> u32 {
                self.0.generation.get()
            }

            /// True for [`Self::NONE`].
            pub fn is_none(self) -> bool {
                self == Self::NONE
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

id!(
    /// Names one connection, from [`Engine::connect`](crate::Engine::connect) or
    /// [`Event::Accepted`](crate::Event::Accepted) until its [`Event::Closed`](crate::Event::Closed).
    ConnId
);
id!(
    /// Names one listener, from [`Engine::listen`](crate::Engine::listen) until its
    /// [`Event::ListenerClosed`](crate::Event::ListenerClosed).
    ListenerId
);
id!(
    /// Names one timer, from [`Engine::timer_after`](crate::Engine::timer_after) until it fires or is cancelled.
    TimerId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_their_options_take_eight_bytes() {
        assert_eq!(size_of::<ConnId>(), 8);
        assert_eq!(size_of::<Option<TimerId>>(), 8);
    }

    #[test]
    fn none_says_so() {
        assert!(ConnId::NONE.is_none());
        assert_eq!(format!("{:?}", ConnId::NONE), "ConnId(none)");
    }
}
