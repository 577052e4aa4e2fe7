//! The memory of the random engine. Owns: the creation of payloads and buffers, and the use of
//! those that come back. Must not know: backends.

use super::{RandomEngine, Rig};
use crate::backend::{OpResult, Operation, SendBatch};
use crate::buf::{Payload, RecvBuf};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;

/// A xorshift generator.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Removes a random element, if there is one.
    pub(super) fn take<T>(&mut self, from: &mut Vec<T>) -> Option<T> {
        (!from.is_empty()).then(|| from.swap_remove(self.below(from.len())))
    }
}

/// Checks that each byte is one of a payload: the letter of a vector, of shared bytes, of an owner,
/// of static bytes, of a chunk of small writes, of a lease that was written to, or of a peer.
pub(super) fn check(bytes: &[u8], what: &str) {
    let unknown = |byte: &&u8| !matches!(byte, b'V' | b'B' | b'O' | b'S' | b'C' | b'M' | b'p');
    if let Some(byte) = bytes.iter().find(unknown) {
        panic!("{what}: byte {byte:#x} is of no payload, among {} bytes", bytes.len());
    }
}

static STATIC_BYTES: [u8; 5000] = [b'S'; 5000];

thread_local! {
    /// The memory of dropped owners, poisoned and kept until the end of a run. If the kernel reads
    /// it too late, a peer receives poison. AddressSanitizer does not see accesses of io_uring.
    pub(super) static DROPPED_MEMORY: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

struct Owner(Vec<u8>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut memory = std::mem::take(&mut self.0);
        memory.fill(b'!');
        let _ = DROPPED_MEMORY.try_with(|dropped| dropped.borrow_mut().push(memory));
    }
}

/// Received bytes, and a copy from the time of the completion.
pub(super) struct Snapshot<T> {
    pub(super) bytes: T,
    copy: Vec<u8>,
}

impl<T: AsRef<[u8]>> Snapshot<T> {
    pub(super) fn new(bytes: T) -> Snapshot<T> {
        let copy = bytes.as_ref().to_vec();
        Snapshot { bytes, copy }
    }

    pub(super) fn verify(&self) {
        assert!(self.bytes.as_ref() == self.copy, "received bytes have changed");
    }
}

impl<R: Rig> RandomEngine<'_, R> {
    /// Keeps the memory of an operation that found no room for a later operation of any key.
    pub(super) fn no_room(&mut self, operation: Operation) {
        self.counts.no_room += 1;
        match operation {
            Operation::Send(batch) => self.batches.push(batch),
            Operation::RecvInto(recv_buf) => self.recv_bufs.push(recv_buf),
            operation => drop(operation),
        }
    }

    /// A batch that came back, of any connection, or a new one; with further payloads.
    pub(super) fn batch(&mut self) -> SendBatch {
        let old = if self.rng.chance(60) { self.rng.take(&mut self.batches) } else { None };
        let mut batch = old.unwrap_or_else(|| self.memory.queue());
        let mut count = self.rng.below(4);
        if batch.is_empty() {
            count += 1;
        }
        for tag in 0..count {
            let payload = self.payload();
            batch.push(payload, self.rng.chance(30).then_some(tag as u64));
        }
        if self.rng.chance(20) {
            let len = self.rng.below(300);
            batch.write(&[b'C'; 300][..len], &mut self.memory);
        }
        batch.set_zero_copy(self.rng.chance(50));
        batch
    }

    pub(super) fn payload(&mut self) -> Payload {
        let len_max = self.rng.pick(&[1, 64, 5000, 5000, 200_000]);
        let len = self.rng.below(len_max);
        match self.rng.below(8) {
            0 => vec![b'V'; len].into(),
            1 => {
                let mut bytes = Vec::with_capacity(len + 100);
                bytes.resize(len, b'V');
                bytes.into()
            }
            2 => Bytes::from(vec![b'B'; len]).slice(len / 3..).into(),
            3 => STATIC_BYTES[..len.min(STATIC_BYTES.len())].into(),
            4 | 5 => match self.rng.take(&mut self.leases) {
                Some(snapshot) => {
                    snapshot.verify();
                    let mut lease = snapshot.bytes;
                    if self.rng.chance(30) {
                        lease.fill(b'M');
                    }
                    if self.rng.chance(30) {
                        lease.skip_front(lease.len() / 3);
                    }
                    lease.into()
                }
                None => "SSS".into(),
            },
            6 if !self.released.is_empty() => {
                *self.rng.take(&mut self.released).expect("checked above")
            }
            _ => Bytes::from_owner(Owner(vec![b'O'; len])).into(),
        }
    }

    pub(super) fn recv_buf(&mut self) -> Box<RecvBuf> {
        if self.rng.chance(40)
            && let Some(recv_buf) = self.rng.take(&mut self.recv_bufs)
            && !recv_buf.is_done()
        {
            return recv_buf;
        }
        let buffer = match self.rng.chance(50) {
            true => BytesMut::from(&[b'M'; 10][..]),
            false => {
                self.rng.take(&mut self.buffers).map(|snapshot| snapshot.bytes).unwrap_or_default()
            }
        };
        let len = 1 + self.rng.below(20_000);
        self.recv_memory.begin(buffer, len)
    }

    pub(super) fn filled(&mut self, mut recv_buf: Box<RecvBuf>) {
        match self.rng.below(4) {
            0 => drop(recv_buf),
            1 => self.recv_bufs.push(recv_buf),
            2 => {
                let buffer = recv_buf.take_buffer();
                check(&buffer, "received into a buffer");
            }
            _ => {
                let buffer = self.recv_memory.end(recv_buf);
                check(&buffer, "received into a buffer");
                if self.buffers.len() < 20 {
                    self.buffers.push(Snapshot::new(buffer));
                }
            }
        }
    }

    pub(super) fn sent(&mut self, mut batch: SendBatch, result: OpResult) {
        let taken = result.get().unwrap_or(0);
        assert!(taken <= batch.bytes(), "a send took more bytes than the batch has");
        self.counts.sent += usize::from(taken > 0);
        for part in batch.parts(usize::MAX) {
            check(part, "returned by a send");
        }
        let keep = self.batches.len() < 10 && batch.bytes() < 500_000;
        match self.rng.below(5) {
            0 => return drop(batch),
            1 => return self.memory.retire_queue(batch),
            2 => {}
            _ => batch.advance(taken, &mut self.memory, &mut Vec::new()),
        }
        if keep {
            self.batches.push(batch);
        }
    }

    /// Drops something at a random time.
    pub(super) fn drop_something(&mut self) {
        match self.rng.below(7) {
            0 | 1 => drop(self.rng.take(&mut self.leases).inspect(Snapshot::verify)),
            2 => drop(self.rng.take(&mut self.batches)),
            3 => drop(self.rng.take(&mut self.recv_bufs)),
            4 => drop(self.rng.take(&mut self.buffers).inspect(Snapshot::verify)),
            5 => self.memory.drop_retired(),
            _ => {
                if let Some(Payload::Lease(lease)) =
                    self.rng.take(&mut self.released).map(|payload| *payload).as_mut()
                {
                    lease.fill(b'M');
                }
                drop(self.rng.take(&mut self.fds));
            }
        }
    }

    /// Swaps the contents of two batches, and of two receive buffers.
    pub(super) fn swap_memory(&mut self) {
        if let [first, second, ..] = &mut self.batches[..] {
            std::mem::swap(&mut **first, &mut **second);
        }
        if let [first, second, ..] = &mut self.recv_bufs[..] {
            std::mem::swap(&mut **first, &mut **second);
        }
    }
}
