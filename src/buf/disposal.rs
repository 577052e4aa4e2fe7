//! What becomes of payloads that left their send queue. Owns: output chunks until their next use, and
//! payloads whose drop may run code of the program. Invariant: that code runs in
//! [`Disposal::drop_payloads`] alone, so the engine is whole when it panics.

use super::Payload;
use std::collections::VecDeque;

/// Room of an output chunk, which gathers small writes.
const CHUNK_BYTES: usize = 4096;
/// Chunks kept for the next writes, engine-wide.
const CHUNKS_KEPT: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Disposal {
    chunks: Vec<Vec<u8>>,
    /// In the order in which they left.
    payloads: VecDeque<Payload>,
}

impl Disposal {
    /// A chunk with room for `least` bytes.
    pub(super) fn take_chunk(&mut self, least: usize) -> Vec<u8> {
        match self.chunks.pop() {
            Some(chunk) if chunk.capacity() >= least => chunk,
            _ => Vec::with_capacity(least.max(CHUNK_BYTES)),
        }
    }

    pub(super) fn give_chunk(&mut self, mut chunk: Vec<u8>) {
        if self.chunks.len() < CHUNKS_KEPT && chunk.capacity() <= 4 * CHUNK_BYTES {
            chunk.clear();
            self.chunks.push(chunk);
        }
    }

    /// Takes a payload that nobody reads any more.
    #[inline]
    pub(super) fn give(&mut self, payload: Payload) {
        match payload {
            // `Bytes::from_owner`: the owner's drop is the program's code.
            Payload::Bytes(_) => self.payloads.push_back(payload),
            // These run no code of the program. A lease gives its receive buffer back now, for the next
            // receive to use.
            Payload::Vec(_) | Payload::Static(_) | Payload::Lease(_) => drop(payload),
        }
    }

    pub(crate) fn has_payloads(&self) -> bool {
        !self.payloads.is_empty()
    }

    /// Drops the payloads. A panic of an owner's drop ends this; the others are dropped in the next
    /// call.
    #[inline]
    pub(crate) fn drop_payloads(&mut self) {
        while let Some(payload) = self.payloads.pop_front() {
            drop(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    struct Owner(Arc<()>, bool);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"bytes"
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            assert!(!self.1, "a panic of the owner of one of {}", Arc::strong_count(&self.0));
        }
    }

    #[test]
    fn a_panic_loses_no_other_payload() {
        let (count, mut disposal) = (Arc::new(()), Disposal::default());
        for panics in [false, true, false, true] {
            disposal.give(Bytes::from_owner(Owner(Arc::clone(&count), panics)).into());
        }
        for left in [3, 1] {
            assert!(catch_unwind(AssertUnwindSafe(|| disposal.drop_payloads())).is_err());
            assert_eq!(Arc::strong_count(&count), left);
        }
        disposal.drop_payloads();
        assert!(!disposal.has_payloads());
    }
}
