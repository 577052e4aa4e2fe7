//! The send queue of one connection. Owns: payloads from `send` until the kernel is done with them. Invariant: bytes leave in
//! the order they came; a payload that an operation in flight reads neither moves nor goes before that operation's final
//! completion (with zero-copy: its notification).

use super::{Disposal, Payload};
use crate::error::Violation;
use crate::mutant::{self, Mutant};
use std::collections::VecDeque;

/// Emptied queues kept, engine-wide.
const QUEUES_KEPT: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    items: VecDeque<Item>,
    /// Bytes of the first item that are gone already.
    offset: usize,
    /// Bytes not yet taken by the kernel.
    bytes: usize,
    /// Items at the front that the operation in flight reads.
    frozen: usize,
    /// Payloads taken in full while the kernel still reads them, or may (zero-copy).
    held: Vec<Payload>,
    held_bytes: usize,
    notices: u32,
}

#[derive(Debug)]
struct Item {
    payload: Payload,
    tag: Option<u64>,
    /// An output chunk of the engine's own, which takes further small writes.
    chunk: bool,
}

impl Item {
    /// All of it was taken.
    #[inline]
    fn leave(self, disposal: &mut Disposal, sent: &mut impl FnMut(u64)) {
        if let Some(tag) = self.tag {
            sent(tag);
        }
        match self.payload {
            Payload::Vec(chunk) if self.chunk => disposal.give_chunk(chunk),
            payload => disposal.give(payload),
        }
    }
}

/// Emptied send queues waiting for the next connection that sends.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "the boxes themselves are what is handed on")]
pub(crate) struct QueuePool(Vec<Box<SendQueue>>);

impl QueuePool {
    pub(crate) fn take(&mut self) -> Box<SendQueue> {
        self.0.pop().unwrap_or_default()
    }

    pub(crate) fn give(&mut self, queue: Box<SendQueue>) {
        if self.0.len() < QUEUES_KEPT {
            self.0.push(queue);
        }
    }
}

impl SendQueue {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn entries(&self) -> usize {
        self.items.len()
    }

    /// True when nothing is left to start an operation with.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// True when the queue can be used for another connection.
    pub(crate) fn is_idle(&self) -> bool {
        self.items.is_empty() && self.held.is_empty() && self.notices == 0
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, payload: Payload, tag: Option<u64>) {
        self.bytes += payload.len();
        self.items.push_back(Item { payload, tag, chunk: false });
    }

    /// Copies `bytes` behind what is queued.
    pub(crate) fn write(&mut self, bytes: &[u8], disposal: &mut Disposal) {
        self.bytes += bytes.len();
        if self.items.len() > self.frozen
            && let Some(Item { payload: Payload::Vec(chunk), chunk: true, .. }) = self.items.back_mut()
            && chunk.capacity() - chunk.len() >= bytes.len()
        {
            chunk.extend_from_slice(bytes);
            return;
        }
        let mut chunk = disposal.take_chunk(bytes.len());
        chunk.extend_from_slice(bytes);
        self.items.push_back(Item { payload: Payload::Vec(chunk), tag: None, chunk: true });
    }

    /// Takes payloads without bytes off the front, where no operation is needed for them.
    pub(crate) fn skip_empty(&mut self, disposal: &mut Disposal, sent: impl FnMut(u64)) {
        assert_eq!(self.frozen, 0, "only between operations");
        self.pop_done(disposal, sent);
    }

    /// The unsent bytes in order, at most `max` payloads, for one gathered operation. Freezes them.
    pub(crate) fn gather(&mut self, max: usize) -> impl ExactSizeIterator<Item = &[u8]> {
        assert_eq!(self.frozen, 0, "one operation in flight per connection");
        self.frozen = self.items.len().min(max);
        let offset = self.offset;
        self.items
            .iter()
            .take(self.frozen)
            .enumerate()
            .map(move |(index, item)| &item.payload.as_slice()[if index == 0 { offset } else { 0 }..])
    }

    /// Unsent bytes of the first payload.
    pub(crate) fn front_len(&self) -> usize {
        self.items.front().map_or(0, |item| item.payload.len() - self.offset)
    }

