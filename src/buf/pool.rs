//! The receive pool. Owns: the memory of all receive buffers, and the number of claims on each.
//! Invariant: the kernel may write only behind the filled part of a checked-out buffer, and leases
//! refer only to filled parts. A buffer is free when it has no claims. Must not know which
//! operation fills a buffer.
//!
//! The backend has a claim while it may fill the buffer, and each lease has one. A buffer may be
//! consumed incrementally: several leases then refer to it. While the number of unused buffers is
//! below the low watermark, data is copied to the heap instead of being lent. Receives therefore
//! find free buffers, also if leases are kept for long.

use super::Lease;
use crate::error::Violation;
use crate::sys::Mapping;
use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    shared: Rc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    memory: Mapping,
    size: u32,
    low: u32,
    buffers: Box<[Buffer]>,
    free: RefCell<Vec<u16>>,
    /// Buffers whose filled part is empty, free or checked out.
    unused: Cell<u32>,
    heap_copies: Cell<u64>,
    leases: Cell<usize>,
}

#[derive(Debug, Default)]
struct Buffer {
    claims: Cell<u32>,
    filled: Cell<u32>,
    /// One of the claims is the backend's.
    checked_out: Cell<bool>,
}

impl Pool {
    /// `count` buffers of `size` bytes. Reserves address space; a page takes memory when it is
    /// first used.
    pub(crate) fn new(count: u32, size: u32, low: u32) -> io::Result<Pool> {
        assert!((1..=32_768).contains(&count) && size > 0 && low > 0, "validated by Config");
        let shared = Shared {
            memory: Mapping::new(count as usize * size as usize)?,
            size,
            low,
            buffers: (0..count).map(|_| Buffer::default()).collect(),
            // `pop` takes the last one, so low addresses are used first.
            free: RefCell::new((0..count as u16).rev().collect()),
            unused: Cell::new(count),
            heap_copies: Cell::new(0),
            leases: Cell::new(0),
        };
        Ok(Pool { shared: Rc::new(shared) })
    }

    pub(crate) fn size(&self) -> u32 {
        self.shared.size
    }

    /// The number of buffers without claims.
    pub(crate) fn free(&self) -> usize {
        self.shared.free.borrow().len()
    }

    pub(crate) fn heap_copies(&self) -> u64 {
        self.shared.heap_copies.get()
    }

    /// Takes a free buffer. The caller has a claim on it until `put_back`, or `deliver` without
    /// `more`.
    #[inline]
    pub(crate) fn checkout(&self) -> Option<u16> {
        let id = self.shared.free.borrow_mut().pop()?;
        let buffer = &self.shared.buffers[id as usize];
        buffer.claims.set(1);
        buffer.checked_out.set(true);
        Some(id)
    }

    /// Ends the claim of `checkout`.
    ///
    /// # Panics
    /// If the buffer is not checked out.
    pub(crate) fn put_back(&self, id: u16) {
        assert!(
            self.shared.buffers[id as usize].checked_out.replace(false),
            "buffer {id} is checked out"
        );
        self.shared.end_claim(id);
    }

    /// Empties a checked-out buffer if no lease refers to it. Using the same bytes again keeps them
    /// in the cache of the processor.
    #[inline]
    pub(crate) fn rewind(&self, id: u16) {
        let buffer = &self.shared.buffers[id as usize];
        if buffer.claims.get() == 1 && buffer.filled.replace(0) > 0 {
            self.shared.unused.set(self.shared.unused.get() + 1);
        }
    }

    /// The part of a checked-out buffer that may be filled: its start and its length in bytes.
    #[inline]
    pub(crate) fn room(&self, id: u16) -> (NonNull<u8>, u32) {
        let filled = self.shared.buffers[id as usize].filled.get();
        (self.shared.at(id, filled), self.shared.size - filled)
    }

