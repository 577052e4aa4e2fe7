//! One ring: stages SQEs, enters the kernel, reaps CQEs. Owns: the `IoUring`, the arena, the count
//! of SQEs in flight. Invariant: each pushed SQE is in flight until its CQE without F_MORE. Must
//! not know connections.

use super::arena::Arena;
use super::sqe::PlainSqe;
use super::sys;
use super::token::{Kind, pack};
use super::wait_timeout::WaitTimeout;
use crate::error::{Errno, Error};
use crate::id::{EngineNumber, Key};
use crate::stats::Stats;
use io_uring::{IoUring, cqueue, squeue};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// CQEs that are copied from the completion queue at once.
const CQES_COPIED_MAX: usize = 256;

/// The submission queue has no room, even after an enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug)]
pub(super) struct EnterMode {
    /// The descriptor, or with `ENTER_REGISTERED_RING` its index.
    pub(super) fd: RawFd,
    pub(super) flags: u32,
    /// `io_uring_enter` takes a timeout (EXT_ARG, 5.11); otherwise a TIMEOUT SQE bounds a wait.
    pub(super) ext_arg: bool,
    pub(super) no_iowait: bool,
}

pub(super) struct Ring {
    pub(super) uring: IoUring,
    pub(super) arena: Arena,
    mode: EnterMode,
    /// CQEs copied from the completion queue; those from `cqes_next` to `cqes_len` are not taken
    /// yet.
    cqes: Box<[MaybeUninit<cqueue::Entry>; CQES_COPIED_MAX]>,
    cqes_next: usize,
    cqes_len: usize,
    /// SQEs without their final CQE, staged ones included.
    pub(super) in_flight: usize,
    /// The ASYNC_CANCELs among them.
    pub(super) cancels: usize,
    /// The completion queue was full at a reap since the last enter: the kernel may hold overflowed
    /// CQEs. Kernels before 5.8 have no flag (IORING_SQ_CQ_OVERFLOW) for that.
    cq_was_full: bool,
    pub(super) wait_timeout: WaitTimeout,
    pub(super) stats: Stats,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("fd", &self.uring.as_raw_fd())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.mode.flags & sys::ENTER_REGISTERED_RING != 0 {
            sys::unregister_ring_fd(self.uring.as_raw_fd(), self.mode.fd);
        }
    }
}

impl Ring {
    pub(super) fn new(
        uring: IoUring,
        mode: EnterMode,
        gather_max: usize,
        engine: EngineNumber,
    ) -> Ring {
        let entries = uring.params().sq_entries() as usize;
        Ring {
            arena: Arena::new(entries, gather_max),
            uring,
            mode,
            cqes: Box::new([const { MaybeUninit::uninit() }; CQES_COPIED_MAX]),
            cqes_next: 0,
            cqes_len: 0,
            in_flight: 0,
            cancels: 0,
            cq_was_full: false,
            wait_timeout: WaitTimeout::new(engine),
            stats: Stats::default(),
        }
    }

    /// Makes room for one SQE; submits early if the queue is full.
    #[inline]
    pub(super) fn make_room(&mut self) -> Result<(), QueueFull> {
        if self.uring.submission().is_full() {
            // The next wait fails with the same error and returns it.
            let _ = self.enter(0, Some(Duration::ZERO));
            if self.uring.submission().is_full() {
                return Err(QueueFull);
            }
        }
        Ok(())
    }

    /// Makes room for an address and two SQEs. Linked SQEs must be submitted together.
    pub(super) fn make_connect_room(&mut self) -> Result<(), QueueFull> {
        let has_room = |ring: &mut Ring| {
            let staged = ring.uring.submission();
            staged.capacity() - staged.len() >= 2 && ring.arena.addr_room() > 0
        };
        if !has_room(self) {
            let _ = self.enter(0, Some(Duration::ZERO));
        }
        if has_room(self) { Ok(()) } else { Err(QueueFull) }
    }

    /// Makes room for an SQE and a list of at most `wanted` iovecs. Returns how long it may be.
    pub(super) fn make_gather_room(&mut self, wanted: usize) -> Result<usize, QueueFull> {
        if self.arena.iovec_room() < wanted {
            let _ = self.enter(0, Some(Duration::ZERO));
        }
        match self.arena.iovec_room().min(wanted) {
            0 => Err(QueueFull),
            room => self.make_room().map(|()| room),
        }
    }

    /// Stages an SQE. Call [`Ring::make_room`] first.
    ///
    /// # Safety
    /// The memory that the SQE references must stay valid until its final CQE; memory in the arena,
    /// until the SQE is submitted.
    #[inline]
    pub(super) unsafe fn push(&mut self, sqe: squeue::Entry) {
        // SAFETY: passed on to the caller.
        unsafe { self.uring.submission().push(&sqe) }.expect("room was made first");
        self.in_flight += 1;
    }

    /// Stages an SQE that references no memory. Call [`Ring::make_room`] first.
    pub(super) fn push_plain(&mut self, sqe: PlainSqe, user_data: u64) {
        // SAFETY: references no memory.
        unsafe { self.push(sqe.into_entry(user_data)) };
    }

