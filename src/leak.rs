//! Values that may have to be leaked when their owner is dropped. Owns: [`Leakable`]. Invariant:
//! the value is dropped at most once, and never after `leak`. Must not know why a value is leaked.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// A value that is dropped with its owner, unless `leak` was called.
pub(crate) struct Leakable<T> {
    value: ManuallyDrop<T>,
    leaked: bool,
}

impl<T> Leakable<T> {
    pub(crate) fn new(value: T) -> Leakable<T> {
        Leakable { value: ManuallyDrop::new(value), leaked: false }
    }

    /// Prevents the drop: the memory and the descriptors of the value stay until the process ends.
    pub(crate) fn leak(&mut self) {
        self.leaked = true;
    }
}

impl<T> Deref for Leakable<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Leakable<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Leakable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Leakable<T> {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: this is the only place that drops the value, and it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_leaked_value_is_not_dropped() {
        let value = Rc::new(());
        let (dropped, mut leaked) =
            (Leakable::new(Rc::clone(&value)), Leakable::new(Rc::clone(&value)));
        leaked.leak();
        drop((dropped, leaked));
        assert_eq!(Rc::strong_count(&value), 2);
    }
}
