//! What the kernel has a claim on. Owns: [`InFlight`]. Invariant: what is in it is not dropped
//! while the claim lasts, whatever unwinds; if nobody takes it out, it is leaked.

use std::fmt;
use std::mem::ManuallyDrop;

/// Memory, or the owner of memory, that the kernel may read or write. It can be looked at, but
/// neither changed nor dropped: a value that is not taken out before this one is dropped is leaked.
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
    /// The kernel's claim must have ended: the final completion of the operation came (of a
    /// zero-copy send: its notification), or the kernel was never told of it.
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
    fn what_nobody_takes_out_is_leaked() {
        let value = Rc::new(());
        {
            let _in_flight = InFlight::new(Rc::clone(&value));
        }
        assert_eq!(Rc::strong_count(&value), 2);
        // SAFETY: no kernel ever knew of it.
        drop(unsafe { InFlight::new(Rc::clone(&value)).take() });
        assert_eq!(Rc::strong_count(&value), 2);
        assert_eq!(size_of::<Option<InFlight<Box<u8>>>>(), size_of::<usize>());
    }
}
