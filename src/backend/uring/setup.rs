//! From what probing found and a configuration to a ring. Owns: the choice of tier, the setup flags
//! of each, the shrinking under ENOMEM, the restrictions, and the record of what is used and why
//! not.

use super::buffers::Buffers;
use super::probe::{self, Offer, Refusal};
use super::ring::{EnterMode, Ring};
use super::{Style, Uring, sys};
use crate::backend::Parameters;
use crate::caps::{Capability, CapabilityState, Caps};
use crate::config::Config;
use crate::error::{Errno, Error};
use crate::id::EngineNumber;
use crate::tier::Tier;
use crate::tuning::ZeroCopy;
use crate::waker::Inbox;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Rings are not made smaller than this.
const ENTRIES_MIN: u32 = 8;
/// Piecewise buffers rely on completions in the order in which buffers were filled, which a backlog
/// of overflowed completions is not meant to change; with a queue this large it does not come about
/// in the first place.
const PIECEWISE_ENTRIES_MIN: u32 = 512;
/// `enum io_uring_register_op`: what a restricted ring may still register or unregister.
const REGISTER_EVENTFD: u8 = 4;
const UNREGISTER_EVENTFD: u8 = 5;
const UNREGISTER_PBUF_RING: u8 = 23;

/// A backend, and what to tell about it.
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
    Refused(Refusal),
    /// The kernel has io_uring, but no tier that may be used; says why for the best one that was
    /// asked for.
    NoTier {
        tier: Tier,
        why: String,
        caps: Caps,
    },
    /// Not for want of io_uring: the caller's affair.
    Error(Error),
}

/// What may be used: offered by the kernel and not switched off.
struct Choice<'a> {
    config: &'a Config,
    engine: EngineNumber,
    offer: Offer,
}

impl Choice<'_> {
    fn has(&self, capability: Capability) -> bool {
        self.offer.caps.contains(capability) && self.config.switched_off(capability).is_none()
    }

    fn why_not(&self, capability: Capability) -> Option<String> {
        match (self.offer.caps.contains(capability), self.config.switched_off(capability)) {
            (_, Some(off)) => Some(off.to_owned()),
            (false, None) => Some(self.offer.why_missing(capability)),
            (true, None) => None,
        }
    }

    /// Why a tier cannot be had, if so.
    fn obstacle(&self, tier: Tier) -> Option<String> {
        let missing: Vec<String> = tier
            .needs()
            .iter()
            .filter_map(|c| self.why_not(*c).map(|why| format!("{c}: {why}")))
            .collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }
}

/// Makes the best ring that the kernel and the configuration allow.
pub(crate) fn open(
    config: &Config,
    engine: EngineNumber,
    inbox: &Arc<Inbox>,
) -> Result<Opened, NoRing> {
    let offer = probe::probe().map_err(|refusal| match refusal {
        Refusal::Setup(errno @ Errno(libc::EMFILE | libc::ENFILE)) => {
            NoRing::Error(Error::Os { call: "io_uring_setup", errno })
        }
        refusal => NoRing::Refused(refusal),
    })?;
    let choice = Choice { config, engine, offer };
    if config.hardened && !choice.has(Capability::Restrictions) {
        let why = choice.why_not(Capability::Restrictions).unwrap_or_default();
        return Err(NoRing::Error(Error::Unsupported { what: "Config::hardened".into(), why }));
    }
    let tiers: &[Tier] = match config.tier {
        Some(tier) => &[tier],
        None => &[Tier::Deferred, Tier::Multishot, Tier::Oneshot],
    };
    let Some(&tier) = tiers.iter().find(|tier| choice.obstacle(**tier).is_none()) else {
        let tier = tiers[tiers.len() - 1];
        let why = choice.obstacle(tier).expect("no tier was free of obstacles");
        return Err(NoRing::NoTier { tier, why, caps: report(&choice, None) });
    };
    build(&choice, tier, inbox)
}

