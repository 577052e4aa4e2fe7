//! What can go wrong in a simulated world. Owns: the kinds of faults, and a plan: how likely each
//! is, and how long the ones that take time last.

use super::rng::Rng;
use std::fmt;
use std::time::Duration;

macro_rules! faults {
    ($($(#[$doc:meta])* $kind:ident $name:literal;)*) => {
        /// A kind of fault. Each has a probability in [`Faults`], per occasion.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Fault { $($(#[$doc])* $kind,)* }

        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$kind,)*];

            /// The name, as in traces: `short-read`.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$kind => $name,)* }
            }
        }
    };
}

faults! {
    /// A completion is told late, by up to [`Faults::delay_max`].
    Delay "delay";
    /// A completion overtakes others of the same engine. (What the contract orders stays in order.)
    Reorder "reorder";
    /// A receive gets only a part of what is there.
    ShortRead "short-read";
    /// A send takes only a part of what there is room for.
    ShortWrite "short-write";
    /// A send finds no room at first, takes nothing, and has to be started again.
    SpuriousSend "spurious-send";
    /// The connection is reset in the middle of a send, after any number of its bytes.
    Reset "reset";
    /// A connect is refused although somebody listens.
    Refuse "refuse";
    /// The packets of a connect are lost: nobody ever answers.
    Hang "hang";
    /// A connection is gone when it is accepted: ECONNABORTED.
    AbortAccept "abort-accept";
    /// An accept or connect finds no descriptor: EMFILE.
    Descriptors "descriptors";
    /// A receive finds no buffer in the pool: ENOBUFS.
    Buffers "buffers";
    /// A multishot operation ends before its time and has to be started again.
    MultishotEnd "multishot-end";
    /// The submission queue is full: the operation has to be started again after the next wait.
    QueueFull "queue-full";
    /// The final completion of a cancelled operation comes late, by up to [`Faults::delay_max`].
    LateFinal "late-final";
    /// A cancel is late, by up to [`Faults::delay_max`]: the operation may succeed first.
    CancelLoses "cancel-loses";
    /// A wait returns early with nothing.
    EarlyWait "early-wait";
    /// A packet between two hosts finds the network cut between them, for up to
    /// [`Faults::partition_max`].
    Partition "partition";
    /// A host crashes while an engine of it waits, and restarts after up to
    /// [`Faults::partition_max`]: its connections and listeners are gone, and its engines answer
    /// [`Error::Simulation`](crate::Error::Simulation).
    Crash "crash";
}

impl Fault {
    /// The fault of that name.
    pub fn from_name(name: &str) -> Option<Fault> {
        Fault::ALL.iter().copied().find(|fault| fault.name() == name)
    }

    /// True if a correct program cannot tell that it happened: no connection fails of it, and no
    /// byte is lost.
    pub fn is_harmless(self) -> bool {
        !matches!(
            self,
            Fault::Reset
                | Fault::Refuse
                | Fault::Hang
                | Fault::AbortAccept
                | Fault::Descriptors
                | Fault::Crash
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A plan of faults: a probability for each kind, and bounds for those that take time. The default
/// is a perfect network.
///
/// ```
/// use proactor::sim::{Fault, Faults};
/// let faults = Faults::default().with(Fault::ShortRead, 0.3).with(Fault::Reset, 0.001);
/// assert_eq!(faults.without(Fault::Reset).to_string(), "short-read=0.3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Of 2^32.
    chances: [u64; Fault::ALL.len()],
    pub(crate) delay_max_ns: u64,
    pub(crate) partition_max_ns: u64,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            chances: [0; Fault::ALL.len()],
            delay_max_ns: 5_000_000,
            partition_max_ns: 200_000_000,
        }
    }
}

impl Faults {
    /// The same plan with a fault at this probability per occasion, 0 to 1.
    ///
    /// # Panics
    /// If it is no probability.
    pub fn with(mut self, fault: Fault, probability: f64) -> Faults {
        assert!((0.0..=1.0).contains(&probability), "{probability} is no probability");
        self.chances[fault as usize] = (probability * (1u64 << 32) as f64) as u64;
        self
    }

    /// The same plan with a fault switched off.
    pub fn without(self, fault: Fault) -> Faults {
        self.with(fault, 0.0)
    }

    /// The probability of a fault.
    pub fn probability(&self, fault: Fault) -> f64 {
        self.chances[fault as usize] as f64 / (1u64 << 32) as f64
    }

    /// The longest that [`Fault::Delay`], [`Fault::LateFinal`] and [`Fault::CancelLoses`] delay.
    /// Default: 5 ms.
    pub fn delay_max(mut self, delay: Duration) -> Faults {
        self.delay_max_ns = super::nanoseconds(delay);
        self
    }

    /// The longest that [`Fault::Partition`] and [`Fault::Crash`] last. Default: 200 ms.
    pub fn partition_max(mut self, duration: Duration) -> Faults {
        self.partition_max_ns = super::nanoseconds(duration);
        self
    }

    /// All harmless faults (see [`Fault::is_harmless`]), each at this probability; partitions at a
    /// hundredth of it.
    ///
    /// # Panics
    /// If it is no probability.
    pub fn harmless(probability: f64) -> Faults {
        Fault::ALL.iter().filter(|fault| fault.is_harmless()).fold(
            Faults::default(),
            |faults, fault| {
                faults.with(
                    *fault,
                    if *fault == Fault::Partition { probability / 100.0 } else { probability },
                )
            },
        )
    }

    /// A plan drawn from a seed: some faults, some often, some seldom, the others not at all. Never
    /// [`Fault::Crash`].
    pub fn from_seed(seed: u64) -> Faults {
        let mut rng = Rng::new(seed ^ 0x0066_6175_6c74_7321);
        let mut faults = Faults::default().delay_max(Duration::from_micros(1 << rng.below(15)));
        for fault in Fault::ALL.iter().filter(|fault| **fault != Fault::Crash) {
            let often =
                if fault.is_harmless() { [0.0, 0.02, 0.1, 0.4] } else { [0.0, 0.0, 0.002, 0.02] };
            let scale = if *fault == Fault::Partition { 0.02 } else { 1.0 };
            faults = faults.with(*fault, often[rng.below(4) as usize] * scale);
        }
        faults
    }

    pub(crate) fn chance(&self, fault: Fault) -> u64 {
        self.chances[fault as usize]
    }
}

/// The faults that can happen, with their probabilities: `short-read=0.3 reset=0.001`, or `none`.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for fault in Fault::ALL.iter().filter(|fault| self.chance(**fault) != 0) {
            // To the parts in a million: the rest is rounding of the binary fraction.
            write!(f, "{separator}{fault}={}", (self.probability(*fault) * 1e6).round() / 1e6)?;
            separator = " ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}
