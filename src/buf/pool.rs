//! The receive pool. Owns: the memory of all receive buffers and who has a claim on each.
//! Invariant: a byte is either in a region that the kernel may write (behind the filled part of a
//! claimed buffer) or in regions lent out as leases (in the filled part), never both. A buffer is
//! free when its last claim ends.
//!
//! A claim is held by the backend while it may fill the buffer, and by each lease. A buffer may be
//! filled piece by piece: several leases then share it. Below the low watermark of untouched
//! buffers data is copied to the heap instead of being lent out, so that however long leases are
//! kept, buffers go on circulating.

use super::Lease;
use crate::error::Violation;
use crate::mutant::{self, Mutant};
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
    /// Buffers without a byte in them, free or waiting to be filled.
    untouched: Cell<u32>,
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
    /// `count` buffers of `size` bytes. Allocates address space; memory comes as it is touched.
    pub(crate) fn new(count: u32, size: u32, low: u32) -> io::Result<Pool> {
        assert!((1..=32_768).contains(&count) && size > 0 && low > 0, "validated by Config");
        let shared = Shared {
            memory: Mapping::new(count as usize * size as usize)?,
            size,
            low,
            buffers: (0..count).map(|_| Buffer::default()).collect(),
            // Handed out from the end: low addresses first.
            free: RefCell::new((0..count as u16).rev().collect()),
            untouched: Cell::new(count),
            heap_copies: Cell::new(0),
            leases: Cell::new(0),
        };
        Ok(Pool { shared: Rc::new(shared) })
    }

    pub(crate) fn size(&self) -> u32 {
        self.shared.size
    }

    /// Buffers that nobody has a claim on.
    pub(crate) fn free(&self) -> usize {
        self.shared.free.borrow().len()
    }

    pub(crate) fn heap_copies(&self) -> u64 {
        self.shared.heap_copies.get()
    }

    /// Takes a free buffer; the caller has a claim on it until `put_back`, or a `deliver` without
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

    /// Starts a checked-out buffer anew if no lease refers to it: the same few lines of cache are
    /// used again and again.
    #[inline]
    pub(crate) fn rewind(&self, id: u16) {
        let buffer = &self.shared.buffers[id as usize];
        if buffer.claims.get() == 1 && buffer.filled.replace(0) > 0 {
            self.shared.untouched.set(self.shared.untouched.get() + 1);
        }
    }

    /// The part of a checked-out buffer that may be filled.
    #[inline]
    pub(crate) fn room(&self, id: u16) -> (NonNull<u8>, u32) {
        let filled = self.shared.buffers[id as usize].filled.get();
        (self.shared.at(id, filled), self.shared.size - filled)
    }

    /// Fills a part of a checked-out buffer, `offset` bytes behind what is filled: for backends
    /// without a kernel to do it.
    ///
    /// # Panics
    /// If the buffer is not checked out or has less room.
    #[cfg(feature = "sim")]
    pub(crate) fn write(&self, id: u16, offset: usize, bytes: &[u8]) {
        let (start, room) = self.room(id);
        let claimed = self.shared.buffers[id as usize].checked_out.get();
        assert!(
            claimed && offset + bytes.len() <= room as usize,
            "buffer {id} was not given out for these bytes"
        );
        // SAFETY: within the room (checked above) of a claimed buffer, behind the filled part, so
        // no lease refers to it; `bytes` is a live reference, so it is not in there either.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr().add(offset), bytes.len())
        };
    }

    /// The next `len` bytes of a checked-out buffer were filled; whoever filled it goes on filling
    /// the rest if `more`, else its claim ends.
    ///
    /// # Errors
    /// The buffer is not checked out, or has less room: nothing can be said of any byte then, and
    /// nothing has changed.
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
                "a completion tells of more bytes than its receive buffer has room for",
            ));
        }
        if filled == 0 && len > 0 {
            shared.untouched.set(shared.untouched.get() - 1);
        }
        let start = shared.at(id, filled);
        buffer.filled.set(filled + len);
        let lease = if shared.untouched.get() < shared.low {
            shared.heap_copies.set(shared.heap_copies.get() + 1);
            // SAFETY: these bytes lie within the buffer (checked above), initialised (mappings
            // start zeroed), and nobody writes them any more: they have just become the filled
            // part.
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

    /// Keeps the memory for ever: for when the kernel may still write to it.
    pub(crate) fn leak(&self) {
        std::mem::forget(Rc::clone(&self.shared));
    }
}

