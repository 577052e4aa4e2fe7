//! One ring: pushing, entering, reaping. Owns: the `IoUring`, the arena, the count of what is in
//! flight. Invariant: each entry pushed is in flight until a completion without F_MORE. Knows
//! nothing of connections.

use super::alarm::Alarm;
use super::arena::Arena;
use super::entry::Plain;
use super::sys;
use super::token::{Kind, pack};
use crate::backend::BackendStats;
use crate::error::{Errno, Error};
use crate::id::{EngineNumber, Key};
use io_uring::{IoUring, cqueue, squeue};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

const BATCH: usize = 256;

/// No room in the submission queue, although the kernel was just entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug)]
pub(super) struct EnterMode {
    /// The descriptor, or with `ENTER_REGISTERED_RING` its index.
    pub(super) fd: RawFd,
    pub(super) flags: u32,
    /// Deadlines go with the wait; else an entry of its own does the same.
    pub(super) ext_arg: bool,
    pub(super) no_iowait: bool,
}

pub(super) struct Ring {
    pub(super) uring: IoUring,
    pub(super) arena: Arena,
    mode: EnterMode,
    batch: Box<[MaybeUninit<cqueue::Entry>; BATCH]>,
    batch_next: usize,
    batch_len: usize,
    pub(super) in_flight: usize,
    /// Those of them that cancel others.
    pub(super) cancels: usize,
    /// The completion queue was found full since the kernel was last entered: there may be more on
    /// its side. Kernels before 5.8 have no flag for that.
    was_full: bool,
    pub(super) alarm: Alarm,
    pub(super) stats: BackendStats,
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
            batch: Box::new([const { MaybeUninit::uninit() }; BATCH]),
            batch_next: 0,
            batch_len: 0,
            in_flight: 0,
            cancels: 0,
            was_full: false,
            alarm: Alarm::new(engine),
            stats: BackendStats::default(),
        }
    }

    /// Makes sure that one more entry fits, by submitting early if need be.
    #[inline]
    pub(super) fn make_room(&mut self) -> Result<(), QueueFull> {
        if self.uring.submission().is_full() {
            // What goes wrong here will go wrong, and be told, in the next wait too.
            let _ = self.enter(0, Some(Duration::ZERO));
            if self.uring.submission().is_full() {
                return Err(QueueFull);
            }
        }
        Ok(())
    }

    /// Makes sure that one more address fits, and two entries that go together: what is linked must
    /// be submitted at once.
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

    /// Makes sure that a gather list fits, and says how long it may be.
    pub(super) fn make_gather_room(&mut self, wanted: usize) -> Result<usize, QueueFull> {
        if self.arena.iovec_room() < wanted {
            let _ = self.enter(0, Some(Duration::ZERO));
        }
        match self.arena.iovec_room().min(wanted) {
            0 => Err(QueueFull),
            room => self.make_room().map(|()| room),
        }
    }

    /// Stages an entry. Call [`Ring::make_room`] first.
    ///
    /// # Safety
    /// The memory that the entry names must stay valid until its final completion (its arena part:
    /// until it is submitted).
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: passed on to the caller.
        unsafe { self.uring.submission().push(&entry) }.expect("room was made first");
        self.in_flight += 1;
    }

    /// Stages an entry that names no memory. Call [`Ring::make_room`] first.
    pub(super) fn push_plain(&mut self, plain: Plain, user_data: u64) {
        // SAFETY: names no memory.
        unsafe { self.push(plain.with(user_data)) };
    }

    /// Stages an entry that ends another one, of this token. Call [`Ring::make_room`] first.
    pub(super) fn push_cancel(&mut self, target: u64) {
        self.push_plain(Plain::cancel(target), pack(Kind::Cancel, Key::NONE));
        self.cancels += 1;
    }

    /// Submits what is staged and waits for `want` completions, at most for `timeout`. An
    /// interrupted or timed-out wait is no error: look at the completions.
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        let mut want = want;
        let bounded = want > 0 && timeout.is_some();
        if bounded && !self.mode.ext_arg {
            want = self.stage_alarm(timeout.unwrap_or_default());
        }
        let staged = self.uring.submission().len() as u32;
        if staged == 0 && want == 0 && !self.needs_kernel() {
            return Ok(());
        }
        self.stats.queue_overflows += u64::from(self.uring.submission().cq_overflow());
        let mut flags = self.mode.flags | sys::ENTER_GETEVENTS;
        if want > 0 && self.mode.no_iowait {
            flags |= sys::ENTER_NO_IOWAIT;
        }
        self.stats.syscalls += 1;
        self.was_full = false;
        // SAFETY: `push` made its callers vouch for the memory of each staged entry.
        let result = unsafe {
            match timeout.filter(|_| want > 0 && self.mode.ext_arg) {
                Some(timeout) => sys::enter_until(self.mode.fd, staged, want, flags, timeout),
                None => sys::enter(self.mode.fd, staged, want, flags),
            }
        };
        let left = self.uring.submission().len();
        self.stats.sqes += u64::from(staged) - left as u64;
        if left == 0 {
            self.arena.reset();
        }
        match result {
            Ok(_) | Err(Errno(libc::ETIME | libc::EINTR)) => Ok(()),
            // The kernel wants completions to be taken first: flush its backlog, and submit in the
            // next turn.
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

    /// Bounds a wait with an entry of its own, where the kernel cannot bound it. Returns how many
    /// completions to wait for.
    fn stage_alarm(&mut self, timeout: Duration) -> u32 {
        let now = Instant::now();
        let Some(at) = now.checked_add(timeout) else { return 1 };
        if self.alarm.serves(at) {
            return 1;
        }
        let queue = self.uring.submission();
        if queue.capacity() - queue.len() < 2 {
            // What is staged goes first; the wait is for the next turn.
            return 0;
        }
        drop(queue);
        if let Some(armed) = self.alarm.disarm() {
            self.push_cancel(armed);
        }
        let entry = self.alarm.arm(at, now);
        // SAFETY: the timespec is boxed, lives as long as the ring, and is copied at submission.
        unsafe { self.push(entry) };
        1
    }

    /// How many operations are in flight, beside the one that bounds waits.
    pub(super) fn operations(&self) -> usize {
        self.in_flight - self.alarm.in_flight
    }

    /// Ends what bounds waits.
    pub(super) fn silence(&mut self) {
        if self.make_room().is_ok()
            && let Some(armed) = self.alarm.disarm()
        {
            self.push_cancel(armed);
        }
    }

    /// The next completion that is there.
    #[inline]
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        if self.batch_next == self.batch_len {
            self.batch_next = 0;
            let mut queue = self.uring.completion();
            self.was_full |= queue.is_full();
            self.batch_len = queue.fill(&mut self.batch[..]).len();
            drop(queue);
            self.stats.cqes += self.batch_len as u64;
            if self.batch_len == 0 {
                return None;
            }
        }
        // SAFETY: `fill` wrote the first `batch_len` entries, and this one is among them.
        let entry = unsafe { self.batch[self.batch_next].assume_init_ref() }.clone();
        self.batch_next += 1;
        Some(entry)
    }

    /// An entry that was in flight, as the caller has found out, has completed.
    #[inline]
    pub(super) fn ended(&mut self) {
        debug_assert!(self.in_flight > 0, "what is in flight was counted");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn has_next(&self) -> bool {
        // SAFETY: nobody else looks at the completion queue while this value lives.
        self.batch_next < self.batch_len
            || !unsafe { self.uring.completion_shared() }.is_empty()
            || self.needs_kernel()
    }

    /// True if completions wait on the kernel's side for the next enter.
    fn needs_kernel(&self) -> bool {
        // SAFETY: nobody else looks at the submission queue while this value lives.
        let queue = unsafe { self.uring.submission_shared() };
        queue.taskrun() || queue.cq_overflow() || self.was_full
    }

    pub(super) fn fatal(errno: Errno) -> Error {
        Error::Os { call: "io_uring_enter", errno }
    }
}
