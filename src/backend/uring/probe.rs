//! What the kernel, and whatever stands before it, really offers. Owns: the trial. Everything is
//! tried on small rings of its own; no version is compared. Where trying is impossible (an opcode),
//! the kernel's own list is asked.

use super::bufring::{BufRing, GROUP};
use super::sys;
use crate::buf::Pool;
use crate::caps::{CapSet, Capability};
use crate::error::Errno;
use io_uring::register::Probe;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The trial rings are this small, so that they fit under a low RLIMIT_MEMLOCK.
const ENTRIES: u32 = 4;

/// The operations that everything stands on.
pub(super) const NEEDED: [u8; 9] = [
    opcode::PollAdd::CODE,
    opcode::SendMsg::CODE,
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Connect::CODE,
    opcode::Close::CODE,
    opcode::Send::CODE,
    opcode::Recv::CODE,
    opcode::Timeout::CODE,
];

/// Why io_uring cannot be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Setup(Errno),
    /// Rings can be made, but not entered.
    Enter(Errno),
    /// Older than the backend can use: completions could be lost, or memory read after submission.
    NoStableFeatures,
    /// The operations that everything stands on are missing.
    NoSocketOps,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) caps: CapSet,
    /// What io_uring_register(2) answers, where something forbids it altogether. What needs it then
    /// is not there, whatever the kernel.
    pub(super) no_register: Option<Errno>,
}

impl Offer {
    /// Why a capability is not there.
    pub(super) fn why_missing(&self, capability: Capability) -> String {
        use Capability::{
            BufRing, DirectFd, Incremental, MultishotRecv, RegisteredRingFd, Restrictions, SendZc,
            SocketOp, WorkerLimit,
        };
        let registered = [
            BufRing,
            DirectFd,
            Incremental,
            MultishotRecv,
            RegisteredRingFd,
            Restrictions,
            SendZc,
            SocketOp,
            WorkerLimit,
        ];
        match self.no_register.filter(|_| registered.contains(&capability)) {
            Some(errno) => format!("io_uring_register is refused: {errno:?}"),
            None => format!("the kernel lacks it ({} has it)", capability.kernel()),
        }
    }
}

/// Finds out what is there.
pub(super) fn probe() -> Result<Offer, Refusal> {
    let mut offer = CapSet::default();
    let mut trial = Trial { ring: richest_ring(&mut offer).map_err(Refusal::Setup)? };
    trial.run(opcode::Nop::new().build()).map_err(Refusal::Enter)?;
    let params = trial.ring.params();
    if !params.is_feature_nodrop() || !params.is_feature_submit_stable() {
        return Err(Refusal::NoStableFeatures);
    }
    for (there, capability) in [
        (params.is_feature_ext_arg(), Capability::ExtArg),
        (params.is_feature_fast_poll(), Capability::FastPoll),
        (params.is_feature_no_iowait(), Capability::NoIowait),
        (params.is_feature_recvsend_bundle(), Capability::Bundle),
    ] {
        if there {
            offer.insert(capability);
        }
    }
    let no_register = trial.opcodes(&mut offer)?;
    trial.registrations(&mut offer);
    trial.operations(&mut offer);
    Ok(Offer { caps: offer, no_register })
}

/// A ring with every setup flag that the kernel knows. A recent kernel takes all of them at once,
/// and one ring is all that probing makes: rings cost locked memory, and give it back only some
/// time after they are closed.
fn richest_ring(offer: &mut CapSet) -> Result<IoUring, Errno> {
    use Capability::{CoopTaskrun, DeferTaskrun, Restrictions, SingleIssuer, SubmitAll};
    // COOP_TASKRUN goes without DEFER_TASKRUN; whoever has the latter (6.1) has the former (5.19).
    let all = [SubmitAll, SingleIssuer, DeferTaskrun, CoopTaskrun, Restrictions];
    match patiently(|| ring(&all)) {
        Ok(ring) if ring.submitter().register_enable_rings().is_ok() => {
            all.into_iter().for_each(|capability| offer.insert(capability));
            return Ok(ring);
        }
        Ok(_) | Err(Errno(libc::EINVAL)) => {}
        Err(errno) => return Err(errno),
    }
    // A filter may let rings be made and forbid registrations: then one that starts disabled stays
    // so.
    let is_usable = |ring: &IoUring, flags: &[Capability]| {
        !flags.contains(&Restrictions) || ring.submitter().register_enable_rings().is_ok()
    };
    for flags in [
        &[SubmitAll][..],
        &[CoopTaskrun],
        &[SingleIssuer],
        &[SingleIssuer, DeferTaskrun],
        &[Restrictions],
    ] {
        if ring(flags).is_ok_and(|ring| is_usable(&ring, flags)) {
            flags.iter().for_each(|capability| offer.insert(*capability));
        }
    }
    patiently(|| ring(&[]))
}

