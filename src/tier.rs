//! Backends and tiers. Owns: their names, and the capabilities that each tier needs. Invariant:
//! `from_name` is the inverse of `name`. Must not know how they are probed.

use crate::caps::Capability;

/// The kernel interface that an engine uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring: the kernel executes the operations (io_uring(7)).
    Uring,
    /// epoll: the engine executes the same operations when a socket is ready (epoll(7)).
    Epoll,
    /// A simulated network in memory. `sim::World::engine` and `sim::Host::engine` make engines on
    /// it. With the feature `sim`.
    #[cfg(feature = "sim")]
    Sim,
}

impl Backend {
    /// `uring`, `epoll` or `sim`.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Uring => "uring",
            Backend::Epoll => "epoll",
            #[cfg(feature = "sim")]
            Backend::Sim => "sim",
        }
    }

    /// The backend with this name. Only `uring` and `epoll`, which
    /// [`Engine::new`](crate::Engine::new) can use. `None` for other names.
    pub fn from_name(name: &str) -> Option<Backend> {
        [Backend::Uring, Backend::Epoll].into_iter().find(|backend| backend.name() == name)
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How the io_uring backend uses the kernel. Ordered from the newest interfaces to the oldest.
///
/// ```
/// use proactor::{Capability, Tier};
/// assert_eq!(Tier::from_name("oneshot"), Some(Tier::Oneshot));
/// assert_eq!(Tier::Oneshot.needs(), [Capability::FastPoll]);
/// assert_eq!(Tier::Oneshot.kernel(), "5.7");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// 6.1 and later: multishot accept and recv with a ring of provided buffers. The ring is set up
    /// with SINGLE_ISSUER and DEFER_TASKRUN.
    Deferred,
    /// 6.0: the same operations. The ring is set up with COOP_TASKRUN.
    Multishot,
    /// 5.7 to 5.19: single-shot operations with FAST_POLL. The engine starts each one again.
    Oneshot,
    /// 5.6: a poll operation before each other operation, so that no kernel worker blocks. Never
    /// chosen automatically, because epoll is faster there.
    Polled,
}

impl Tier {
    /// All tiers, the newest first.
    pub const ALL: [Tier; 4] = [Tier::Deferred, Tier::Multishot, Tier::Oneshot, Tier::Polled];

    /// `deferred`, `multishot`, `oneshot` or `polled`.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Deferred => "deferred",
            Tier::Multishot => "multishot",
            Tier::Oneshot => "oneshot",
            Tier::Polled => "polled",
        }
    }

    /// The capabilities that the tier needs, in addition to those of io_uring on 5.6, which all
    /// tiers need.
    pub fn needs(self) -> &'static [Capability] {
        use Capability::*;
        match self {
            Tier::Deferred => &[SingleIssuer, DeferTaskrun, MultishotRecv, BufRing, FastPoll],
            Tier::Multishot => &[CoopTaskrun, MultishotRecv, BufRing, FastPoll],
            Tier::Oneshot => &[FastPoll],
            Tier::Polled => &[],
        }
    }

    /// The first mainline kernel that has these capabilities. Distributions backport features, so
    /// an engine probes and never compares versions.
    pub fn kernel(self) -> &'static str {
        match self {
            Tier::Deferred => "6.1",
            Tier::Multishot => "6.0",
            Tier::Oneshot => "5.7",
            Tier::Polled => "5.6",
        }
    }

    /// The tier with this name. `None` if the name is unknown.
    pub fn from_name(name: &str) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
