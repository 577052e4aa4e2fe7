//! Faults of a simulated world. Owns: the kinds of faults, and a plan: the probability of each, and
//! the longest duration of those that take time. Must not know: how a fault is carried out.

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
            /// All kinds.
            pub const ALL: &[Fault] = &[$(Fault::$kind,)*];

            /// The name, as in traces: `short-read`.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$kind => $name,)* }
            }
        }
    };
}

faults! {
    /// A completion is late, by up to [`Faults::delay_max`].
    Delay "delay";
    /// A completion overtakes others of the same engine. Completions whose order the engine may
    /// rely on stay in order.
    Reorder "reorder";
    /// A receive gets a part of the bytes that have arrived.
    ShortRead "short-read";
    /// A send takes fewer bytes than there is room for.
    ShortWrite "short-write";
    /// A send takes no byte although there is room, and must be started again.
    SpuriousSend "spurious-send";
    /// The connection is reset in the middle of a send, after any number of its bytes.
    Reset "reset";
    /// A connect is refused although a listener exists.
    Refuse "refuse";
    /// The SYN of a connect is not answered: it fails with ETIMEDOUT.
    Hang "hang";
    /// A connection is reset before it is accepted: ECONNABORTED.
    AbortAccept "abort-accept";
    /// An accept or connect fails for lack of descriptors: EMFILE.
    Descriptors "descriptors";
    /// A receive fails for lack of buffers: ENOBUFS.
    Buffers "buffers";
    /// A multishot operation ends after a completion and must be started again.
    MultishotEnd "multishot-end";
    /// The submission queue is full: the operation must be started again after the next wait.
    QueueFull "queue-full";
    /// The final completion of a cancelled operation is late, by up to [`Faults::delay_max`].
    LateFinal "late-final";
    /// A cancel is late, by up to [`Faults::delay_max`]: the operation may succeed first.
    CancelLoses "cancel-loses";
    /// A wait returns early without a completion.
    EarlyWait "early-wait";
    /// The network between two hosts is partitioned when a segment is sent, for up to
    /// [`Faults::partition_max`].
    Partition "partition";
    /// A host crashes when an engine on it waits, and restarts after up to
    /// [`Faults::partition_max`]. Its connections and listeners are lost, and polls of its engines
    /// fail with [`Error::Simulation`](crate::Error::Simulation).
    Crash "crash";
}

impl Fault {
    /// The fault with this name.
    pub fn from_name(name: &str) -> Option<Fault> {
        Fault::ALL.iter().copied().find(|fault| fault.name() == name)
    }

    /// True if the fault fails no connection and loses no byte, so that a correct program behaves
    /// as without it.
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

/// A plan of faults: a probability for each kind, and the longest duration of those that take time.
/// The default has no faults.
///
/// ```
/// use proactor::sim::{Fault, Faults};
/// let faults = Faults::default().with(Fault::ShortRead, 0.3).with(Fault::Reset, 0.001);
/// assert_eq!(faults.without(Fault::Reset).to_string(), "short-read=0.3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// By fault, in units of 2^-32.
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
    /// If the probability is not between 0 and 1.
    pub fn with(mut self, fault: Fault, probability: f64) -> Faults {
        assert!((0.0..=1.0).contains(&probability), "{probability} is not a probability");
        self.chances[fault as usize] = (probability * (1u64 << 32) as f64) as u64;
        self
    }

    /// The same plan without a fault.
    pub fn without(self, fault: Fault) -> Faults {
        self.with(fault, 0.0)
    }

    /// The probability of a fault.
    pub fn probability(&self, fault: Fault) -> f64 {
        self.chances[fault as usize] as f64 / (1u64 << 32) as f64
    }

    /// The longest delay of [`Fault::Delay`], [`Fault::LateFinal`] and [`Fault::CancelLoses`].
    /// Default: 5 ms.
    pub fn delay_max(mut self, delay: Duration) -> Faults {
        self.delay_max_ns = super::nanoseconds(delay);
        self
    }

    /// The longest duration of [`Fault::Partition`] and [`Fault::Crash`]. Default: 200 ms.
    pub fn partition_max(mut self, duration: Duration) -> Faults {
        self.partition_max_ns = super::nanoseconds(duration);
        self
    }

    /// All harmless faults ([`Fault::is_harmless`]) at this probability; partitions at a hundredth
    /// of it.
    ///
    /// # Panics
    /// If the probability is not between 0 and 1.
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

    /// A plan drawn from a seed: each fault gets one of several probabilities, 0 among them. Never
    /// has [`Fault::Crash`].
    pub fn from_seed(seed: u64) -> Faults {
        let mut rng = Rng::new(seed ^ 0x0066_6175_6c74_7321);
        let mut faults = Faults::default().delay_max(Duration::from_micros(1 << rng.below(15)));
        for fault in Fault::ALL.iter().filter(|fault| **fault != Fault::Crash) {
            let choices =
                if fault.is_harmless() { [0.0, 0.02, 0.1, 0.4] } else { [0.0, 0.0, 0.002, 0.02] };
            let scale = if *fault == Fault::Partition { 0.02 } else { 1.0 };
            faults = faults.with(*fault, choices[rng.below(4) as usize] * scale);
        }
        faults
    }

    /// The probability of a fault, in units of 2^-32.
    pub(crate) fn chance(&self, fault: Fault) -> u64 {
        self.chances[fault as usize]
    }
}

/// The faults with a probability above 0: `short-read=0.3 reset=0.001`, or `none`.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for fault in Fault::ALL.iter().filter(|fault| self.chance(**fault) != 0) {
            // Rounded to parts per million, because the probability is a binary fraction.
            write!(f, "{separator}{fault}={}", (self.probability(*fault) * 1e6).round() / 1e6)?;
            separator = " ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}