    /// The operation in flight ended, and the kernel took `taken` bytes. Reports the tags of payloads that left in full.
    ///
    /// Returns the bytes that were given to the operation and not taken.
    ///
    /// # Errors
    /// More was taken than the operation was given. Nothing has changed then.
    #[inline(always)]
    pub(crate) fn complete(
        &mut self,
        taken: usize,
        disposal: &mut Disposal,
        mut sent: impl FnMut(u64),
    ) -> Result<usize, Violation> {
        if taken == self.bytes && self.notices == 0 && self.frozen == self.items.len() {
            // The common case: all there was, and nothing of it is still read.
            (self.frozen, self.bytes, self.offset) = (0, 0, 0);
            while let Some(item) = self.items.pop_front() {
                item.leave(disposal, &mut sent);
            }
            return Ok(0);
        }
        self.complete_partly(taken, disposal, sent)
    }

    #[inline(never)]
    fn complete_partly(
        &mut self,
        taken: usize,
        disposal: &mut Disposal,
        sent: impl FnMut(u64),
    ) -> Result<usize, Violation> {
        let given = self.frozen_bytes();
        if taken > given {
            return Err(Violation("a send took more bytes than it was given"));
        }
        self.frozen = 0;
        self.bytes -= taken;
        self.offset += taken;
        self.pop_done(disposal, sent);
        if mutant::is(Mutant::ReorderedSend) && given > taken && self.items.len() > 2 {
            self.items.swap(1, 2);
        }
        Ok(given - taken)
    }

    /// A notification will follow: until then the kernel may read what the operation was given.
    pub(crate) fn expect_notice(&mut self) {
        self.notices += 1;
    }

    /// A notification came.
    ///
    /// # Errors
    /// None is due. Nothing has changed then.
    pub(crate) fn notice(&mut self, disposal: &mut Disposal) -> Result<(), Violation> {
        self.notices = self.notices.checked_sub(1).ok_or(Violation("a notification of a send that owes none"))?;
        if self.notices == 0 {
            self.held.drain(..).for_each(|payload| disposal.give(payload));
            self.held_bytes = 0;
        }
        Ok(())
    }

    pub(crate) fn notices(&self) -> u32 {
        self.notices
    }

    /// Bytes taken by the kernel that cannot be freed before notifications come.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Gives up what was not sent, when no operation is in flight, except what the kernel may still read.
    pub(crate) fn clear(&mut self, disposal: &mut Disposal) {
        assert_eq!(self.frozen, 0, "no operation may be in flight");
        let unsent = self.items.drain(..).map(|item| item.payload);
        match self.notices > 0 {
            true => self.held.extend(unsent),
            false => unsent.for_each(|payload| disposal.give(payload)),
        }
        (self.offset, self.bytes) = (0, 0);
    }

    /// Gives up all there is: the kernel has let go of it.
    pub(crate) fn give_up(&mut self, disposal: &mut Disposal) {
        (self.frozen, self.notices) = (0, 0);
        self.held.drain(..).for_each(|payload| disposal.give(payload));
        self.clear(disposal);
    }

    fn frozen_bytes(&self) -> usize {
        self.items
            .iter()
            .take(self.frozen)
            .map(|item| item.payload.len())
            .sum::<usize>()
            .saturating_sub(if self.frozen > 0 { self.offset } else { 0 })
    }

