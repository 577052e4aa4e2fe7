//! What send queues are made of, engine-wide. Owns: spare queues and output chunks, and the
//! payloads that have left and wait to be dropped. Invariant: a payload, whose `drop` is the
//! caller's code and may panic, is dropped in [`SendMemory::drop_retired`] alone, when nothing is
//! half done.

use super::{Payload, SendQueue};

/// Room of an output chunk, which gathers small writes.
const CHUNK_BYTES: usize = 4096;
/// Chunks kept for the next writes.
const CHUNKS_KEPT: usize = 256;
/// Emptied queues kept.
const QUEUES_KEPT: usize = 1024;

#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "the boxes themselves are what is handed on")]
pub(crate) struct SendMemory {
    queues: Vec<Box<SendQueue>>,
    chunks: Vec<Vec<u8>>,
    retired_queues: Vec<Box<SendQueue>>,
    retired: Vec<Payload>,
}

impl SendMemory {
    /// An empty queue.
    #[inline]
    pub(crate) fn queue(&mut self) -> Box<SendQueue> {
        self.queues.pop().unwrap_or_default()
    }

    /// An empty output chunk with room for at least so many bytes.
    pub(super) fn chunk(&mut self, least: usize) -> Vec<u8> {
        match self.chunks.pop() {
            Some(chunk) if chunk.capacity() >= least => chunk,
            _ => Vec::with_capacity(least.max(CHUNK_BYTES)),
        }
    }

    pub(super) fn keep_chunk(&mut self, chunk: Vec<u8>) {
        keep_chunk(&mut self.chunks, chunk);
    }

    /// Takes a queue whose payloads, if it has any, are not wanted any more.
    #[inline]
    pub(crate) fn retire_queue(&mut self, queue: Box<SendQueue>) {
        self.retired_queues.push(queue);
    }

    /// Takes a payload that is not wanted any more.
    pub(crate) fn retire(&mut self, payload: Payload) {
        self.retired.push(payload);
    }

    /// Drops what was retired. If the drop of a payload panics, the others are dropped by the next
    /// call.
    #[inline]
    pub(crate) fn drop_retired(&mut self) {
        while let Some(queue) = self.retired_queues.last_mut() {
            while let Some((payload, is_chunk)) = queue.pop() {
                match payload {
                    Payload::Vec(chunk) if is_chunk => keep_chunk(&mut self.chunks, chunk),
                    payload => drop(payload),
                }
            }
            let queue = self.retired_queues.pop().expect("looked at above");
            if self.queues.len() < QUEUES_KEPT {
                self.queues.push(queue);
            }
        }
        while let Some(payload) = self.retired.pop() {
            drop(payload);
        }
    }

    pub(crate) fn has_retired(&self) -> bool {
        !self.retired_queues.is_empty() || !self.retired.is_empty()
    }
}

fn keep_chunk(chunks: &mut Vec<Vec<u8>>, mut chunk: Vec<u8>) {
    if chunks.len() < CHUNKS_KEPT && chunk.capacity() <= 4 * CHUNK_BYTES {
        chunk.clear();
        chunks.push(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Owner(Arc<AtomicU32>, bool);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"owned"
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            assert!(!self.1, "the owner of a payload panics");
        }
    }

    #[test]
    fn a_panic_of_one_payload_loses_no_other() {
        let (dropped, mut memory) = (Arc::new(AtomicU32::new(0)), SendMemory::default());
        let payload =
            |panics| Payload::from(Bytes::from_owner(Owner(Arc::clone(&dropped), panics)));
        let mut queue = memory.queue();
        [false, true, false].into_iter().for_each(|panics| queue.push(payload(panics), None));
        memory.retire_queue(queue);
        memory.retire(payload(true));
        memory.retire(payload(false));
        let mut panics = 0;
        while memory.has_retired() {
            panics += u32::from(catch_unwind(AssertUnwindSafe(|| memory.drop_retired())).is_err());
        }
        assert_eq!((panics, dropped.load(Ordering::Relaxed)), (2, 5));
        assert!(memory.queue().is_empty());
    }
}
