//! Setup: makes a ring from the probed capabilities and the configuration. Owns: the choice of the
//! tier, the setup flags of each tier, the retries with smaller rings on ENOMEM, the restrictions,
//! and the report of each capability. Invariant: a ring uses only capabilities that are available
//! and not disabled. Must not know operations.

use super::buffers::Buffers;
use super::probe::{self, ProbeResult, Refusal};
use super::ring::{EnterMode, Ring};
use super::{Features, Uring, sys};
use crate::backend::Parameters;
use crate::caps::{Capability, CapabilityState, Caps};
use crate::config::Config;
use crate::error::{Errno, Error};
use crate::id::EngineNumber;
use crate::tier::Tier;
use crate::tuning::ZeroCopy;
use crate::waker::WakerShared;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// The smallest submission queue that is tried on ENOMEM.
const ENTRIES_MIN: u32 = 8;
/// Incremental buffers rely on CQEs in the order in which the kernel filled the buffers. Overflowed
/// CQEs keep the order too, but a completion queue of this size avoids overflows.
const INCREMENTAL_CQ_ENTRIES_MIN: u32 = 512;
/// `enum io_uring_register_op`: what a restricted ring may register or unregister.
const REGISTER_EVENTFD: u8 = 4;
const UNREGISTER_EVENTFD: u8 = 5;
const UNREGISTER_PBUF_RING: u8 = 23;

/// A backend, and what `Info` reports about it.
pub(crate) struct Opened {
    pub(crate) backend: Uring,
    pub(crate) tier: Tier,
    pub(crate) caps: Caps,
    pub(crate) notes: Vec<String>,
    pub(crate) ring_entries: (u32, u32),
    pub(crate) buffers: (u32, u32),
}

/// Why there is no ring.
pub(crate) enum NoRing {
    /// The kernel or a filter refuses io_uring.
    Refused(Refusal),
    /// io_uring works, but no tier is available; `why` is the reason for `tier`, the configured one
    /// or the least demanding one.
    NoTier { tier: Tier, why: String, caps: Caps },
    /// Another error, which epoll would not avoid.
    Error(Error),
}

/// The available capabilities: offered by the kernel and not disabled by the configuration.
struct Available<'a> {
    config: &'a Config,
    engine: EngineNumber,
    probed: ProbeResult,
}

impl Available<'_> {
    fn has(&self, capability: Capability) -> bool {
        self.probed.caps.contains(capability) && self.config.switched_off(capability).is_none()
    }

    /// Why a capability is not available. `None`: it is available.
    fn why_unavailable(&self, capability: Capability) -> Option<String> {
        match (self.probed.caps.contains(capability), self.config.switched_off(capability)) {
            (_, Some(off)) => Some(off.to_owned()),
            (false, None) => Some(self.probed.why_missing(capability)),
            (true, None) => None,
        }
    }

    /// The capabilities that a tier lacks, with reasons. `None`: the tier is available.
    fn missing_for(&self, tier: Tier) -> Option<String> {
        let missing: Vec<String> = tier
            .needs()
            .iter()
            .filter_map(|c| self.why_unavailable(*c).map(|why| format!("{c}: {why}")))
            .collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }
}

/// Makes a backend of the best tier that the kernel and the configuration allow.
pub(crate) fn open(
    config: &Config,
    engine: EngineNumber,
    waker_shared: &Arc<WakerShared>,
) -> Result<Opened, NoRing> {
    let probed = probe::probe().map_err(|refusal| match refusal {
        Refusal::Setup(errno @ Errno(libc::EMFILE | libc::ENFILE)) => {
            NoRing::Error(Error::Os { call: "io_uring_setup", errno })
        }
        refusal => NoRing::Refused(refusal),
    })?;
    let available = Available { config, engine, probed };
    if config.hardened && !available.has(Capability::Restrictions) {
        let why = available.why_unavailable(Capability::Restrictions).unwrap_or_default();
        return Err(NoRing::Error(Error::Unsupported { what: "Config::hardened".into(), why }));
    }
    let tiers: &[Tier] = match config.tier {
        Some(tier) => &[tier],
        None => &[Tier::Deferred, Tier::Multishot, Tier::Oneshot],
    };
    let Some(&tier) = tiers.iter().find(|tier| available.missing_for(**tier).is_none()) else {
        let tier = tiers[tiers.len() - 1];
        let why = available.missing_for(tier).expect("no tier is available");
        return Err(NoRing::NoTier { tier, why, caps: report(&available, None) });
    };
    build(&available, tier, waker_shared)
}

