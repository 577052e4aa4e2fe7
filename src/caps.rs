//! Capabilities of the kernel. Owns: their names, the kernel versions that introduced them, and the
//! record of which ones an engine uses. Invariant: each capability has exactly one state, and each
//! state other than `Used` has a reason. The record is filled once per engine and then only read.
//! Must not know how a capability is probed.

use std::fmt;

macro_rules! capabilities {
    ($($(#[$doc:meta])* $variant:ident: $name:literal, $kernel:literal, $lost:literal;)*) => {
        /// A capability of the kernel that an engine can use.
        ///
        /// The names ([`Capability::name`]) are those that [`Config::disable`] and the environment
        /// variable `PROACTOR_DISABLE` take.
        ///
        /// [`Config::disable`]: crate::Config::disable
        ///
        /// ```
        /// use proactor::Capability;
        /// assert_eq!(Capability::from_name("buf_ring"), Some(Capability::BufRing));
        /// assert_eq!(Capability::BufRing.kernel(), "5.19");
        /// let list = Capability::parse_list("send_zc, buf_ring")?;
        /// assert_eq!(list, [Capability::SendZc, Capability::BufRing]);
        /// # Ok::<(), String>(())
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Capability {
            $($(#[$doc])* $variant,)*
        }

        /// The kernel version that introduced each capability, and what is lost without it.
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

// Variant, name, first mainline kernel, what is lost without it. KERNEL_REQUIREMENTS.md has the
// same table; tests/documents.rs compares them.
capabilities! {
    /// IORING_SETUP_DEFER_TASKRUN (io_uring_setup(2)).
    DeferTaskrun: "defer_taskrun", "6.1",
        "tier `multishot` instead of `deferred`";
    /// IORING_SETUP_SINGLE_ISSUER (io_uring_setup(2)).
    SingleIssuer: "single_issuer", "6.0",
        "tier `multishot` instead of `deferred`";
    /// IORING_SETUP_COOP_TASKRUN with IORING_SETUP_TASKRUN_FLAG (io_uring_setup(2)).
    CoopTaskrun: "coop_taskrun", "5.19",
        "interrupts of the owner thread: about 30% more CPU a request than with it";
    /// IORING_SETUP_SUBMIT_ALL (io_uring_setup(2)).
    SubmitAll: "submit_all", "5.18",
        "one more system call after a refused entry";
    /// Multishot IORING_OP_ACCEPT (io_uring_prep_multishot_accept(3)).
    MultishotAccept: "multishot_accept", "5.19",
        "one entry per accepted connection";
    /// Multishot IORING_OP_RECV (io_uring_prep_recv_multishot(3)).
    MultishotRecv: "multishot_recv", "6.0",
        "tier `oneshot`: one entry per receive";
    /// Rings of provided buffers (io_uring_setup_buf_ring(3)).
    BufRing: "buf_ring", "5.19",
        "tier `oneshot` polls before it receives, so that idle connections hold no buffer";
    /// IOU_PBUF_RING_INC: incremental consumption of provided buffers
    /// (io_uring_register_buf_ring(3)).
    Incremental: "incremental", "6.12",
        "each receive takes a whole buffer";
    /// IORING_RECVSEND_BUNDLE (io_uring_prep_send(3), io_uring_prep_recv(3)).
    Bundle: "bundle", "6.10",
        "nothing: not used";
    /// Direct descriptors that the kernel allocates (IORING_FILE_INDEX_ALLOC).
    DirectFd: "direct_fd", "6.0",
        "nothing: not used";
    /// IORING_OP_SOCKET (io_uring_prep_socket(3)).
    SocketOp: "socket_op", "5.19",
        "a system call more for each connect";
    /// IORING_REGISTER_RING_FDS (io_uring_register_ring_fd(3)).
    RegisteredRingFd: "registered_ring_fd", "5.18",
        "a descriptor look-up per system call";
    /// IORING_ENTER_EXT_ARG: a timeout as an argument of io_uring_enter(2).
    ExtArg: "ext_arg", "5.11",
        "a TIMEOUT entry per bounded wait";
    /// IORING_FEAT_FAST_POLL: an operation that would block is armed with an internal poll and
    /// occupies no kernel worker (io_uring_setup(2)).
    FastPoll: "fast_poll", "5.7",
        "epoll, or by name tier `polled`";
    /// IORING_OP_SEND_ZC (io_uring_prep_send_zc(3)).
    SendZc: "send_zc", "6.0",
        "large sends are copied";
    /// IORING_ENTER_NO_IOWAIT (io_uring_enter(2)).
    NoIowait: "no_iowait", "6.15",
        "an idle engine may show as 100% iowait";
    /// IORING_ASYNC_CANCEL_FD and IORING_ASYNC_CANCEL_ANY (io_uring_prep_cancel(3)).
    CancelFd: "cancel_fd", "5.19",
        "nothing: not used";
    /// IORING_REGISTER_RESTRICTIONS (io_uring_register_restrictions(3)).
    Restrictions: "restrictions", "5.10",
        "`Config::hardened` is refused";
    /// IORING_REGISTER_IOWQ_MAX_WORKERS (io_uring_register_iowq_max_workers(3)).
    WorkerLimit: "worker_limit", "5.15",
        "the number of kernel workers is bounded by the kernel's own limits only";
    /// epoll_pwait2(2): timeouts in nanoseconds on the epoll backend.
    EpollPwait2: "epoll_pwait2", "5.11",
        "epoll waits are rounded up to the next millisecond";
}

/// A row of [`REQUIREMENTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The capability.
    pub capability: Capability,
    /// Its name, as [`Capability::name`] returns it.
    pub name: &'static str,
    /// The first mainline kernel that has it. Distributions backport features, so an engine probes
    /// and never compares versions.
    pub kernel: &'static str,
    /// What is lost without it.
    pub lost: &'static str,
}

impl Capability {
    /// All capabilities, in the order of [`REQUIREMENTS`].
    pub fn all() -> impl Iterator<Item = Capability> {
        REQUIREMENTS.iter().map(|requirement| requirement.capability)
    }

    /// The name, as `PROACTOR_DISABLE` takes it.
    pub fn name(self) -> &'static str {
        REQUIREMENTS[self as usize].name
    }

    /// The first mainline kernel that has it.
    pub fn kernel(self) -> &'static str {
        REQUIREMENTS[self as usize].kernel
    }

    /// The capability with this name. `None` if the name is unknown.
    pub fn from_name(name: &str) -> Option<Capability> {
        REQUIREMENTS
            .iter()
            .find(|requirement| requirement.name == name)
            .map(|requirement| requirement.capability)
    }

    /// Parses a comma-separated list such as `multishot_recv,buf_ring`. Empty items are skipped.
    ///
    /// # Errors
    /// A message that contains the unknown name and the list of known names.
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
    /// The kernel has it. The engine does not use it.
    Unused,
    /// The kernel does not have it, or a seccomp filter, an LSM or a sysctl denies it.
    Missing,
    /// The engine did not probe it, because the backend in use does not need it.
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

/// The state of one capability, with the reason. See [`Info::capabilities`].
///
/// [`Info::capabilities`]: crate::Info::capabilities
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapabilityReport {
    /// The capability.
    pub capability: Capability,
    /// Its state.
    pub state: CapabilityState,
    /// The reason why it is not used. Empty if it is used.
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