fn build(choice: &Choice<'_>, tier: Tier, inbox: &Arc<Inbox>) -> Result<Opened, NoRing> {
    let config = choice.config;
    let mut notes = Vec::new();
    let RingParts { uring, buffers, parameters, piecewise } = set_up(choice, tier, &mut notes)?;
    if let Some(errno) = choice.offer.no_register {
        notes.push(format!("io_uring_register is refused: {errno:?}: a filter or an LSM; buffer rings and all that builds on them are left out"));
    }
    let multishot = matches!(tier, Tier::Deferred | Tier::Multishot);
    let modern = tier != Tier::Polled;
    let os = |call| move |error: std::io::Error| NoRing::Error(Error::os(call, &error));
    if modern && choice.has(Capability::WorkerLimit) {
        let limit = config.tuning.workers_max;
        uring
            .submitter()
            .register_iowq_max_workers(&mut [limit, limit])
            .map_err(os("io_uring_register(IOWQ_MAX_WORKERS)"))?;
    }
    let mut mode = EnterMode {
        fd: uring.as_raw_fd(),
        flags: 0,
        ext_arg: modern && choice.has(Capability::ExtArg),
        no_iowait: modern && choice.has(Capability::NoIowait),
    };
    let mut registered = false;
    if modern && choice.has(Capability::RegisteredRingFd) {
        // A thread has sixteen places for these; the seventeenth engine does without.
        match sys::register_ring_fd(mode.fd) {
            Ok(index) => {
                (mode.fd, mode.flags, registered) = (index, sys::ENTER_REGISTERED_RING, true)
            }
            Err(errno) => notes.push(format!("ring descriptor not registered: {errno}")),
        }
    }
    if config.hardened {
        restrict(&uring, choice, modern).map_err(os("io_uring_register(RESTRICTIONS)"))?;
        uring.submitter().register_enable_rings().map_err(os("io_uring_register(ENABLE_RINGS)"))?;
    }
    let style = Style {
        multishot_recv: multishot,
        adaptive_receives: multishot && config.tuning.adaptive_receives,
        multishot_accept: modern
            && tier != Tier::Oneshot
            && choice.has(Capability::MultishotAccept),
        socket_op: modern && choice.has(Capability::SocketOp),
        polled: tier == Tier::Polled,
        deferred: tier == Tier::Deferred,
        zero_copy: modern
            && choice.has(Capability::SendZc)
            && config.tuning.zero_copy.bytes_min().is_some(),
    };
    let ring_entries = (uring.params().sq_entries(), uring.params().cq_entries());
    let used = Used { tier, style, buf_ring: buffers.has_ring(), piecewise, mode, registered };
    let caps = report(choice, Some(&used));
    let ring = Ring::new(uring, mode, config.tuning.gather_max, choice.engine);
    let backend = Uring::new(ring, buffers, style, Arc::clone(inbox), &parameters);
    Ok(Opened { backend, tier, caps, notes, ring_entries, buffers: parameters.buffers })
}

/// A ring and the memory that goes with it.
struct RingParts {
    uring: IoUring,
    buffers: Buffers,
    parameters: Parameters,
    piecewise: bool,
}