    /// Writes to a checked-out buffer, `offset` bytes behind the filled part. For the simulated
    /// backend, which has no kernel that does it.
    ///
    /// # Panics
    /// If the buffer is not checked out or has too little room.
    #[cfg(feature = "sim")]
    pub(crate) fn write(&self, id: u16, offset: usize, bytes: &[u8]) {
        let (start, room) = self.room(id);
        let checked_out = self.shared.buffers[id as usize].checked_out.get();
        assert!(
            checked_out && offset + bytes.len() <= room as usize,
            "buffer {id} is checked out and has room for the bytes"
        );
        // SAFETY: within the room (checked above) of a checked-out buffer, behind the filled part,
        // so no lease refers to it. `bytes` is a live reference, so it does not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr().add(offset), bytes.len())
        };
    }

    /// Lends the next `len` bytes of a checked-out buffer, which were filled. Ends the claim of the
    /// backend unless it continues to fill the buffer (`more`).
    ///
    /// # Errors
    /// The buffer is not checked out or has too little room: the completion is invalid. The pool
    /// has not changed.
    #[inline(always)]
    pub(crate) fn deliver(&self, id: u16, len: u32, more: bool) -> Result<Lease, Violation> {
        let shared = &self.shared;
        let Some(buffer) =
            shared.buffers.get(usize::from(id)).filter(|buffer| buffer.checked_out.get())
        else {
            return Err(Violation(
                "a completion names a receive buffer that the kernel does not have",
            ));
        };
        let filled = buffer.filled.get();
        if len > shared.size - filled {
            return Err(Violation(
                "a completion reports more bytes than its receive buffer has room for",
            ));
        }
        if filled == 0 && len > 0 {
            shared.unused.set(shared.unused.get() - 1);
        }
        let start = shared.at(id, filled);
        buffer.filled.set(filled + len);
        let lease = if shared.unused.get() < shared.low {
            shared.heap_copies.set(shared.heap_copies.get() + 1);
            // SAFETY: the bytes are within the buffer (checked above) and initialised (a mapping is
            // zeroed). They belong to the filled part now, so the kernel does not write them.
            Lease::copied(unsafe { std::slice::from_raw_parts(start.as_ptr(), len as usize) })
        } else {
            buffer.claims.set(buffer.claims.get() + 1);
            shared.leases.set(shared.leases.get() + 1);
            Lease::lent(Rc::clone(shared), id, start, len)
        };
        if !more {
            buffer.checked_out.set(false);
            shared.end_claim(id);
        }
        Ok(lease)
    }

    /// Never frees the memory, because the kernel may still write to it.
    pub(crate) fn leak(&self) {
        std::mem::forget(Rc::clone(&self.shared));
    }
}

impl Shared {
    fn at(&self, id: u16, offset: u32) -> NonNull<u8> {
        let offset = id as usize * self.size as usize + offset as usize;
        // SAFETY: callers index `buffers` with `id`, and `offset` is at most `size`, so the result
        // is within the mapping or one past its end.
        unsafe { self.memory.start().add(offset) }
    }

    /// Adds a claim for a second lease of the same bytes.
    pub(super) fn share(&self, id: u16) {
        let buffer = &self.buffers[id as usize];
        buffer.claims.set(buffer.claims.get() + 1);
        self.leases.set(self.leases.get() + 1);
    }

    pub(super) fn end_lease(&self, id: u16) {
        self.leases.set(self.leases.get() - 1);
        self.end_claim(id);
    }

    fn end_claim(&self, id: u16) {
        let buffer = &self.buffers[id as usize];
        let claims = buffer.claims.get();
        if claims == 0 && std::thread::panicking() {
            // A second panic would abort the process and hide the first one.
            return;
        }
        assert!(claims > 0, "buffer {id} has a claim to end");
        buffer.claims.set(claims - 1);
        if claims == 1 {
            if buffer.filled.replace(0) > 0 {
                self.unused.set(self.unused.get() + 1);
            }
            self.free.borrow_mut().push(id);
        }
    }
}

