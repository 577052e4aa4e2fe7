//! Received bytes, lent to the caller. Owns: [`Lease`]. Invariant: its bytes change for nobody but
//! its holder until it is dropped.

use super::pool::Shared;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

/// Received bytes. Derefs to `[u8]`; goes back to the engine's pool when dropped.
///
/// A lease can be sent onward without a copy ([`Engine::send`](crate::Engine::send) takes it), kept
/// for long, and outlive its engine. One that is leaked only makes the pool smaller. It does not
/// leave its thread.
pub struct Lease {
    start: NonNull<u8>,
    len: u32,
    id: u16,
    /// The pool it came from; `None` for a copy on the heap.
    pool: Option<Rc<Shared>>,
}

impl Lease {
    pub(super) fn lent(pool: Rc<Shared>, id: u16, start: NonNull<u8>, len: u32) -> Lease {
        Lease { start, len, id, pool: Some(pool) }
    }

    pub(crate) fn copied(bytes: &[u8]) -> Lease {
        let len = u32::try_from(bytes.len()).expect("pool buffers are smaller than 4 GiB");
        let copy: Box<[u8]> = bytes.into();
        let start = NonNull::from(Box::leak(copy)).cast();
        Lease { start, len, id: 0, pool: None }
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn skip_front(&mut self, count: usize) {
        assert!(count <= self.len as usize, "no more than there is");
        match self.pool {
            Some(_) => {
                // SAFETY: within the bytes of this lease (checked above).
                self.start = unsafe { self.start.add(count) };
                self.len -= count as u32;
            }
            None => *self = Lease::copied(&self[count..]),
        }
    }

    /// Another claim on the same bytes, which keeps them where they are. `None` for a copy on the
    /// heap.
    pub(super) fn share(&self) -> Option<Lease> {
        let pool = self.pool.as_ref()?;
        pool.share(self.id);
        Some(Lease::lent(Rc::clone(pool), self.id, self.start, self.len))
    }

    /// The heap block of a copy.
    pub(super) fn into_heap(self) -> Result<Box<[u8]>, Lease> {
        if self.pool.is_some() {
            return Err(self);
        }
        let lease = ManuallyDrop::new(self);
        let bytes = NonNull::slice_from_raw_parts(lease.start, lease.len as usize);
        // SAFETY: made by `Box::leak` of a slice of just this length in `copied`, and not dropped
        // by the lease.
        Ok(unsafe { Box::from_raw(bytes.as_ptr()) })
    }

    /// True if the bytes were copied to the heap because the pool was running low.
    pub fn is_copy(&self) -> bool {
        self.pool.is_none()
    }
}

impl Deref for Lease {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: initialised bytes of a pool buffer that this lease has a claim on, or of a heap
        // block that it owns. They are in the filled part, which the kernel has no claim on until
        // `drop` gives it back.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; leases that callers can reach never overlap (`share` is for what
        // is in flight), and `&mut self` makes this access the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes{})", self.len, if self.is_copy() { ", copied" } else { "" })
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        match &self.pool {
            Some(pool) => pool.end_lease(self.id),
            None => {
                let bytes = NonNull::slice_from_raw_parts(self.start, self.len as usize);
                // SAFETY: made by `Box::leak` of a slice of just this length in `copied`.
                drop(unsafe { Box::from_raw(bytes.as_ptr()) });
            }
        }
    }
}
