//! Probing: which capabilities this kernel offers to this process. Owns: the rings that probe.
//! Invariant: each capability is tried on a small ring or, for an opcode, looked up with
//! IORING_REGISTER_PROBE; no kernel version is compared, because distributions backport features
//! and filters forbid calls. Must not know the configuration.

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

/// Few entries, so that the rings fit under a low RLIMIT_MEMLOCK.
const ENTRIES: u32 = 4;

/// The opcodes that every tier requires.
pub(super) const REQUIRED_OPS: [u8; 9] = [
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

/// Why io_uring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// io_uring_setup(2) failed.
    Setup(Errno),
    /// io_uring_setup(2) succeeded, io_uring_enter(2) failed.
    Enter(Errno),
    /// Without NODROP, CQEs could be lost; without SUBMIT_STABLE, memory be read after submission.
    NoStableFeatures,
    /// Opcodes that every tier requires are missing.
    NoSocketOps,
}

/// What probing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbeResult {
    pub(super) caps: CapSet,
    /// The error of io_uring_register(2), where a filter or an LSM forbids all of it. The
    /// capabilities that need it are missing then, on every kernel.
    pub(super) register_errno: Option<Errno>,
}

impl ProbeResult {
    /// Why a capability is missing.
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
        match self.register_errno.filter(|_| registered.contains(&capability)) {
            Some(errno) => format!("io_uring_register is refused: {errno:?}"),
            None => format!("the kernel lacks it ({} has it)", capability.kernel()),
        }
    }
}

/// Probes io_uring.
pub(super) fn probe() -> Result<ProbeResult, Refusal> {
    let mut found = CapSet::default();
    let mut probe_ring = ProbeRing { ring: probe_setup_flags(&mut found).map_err(Refusal::Setup)? };
    probe_ring.run(opcode::Nop::new().build()).map_err(Refusal::Enter)?;
    let params = probe_ring.ring.params();
    if !params.is_feature_nodrop() || !params.is_feature_submit_stable() {
        return Err(Refusal::NoStableFeatures);
    }
    for (offered, capability) in [
        (params.is_feature_ext_arg(), Capability::ExtArg),
        (params.is_feature_fast_poll(), Capability::FastPoll),
        (params.is_feature_no_iowait(), Capability::NoIowait),
        (params.is_feature_recvsend_bundle(), Capability::Bundle),
    ] {
        if offered {
            found.insert(capability);
        }
    }
    let register_errno = probe_ring.probe_opcodes(&mut found)?;
    probe_ring.probe_registrations(&mut found);
    probe_ring.probe_operations(&mut found);
    Ok(ProbeResult { caps: found, register_errno })
}

/// Probes the setup flags and returns a ring to probe the rest. A recent kernel takes all flags at
/// once, and then one ring is enough. This saves locked memory, which the kernel frees only some
/// time after a ring is closed.
fn probe_setup_flags(found: &mut CapSet) -> Result<IoUring, Errno> {
    use Capability::{CoopTaskrun, DeferTaskrun, Restrictions, SingleIssuer, SubmitAll};
    // `ring` leaves COOP_TASKRUN out beside DEFER_TASKRUN: a kernel with DEFER_TASKRUN (6.1) has
    // COOP_TASKRUN (5.19).
    let all = [SubmitAll, SingleIssuer, DeferTaskrun, CoopTaskrun, Restrictions];
    match retry_enomem(|| ring(&all)) {
        Ok(ring) if ring.submitter().register_enable_rings().is_ok() => {
            all.into_iter().for_each(|capability| found.insert(capability));
            return Ok(ring);
        }
        Ok(_) | Err(Errno(libc::EINVAL)) => {}
        Err(errno) => return Err(errno),
    }
    // A filter may allow io_uring_setup and forbid io_uring_register: a ring that starts disabled
    // cannot be enabled then.
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
            flags.iter().for_each(|capability| found.insert(*capability));
        }
    }
    retry_enomem(|| ring(&[]))
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
            // R_DISABLED and restrictions came with the same kernel (5.10).
            Capability::Restrictions => builder.setup_r_disabled(),
            _ => &mut builder,
        };
    }
    builder.build(ENTRIES).map_err(|error| Errno::of(&error))
}