    fn pop_done(&mut self, disposal: &mut Disposal, mut sent: impl FnMut(u64)) {
        while let Some(first) = self.items.front() {
            let len = first.payload.len();
            if self.offset < len {
                return;
            }
            self.offset -= len;
            let mut item = self.items.pop_front().expect("looked at above");
            if self.notices > 0 {
                self.held_bytes += len;
                self.held.push(std::mem::take(&mut item.payload));
            }
            item.leave(disposal, &mut sent);
        }
        assert_eq!(self.offset, 0, "an empty queue has no offset");
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
        Complete(prop::sample::Index, bool),
        Notice,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..6000, any::<bool>()).prop_map(|(len, tagged)| Step::Send(len, tagged)),
            (0usize..6000).prop_map(Step::Write),
            (1usize..9).prop_map(Step::Start),
            (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(part, notice)| Step::Complete(part, notice)),
            Just(Step::Notice),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever part of each operation the kernel takes: no byte is lost, doubled or reordered, what an operation was given
        /// stays as it was until it ends, and tags come in order, when their last byte is gone.
        #[test]
        fn partial_completions_never_reorder_or_lose(steps in prop::collection::vec(step(), 1..120)) {
            let (mut queue, mut disposal) = (SendQueue::default(), Disposal::default());
            let (mut expected, mut taken_total) = (Vec::<u8>::new(), 0usize);
            let (mut tags, mut next_tag) = (VecDeque::<(u64, usize)>::new(), 0u64);
            let mut in_flight: Option<Vec<(*const u8, Vec<u8>)>> = None;
            let mut counter = 0u32;
            for step in steps {
                let mut bytes = |len: usize| -> Vec<u8> {
                    (0..len).map(|_| { counter = counter.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); (counter >> 24) as u8 }).collect()
                };
                match step {
                    Step::Send(len, tagged) => {
                        let bytes = bytes(len);
                        expected.extend(&bytes);
                        let tag = tagged.then(|| { next_tag += 1; tags.push_back((next_tag, expected.len())); next_tag });
                        queue.push(bytes.into(), tag);
                    }
                    Step::Write(len) => {
                        let bytes = bytes(len);
                        expected.extend(&bytes);
                        queue.write(&bytes, &mut disposal);
                    }
                    Step::Start(max) if in_flight.is_none() && !queue.is_empty() => {
                        in_flight = Some(queue.gather(max).map(|part| (part.as_ptr(), part.to_vec())).collect());
                    }
                    Step::Complete(part, notice) if in_flight.is_some() => {
                        let parts = in_flight.take().expect("guarded");
                        for (start, copy) in &parts {
                            // SAFETY: what an operation was given must still be there, at the same address: that is the test.
                            prop_assert_eq!(unsafe { std::slice::from_raw_parts(*start, copy.len()) }, &copy[..]);
                        }
                        let given: Vec<u8> = parts.into_iter().flat_map(|(_, copy)| copy).collect();
                        prop_assert_eq!(&expected[taken_total..taken_total + given.len()], &given[..]);
                        let taken = part.index(given.len() + 1);
                        if notice {
                            queue.expect_notice();
                        }
                        taken_total += taken;
                        let mut told = Vec::new();
                        prop_assert!(queue.complete(given.len() + 1, &mut disposal, |_| {}).is_err(), "more than was given");
                        prop_assert_eq!(queue.complete(taken, &mut disposal, |tag| told.push(tag)), Ok(given.len() - taken));
                        for tag in told {
                            let (expected_tag, end) = tags.pop_front().expect("told once");
                            prop_assert!(tag == expected_tag && end <= taken_total);
                        }
                    }
                    Step::Notice => prop_assert_eq!(queue.notices() > 0, queue.notice(&mut disposal).is_ok()),
                    _ => {}
                }
                prop_assert_eq!(queue.bytes(), expected.len() - taken_total);
            }
        }
    }

    #[test]
    fn small_writes_share_a_chunk_but_not_one_in_flight() {
        let (mut queue, mut disposal) = (SendQueue::default(), Disposal::default());
        queue.write(b"one", &mut disposal);
        queue.write(b"two", &mut disposal);
        assert_eq!(queue.gather(8).map(<[u8]>::to_vec).collect::<Vec<_>>(), [b"onetwo".to_vec()]);
        queue.write(b"three", &mut disposal);
        assert_eq!((queue.entries(), queue.complete(4, &mut disposal, |_| {})), (2, Ok(2)));
        assert_eq!(queue.gather(8).map(<[u8]>::to_vec).collect::<Vec<_>>(), [b"wo".to_vec(), b"three".to_vec()]);
    }

    #[test]
    fn payloads_of_no_bytes_need_no_operation() {
        let (mut queue, mut disposal, mut told) = (SendQueue::default(), Disposal::default(), Vec::new());
        queue.push("".into(), Some(1));
        queue.push("x".into(), Some(2));
        queue.skip_empty(&mut disposal, |tag| told.push(tag));
        assert_eq!((told.as_slice(), queue.entries()), (&[1][..], 1));
    }
}