/// Checks that no two leases overlap, and that each is within the filled part of one buffer of
/// these pools, which the kernel does not write.
#[cfg(test)]
pub(crate) fn assert_disjoint<'a>(pools: &[&Pool], leases: impl Iterator<Item = &'a Lease>) {
    let lent = leases.filter(|lease| !lease.is_copy());
    let mut spans: Vec<_> = lent.map(|lease| lease.as_ptr_range()).collect();
    // An empty lease sorts before another lease with the same start.
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    for pair in spans.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:?} overlap");
    }
    for span in spans {
        let filled = |shared: &Shared, id: usize| {
            let start = shared.at(id as u16, 0).as_ptr().cast_const();
            let end = start.wrapping_add(shared.buffers[id].filled.get() as usize);
            start <= span.start && span.end <= end
        };
        let holds =
            |pool: &&Pool| (0..pool.shared.buffers.len()).any(|id| filled(&pool.shared, id));
        assert!(pools.iter().any(holds), "{span:?} is not in the filled part of a buffer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(pool: &Pool, id: u16, bytes: &[u8], more: bool) -> Lease {
        pool.write(id, 0, bytes);
        pool.deliver(id, bytes.len() as u32, more).expect("checked out, and enough room")
    }

    #[test]
    fn at_the_low_watermark_data_is_copied_to_the_heap() {
        let pool = Pool::new(1, 64, 1).unwrap();
        let kept: Vec<Lease> = (0..10u8)
            .map(|i| put(&pool, pool.checkout().expect("one is free"), &[i; 8], false))
            .collect();
        assert!(kept.iter().enumerate().all(|(i, lease)| lease[..] == [i as u8; 8]));
        assert_eq!((pool.heap_copies(), pool.free()), (10, 1));
    }

    #[test]
    fn a_lease_outlives_the_pool_and_a_leaked_lease_keeps_its_buffer() {
        let pool = Pool::new(4, 64, 1).unwrap();
        let lease = put(&pool, pool.checkout().unwrap(), b"kept", false);
        std::mem::forget(put(&pool, pool.checkout().unwrap(), b"lost", false));
        assert_eq!((pool.free(), pool.shared.unused.get()), (2, 2));
        drop(pool);
        assert_eq!(&lease[..], b"kept");
    }

    proptest! {
        /// For any completion, valid or not: `deliver` does not panic, and no lease overlaps
        /// another one or exceeds the filled part of its buffer. An invalid completion changes
        /// nothing.
        #[test]
        fn no_completion_lends_a_byte_twice(
            completions in prop::collection::vec(
                (0u8..4, 0u16..10, 0u32..200, any::<bool>(), any::<prop::sample::Index>()),
                1..200,
            ),
        ) {
            let pool = Pool::new(8, 64, 2).unwrap();
            let mut held = std::collections::HashMap::<u16, u32>::new();
            let mut leases = Vec::new();
            for (action, id, len, more, pick) in completions {
                match action {
                    0 => held.extend(pool.checkout().map(|id| (id, 0))),
                    1 if !leases.is_empty() => {
                        drop(leases.swap_remove(pick.index(leases.len())));
                    }
                    _ => {
                        let id = if id == 9 { id * 1000 } else { id };
                        let fits = held.get(&id).is_some_and(|filled| filled + len <= 64);
                        let lease = pool.deliver(id, len, more);
                        prop_assert_eq!(lease.is_ok(), fits, "{} of {}: {:?}", len, id, lease);
                        leases.extend(lease);
                        match more {
                            true if fits => *held.get_mut(&id).expect("it is held") += len,
                            false if fits => drop(held.remove(&id)),
                            _ => {}
                        }
                    }
                }
                assert_disjoint(&[&pool], leases.iter());
            }
        }

        /// For any order of receives and drops, with several leases per buffer: the bytes of a
        /// lease do not change, and at the end all buffers are free.
        #[test]
        fn bytes_do_not_change_while_leased(
            steps in prop::collection::vec(
                (0u8..4, 1usize..20, any::<prop::sample::Index>()),
                1..300,
            ),
        ) {
            let pool = Pool::new(8, 64, 2).unwrap();
            let mut open: Option<u16> = None;
            let mut leases: Vec<(Lease, Vec<u8>)> = Vec::new();
            for (stamp, (action, len, pick)) in steps.into_iter().enumerate() {
                if action == 0 && !leases.is_empty() {
                    leases.swap_remove(pick.index(leases.len()));
                    continue;
                }
                let Some(id) = open.take().or_else(|| pool.checkout()) else { continue };
                if action == 2 {
                    pool.rewind(id);
                }
                let len = len.min(pool.room(id).1 as usize);
                let more = action != 1 && pool.room(id).1 as usize > len;
                let bytes = vec![stamp as u8; len];
                leases.push((put(&pool, id, &bytes, more), bytes));
                open = more.then_some(id);
                for (lease, bytes) in &leases {
                    prop_assert_eq!(&lease[..], &bytes[..]);
                }
            }
            leases.clear();
            if let Some(id) = open {
                pool.put_back(id);
            }
            let (unused, leases) = (pool.shared.unused.get(), pool.shared.leases.get());
            prop_assert_eq!((pool.free(), unused, leases), (8, 8, 0));
        }
    }
}