/// Repeats an attempt that fails with ENOMEM, for about 20 ms: rings that were just closed are
/// still charged to RLIMIT_MEMLOCK.
pub(super) fn retry_enomem<T>(mut attempt: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..10 {
        match attempt() {
            Err(Errno(libc::ENOMEM)) => std::thread::sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
    attempt()
}

struct ProbeRing {
    ring: IoUring,
}

impl ProbeRing {
    /// Runs one operation and waits for its first completion.
    fn run(&mut self, sqe: Entry) -> Result<(i32, u32), Errno> {
        self.push(sqe);
        self.reap()
    }

    fn push(&mut self, sqe: Entry) {
        // SAFETY: each caller keeps the memory that its SQE references until the final CQE was
        // reaped or the ring is dropped.
        unsafe { self.ring.submission().push(&sqe) }.expect("one SQE at a time");
    }

    /// Waits for the next CQE: its result and flags. ETIME after about 10 ms without one.
    fn reap(&mut self) -> Result<(i32, u32), Errno> {
        for _ in 0..200 {
            if let Some(cqe) = self.ring.completion().next() {
                return Ok((cqe.result(), cqe.flags()));
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

    /// Probes the opcodes. Returns the error of io_uring_register(2), where it is forbidden.
    fn probe_opcodes(&self, found: &mut CapSet) -> Result<Option<Errno>, Refusal> {
        let mut probe = Probe::new();
        if let Err(error) = self.ring.submitter().register_probe(&mut probe) {
            // A filter may forbid the registration. The operations are tried one by one, or fail
            // when they are used.
            let forbidden = [libc::EPERM, libc::EACCES, libc::ENOSYS];
            return Ok(Some(Errno::of(&error)).filter(|errno| forbidden.contains(&errno.0)));
        }
        if !REQUIRED_OPS.iter().all(|code| probe.is_supported(*code)) {
            return Err(Refusal::NoSocketOps);
        }
        if probe.is_supported(opcode::SendZc::CODE) {
            found.insert(Capability::SendZc);
            found.insert(Capability::DirectFd);
        }
        if probe.is_supported(opcode::Socket::CODE) {
            found.insert(Capability::SocketOp);
        }
        Ok(None)
    }

    fn probe_registrations(&self, found: &mut CapSet) {
        if self.ring.submitter().register_iowq_max_workers(&mut [1, 1]).is_ok() {
            found.insert(Capability::WorkerLimit);
        }
        let fd = self.ring.as_raw_fd();
        match sys::register_ring_fd(fd) {
            Ok(index) => {
                found.insert(Capability::RegisteredRingFd);
                sys::unregister_ring_fd(fd, index);
            }
            // The thread has registered as many rings as it can: the kernel has the capability.
            Err(Errno(libc::EBUSY)) => found.insert(Capability::RegisteredRingFd),
            Err(_) => {}
        }
    }

    /// Probes what no flag and no opcode shows, by trying it.
    fn probe_operations(&mut self, found: &mut CapSet) {
        let any = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        if matches!(self.run(any), Ok((result, _)) if result >= 0 || result == -libc::ENOENT) {
            found.insert(Capability::CancelFd);
        }
        if self.multishot_accept().unwrap_or(false) {
            found.insert(Capability::MultishotAccept);
        }
        if self.with_buffers(false, |probe_ring, _| probe_ring.multishot_recv(found)).is_ok() {
            found.insert(Capability::BufRing);
        }
        let incremental =
            self.with_buffers(true, |probe_ring, pool| probe_ring.incremental_recv(pool));
        if incremental.is_ok_and(|works| works.unwrap_or(false)) {
            found.insert(Capability::Incremental);
        }
    }

    fn multishot_accept(&mut self) -> Result<bool, Errno> {
        let io = |error: io::Error| Errno::of(&error);
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(io)?;
        // With an empty path the kernel chooses a name in the abstract namespace.
        listener.bind(&SockAddr::unix("").map_err(io)?).map_err(io)?;
        listener.listen(1).map_err(io)?;
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(io)?;
        client.connect(&listener.local_addr().map_err(io)?).map_err(io)?;
        let sqe = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build();
        let (accepted, flags) = self.run(sqe.user_data(1))?;
        if accepted >= 0 {
            // SAFETY: the kernel has just opened it.
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

    /// Cancels the operation with this user_data. Waits for both final CQEs.
    fn cancel(&mut self, user_data: u64) -> Result<(), Errno> {
        self.push(opcode::AsyncCancel::new(user_data).build());
        self.reap()?;
        self.reap().map(drop)
    }

    fn with_buffers<T>(
        &mut self,
        incremental: bool,
        run: impl FnOnce(&mut ProbeRing, &Pool) -> T,
    ) -> io::Result<T> {
        let pool = Pool::new(4, 4096, 1)?;
        let register = || {
            BufRing::register(&self.ring, GROUP, 4, incremental).map_err(|error| Errno::of(&error))
        };
        let mut buffers = retry_enomem(register)?;
        buffers.refill(&pool);
        let result = run(self, &pool);
        if self.ring.submitter().unregister_buf_ring(GROUP).is_err() {
            // The kernel keeps the buffers until the ring is freed, which may be later than the
            // close of its descriptor.
            std::mem::forget(buffers);
            pool.leak();
        }
        Ok(result)
    }

    /// One byte through a socketpair: multishot is supported if the byte arrives with F_MORE, and
    /// the end of the stream without.
    fn multishot_recv(&mut self, found: &mut CapSet) {
        let attempt = |probe_ring: &mut ProbeRing| -> io::Result<bool> {
            let (mut near, far) = UnixStream::pair()?;
            near.write_all(b"x")?;
            let (result, flags) = probe_ring
                .run(opcode::RecvMulti::new(types::Fd(far.as_raw_fd()), GROUP).build())?;
            if result != 1 || !cqueue::more(flags) {
                return Ok(false);
            }
            drop(near);
            let (result, flags) = probe_ring.reap()?;
            Ok(result == 0 && !cqueue::more(flags))
        };
        if attempt(self).unwrap_or(false) {
            found.insert(Capability::MultishotRecv);
        }
    }

    /// Supported if two receives fill the same buffer, both with F_BUF_MORE.
    fn incremental_recv(&mut self, pool: &Pool) -> io::Result<bool> {
        let (mut near, far) = UnixStream::pair()?;
        let mut seen = Vec::new();
        for _ in 0..2 {
            near.write_all(b"x")?;
            let recv =
                opcode::Recv::new(types::Fd(far.as_raw_fd()), std::ptr::null_mut(), pool.size());
            let sqe = recv.buf_group(GROUP).build().flags(io_uring::squeue::Flags::BUFFER_SELECT);
            let (result, flags) = self.run(sqe)?;
            seen.push((result, cqueue::buffer_select(flags), cqueue::buffer_more(flags)));
        }
        Ok(seen[0].0 == 1 && seen[0].1.is_some() && seen[0].2 && seen[0] == seen[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_leaks_no_descriptor() {
        let count = || std::fs::read_dir("/proc/self/fd").expect("procfs").count();
        let first = probe();
        let before = count();
        assert_eq!(probe(), first);
        // Other tests run at the same time and open descriptors too: allow fewer than one a round.
        for _ in 0..50 {
            let _ = probe();
        }
        assert!(count() < before + 45, "{before} before, {} after", count());
    }
}
