//! The send queue of a connection. Owns: payloads from `send` until the kernel has taken them.
//! Invariant: bytes leave in the order they came. A send operation gets the queue whole, and gives
//! it back when it has ended; what is queued in the meantime is in another one, which is appended.

use super::{Payload, SendMemory};
use crate::mutant::{self, Mutant};
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    items: VecDeque<Item>,
    /// Bytes of the first item that were taken already.
    offset: usize,
    /// Bytes not yet taken.
    bytes: usize,
    /// Bytes that the operation in flight was given.
    given: usize,
    /// Items with a tag.
    tagged: usize,
    zero_copy: bool,
}

#[derive(Debug)]
struct Item {
    payload: Payload,
    tag: Option<u64>,
    /// An output chunk of the engine's own, which takes further small writes.
    chunk: bool,
}

impl SendQueue {
    /// Bytes that were not taken yet.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub(crate) fn entries(&self) -> usize {
        self.items.len()
    }

    /// True when nothing is left to start an operation with.
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

    /// Copies `bytes` behind what is queued.
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

    /// Puts all of `later`, of which nothing was sent yet, behind what is queued.
    pub(crate) fn append(&mut self, later: &mut SendQueue) {
        debug_assert_eq!(later.offset, 0, "nothing of it was sent");
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

    /// The number of them.
    #[inline(always)]
    pub(crate) fn front_len(&self) -> usize {
        match self.items.front() {
            Some(item) => item.payload.len() - self.offset,
            None => 0,
        }
    }

    /// Another owner of the first payload.
    pub(crate) fn share_front(&mut self) -> Option<Payload> {
        self.items.front_mut().map(|item| item.payload.share())
    }

    /// Notes how many bytes an operation was given.
    #[inline]
    pub(crate) fn set_given(&mut self, bytes: usize) {
        self.given = bytes;
    }

    pub(crate) fn given(&self) -> usize {
        self.given
    }

    /// Lets the next operation send without a copy, if it can.
    pub(crate) fn set_zero_copy(&mut self, allowed: bool) {
        self.zero_copy = allowed;
    }

    pub(crate) fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// True if an operation that took so many bytes took all there is.
    #[inline]
    pub(crate) fn is_whole(&self, taken: usize) -> bool {
        taken == self.bytes
    }

    #[inline]
    pub(crate) fn has_tags(&self) -> bool {
        self.tagged > 0
    }

    /// The tags of all payloads in it, in order.
    pub(crate) fn tags(&self) -> impl Iterator<Item = u64> {
        self.items.iter().filter_map(|item| item.tag)
    }

    /// `taken` bytes were taken: retires the payloads that left in full, and adds their tags to
    /// `tags`. With `taken` zero: those at the front that have no bytes and need no operation.
    pub(crate) fn advance(&mut self, taken: usize, memory: &mut SendMemory, tags: &mut Vec<u64>) {
        assert!(taken <= self.bytes, "no more was taken than there is");
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
        if mutant::is(Mutant::ReorderedSend) && self.offset > 0 && self.items.len() > 2 {
            self.items.swap(1, 2);
        }
    }

    /// Takes the first payload out; with it, whether it is an output chunk. For a queue whose bytes
    /// are not wanted.
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

    /// What an operation in flight has: the queue, and what it was given.
    struct Away {
        queue: Box<SendQueue>,
        parts: Vec<(*const u8, Vec<u8>)>,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever part of each operation the kernel takes: no byte is lost, doubled or reordered,
        /// what an operation was given stays as it was until it ends, and tags come in order, when
        /// their last byte is gone.
        #[test]
        fn partial_completions_never_reorder_or_lose(
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let mut memory = SendMemory::default();
            let mut queue = memory.queue();
            let (mut expected, mut taken_total) = (Vec::<u8>::new(), 0usize);
            let (mut tags, mut next_tag) = (VecDeque::<(u64, usize)>::new(), 0u64);
            let mut away: Option<Away> = None;
            let mut counter = 0u32;
            for step in steps {
                let mut bytes = |len: usize| -> Vec<u8> {
                    let mut byte = || {
                        counter = counter.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (counter >> 24) as u8
                    };
                    (0..len).map(|_| byte()).collect()
                };
                match step {
                    Step::Send(len, tagged) => {
                        let bytes = bytes(len);
                        expected.extend(&bytes);
                        let tag = tagged.then(|| {
                            next_tag += 1;
                            tags.push_back((next_tag, expected.len()));
                            next_tag
                        });
                        queue.push(bytes.into(), tag);
                    }
                    Step::Write(len) => {
                        let bytes = bytes(len);
                        expected.extend(&bytes);
                        queue.write(&bytes, &mut memory);
                    }
                    Step::Start(max) if away.is_none() && !queue.is_empty() => {
                        let queue = std::mem::replace(&mut queue, memory.queue());
                        let copied = |part: &[u8]| (part.as_ptr(), part.to_vec());
                        let parts = queue.parts(max).map(copied).collect();
                        away = Some(Away { queue, parts });
                    }
                    Step::Complete(part) if away.is_some() => {
                        let Away { queue: mut back, parts } = away.take().expect("guarded");
                        for (start, copy) in &parts {
                            // SAFETY: what an operation was given must still be there, at the same
                            // address: that is the test.
                            let there = unsafe { std::slice::from_raw_parts(*start, copy.len()) };
                            prop_assert_eq!(there, &copy[..]);
                        }
                        let given: Vec<u8> = parts.into_iter().flat_map(|(_, copy)| copy).collect();
                        let rest = &expected[taken_total..];
                        prop_assert_eq!(&rest[..given.len()], &given[..]);
                        let taken = part.index(given.len() + 1);
                        taken_total += taken;
                        let mut told = Vec::new();
                        back.append(&mut queue);
                        memory.retire_queue(std::mem::replace(&mut queue, back));
                        queue.advance(taken, &mut memory, &mut told);
                        memory.drop_retired();
                        for tag in told {
                            let (expected_tag, end) = tags.pop_front().expect("told once");
                            prop_assert!(tag == expected_tag && end <= taken_total);
                        }
                    }
                    _ => {}
                }
                let away = away.as_ref().map_or(0, |away| away.queue.bytes());
                prop_assert_eq!(queue.bytes() + away, expected.len() - taken_total);
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
    fn payloads_of_no_bytes_need_no_operation() {
        let (mut memory, mut told) = (SendMemory::default(), Vec::new());
        let mut queue = memory.queue();
        queue.push("".into(), Some(1));
        queue.push("x".into(), Some(2));
        queue.advance(0, &mut memory, &mut told);
        assert_eq!((told.as_slice(), queue.entries()), (&[1][..], 1));
    }
}
