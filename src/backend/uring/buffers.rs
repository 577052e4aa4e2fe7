//! The receive buffers of a ring. Owns: the pool, the provided-buffer rings over it, and the count
//! of receives that may write into it. Invariant: while a receive into a pool is in flight, the
//! pool's memory stays; dropped before that, it is leaked.
//!
//! Single-shot receives have a group of their own where the buffers of the main one are
//! incremental. A receive that the kernel hands to a worker (one on a socket with urgent data,
//! after 128 wake-ups without data) commits its buffer when it is picked and not by what it
//! received: with an incremental buffer the offsets of later completions are wrong from then on.
//! Multishot receives never go to a worker.

use super::bufring::{BufRing, GROUP, GROUP_FIRST};
use crate::buf::{Lease, Pool};
use crate::error::{Errno, Violation};
use io_uring::{IoUring, cqueue};

/// The group of single-shot receives: enough for a burst of new connections. With none left, a
/// receive is multishot.
const FIRST_COUNT: u16 = 64;
const FIRST_BYTES: u32 = 4096;
const FIRST_LOW: u32 = 8;

#[derive(Debug)]
pub(super) struct Buffers {
    main: Group,
    first: Option<Group>,
    /// Receives in flight that have a buffer of a pool, or may pick one.
    in_flight: usize,
    /// The kernel is not to be believed: it may write at any time.
    distrusted: bool,
}

#[derive(Debug)]
struct Group {
    pool: Pool,
    ring: Option<BufRing>,
    /// The kernel fills the buffers of the ring piece by piece.
    incremental: bool,
}

impl Group {
    fn refill(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.refill(&self.pool);
        }
    }

    #[inline]
    fn deliver(&mut self, id: u16, len: u32, more: bool) -> Result<Lease, Violation> {
        if more && !self.incremental {
            return Err(Violation(
                "a part of a buffer was filled, and buffers are filled as a whole",
            ));
        }
        let lease = self.pool.deliver(id, len, more)?;
        if let Some(ring) = self.ring.as_mut().filter(|_| !more) {
            ring.used_up();
        }
        Ok(lease)
    }
}

impl Buffers {
    /// `incremental` and `first` only with a ring.
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
            true => Some(Group {
                pool: Pool::new(u32::from(FIRST_COUNT), FIRST_BYTES, FIRST_LOW).map_err(errno)?,
                ring: Some(
                    BufRing::register(uring, GROUP_FIRST, FIRST_COUNT, false).map_err(errno)?,
                ),
                incremental: false,
            }),
            false => None,
        };
        Ok(Buffers {
            main: Group { pool, ring, incremental },
            first,
            in_flight: 0,
            distrusted: false,
        })
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.main.pool
    }

    pub(super) fn has_ring(&self) -> bool {
        self.main.ring.is_some()
    }

    /// The group of single-shot receives, and the size of its buffers.
    pub(super) fn first_group(&self) -> (u16, u32) {
        match &self.first {
            Some(first) => (GROUP_FIRST, first.pool.size()),
            None => (GROUP, self.main.pool.size()),
        }
    }

    /// Gives all free buffers to the kernel.
    pub(super) fn refill(&mut self) {
        self.main.refill();
        if let Some(first) = &mut self.first {
            first.refill();
        }
    }

    /// A receive goes to the kernel.
    #[inline]
    pub(super) fn receive_started(&mut self) {
        self.in_flight += 1;
    }

    /// A receive has ended. (More have ended than were in flight: the caller has found out
    /// already.)
    #[inline]
    pub(super) fn receive_ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The data in the buffer that the kernel picked; `None` if it picked none. Without data (a
    /// receive that failed after picking), the claim just ends.
    #[inline]
    pub(super) fn picked(
        &mut self,
        first: bool,
        result: i32,
        flags: u32,
    ) -> Result<Option<Lease>, Violation> {
        let Some(id) = cqueue::buffer_select(flags) else {
            return match result > 0 && self.main.ring.is_some() {
                true => Err(Violation("a receive has data, and the completion names no buffer")),
                false => Ok(None),
            };
        };
        let group = match self.first.as_mut().filter(|_| first) {
            Some(first) => first,
            None => &mut self.main,
        };
        if group.ring.is_none() {
            return Err(Violation("a completion names a receive buffer, and the kernel has none"));
        }
        let lease = group.deliver(id, result.max(0) as u32, cqueue::buffer_more(flags))?;
        Ok((result > 0).then_some(lease))
    }

    /// In the ring or about to be put there: the kernel decides who gets them.
    pub(super) fn free(&self) -> usize {
        self.main.pool.free() + self.main.ring.as_ref().map_or(0, BufRing::usable)
    }

    pub(super) fn heap_copies(&self) -> u64 {
        self.main.pool.heap_copies()
            + self.first.as_ref().map_or(0, |first| first.pool.heap_copies())
    }

    pub(super) fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Takes the rings from the kernel, if no receive is in flight.
    pub(super) fn unregister(&self, uring: &IoUring) {
        if self.in_flight == 0 && !self.distrusted {
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
        if self.in_flight > 0 || self.distrusted {
            self.main.pool.leak();
            if let Some(first) = &self.first {
                first.pool.leak();
            }
        }
    }
}

#[cfg(test)]
impl Buffers {
    /// The pool of receives that are or are not the first of a connection; with it, whether its
    /// buffers are incremental.
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
