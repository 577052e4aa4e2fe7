//! The windows of receives into callers' buffers that have to wait: where each goes, by slot. Owns: addresses, not memory; that
//! stays put until the operation has ended (contract, rule 3).

use crate::id::Key;

/// Where a receive into a caller's buffer goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: *mut u8,
    pub(super) len: usize,
}

/// As long as the highest slot that ever received into a buffer.
#[derive(Debug, Default)]
pub(super) struct Windows(Vec<Option<Window>>);

impl Windows {
    pub(super) fn set(&mut self, key: Key, (start, len): (*mut u8, usize)) {
        let index = key.slot as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, None);
        }
        self.0[index] = Some(Window { start, len });
    }

    /// # Panics
    /// If there is none: an operation is armed only with one.
    pub(super) fn of(&self, key: Key) -> Window {
        self.0[key.slot as usize].expect("armed with a window")
    }

    pub(super) fn forget(&mut self, key: Key) {
        if let Some(window) = self.0.get_mut(key.slot as usize) {
            *window = None;
        }
    }
}