impl Shared {
    fn at(&self, id: u16, offset: u32) -> NonNull<u8> {
        let offset = id as usize * self.size as usize + offset as usize;
        // SAFETY: `id` indexed `buffers` or is about to, and `offset` is at most `size`: within the
        // mapping, or one past it.
        unsafe { self.memory.start().add(offset) }
    }

    /// One more lease of bytes that are leased already.
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
            // One panic is enough: a second one would hide it.
            return;
        }
        assert!(claims > 0, "buffer {id} is given back once per claim");
        buffer.claims.set(claims - 1);
        if claims == 1 {
            if buffer.filled.replace(0) > 0 {
                self.untouched.set(self.untouched.get() + 1);
            }
            self.free.borrow_mut().push(id);
            if mutant::is(Mutant::DoubleFree) {
                self.free.borrow_mut().push(id);
            }
        }
    }
}

/// Checks that no two leases share a byte, and that each lies in the filled part of one buffer of
/// these pools, where the kernel has no claim.
#[cfg(test)]
pub(crate) fn assert_disjoint<'a>(pools: &[&Pool], leases: impl Iterator<Item = &'a Lease>) {
    let lent = leases.filter(|lease| !lease.is_copy());
    let mut spans: Vec<_> = lent.map(|lease| lease.as_ptr_range()).collect();
    // An empty lease lies before one that begins where it does.
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
    fn the_last_buffer_is_copied_out_and_circulates() {
        let pool = Pool::new(1, 64, 1).unwrap();
        let kept: Vec<Lease> = (0..10u8)
            .map(|i| put(&pool, pool.checkout().expect("always one free"), &[i; 8], false))
            .collect();
        assert!(kept.iter().enumerate().all(|(i, lease)| lease[..] == [i as u8; 8]));
        assert_eq!((pool.heap_copies(), pool.free()), (10, 1));
    }

    #[test]
    fn a_lease_outlives_the_pool_and_a_leaked_one_only_shrinks_it() {
        let pool = Pool::new(4, 64, 1).unwrap();
        let lease = put(&pool, pool.checkout().unwrap(), b"kept", false);
        std::mem::forget(put(&pool, pool.checkout().unwrap(), b"lost", false));
        assert_eq!((pool.free(), pool.shared.untouched.get()), (2, 2));
        drop(pool);
        assert_eq!(&lease[..], b"kept");
    }

    proptest! {
        /// Whatever is said of a buffer: no panic, and no lease over bytes of another one or
        /// outside the filled part of a buffer. A refused claim changes nothing, so that this holds
        /// even where somebody went on after it.
        #[test]
        fn no_claim_lends_a_byte_twice(
            claims in prop::collection::vec(
                (0u8..4, 0u16..10, 0u32..200, any::<bool>(), any::<prop::sample::Index>()),
                1..200,
            ),
        ) {
            let pool = Pool::new(8, 64, 2).unwrap();
            let mut held = std::collections::HashMap::<u16, u32>::new();
            let mut leases = Vec::new();
            for (action, id, len, more, pick) in claims {
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

        /// Claims in any order, several leases to a buffer: contents stay, counts return to where
        /// they began.
        #[test]
        fn contents_stay_while_leased(
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
            let counts = (pool.free(), pool.shared.untouched.get(), pool.shared.leases.get());
            prop_assert_eq!(counts, (8, 8, 0));
        }
    }
}