/// Makes a ring with its buffers, smaller while the kernel has not memory enough for it.
fn set_up(choice: &Choice<'_>, tier: Tier, notes: &mut Vec<String>) -> Result<RingParts, NoRing> {
    let config = choice.config;
    let (mut entries, mut completions) = config.tuning.ring_entries;
    loop {
        let errno = match probe::patiently(|| try_set_up(choice, tier, entries, completions)) {
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
                    "rings made smaller, to {entries} and {completions} entries: ENOMEM (RLIMIT_MEMLOCK {limit})"
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
    choice: &Choice<'_>,
    tier: Tier,
    entries: u32,
    completions: u32,
) -> Result<RingParts, Errno> {
    let uring = ring(choice, tier, entries, completions)?;
    let multishot = matches!(tier, Tier::Deferred | Tier::Multishot);
    let large_enough = uring.params().cq_entries() >= PIECEWISE_ENTRIES_MIN;
    let piecewise = multishot && large_enough && choice.has(Capability::Incremental);
    let parameters = Parameters::new(choice.config, choice.engine, piecewise);
    let (count, size) = parameters.buffers;
    let buf_ring = tier != Tier::Polled && choice.has(Capability::BufRing);
    let first = multishot && choice.config.tuning.adaptive_receives;
    let buffers =
        Buffers::new(&uring, (count, size, parameters.low_watermark), buf_ring, piecewise, first)?;
    Ok(RingParts { uring, buffers, parameters, piecewise })
}

/// Sets a ring up with the flags of a tier.
fn ring(choice: &Choice<'_>, tier: Tier, entries: u32, completions: u32) -> Result<IoUring, Errno> {
    let config = choice.config;
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(completions);
    if choice.has(Capability::SubmitAll) && tier != Tier::Polled {
        builder.setup_submit_all();
    }
    match tier {
        Tier::Deferred => {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        Tier::Multishot | Tier::Oneshot if choice.has(Capability::CoopTaskrun) => {
            builder.setup_coop_taskrun().setup_taskrun_flag();
            if tier == Tier::Multishot && choice.has(Capability::SingleIssuer) {
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

/// Leaves a ring only what the engine uses: without `modern`, tier `polled`, nothing that came
/// after 5.6.
fn restrict(uring: &IoUring, choice: &Choice<'_>, modern: bool) -> std::io::Result<()> {
    let mut allowed = probe::NEEDED.to_vec();
    allowed.push(opcode::Nop::CODE);
    if modern && choice.has(Capability::SendZc) {
        allowed.push(opcode::SendZc::CODE);
    }
    if modern && choice.has(Capability::SocketOp) {
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
    // A kernel refuses rules about what it does not know.
    if choice.has(Capability::RegisteredRingFd) {
        rules.push(Restriction::register_op(sys::UNREGISTER_RING_FDS as u8));
    }
    if choice.has(Capability::BufRing) {
        rules.push(Restriction::register_op(UNREGISTER_PBUF_RING));
    }
    uring.submitter().register_restrictions(&mut rules)
}

struct Used {
    tier: Tier,
    style: Style,
    buf_ring: bool,
    piecewise: bool,
    mode: EnterMode,
    registered: bool,
}

/// The state of each capability, with the reason.
fn report(choice: &Choice<'_>, used: Option<&Used>) -> Caps {
    let mut caps = Caps::not_probed("");
    for capability in Capability::all() {
        let (state, why) = match used {
            _ if capability == Capability::EpollPwait2 => {
                (CapabilityState::NotProbed, "not needed on io_uring".to_owned())
            }
            _ if !choice.offer.caps.contains(capability) => {
                (CapabilityState::Missing, choice.offer.why_missing(capability))
            }
            _ if choice.config.switched_off(capability).is_some() => (
                CapabilityState::Unused,
                choice.config.switched_off(capability).unwrap_or_default().to_owned(),
            ),
            None => (CapabilityState::Unused, "no ring is in use".to_owned()),
            Some(used) => match used.why_unused(capability, choice.config) {
                None => (CapabilityState::Used, String::new()),
                Some(why) => (CapabilityState::Unused, why),
            },
        };
        caps.set(capability, state, why);
    }
    caps
}

impl Used {
    /// Why a capability that is there and allowed is not used.
    fn why_unused(&self, capability: Capability, config: &Config) -> Option<String> {
        let tier = self.tier;
        let other_tier = || format!("no part of tier `{tier}`");
        let unless = |used: bool| (!used).then(other_tier);
        match capability {
            Capability::DeferTaskrun => unless(tier == Tier::Deferred),
            Capability::SingleIssuer => unless(matches!(tier, Tier::Deferred | Tier::Multishot)),
            Capability::CoopTaskrun if tier == Tier::Deferred => {
                Some("DEFER_TASKRUN does more".into())
            }
            Capability::CoopTaskrun => unless(tier != Tier::Polled),
            Capability::SubmitAll | Capability::WorkerLimit => unless(tier != Tier::Polled),
            Capability::MultishotAccept => unless(self.style.multishot_accept),
            Capability::MultishotRecv => unless(self.style.multishot_recv),
            Capability::BufRing => unless(self.buf_ring),
            Capability::Incremental if self.style.multishot_recv && !self.piecewise => {
                Some(format!("needs a completion queue of {PIECEWISE_ENTRIES_MIN} entries"))
            }
            Capability::Incremental => unless(self.piecewise),
            Capability::Bundle => Some("buffers consumed piece by piece gain as much".into()),
            Capability::DirectFd => {
                Some("callers need descriptors for socket options; the gain is about 1%".into())
            }
            Capability::CancelFd => Some(
                "cancels go by user_data: a descriptor number may be somebody else's by then"
                    .into(),
            ),
            Capability::SocketOp => unless(self.style.socket_op),
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
            Capability::SendZc => unless(self.style.zero_copy),
            Capability::Restrictions if !config.hardened => Some("Config::hardened is off".into()),
            Capability::Restrictions | Capability::EpollPwait2 => None,
        }
    }
}
