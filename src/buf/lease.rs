//! Received bytes, lent to the caller. Owns: [`Lease`]. Invariant: until the lease is dropped, only
//! its holder can change its bytes. Must not know how the bytes were received.

use super::pool::Shared;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

/// Received bytes, from [`Event::Received`](crate::Event::Received). Derefs to `[u8]`. Dropping it
/// returns its buffer to the receive pool of the engine.
///
/// [`Engine::send`](crate::Engine::send) takes a lease without a copy. A lease may be kept for any
/// time, and may outlive its engine. A leaked lease makes the pool smaller by its buffer. A lease
/// is not `Send`.
///
/// ```
/// use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
/// let mut engine = Engine::new(Config::default())?;
/// let (ours, mut theirs) = UnixStream::pair()?;
/// engine.adopt(ours.into(), SocketOptions::default())?;
/// theirs.write_all(b"hello")?;
/// let mut completions = Completions::with_capacity(16);
/// engine.poll(&mut completions, None)?;
/// let Some(Event::Received(lease)) = completions.pop().map(|completion| completion.event) else {
///     panic!("expected data");
/// };
/// drop(engine);
/// assert_eq!(&lease[..], b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Lease {
    start: NonNull<u8>,
    len: u32,
    id: u16,
    /// The pool of the buffer. `None` for a copy on the heap.
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

    /// Removes the first `count` bytes.
    pub(crate) fn skip_front(&mut self, count: usize) {
        assert!(count <= self.len as usize, "a lease has at least the skipped bytes");
        match self.pool {
            Some(_) => {
                // SAFETY: within the bytes of this lease (checked above).
                self.start = unsafe { self.start.add(count) };
                self.len -= count as u32;
            }
            None => *self = Lease::copied(&self[count..]),
        }
    }

    /// A second lease of the same bytes. `None` for a copy on the heap.
    pub(super) fn share(&self) -> Option<Lease> {
        let pool = self.pool.as_ref()?;
        pool.share(self.id);
        Some(Lease::lent(Rc::clone(pool), self.id, self.start, self.len))
    }

    /// The heap block of a copy. The lease itself if it is not one.
    pub(super) fn into_heap(self) -> Result<Box<[u8]>, Lease> {
        if self.pool.is_some() {
            return Err(self);
        }
        let lease = ManuallyDrop::new(self);
        let bytes = NonNull::slice_from_raw_parts(lease.start, lease.len as usize);
        // SAFETY: `copied` made the block with `Box::leak` of a slice of this length, and
        // `ManuallyDrop` keeps the lease from dropping it.
        Ok(unsafe { Box::from_raw(bytes.as_ptr()) })
    }

    /// True if the bytes were copied to the heap because the pool was below its low watermark
    /// ([`Tuning::buffers_low_watermark`](crate::Tuning::buffers_low_watermark)).
    pub fn is_copy(&self) -> bool {
        self.pool.is_none()
    }
}

impl Deref for Lease {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: initialised bytes of a heap block that this lease owns, or of the filled part of
        // a pool buffer on which it has a claim. The kernel does not write the filled part until
        // all claims on the buffer have ended.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`. Leases that callers can access do not overlap (`share` is only for
        // operations in flight), and `&mut self` makes this access exclusive.
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
                // SAFETY: `copied` made the block with `Box::leak` of a slice of this length.
                drop(unsafe { Box::from_raw(bytes.as_ptr()) });
            }
        }
    }
}
