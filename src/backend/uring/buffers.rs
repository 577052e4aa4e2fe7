//! The receive buffers of a ring. Owns: the pools, the provided-buffer rings over them, and the
//! count of receives that may write to them. Invariant: a pool's memory is not freed while a
//! receive is in flight; dropped before that, it is leaked. Must not know connections.
//!
//! First receives, which are single-shot, have a buffer group of their own where the buffers of the
//! main group are incremental. The kernel may hand a single-shot receive to an io-wq worker (seen
//! on 6.18: a socket with TCP urgent data, after 128 wake-ups without data). A worker commits the
//! buffer when it selects it, not by the bytes received. In an incremental buffer the offsets of
//! all later completions would then be wrong. Multishot receives never go to a worker.

use super::bufring::{BufRing, GROUP, GROUP_FIRST};
use crate::buf::{Lease, Pool};
use crate::error::{Errno, Violation};
use io_uring::{IoUring, cqueue};

/// Buffers in the group of first receives: enough for a burst of new connections. When none is
/// free, the first receive is multishot.
const FIRST_COUNT: u16 = 64;
const FIRST_BYTES: u32 = 4096;
const FIRST_LOW: u32 = 8;

#[derive(Debug)]
pub(super) struct Buffers {
    main: BufferGroup,
    first: Option<BufferGroup>,
    /// Receives in flight that hold a buffer of a pool or may select one.
    in_flight: usize,
    /// After a violation: the kernel may write to the buffers at any time.
    leak_on_drop: bool,
}

#[derive(Debug)]
struct BufferGroup {
    pool: Pool,
    ring: Option<BufRing>,
    /// The kernel fills a buffer of the ring in several pieces (IOU_PBUF_RING_INC).
    incremental: bool,
}

impl BufferGroup {
    fn refill(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.refill(&self.pool);
        }
    }

    #[inline]
    fn deliver(&mut self, id: u16, len: u32, more: bool) -> Result<Lease, Violation> {
        if more && !self.incremental {
            return Err(Violation("F_BUF_MORE on a buffer that is filled as a whole"));
        }
        let lease = self.pool.deliver(id, len, more)?;
        if let Some(ring) = self.ring.as_mut().filter(|_| !more) {
            ring.buffer_consumed();
        }
        Ok(lease)
    }
}

impl Buffers {
    /// `incremental` and `first` require `ring`.
    pub(super) fn new(
        uring: &IoUring,
        (count, size, low): (u32, u32, u32),
        ring: bool,
        incremental: bool,
        first: bool,
    ) -> Result<Buffers, Errno> {
        let errno = |error: std::io::Error| Errno::of(&error);
        let pool = Pool::new(count, size, low).map_err(errno)?;
        let ring = match ring {
            true => {
                Some(BufRing::register(uring, GROUP, count as u16, incremental).map_err(errno)?)
            }
            false => None,
        };
        let first = match first && incremental {
            true => Some(BufferGroup {
                pool: Pool::new(u32::from(FIRST_COUNT), FIRST_BYTES, FIRST_LOW).map_err(errno)?,
                ring: Some(
                    BufRing::register(uring, GROUP_FIRST, FIRST_COUNT, false).map_err(errno)?,
                ),
                incremental: false,
            }),
            false => None,
        };
        Ok(Buffers {
            main: BufferGroup { pool, ring, incremental },
            first,
            in_flight: 0,
            leak_on_drop: false,
        })
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.main.pool
    }

    pub(super) fn has_ring(&self) -> bool {
        self.main.ring.is_some()
    }

    /// The buffer group of first receives, and the size of its buffers.
    pub(super) fn first_group(&self) -> (u16, u32) {
        match &self.first {
            Some(first) => (GROUP_FIRST, first.pool.size()),
            None => (GROUP, self.main.pool.size()),
        }
    }

    /// Provides all free buffers to the kernel.
    pub(super) fn refill(&mut self) {
        self.main.refill();
        if let Some(first) = &mut self.first {
            first.refill();
        }
    }

    /// A receive was staged.
    #[inline]
    pub(super) fn receive_started(&mut self) {
        self.in_flight += 1;
    }

    /// A receive completed. The caller has checked that it was in flight.
    #[inline]
    pub(super) fn receive_completed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The data in the buffer that the kernel selected; `None` if it selected none. A receive that
    /// failed after the selection has no data: its buffer becomes free.
    #[inline]
    pub(super) fn take_selected(
        &mut self,
        first: bool,
        result: i32,
        flags: u32,
    ) -> Result<Option<Lease>, Violation> {
        let Some(id) = cqueue::buffer_select(flags) else {
            return match result > 0 && self.main.ring.is_some() {
                true => Err(Violation("a completion with data names no provided buffer")),
                false => Ok(None),
            };
        };
        let group = match self.first.as_mut().filter(|_| first) {
            Some(first) => first,
            None => &mut self.main,
        };
        if group.ring.is_none() {
            return Err(Violation("a completion names a provided buffer, but none is registered"));
        }
        let lease = group.deliver(id, result.max(0) as u32, cqueue::buffer_more(flags))?;
        Ok((result > 0).then_some(lease))
    }

    /// Buffers in the ring, and those that the next refill adds.
    pub(super) fn free(&self) -> usize {
        self.main.pool.free() + self.main.ring.as_ref().map_or(0, BufRing::usable)
    }

    pub(super) fn heap_copies(&self) -> u64 {
        self.main.pool.heap_copies()
            + self.first.as_ref().map_or(0, |first| first.pool.heap_copies())
    }

    pub(super) fn leak_on_drop(&mut self) {
        self.leak_on_drop = true;
    }

    /// Unregisters the buffer rings, unless a receive is in flight.
    pub(super) fn unregister(&self, uring: &IoUring) {
        if self.in_flight == 0 && !self.leak_on_drop {
            let groups = [Some(&self.main), self.first.as_ref()];
            groups
                .into_iter()
                .flatten()
                .filter_map(|group| group.ring.as_ref())
                .for_each(|ring| ring.unregister(uring));
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.in_flight > 0 || self.leak_on_drop {
            self.main.pool.leak();
            if let Some(first) = &self.first {
                first.pool.leak();
            }
        }
    }
}

#[cfg(test)]
impl Buffers {
    /// The pool of first or of other receives, and whether its buffers are incremental.
    pub(super) fn group(&self, first: bool) -> (&Pool, bool) {
        let group = self.first.as_ref().filter(|_| first).unwrap_or(&self.main);
        (&group.pool, group.incremental)
    }

    pub(super) fn pools(&self) -> Vec<&Pool> {
        [Some(&self.main), self.first.as_ref()]
            .into_iter()
            .flatten()
            .map(|group| &group.pool)
            .collect()
    }
}
