//! The two choices behind an engine: the backend, and how its ring is used. Owns: their names and
//! what each tier needs. Must not know how they are probed.

use crate::caps::Capability;

/// Which of the kernel's interfaces an engine stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring: operations are submission queue entries.
    Uring,
    /// epoll: the same operations, carried out on readiness.
    Epoll,
    /// A simulated network in memory. Only `sim::World::engine` makes engines on it. With the
    /// feature `sim`.
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

    /// The backend of that name, of those that [`Engine::new`](crate::Engine::new) can choose:
    /// `uring` and `epoll`.
    pub fn from_name(name: &str) -> Option<Backend> {
        [Backend::Uring, Backend::Epoll].into_iter().find(|backend| backend.name() == name)
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How the io_uring backend uses the kernel, from the best to the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// 6.1 and later: SINGLE_ISSUER and DEFER_TASKRUN, multishot accept and recv, a provided-buffer
    /// ring.
    Deferred,
    /// 6.0: the same with COOP_TASKRUN.
    Multishot,
    /// 5.7 to 5.19: FAST_POLL; single-shot operations that the engine arms again.
    Oneshot,
    /// 5.6: poll first, then the operation, so that no kernel worker is tied up. Only by name;
    /// epoll is better there.
    Polled,
}

impl Tier {
    /// All of them, the best first.
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

    /// The capabilities that the tier cannot do without, beside what every tier needs: io_uring as
    /// of 5.6.
    pub fn needs(self) -> &'static [Capability] {
        use Capability::*;
        match self {
            Tier::Deferred => &[SingleIssuer, DeferTaskrun, MultishotRecv, BufRing, FastPoll],
            Tier::Multishot => &[CoopTaskrun, MultishotRecv, BufRing, FastPoll],
            Tier::Oneshot => &[FastPoll],
            Tier::Polled => &[],
        }
    }

    /// The first mainline kernel that has all of it. Distributions backport: an engine tries, it
    /// never compares versions.
    pub fn kernel(self) -> &'static str {
        match self {
            Tier::Deferred => "6.1",
            Tier::Multishot => "6.0",
            Tier::Oneshot => "5.7",
            Tier::Polled => "5.6",
        }
    }

    /// The tier of that name.
    pub fn from_name(name: &str) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