    /// Stages the cancel of the SQE with this token. Call [`Ring::make_room`] first.
    pub(super) fn push_cancel(&mut self, target: u64) {
        self.push_plain(PlainSqe::cancel(target), pack(Kind::Cancel, Key::NONE));
        self.cancels += 1;
    }

    /// Submits the staged SQEs and waits for `min_complete` CQEs, at most for `timeout`. A wait
    /// that is interrupted or times out is no error: the caller looks at the completion queue.
    pub(super) fn enter(
        &mut self,
        min_complete: u32,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        let mut min_complete = min_complete;
        let bounded = min_complete > 0 && timeout.is_some();
        if bounded && !self.mode.ext_arg {
            min_complete = self.stage_wait_timeout(timeout.unwrap_or_default());
        }
        let staged = self.uring.submission().len() as u32;
        if staged == 0 && min_complete == 0 && !self.needs_enter() {
            return Ok(());
        }
        self.stats.queue_overflows += u64::from(self.uring.submission().cq_overflow());
        let mut flags = self.mode.flags | sys::ENTER_GETEVENTS;
        if min_complete > 0 && self.mode.no_iowait {
            flags |= sys::ENTER_NO_IOWAIT;
        }
        self.stats.syscalls += 1;
        self.cq_was_full = false;
        // SAFETY: the callers of `push` guarantee the memory of each staged SQE.
        let result = unsafe {
            match timeout.filter(|_| min_complete > 0 && self.mode.ext_arg) {
                Some(timeout) => {
                    sys::enter_timeout(self.mode.fd, staged, min_complete, flags, timeout)
                }
                None => sys::enter(self.mode.fd, staged, min_complete, flags),
            }
        };
        let unsubmitted = self.uring.submission().len();
        self.stats.sqes += u64::from(staged) - unsubmitted as u64;
        if unsubmitted == 0 {
            self.arena.reset();
        }
        match result {
            Ok(_) | Err(Errno(libc::ETIME | libc::EINTR)) => Ok(()),
            // The kernel takes no SQE before completions are reaped: flush the overflowed CQEs; the
            // next turn submits.
            Err(Errno(libc::EBUSY | libc::EAGAIN)) => {
                self.stats.syscalls += 1;
                // SAFETY: submits nothing.
                let _ = unsafe {
                    sys::enter(self.mode.fd, 0, 0, self.mode.flags | sys::ENTER_GETEVENTS)
                };
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// Stages a TIMEOUT that bounds a wait (before EXT_ARG). Returns how many CQEs to wait for.
    fn stage_wait_timeout(&mut self, timeout: Duration) -> u32 {
        let now = Instant::now();
        let Some(deadline) = now.checked_add(timeout) else { return 1 };
        if self.wait_timeout.covers(deadline) {
            return 1;
        }
        let queue = self.uring.submission();
        if queue.capacity() - queue.len() < 2 {
            // No room: submit without a wait. The next turn waits.
            return 0;
        }
        drop(queue);
        if let Some(armed) = self.wait_timeout.disarm() {
            self.push_cancel(armed);
        }
        let sqe = self.wait_timeout.arm(deadline, now);
        // SAFETY: the timespec is boxed, lives as long as the ring, and is copied at submission.
        unsafe { self.push(sqe) };
        1
    }

    /// SQEs in flight, without the TIMEOUTs that bound waits.
    pub(super) fn operations_in_flight(&self) -> usize {
        self.in_flight - self.wait_timeout.in_flight
    }

    /// Cancels the TIMEOUT that bounds waits, if one is armed.
    pub(super) fn cancel_wait_timeout(&mut self) {
        if self.make_room().is_ok()
            && let Some(armed) = self.wait_timeout.disarm()
        {
            self.push_cancel(armed);
        }
    }

    /// Takes the next CQE, if there is one.
    #[inline]
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        if self.cqes_next == self.cqes_len {
            self.cqes_next = 0;
            let mut queue = self.uring.completion();
            self.cq_was_full |= queue.is_full();
            self.cqes_len = queue.fill(&mut self.cqes[..]).len();
            drop(queue);
            self.stats.cqes += self.cqes_len as u64;
            if self.cqes_len == 0 {
                return None;
            }
        }
        // SAFETY: `fill` wrote the first `cqes_len` entries, and this one is among them.
        let cqe = unsafe { self.cqes[self.cqes_next].assume_init_ref() }.clone();
        self.cqes_next += 1;
        Some(cqe)
    }

    /// An SQE has its final CQE. The caller has checked that it was in flight.
    #[inline]
    pub(super) fn op_completed(&mut self) {
        debug_assert!(self.in_flight > 0, "each SQE in flight was counted");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn has_next(&self) -> bool {
        // SAFETY: this value is the only user of the completion queue.
        self.cqes_next < self.cqes_len
            || !unsafe { self.uring.completion_shared() }.is_empty()
            || self.needs_enter()
    }

    /// True if the kernel holds completions that it posts at the next enter: deferred task work or
    /// overflowed CQEs.
    fn needs_enter(&self) -> bool {
        // SAFETY: this value is the only user of the submission queue.
        let queue = unsafe { self.uring.submission_shared() };
        queue.taskrun() || queue.cq_overflow() || self.cq_was_full
    }

    pub(super) fn enter_error(errno: Errno) -> Error {
        Error::Os { call: "io_uring_enter", errno }
    }
}
