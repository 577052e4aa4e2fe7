//! Memory of the send queues of an engine. Owns: spare queues and output chunks, and retired
//! payloads that wait to be dropped. Invariant: payloads are dropped only in
//! [`SendMemory::drop_retired`], which is called when the state of the engine is consistent. The
//! drop of a payload may be code of the caller and may panic. Must not know the connections.

use super::{Payload, SendQueue};

/// The capacity of an output chunk, to which small writes are appended.
const CHUNK_BYTES: usize = 4096;
/// The maximum number of spare chunks.
const CHUNKS_KEPT_MAX: usize = 256;
/// The maximum number of spare queues.
const QUEUES_KEPT_MAX: usize = 1024;

/// Spare and retired memory of all send queues of an engine.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "the boxes are reused, not only their contents")]
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

    /// An empty output chunk with a capacity of at least `bytes_min` bytes.
    pub(super) fn chunk(&mut self, bytes_min: usize) -> Vec<u8> {
        match self.chunks.pop() {
            Some(chunk) if chunk.capacity() >= bytes_min => chunk,
            _ => Vec::with_capacity(bytes_min.max(CHUNK_BYTES)),
        }
    }

    pub(super) fn keep_chunk(&mut self, chunk: Vec<u8>) {
        keep_chunk(&mut self.chunks, chunk);
    }

    /// Takes a queue. Its payloads, if it has any, will be dropped.
    #[inline]
    pub(crate) fn retire_queue(&mut self, queue: Box<SendQueue>) {
        self.retired_queues.push(queue);
    }

    /// Takes a payload, which will be dropped.
    pub(crate) fn retire(&mut self, payload: Payload) {
        self.retired.push(payload);
    }

    /// Drops all retired payloads. If the drop of one panics, the next call drops the others.
    #[inline]
    pub(crate) fn drop_retired(&mut self) {
        while let Some(queue) = self.retired_queues.last_mut() {
            while let Some((payload, is_chunk)) = queue.pop() {
                match payload {
                    Payload::Vec(chunk) if is_chunk => keep_chunk(&mut self.chunks, chunk),
                    payload => drop(payload),
                }
            }
            let queue = self.retired_queues.pop().expect("it has a last queue");
            if self.queues.len() < QUEUES_KEPT_MAX {
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
    if chunks.len() < CHUNKS_KEPT_MAX && chunk.capacity() <= 4 * CHUNK_BYTES {
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
    fn after_a_panic_of_one_payload_the_others_are_dropped() {
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
