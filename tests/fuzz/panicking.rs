//! Payloads whose owner panics when it is dropped. Owns: how they are made, and how their panic is
//! caught. The panic may leave a poll or the drop of an engine, and must lose nothing.

use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The value of the panic.
struct ExpectedPanic;

struct PanicOnDrop(Vec<u8>);

impl AsRef<[u8]> for PanicOnDrop {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Does not call the panic hook, so that nothing is printed.
            resume_unwind(Box::new(ExpectedPanic));
        }
    }
}

pub fn panicking_payload(bytes: Vec<u8>) -> Bytes {
    Bytes::from_owner(PanicOnDrop(bytes))
}

/// `None` if the drop of such a payload panicked during `act`. Other panics continue.
pub fn catch_expected<T>(act: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<ExpectedPanic>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
