//! Capabilities. Owns: their names, the kernels they came with, and the record of what is used and
//! why not. Invariant: each capability has exactly one state, and every state but `Used` has a
//! reason. Found once per engine, then only read.

use std::fmt;

macro_rules! capabilities {
    ($($variant:ident $name:literal $kernel:literal $lost:literal, $doc:literal;)*) => {
        /// A capability of the kernel that an engine can use. The names ([`Capability::name`]) are
        /// those that `Config::disable` and `PROACTOR_DISABLE` take.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Capability {
            $(#[doc = $doc] $variant,)*
        }

        /// What each capability requires, and what is lost without it.
        pub const REQUIREMENTS: &[Requirement] = &[
            $(Requirement {
                capability: Capability::$variant,
                name: $name,
                kernel: $kernel,
                lost: $lost,
            },)*
        ];
    };
}

capabilities! {
    DeferTaskrun "defer_taskrun" "6.1" "tier `multishot` instead of `deferred`", "IORING_SETUP_DEFER_TASKRUN.";
    SingleIssuer "single_issuer" "6.0" "tier `multishot` instead of `deferred`", "IORING_SETUP_SINGLE_ISSUER.";
    CoopTaskrun "coop_taskrun" "5.19" "interrupts of the owner thread: about 30% more CPU a request than with it", "IORING_SETUP_COOP_TASKRUN with TASKRUN_FLAG.";
    SubmitAll "submit_all" "5.18" "one more system call after a refused entry", "IORING_SETUP_SUBMIT_ALL.";
    MultishotAccept "multishot_accept" "5.19" "one entry per accepted connection", "IORING_OP_ACCEPT, multishot.";
    MultishotRecv "multishot_recv" "6.0" "tier `oneshot`: one entry per receive", "IORING_OP_RECV, multishot.";
    BufRing "buf_ring" "5.19" "tier `oneshot` polls before it receives, so that idle connections hold no buffer", "IORING_REGISTER_PBUF_RING: provided-buffer rings.";
    Incremental "incremental" "6.12" "each receive takes a whole buffer", "IOU_PBUF_RING_INC: buffers consumed piece by piece.";
    Bundle "bundle" "6.10" "nothing: not used", "IORING_RECVSEND_BUNDLE.";
    DirectFd "direct_fd" "6.0" "nothing: not used", "Direct descriptors allocated by the kernel.";
    SocketOp "socket_op" "5.19" "a system call more for each connect", "IORING_OP_SOCKET: sockets made by an entry.";
    RegisteredRingFd "registered_ring_fd" "5.18" "a descriptor look-up per system call", "IORING_REGISTER_RING_FDS.";
    ExtArg "ext_arg" "5.11" "a TIMEOUT entry per bounded wait", "IORING_ENTER_EXT_ARG: a deadline with the wait.";
    FastPoll "fast_poll" "5.7" "epoll, or by name tier `polled`", "IORING_FEAT_FAST_POLL: pending operations tie up no worker.";
    SendZc "send_zc" "6.0" "large sends are copied", "IORING_OP_SEND_ZC.";
    NoIowait "no_iowait" "6.15" "an idle engine may show as 100% iowait", "IORING_ENTER_NO_IOWAIT.";
    CancelFd "cancel_fd" "5.19" "nothing: not used", "IORING_ASYNC_CANCEL_FD and _ANY.";
    Restrictions "restrictions" "5.10" "`Config::hardened` is refused", "IORING_REGISTER_RESTRICTIONS.";
    WorkerLimit "worker_limit" "5.15" "the number of kernel workers is bounded by the kernel's own limits only", "IORING_REGISTER_IOWQ_MAX_WORKERS.";
    EpollPwait2 "epoll_pwait2" "5.11" "epoll waits are rounded up to the next millisecond", "epoll_pwait2(2): nanosecond waits on the epoll backend.";
}

/// A line of [`REQUIREMENTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The capability.
    pub capability: Capability,
    /// Its name.
    pub name: &'static str,
    /// The first mainline kernel that has it. Distributions backport: an engine tries, it never
    /// compares versions.
    pub kernel: &'static str,
    /// What is lost without it.
    pub lost: &'static str,
}

