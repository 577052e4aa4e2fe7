//! Memory of operations in flight. Owns: [`InFlight`]. Invariant: the value is never dropped in
//! place, also not by a panic. It is leaked unless it is taken out. Must not know what the memory
//! is used for.

use std::fmt;
use std::mem::ManuallyDrop;

/// Memory, or the owner of memory, that the kernel may read or write. It allows shared access, but
/// neither changes nor a drop of the value: dropping an `InFlight` leaks it.
pub(crate) struct InFlight<T>(ManuallyDrop<T>);

impl<T> InFlight<T> {
    pub(crate) fn new(value: T) -> InFlight<T> {
        InFlight(ManuallyDrop::new(value))
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }

    /// Takes the value out.
    ///
    /// # Safety
    /// The kernel must no longer use the memory: the final completion of the operation was reaped
    /// (for a zero-copy send, its notification CQE), or the operation was never submitted.
    pub(crate) unsafe fn take(self) -> T {
        ManuallyDrop::into_inner(self.0)
    }
}

impl<T> fmt::Debug for InFlight<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InFlight")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_value_that_is_not_taken_out_is_leaked() {
        let value = Rc::new(());
        {
            let _in_flight = InFlight::new(Rc::clone(&value));
        }
        assert_eq!(Rc::strong_count(&value), 2);
        // SAFETY: it was never submitted to the kernel.
        drop(unsafe { InFlight::new(Rc::clone(&value)).take() });
        assert_eq!(Rc::strong_count(&value), 2);
        assert_eq!(size_of::<Option<InFlight<Box<u8>>>>(), size_of::<usize>());
    }
}