fn build(
    available: &Available<'_>,
    tier: Tier,
    waker_shared: &Arc<WakerShared>,
) -> Result<Opened, NoRing> {
    let config = available.config;
    let mut notes = Vec::new();
    let RingParts { uring, buffers, parameters, incremental } =
        set_up(available, tier, &mut notes)?;
    if let Some(errno) = available.probed.register_errno {
        notes.push(format!(
            "io_uring_register is refused: {errno:?}: a filter or an LSM; buffer rings and all \
             that builds on them are left out"
        ));
    }
    let multishot = matches!(tier, Tier::Deferred | Tier::Multishot);
    let modern = tier != Tier::Polled;
    let os = |call| move |error: std::io::Error| NoRing::Error(Error::os(call, &error));
    if modern && available.has(Capability::WorkerLimit) {
        let limit = config.tuning.workers_max;
        uring
            .submitter()
            .register_iowq_max_workers(&mut [limit, limit])
            .map_err(os("io_uring_register(IOWQ_MAX_WORKERS)"))?;
    }
    let mut mode = EnterMode {
        fd: uring.as_raw_fd(),
        flags: 0,
        ext_arg: modern && available.has(Capability::ExtArg),
        no_iowait: modern && available.has(Capability::NoIowait),
    };
    let mut registered = false;
    if modern && available.has(Capability::RegisteredRingFd) {
        // A thread can register sixteen rings; the engine works without, at one look-up per enter.
        match sys::register_ring_fd(mode.fd) {
            Ok(index) => {
                (mode.fd, mode.flags, registered) = (index, sys::ENTER_REGISTERED_RING, true)
            }
            Err(errno) => notes.push(format!("ring descriptor not registered: {errno}")),
        }
    }
    if config.hardened {
        restrict(&uring, available, modern).map_err(os("io_uring_register(RESTRICTIONS)"))?;
        uring.submitter().register_enable_rings().map_err(os("io_uring_register(ENABLE_RINGS)"))?;
    }
    let features = Features {
        multishot_recv: multishot,
        adaptive_receives: multishot && config.tuning.adaptive_receives,
        multishot_accept: modern
            && tier != Tier::Oneshot
            && available.has(Capability::MultishotAccept),
        socket_op: modern && available.has(Capability::SocketOp),
        polled: tier == Tier::Polled,
        deferred: tier == Tier::Deferred,
        zero_copy: modern
            && available.has(Capability::SendZc)
            && config.tuning.zero_copy.bytes_min().is_some(),
    };
    let ring_entries = (uring.params().sq_entries(), uring.params().cq_entries());
    let used =
        RingInUse { tier, features, buf_ring: buffers.has_ring(), incremental, mode, registered };
    let caps = report(available, Some(&used));
    let ring = Ring::new(uring, mode, config.tuning.gather_max, available.engine);
    let backend = Uring::new(ring, buffers, features, Arc::clone(waker_shared), &parameters);
    Ok(Opened { backend, tier, caps, notes, ring_entries, buffers: parameters.buffers })
}

/// A ring and the memory that goes with it.
struct RingParts {
    uring: IoUring,
    buffers: Buffers,
    parameters: Parameters,
    incremental: bool,
}