impl Capability {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Capability> {
        REQUIREMENTS.iter().map(|requirement| requirement.capability)
    }

    /// The name, as in `PROACTOR_DISABLE`.
    pub fn name(self) -> &'static str {
        REQUIREMENTS[self as usize].name
    }

    /// The first mainline kernel that has it.
    pub fn kernel(self) -> &'static str {
        REQUIREMENTS[self as usize].kernel
    }

    /// The capability of that name.
    pub fn from_name(name: &str) -> Option<Capability> {
        REQUIREMENTS
            .iter()
            .find(|requirement| requirement.name == name)
            .map(|requirement| requirement.capability)
    }

    /// Reads a list such as `multishot_recv,buf_ring`. Empty items are skipped.
    ///
    /// # Errors
    /// An unknown name, with the list of the known ones.
    pub fn parse_list(list: &str) -> Result<Vec<Capability>, String> {
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Self::parse).collect()
    }

    fn parse(name: &str) -> Result<Capability, String> {
        Self::from_name(name).ok_or_else(|| {
            let known: Vec<_> = REQUIREMENTS.iter().map(|requirement| requirement.name).collect();
            format!("unknown capability {name:?}; known are {}", known.join(", "))
        })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapSet(u32);

impl CapSet {
    pub(crate) fn insert(&mut self, capability: Capability) {
        self.0 |= 1 << capability as u32;
    }

    pub(crate) fn contains(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u32) != 0
    }

    pub(crate) fn union(self, other: CapSet) -> CapSet {
        CapSet(self.0 | other.0)
    }
}

/// Whether a capability is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityState {
    /// The engine uses it.
    Used,
    /// It is there, and the engine does without it.
    Unused,
    /// The kernel, or what stands before it, does not offer it.
    Missing,
    /// Nobody looked: the backend in use has no need of it.
    NotProbed,
}

impl CapabilityState {
    /// `used`, `unused`, `missing` or `not probed`.
    pub fn name(self) -> &'static str {
        match self {
            CapabilityState::Used => "used",
            CapabilityState::Unused => "unused",
            CapabilityState::Missing => "missing",
            CapabilityState::NotProbed => "not probed",
        }
    }
}

impl fmt::Display for CapabilityState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One capability, its state, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapabilityReport {
    /// The capability.
    pub capability: Capability,
    /// Its state.
    pub state: CapabilityState,
    /// Why it is not used; empty if it is.
    pub why: String,
}

/// The states of all capabilities.
#[derive(Clone, Debug)]
pub(crate) struct Caps {
    reports: Vec<CapabilityReport>,
}

impl Caps {
    pub(crate) fn not_probed(why: &str) -> Caps {
        let report = |capability| CapabilityReport {
            capability,
            state: CapabilityState::NotProbed,
            why: why.to_owned(),
        };
        Caps { reports: Capability::all().map(report).collect() }
    }

    pub(crate) fn set(
        &mut self,
        capability: Capability,
        state: CapabilityState,
        why: impl Into<String>,
    ) {
        self.reports[capability as usize] = CapabilityReport { capability, state, why: why.into() };
    }

    pub(crate) fn used(&mut self, capability: Capability) {
        self.set(capability, CapabilityState::Used, "");
    }

    pub(crate) fn uses(&self, capability: Capability) -> bool {
        self.reports[capability as usize].state == CapabilityState::Used
    }

    pub(crate) fn reports(&self) -> &[CapabilityReport] {
        &self.reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variants_agree() {
        for (index, requirement) in REQUIREMENTS.iter().enumerate() {
            assert_eq!(requirement.capability as usize, index);
            assert_eq!(Capability::from_name(requirement.name), Some(requirement.capability));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = Capability::parse_list("buf_ring, warp_drive").unwrap_err();
        assert!(
            error.contains("\"warp_drive\"") && REQUIREMENTS.iter().all(|r| error.contains(r.name)),
            "{error}"
        );
        assert_eq!(
            Capability::parse_list(" buf_ring,,send_zc ").unwrap(),
            [Capability::BufRing, Capability::SendZc]
        );
    }
}