fn ring(capabilities: &[Capability]) -> Result<IoUring, Errno> {
    let mut builder = IoUring::builder();
    builder.dontfork();
    let deferred = capabilities.contains(&Capability::DeferTaskrun);
    for capability in capabilities {
        match capability {
            Capability::SubmitAll => builder.setup_submit_all(),
            Capability::CoopTaskrun if !deferred => {
                builder.setup_coop_taskrun().setup_taskrun_flag()
            }
            Capability::SingleIssuer => builder.setup_single_issuer(),
            Capability::DeferTaskrun => builder.setup_defer_taskrun().setup_taskrun_flag(),
            // A ring that starts disabled came together with restrictions, which it is for.
            Capability::Restrictions => builder.setup_r_disabled(),
            _ => &mut builder,
        };
    }
    builder.build(ENTRIES).map_err(|error| Errno::of(&error))
}

/// Tries again for a moment while memory is short: rings that were closed just now still count.
pub(super) fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..10 {
        match attempt() {
            Err(Errno(libc::ENOMEM)) => std::thread::sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
    attempt()
}

struct Trial {
    ring: IoUring,
}

impl Trial {
    /// Runs one operation and waits for its first completion.
    fn run(&mut self, entry: Entry) -> Result<(i32, u32), Errno> {
        self.push(entry);
        self.reap()
    }

    fn push(&mut self, entry: Entry) {
        // SAFETY: each trial keeps what its entry names until the ring is dropped, or has seen the
        // final completion.
        unsafe { self.ring.submission().push(&entry) }.expect("one at a time");
    }

    /// The next completion that is no answer to a cancel. Bounded: a kernel that never answers has
    /// refused.
    fn reap(&mut self) -> Result<(i32, u32), Errno> {
        for _ in 0..200 {
            if let Some(entry) = self.ring.completion().next() {
                return Ok((entry.result(), entry.flags()));
            }
            let staged = self.ring.submission().len() as u32;
            // SAFETY: as in `push`.
            match unsafe { sys::enter(self.ring.as_raw_fd(), staged, 0, sys::ENTER_GETEVENTS) } {
                Ok(_) | Err(Errno(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(errno) => return Err(errno),
            }
            if self.ring.completion().is_empty() {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Err(Errno(libc::ETIME))
    }

    /// Asks for the operations that there are. Returns what io_uring_register answers instead,
    /// where it is forbidden.
    fn opcodes(&self, offer: &mut CapSet) -> Result<Option<Errno>, Refusal> {
        let mut probe = Probe::new();
        if let Err(error) = self.ring.submitter().register_probe(&mut probe) {
            // A filter may forbid to ask; the operations themselves are tried or fail in use.
            let forbidden = [libc::EPERM, libc::EACCES, libc::ENOSYS];
            return Ok(Some(Errno::of(&error)).filter(|errno| forbidden.contains(&errno.0)));
        }
        if !NEEDED.iter().all(|code| probe.is_supported(*code)) {
            return Err(Refusal::NoSocketOps);
        }
        if probe.is_supported(opcode::SendZc::CODE) {
            offer.insert(Capability::SendZc);
            offer.insert(Capability::DirectFd);
        }
        if probe.is_supported(opcode::Socket::CODE) {
            offer.insert(Capability::SocketOp);
        }
        Ok(None)
    }

    fn registrations(&self, offer: &mut CapSet) {
        if self.ring.submitter().register_iowq_max_workers(&mut [1, 1]).is_ok() {
            offer.insert(Capability::WorkerLimit);
        }
        let fd = self.ring.as_raw_fd();
        match sys::register_ring_fd(fd) {
            Ok(index) => {
                offer.insert(Capability::RegisteredRingFd);
                sys::unregister_ring_fd(fd, index);
            }
            // All places of this thread are taken: the kernel has it all the same.
            Err(Errno(libc::EBUSY)) => offer.insert(Capability::RegisteredRingFd),
            Err(_) => {}
        }
    }

    /// What only shows when it is tried.
    fn operations(&mut self, offer: &mut CapSet) {
        let any = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        if matches!(self.run(any), Ok((result, _)) if result >= 0 || result == -libc::ENOENT) {
            offer.insert(Capability::CancelFd);
        }
        if self.multishot_accept().unwrap_or(false) {
            offer.insert(Capability::MultishotAccept);
        }
        if self.with_buffers(false, |trial, _| trial.multishot_recv(offer)).is_ok() {
            offer.insert(Capability::BufRing);
        }
        let piecewise = self.with_buffers(true, |trial, pool| trial.piecewise_recv(pool));
        if piecewise.is_ok_and(|works| works.unwrap_or(false)) {
            offer.insert(Capability::Incremental);
        }
    }

    fn multishot_accept(&mut self) -> Result<bool, Errno> {
        let io = |error: io::Error| Errno::of(&error);
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(io)?;
        // An empty name: the kernel chooses one in the abstract namespace.
        listener.bind(&SockAddr::unix("").map_err(io)?).map_err(io)?;
        listener.listen(1).map_err(io)?;
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(io)?;
        client.connect(&listener.local_addr().map_err(io)?).map_err(io)?;
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build();
        let (accepted, flags) = self.run(entry.user_data(1))?;
        if accepted >= 0 {
            // SAFETY: the kernel just made it.
            drop(unsafe {
                <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(accepted)
            });
        }
        let multishot = accepted >= 0 && cqueue::more(flags);
        if multishot {
            self.cancel(1)?;
        }
        Ok(multishot)
    }

    /// Cancels the operation with this user_data, and waits for its end and the cancel's.
    fn cancel(&mut self, user_data: u64) -> Result<(), Errno> {
        self.push(opcode::AsyncCancel::new(user_data).build());
        self.reap()?;
        self.reap().map(drop)
    }

    fn with_buffers<T>(
        &mut self,
        piecewise: bool,
        run: impl FnOnce(&mut Trial, &Pool) -> T,
    ) -> io::Result<T> {
        let pool = Pool::new(4, 4096, 1)?;
        let register = || {
            BufRing::register(&self.ring, GROUP, 4, piecewise).map_err(|error| Errno::of(&error))
        };
        let mut buffers = patiently(register)?;
        buffers.refill(&pool);
        let result = run(self, &pool);
        if self.ring.submitter().unregister_buf_ring(GROUP).is_err() {
            // Then the kernel keeps it until the ring is gone, which is not quite when its
            // descriptor is.
            std::mem::forget(buffers);
            pool.leak();
        }
        Ok(result)
    }

    /// One byte through a socketpair: supported if it arrives with F_MORE, and the end of the
    /// stream without.
    fn multishot_recv(&mut self, offer: &mut CapSet) {
        let attempt = |trial: &mut Trial| -> io::Result<bool> {
            let (mut near, far) = UnixStream::pair()?;
            near.write_all(b"x")?;
            let (result, flags) =
                trial.run(opcode::RecvMulti::new(types::Fd(far.as_raw_fd()), GROUP).build())?;
            if result != 1 || !cqueue::more(flags) {
                return Ok(false);
            }
            drop(near);
            let (result, flags) = trial.reap()?;
            Ok(result == 0 && !cqueue::more(flags))
        };
        if attempt(self).unwrap_or(false) {
            offer.insert(Capability::MultishotRecv);
        }
    }

    /// Two receives must land in one buffer.
    fn piecewise_recv(&mut self, pool: &Pool) -> io::Result<bool> {
        let (mut near, far) = UnixStream::pair()?;
        let mut seen = Vec::new();
        for _ in 0..2 {
            near.write_all(b"x")?;
            let recv =
                opcode::Recv::new(types::Fd(far.as_raw_fd()), std::ptr::null_mut(), pool.size());
            let entry = recv.buf_group(GROUP).build().flags(io_uring::squeue::Flags::BUFFER_SELECT);
            let (result, flags) = self.run(entry)?;
            seen.push((result, cqueue::buffer_select(flags), cqueue::buffer_more(flags)));
        }
        Ok(seen[0].0 == 1 && seen[0].1.is_some() && seen[0].2 && seen[0] == seen[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_leaves_no_descriptor_behind() {
        let count = || std::fs::read_dir("/proc/self/fd").expect("procfs").count();
        let first = probe();
        let before = count();
        assert_eq!(probe(), first);
        // Other tests run beside this one: allow for what they have open, not for one per round.
        for _ in 0..50 {
            let _ = probe();
        }
        assert!(count() < before + 45, "{before} before, {} after", count());
    }
}
