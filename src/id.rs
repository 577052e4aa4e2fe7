//! Identifiers with a generation. Owns: the 8-byte ids of callers, the [`Key`] in them, and the
//! numbers of the engines of this process. Invariant: a combination of slot, generation and engine
//! number is used once (the table retires a slot whose generations are used up). Must not know what
//! an id names.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

const SLOT_BITS: u32 = 24;
const ENGINE_BITS: u32 = 12;
const GENERATION_SHIFT: u32 = SLOT_BITS + ENGINE_BITS;

/// A slot of a table, the generation of the slot, and the number of the engine: 24, 28 and 12 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(NonZeroU64);

impl Key {
    /// Names nothing: no table has this slot.
    pub(crate) const NONE: Key = Key(NonZeroU64::MAX);
    /// The most slots that a table has.
    pub(crate) const SLOTS_MAX: usize = (1 << SLOT_BITS) - 1;
    pub(crate) const GENERATION_MAX: u32 = (1 << (64 - GENERATION_SHIFT)) - 1;
    /// The bits of the engine number. In the `user_data` of an SQE they have the kind of the
    /// operation instead.
    pub(crate) const ENGINE_MASK: u64 = ((1 << ENGINE_BITS) - 1) << SLOT_BITS;
    pub(crate) const ENGINE_SHIFT: u32 = SLOT_BITS;

    /// # Panics
    /// If the generation is 0, or a part is too large for its bits.
    #[inline]
    pub(crate) fn new(slot: usize, generation: u32, engine: EngineNumber) -> Key {
        assert!(
            slot <= Key::SLOTS_MAX && generation <= Key::GENERATION_MAX,
            "slot and generation fit their bits"
        );
        let bits = u64::from(generation) << GENERATION_SHIFT
            | u64::from(engine.0) << SLOT_BITS
            | slot as u64;
        assert!(generation > 0, "generations begin at 1");
        Key(NonZeroU64::new(bits).expect("the generation is not 0"))
    }

    /// The key with these bits; `None` if the generation is 0.
    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Option<Key> {
        NonZeroU64::new(bits).map(Key).filter(|key| key.generation() > 0)
    }

    /// The key with the same slot and generation, and the number of `engine`.
    #[inline]
    pub(crate) fn with_engine(self, engine: EngineNumber) -> Key {
        let bits = self.0.get() & !Key::ENGINE_MASK;
        Key(NonZeroU64::new(bits).unwrap_or(self.0) | u64::from(engine.0) << SLOT_BITS)
    }

    #[inline]
    pub(crate) fn bits(self) -> u64 {
        self.0.get()
    }

    #[inline]
    pub(crate) fn slot(self) -> usize {
        (self.0.get() & Key::SLOTS_MAX as u64) as usize
    }

    #[inline]
    pub(crate) fn generation(self) -> u32 {
        (self.0.get() >> GENERATION_SHIFT) as u32
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Key::NONE {
            f.write_str("none")
        } else {
            write!(f, "{}#{}", self.slot(), self.generation())
        }
    }
}

/// The number of an engine. Engines of a process that exist at the same time have different
/// numbers, as long as there are at most 4,096. A number is reused only after all others were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EngineNumber(u16);

/// Reserves a number until it is dropped.
#[derive(Debug)]
pub(crate) struct EngineNumberGuard(EngineNumber);

struct NumberPool {
    next: u16,
    /// The number of engines per number.
    engines: [u16; 1 << ENGINE_BITS],
}

static NUMBERS: Mutex<NumberPool> =
    Mutex::new(NumberPool { next: 0, engines: [0; 1 << ENGINE_BITS] });

impl EngineNumberGuard {
    pub(crate) fn new() -> EngineNumberGuard {
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        let count = numbers.engines.len();
        let first = usize::from(numbers.next);
        let number = (first..first + count)
            .map(|n| n % count)
            .find(|n| numbers.engines[*n] == 0)
            .unwrap_or(first);
        numbers.next = ((number + 1) % count) as u16;
        numbers.engines[number] = numbers.engines[number].saturating_add(1);
        EngineNumberGuard(EngineNumber(number as u16))
    }

    pub(crate) fn number(&self) -> EngineNumber {
        self.0
    }
}

impl Drop for EngineNumberGuard {
    fn drop(&mut self) {
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        let engines = &mut numbers.engines[usize::from(self.0.0)];
        *engines = engines.saturating_sub(1);
    }
}

#[cfg(test)]
impl EngineNumber {
    /// For tests of tables that belong to no engine.
    pub(crate) const TEST: EngineNumber = EngineNumber(5);
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) Key);

        impl $name {
            /// An id that names nothing. Every call with it fails as for a stale id.
            pub const NONE: $name = $name(Key::NONE);

            /// The slot number. Slot numbers are small and are reused, so that they can index a
            /// `Vec` of the caller's state. Ids with the same slot differ in the generation.
            pub fn slot(self) -> usize {
                self.0.slot()
            }

            /// The generation of the slot: 1 for its first id, and one more for each further one.
            pub fn generation(self) -> u32 {
                self.0.generation()
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
    /// [`Event::Accepted`](crate::Event::Accepted) until its
    /// [`Event::Closed`](crate::Event::Closed).
    ///
    /// ```
    /// # use proactor::{AdoptedId, Config, ConnId, Engine, SocketOptions};
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// // State of the program, indexed by slot. The id tells a connection from its predecessor.
    /// let mut names: Vec<(ConnId, String)> = vec![(ConnId::NONE, String::new()); 16];
    /// names[conn.slot()] = (conn, "client".into());
    /// assert!(names[conn.slot()].0 == conn && !conn.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ConnId
);
id!(
    /// Names one listener, from [`Engine::listen`](crate::Engine::listen) until its
    /// [`Event::ListenerClosed`](crate::Event::ListenerClosed).
    ListenerId
);
id!(
    /// Names one timer, from [`Engine::timer_after`](crate::Engine::timer_after) until it fires or
    /// is cancelled.
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
    fn a_key_keeps_its_parts() {
        let key = Key::new(0x00fe_dcba, 0x0abc_def1, EngineNumber(0xfed));
        assert_eq!((key.slot(), key.generation()), (0x00fe_dcba, 0x0abc_def1));
        assert_eq!(Key::from_bits(key.bits()), Some(key));
        assert_ne!(key, Key::new(key.slot(), key.generation(), EngineNumber(0xfec)));
        assert_eq!(Key::from_bits(7), None);
    }

    #[test]
    fn live_engines_have_different_numbers() {
        let guards: Vec<EngineNumberGuard> = (0..500).map(|_| EngineNumberGuard::new()).collect();
        let mut numbers: Vec<u16> = guards.iter().map(|guard| guard.number().0).collect();
        let last = numbers[499];
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 500);
        drop(guards);
        assert_ne!(EngineNumberGuard::new().number().0, last, "a number is reused last");
    }

    #[test]
    fn none_is_none() {
        assert!(ConnId::NONE.is_none());
        assert_eq!(format!("{:?}", ConnId::NONE), "ConnId(none)");
    }
}