/// Makes a ring with its buffers; halves its entries while the kernel answers ENOMEM.
fn set_up(
    available: &Available<'_>,
    tier: Tier,
    notes: &mut Vec<String>,
) -> Result<RingParts, NoRing> {
    let config = available.config;
    let (mut entries, mut completions) = config.tuning.ring_entries;
    loop {
        let errno = match probe::retry_enomem(|| try_set_up(available, tier, entries, completions))
        {
            Ok(parts) => return Ok(parts),
            Err(errno) => errno,
        };
        match errno.0 {
            libc::ENOMEM if entries > ENTRIES_MIN => {
                entries = (entries / 2).max(ENTRIES_MIN);
                completions = (completions / 2).max(entries);
                let limit = crate::sys::limit_memlock()
                    .map_or("unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
                notes.clear();
                notes.push(format!(
                    "rings made smaller, to {entries} and {completions} entries: ENOMEM \
                     (RLIMIT_MEMLOCK {limit})"
                ));
            }
            libc::EMFILE | libc::ENFILE => {
                return Err(NoRing::Error(Error::Os { call: "io_uring_setup", errno }));
            }
            _ => return Err(NoRing::Refused(Refusal::Setup(errno))),
        }
    }
}

fn try_set_up(
    available: &Available<'_>,
    tier: Tier,
    entries: u32,
    completions: u32,
) -> Result<RingParts, Errno> {
    let uring = ring(available, tier, entries, completions)?;
    let multishot = matches!(tier, Tier::Deferred | Tier::Multishot);
    let large_enough = uring.params().cq_entries() >= INCREMENTAL_CQ_ENTRIES_MIN;
    let incremental = multishot && large_enough && available.has(Capability::Incremental);
    let parameters = Parameters::new(available.config, available.engine, incremental);
    let (count, size) = parameters.buffers;
    let buf_ring = tier != Tier::Polled && available.has(Capability::BufRing);
    let first = multishot && available.config.tuning.adaptive_receives;
    let buffers = Buffers::new(
        &uring,
        (count, size, parameters.low_watermark),
        buf_ring,
        incremental,
        first,
    )?;
    Ok(RingParts { uring, buffers, parameters, incremental })
}

/// Sets up a ring with the flags of a tier.
fn ring(
    available: &Available<'_>,
    tier: Tier,
    entries: u32,
    completions: u32,
) -> Result<IoUring, Errno> {
    let config = available.config;
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(completions);
    if available.has(Capability::SubmitAll) && tier != Tier::Polled {
        builder.setup_submit_all();
    }
    match tier {
        Tier::Deferred => {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        Tier::Multishot | Tier::Oneshot if available.has(Capability::CoopTaskrun) => {
            builder.setup_coop_taskrun().setup_taskrun_flag();
            if tier == Tier::Multishot && available.has(Capability::SingleIssuer) {
                builder.setup_single_issuer();
            }
        }
        _ => {}
    }
    if config.hardened {
        builder.setup_r_disabled();
    }
    builder.build(entries).map_err(|error| Errno::of(&error))
}

/// Restricts a ring to what the engine uses; without `modern` (tier `polled`), to what 5.6 has.
fn restrict(uring: &IoUring, available: &Available<'_>, modern: bool) -> std::io::Result<()> {
    let mut allowed = probe::REQUIRED_OPS.to_vec();
    allowed.push(opcode::Nop::CODE);
    if modern && available.has(Capability::SendZc) {
        allowed.push(opcode::SendZc::CODE);
    }
    if modern && available.has(Capability::SocketOp) {
        allowed.push(opcode::Socket::CODE);
    }
    let mut rules: Vec<Restriction> = allowed.into_iter().map(Restriction::sqe_op).collect();
    let flags = if modern {
        squeue::Flags::BUFFER_SELECT | squeue::Flags::IO_LINK
    } else {
        squeue::Flags::empty()
    };
    rules.push(Restriction::sqe_flags_allowed(flags.bits()));
    rules.push(Restriction::register_op(REGISTER_EVENTFD));
    rules.push(Restriction::register_op(UNREGISTER_EVENTFD));
    // A kernel refuses a rule with an opcode that it does not know.
    if available.has(Capability::RegisteredRingFd) {
        rules.push(Restriction::register_op(sys::UNREGISTER_RING_FDS as u8));
    }
    if available.has(Capability::BufRing) {
        rules.push(Restriction::register_op(UNREGISTER_PBUF_RING));
    }
    uring.submitter().register_restrictions(&mut rules)
}

/// What a ring uses, for the report.
struct RingInUse {
    tier: Tier,
    features: Features,
    buf_ring: bool,
    incremental: bool,
    mode: EnterMode,
    registered: bool,
}

/// The state of each capability, with a reason.
fn report(available: &Available<'_>, used: Option<&RingInUse>) -> Caps {
    let mut caps = Caps::not_probed("");
    for capability in Capability::all() {
        let (state, why) = match used {
            _ if capability == Capability::EpollPwait2 => {
                (CapabilityState::NotProbed, "not needed on io_uring".to_owned())
            }
            _ if !available.probed.caps.contains(capability) => {
                (CapabilityState::Missing, available.probed.why_missing(capability))
            }
            _ if available.config.switched_off(capability).is_some() => (
                CapabilityState::Unused,
                available.config.switched_off(capability).unwrap_or_default().to_owned(),
            ),
            None => (CapabilityState::Unused, "no ring is in use".to_owned()),
            Some(used) => match used.why_unused(capability, available.config) {
                None => (CapabilityState::Used, String::new()),
                Some(why) => (CapabilityState::Unused, why),
            },
        };
        caps.set(capability, state, why);
    }
    caps
}

impl RingInUse {
    /// Why an available capability is not used. `None`: it is used.
    fn why_unused(&self, capability: Capability, config: &Config) -> Option<String> {
        let tier = self.tier;
        let other_tier = || format!("tier `{tier}` does not use it");
        let unless = |used: bool| (!used).then(other_tier);
        match capability {
            Capability::DeferTaskrun => unless(tier == Tier::Deferred),
            Capability::SingleIssuer => unless(matches!(tier, Tier::Deferred | Tier::Multishot)),
            Capability::CoopTaskrun if tier == Tier::Deferred => {
                Some("DEFER_TASKRUN replaces it".into())
            }
            Capability::CoopTaskrun => unless(tier != Tier::Polled),
            Capability::SubmitAll | Capability::WorkerLimit => unless(tier != Tier::Polled),
            Capability::MultishotAccept => unless(self.features.multishot_accept),
            Capability::MultishotRecv => unless(self.features.multishot_recv),
            Capability::BufRing => unless(self.buf_ring),
            Capability::Incremental if self.features.multishot_recv && !self.incremental => {
                Some(format!("needs a completion queue of {INCREMENTAL_CQ_ENTRIES_MIN} entries"))
            }
            Capability::Incremental => unless(self.incremental),
            Capability::Bundle => Some("incremental buffers gain as much".into()),
            Capability::DirectFd => {
                Some("callers need descriptors for socket options; the gain is about 1%".into())
            }
            Capability::CancelFd => {
                Some("cancels are by user_data: a descriptor number may be reused".into())
            }
            Capability::SocketOp => unless(self.features.socket_op),
            Capability::RegisteredRingFd if tier != Tier::Polled && !self.registered => {
                Some("this thread has registered as many rings as it can".into())
            }
            Capability::RegisteredRingFd => unless(self.registered),
            Capability::ExtArg => unless(self.mode.ext_arg),
            Capability::NoIowait => unless(self.mode.no_iowait),
            Capability::FastPoll => unless(tier != Tier::Polled),
            Capability::SendZc if config.tuning.zero_copy == ZeroCopy::Never => {
                Some("Tuning::zero_copy is Never".into())
            }
            Capability::SendZc => unless(self.features.zero_copy),
            Capability::Restrictions if !config.hardened => Some("Config::hardened is off".into()),
            Capability::Restrictions | Capability::EpollPwait2 => None,
        }
    }
}
