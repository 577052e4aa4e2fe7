//! Payloads whose owner panics when it is dropped. Owns: how they are made, and how that panic is
//! taken. Such a panic may come of a poll and of the drop of an engine; it must lose nothing.

use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

struct Boom;

struct Bomb(Vec<u8>);

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Without a message: it is meant to happen.
            resume_unwind(Box::new(Boom));
        }
    }
}

pub fn bomb(bytes: Vec<u8>) -> Bytes {
    Bytes::from_owner(Bomb(bytes))
}

/// `None` if `act` ended in the panic of a bomb. Other panics go on.
pub fn through<T>(act: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<Boom>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
