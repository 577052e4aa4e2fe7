//! The send queue of a connection. Owns: payloads from `send` until the kernel has taken them.
//! Invariant: bytes are sent in the order in which they were queued. A send operation takes the
//! whole queue as its batch and returns it when it completes. Payloads that are queued meanwhile
//! are in a second queue, which is then appended. Must not know how a batch is sent.

use super::{Payload, SendMemory};
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    items: VecDeque<Item>,
    /// Bytes of the first item that the kernel has taken.
    offset: usize,
    /// Bytes that the kernel has not taken.
    bytes: usize,
    /// Bytes that were submitted with the operation in flight.
    given: usize,
    /// The number of items with a tag.
    tagged: usize,
    zero_copy: bool,
}

#[derive(Debug)]
struct Item {
    payload: Payload,
    tag: Option<u64>,
    /// The payload is an output chunk of the engine, to which small writes are appended.
    chunk: bool,
}

impl SendQueue {
    /// The number of bytes that the kernel has not taken.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub(crate) fn entries(&self) -> usize {
        self.items.len()
    }

    /// True if there is no payload, not even an empty one.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, payload: Payload, tag: Option<u64>) {
        self.bytes += payload.len();
        self.tagged += usize::from(tag.is_some());
        self.items.push_back(Item { payload, tag, chunk: false });
    }

    /// Appends a copy of `bytes`, to the last payload if that is an output chunk with room.
    pub(crate) fn write(&mut self, bytes: &[u8], memory: &mut SendMemory) {
        self.bytes += bytes.len();
        if let Some(Item { payload: Payload::Vec(chunk), chunk: true, .. }) = self.items.back_mut()
            && chunk.capacity() - chunk.len() >= bytes.len()
        {
            chunk.extend_from_slice(bytes);
            return;
        }
        let mut chunk = memory.chunk(bytes.len());
        chunk.extend_from_slice(bytes);
        self.items.push_back(Item { payload: Payload::Vec(chunk), tag: None, chunk: true });
    }

    /// Moves all payloads of `later` to the end of this queue.
    pub(crate) fn append(&mut self, later: &mut SendQueue) {
        debug_assert_eq!(later.offset, 0, "no byte of the appended queue was sent");
        self.items.append(&mut later.items);
        self.bytes += std::mem::take(&mut later.bytes);
        self.tagged += std::mem::take(&mut later.tagged);
    }

    /// The unsent bytes in order, at most `max` payloads.
    #[inline]
    pub(crate) fn parts(&self, max: usize) -> impl ExactSizeIterator<Item = &[u8]> {
        let offset = self.offset;
        self.items.iter().take(max).enumerate().map(move |(index, item)| {
            &item.payload.as_slice()[if index == 0 { offset } else { 0 }..]
        })
    }

    /// The unsent bytes of the first payload.
    #[inline]
    pub(crate) fn front(&self) -> &[u8] {
        match self.items.front() {
            Some(item) => &item.payload.as_slice()[self.offset..],
            None => &[],
        }
    }

    /// The number of unsent bytes of the first payload.
    #[inline(always)]
    pub(crate) fn front_len(&self) -> usize {
        match self.items.front() {
            Some(item) => item.payload.len() - self.offset,
            None => 0,
        }
    }

    /// A second owner of the first payload.
    pub(crate) fn share_front(&mut self) -> Option<Payload> {
        self.items.front_mut().map(|item| item.payload.share())
    }

    /// Records the number of bytes that were submitted with an operation.
    #[inline]
    pub(crate) fn set_given(&mut self, bytes: usize) {
        self.given = bytes;
    }

    pub(crate) fn given(&self) -> usize {
        self.given
    }

    /// Allows or forbids a zero-copy send for the next operation.
    pub(crate) fn set_zero_copy(&mut self, allowed: bool) {
        self.zero_copy = allowed;
    }

    pub(crate) fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// True if `taken` bytes are all bytes of the queue.
    #[inline]
    pub(crate) fn is_sent_in_full(&self, taken: usize) -> bool {
        taken == self.bytes
    }

    #[inline]
    pub(crate) fn has_tags(&self) -> bool {
        self.tagged > 0
    }

    /// The tags of the payloads, in order.
    pub(crate) fn tags(&self) -> impl Iterator<Item = u64> {
        self.items.iter().filter_map(|item| item.tag)
    }

    /// Removes `taken` bytes, which the kernel has taken. Retires the payloads that are sent in
    /// full and adds their tags to `tags`. Empty payloads at the front are retired too, so `taken`
    /// may be 0.
    pub(crate) fn advance(&mut self, taken: usize, memory: &mut SendMemory, tags: &mut Vec<u64>) {
        assert!(taken <= self.bytes, "the kernel takes at most the queued bytes");
        self.bytes -= taken;
        self.offset += taken;
        while let Some(first) = self.items.front() {
            let len = first.payload.len();
            if self.offset < len {
                break;
            }
            self.offset -= len;
            let Some(item) = self.items.pop_front() else { break };
            if let Some(tag) = item.tag {
                self.tagged -= 1;
                tags.push(tag);
            }
            match item.payload {
                Payload::Vec(chunk) if item.chunk => memory.keep_chunk(chunk),
                payload => memory.retire(payload),
            }
        }
    }

    /// Removes the first payload of a queue that will not be sent. The flag is true for an output
    /// chunk.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<(Payload, bool)> {
        match self.items.pop_front() {
            Some(item) => Some((item.payload, item.chunk)),
            None => {
                (self.offset, self.bytes, self.tagged, self.zero_copy) = (0, 0, 0, false);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Send(usize, bool),
        Write(usize),
        Start(usize),
        Complete(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..6000, any::<bool>()).prop_map(|(len, tagged)| Step::Send(len, tagged)),
            (0usize..6000).prop_map(Step::Write),
            (1usize..9).prop_map(Step::Start),
            any::<prop::sample::Index>().prop_map(Step::Complete),
        ]
    }

    /// A send operation in flight: its batch, and the address and bytes of each part.
    struct InFlight {
        batch: Box<SendQueue>,
        parts: Vec<(*const u8, Vec<u8>)>,
    }

    /// Pseudo-random bytes, so that a byte in a wrong place is noticed.
    fn bytes(counter: &mut u32, len: usize) -> Vec<u8> {
        let mut next = || {
            *counter = counter.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*counter >> 24) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// For any part of each operation that the kernel takes: no byte is lost, duplicated or
        /// reordered. The bytes of an operation do not change or move until it completes. Tags are
        /// reported in order, after the last byte of their payload was taken.
        #[test]
        fn partial_completions_keep_all_bytes_in_order(
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let mut memory = SendMemory::default();
            let mut queue = memory.queue();
            let (mut expected, mut taken_total) = (Vec::<u8>::new(), 0usize);
            let (mut tags, mut next_tag) = (VecDeque::<(u64, usize)>::new(), 0u64);
            let mut in_flight: Option<InFlight> = None;
            let mut counter = 0u32;
            for step in steps {
                match step {
                    Step::Send(len, tagged) => {
                        let bytes = bytes(&mut counter, len);
                        expected.extend(&bytes);
                        let tag = tagged.then(|| {
                            next_tag += 1;
                            tags.push_back((next_tag, expected.len()));
                            next_tag
                        });
                        queue.push(bytes.into(), tag);
                    }
                    Step::Write(len) => {
                        let bytes = bytes(&mut counter, len);
                        expected.extend(&bytes);
                        queue.write(&bytes, &mut memory);
                    }
                    Step::Start(max) if in_flight.is_none() && !queue.is_empty() => {
                        let batch = std::mem::replace(&mut queue, memory.queue());
                        let part = |part: &[u8]| (part.as_ptr(), part.to_vec());
                        let parts = batch.parts(max).map(part).collect();
                        in_flight = Some(InFlight { batch, parts });
                    }
                    Step::Complete(part) if in_flight.is_some() => {
                        let InFlight { mut batch, parts } = in_flight.take().expect("guarded");
                        for (start, copy) in &parts {
                            // SAFETY: the test checks that the bytes of an operation stay at their
                            // address until it completes.
                            let now = unsafe { std::slice::from_raw_parts(*start, copy.len()) };
                            prop_assert_eq!(now, &copy[..]);
                        }
                        let given: Vec<u8> = parts.into_iter().flat_map(|(_, copy)| copy).collect();
                        let expected_given = &expected[taken_total..taken_total + given.len()];
                        prop_assert_eq!(expected_given, &given[..]);
                        let taken = part.index(given.len() + 1);
                        taken_total += taken;
                        let mut sent = Vec::new();
                        batch.append(&mut queue);
                        memory.retire_queue(std::mem::replace(&mut queue, batch));
                        queue.advance(taken, &mut memory, &mut sent);
                        memory.drop_retired();
                        for tag in sent {
                            let (expected_tag, end) = tags.pop_front().expect("reported once");
                            prop_assert!(tag == expected_tag && end <= taken_total);
                        }
                    }
                    _ => {}
                }
                let in_flight = in_flight.as_ref().map_or(0, |operation| operation.batch.bytes());
                prop_assert_eq!(queue.bytes() + in_flight, expected.len() - taken_total);
            }
        }
    }

    #[test]
    fn small_writes_share_a_chunk() {
        let mut memory = SendMemory::default();
        let mut queue = memory.queue();
        queue.write(b"one", &mut memory);
        queue.write(b"two", &mut memory);
        assert_eq!(queue.parts(8).map(<[u8]>::to_vec).collect::<Vec<_>>(), [b"onetwo".to_vec()]);
        let mut later = memory.queue();
        later.write(b"three", &mut memory);
        queue.append(&mut later);
        queue.advance(4, &mut memory, &mut Vec::new());
        assert_eq!(
            queue.parts(8).map(<[u8]>::to_vec).collect::<Vec<_>>(),
            [b"wo".to_vec(), b"three".to_vec()]
        );
        queue.write(b"!", &mut memory);
        assert_eq!((queue.entries(), queue.bytes()), (2, 8));
    }

    #[test]
    fn empty_payloads_need_no_operation() {
        let (mut memory, mut tags) = (SendMemory::default(), Vec::new());
        let mut queue = memory.queue();
        queue.push("".into(), Some(1));
        queue.push("x".into(), Some(2));
        queue.advance(0, &mut memory, &mut tags);
        assert_eq!((tags.as_slice(), queue.entries()), (&[1][..], 1));
    }
}
