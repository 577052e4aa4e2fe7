//! A ring whose CQEs the test writes itself. Owns: [`ScriptedRing`], its slots, and the variants of
//! its configuration. Invariant: no descriptor of another owner is passed to the backend. Must not
//! know which CQEs are violations.

use crate::backend::uring::Uring;
use crate::backend::uring::setup::{self, NoRing};
use crate::backend::uring::slot::flag;
use crate::backend::uring::token::{Kind, pack, unpack};
use crate::backend::{
    Backend, CloseMode, Completed, Connect, OpKind, Open, Operation, Outcome, SendBatch, Started,
};
use crate::buf::{Lease, Payload, RecvBufPool, SendMemory, assert_disjoint};
use crate::caps::Capability;
use crate::config::Config;
use crate::id::{EngineNumber, Key};
use crate::net::Addr;
use crate::options::{ConnectOptions, ListenOptions};
use crate::tier::Tier;
use crate::tuning::Tuning;
use crate::waker::WakerShared;
use bytes::{Bytes, BytesMut};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) const F_BUFFER: u32 = 1;
pub(super) const F_MORE: u32 = 1 << 1;
pub(super) const F_NOTIF: u32 = 1 << 3;
pub(super) const F_BUF_MORE: u32 = 1 << 4;

/// The slots of a [`ScriptedRing`], named after the operation in flight. The connections of the
/// sends receive too.
pub(super) const FIRST_RECV: usize = 0;
pub(super) const LATER_RECV: usize = 1;
pub(super) const RECV_INTO: usize = 2;
pub(super) const SEND: usize = 3;
pub(super) const SEND_ZERO_COPY: usize = 4;
pub(super) const CONNECT: usize = 5;
pub(super) const CLOSE: usize = 6;
pub(super) const ACCEPT: usize = 7;
pub(super) const CLOSE_LISTENER: usize = 8;
pub(super) const SLOTS: usize = 9;

/// The variants of a ring, which differ in how it receives.
pub(super) const DEFERRED: usize = 0;
pub(super) const MULTISHOT_WHOLE_BUFFERS: usize = 1;
pub(super) const ONESHOT: usize = 2;
pub(super) const ONESHOT_WITHOUT_BUF_RING: usize = 3;
pub(super) const POLLED: usize = 4;
pub(super) const VARIANTS: usize = 5;

/// A CQE: user_data, result and flags.
pub(super) type Cqe = (u64, i32, u32);

impl Uring {
    /// Handles a CQE as if the kernel had posted it. [`Backend::next`] returns what it completes.
    pub(super) fn inject(&mut self, (user_data, result, flags): Cqe) {
        let completed = self.translate(user_data, result, flags);
        assert!(completed.is_none() || self.violation.is_none(), "a violation completes something");
        self.completed.extend(completed);
    }

    /// Injects the CQE of a close that is not in flight.
    pub(crate) fn inject_close_completion(&mut self, key: Key) {
        self.inject((pack(Kind::Close, key), 0, 0));
    }

    /// Injects the CQE of a send in flight, with more bytes than it was given.
    pub(crate) fn inject_send_completion(&mut self, key: Key) {
        self.inject((pack(Kind::Send, key), i32::MAX, 0));
    }
}

pub(super) fn key(slot: usize) -> Key {
    Key::new(slot, 1, EngineNumber::TEST)
}

fn config(variant: usize) -> Config {
    let tuning = Tuning::default().ring_entries(512, 1024);
    let config = Config::default().ignore_environment(true).tuning(tuning).buffers(4, 256);
    match variant {
        DEFERRED => config.tier(Tier::Deferred),
        MULTISHOT_WHOLE_BUFFERS => config.tier(Tier::Multishot).disable(Capability::Incremental),
        ONESHOT => config.tier(Tier::Oneshot),
        ONESHOT_WITHOUT_BUF_RING => config.tier(Tier::Oneshot).disable(Capability::BufRing),
        _ => config.tier(Tier::Polled),
    }
}

/// The backend of a variant. `None`, and the reason is printed, if this machine has no such ring.
pub(super) fn open(variant: usize, waker_shared: &Arc<WakerShared>) -> Option<Uring> {
    match setup::open(&config(variant), EngineNumber::TEST, waker_shared) {
        Ok(opened) => Some(opened.backend),
        Err(NoRing::Refused(why)) => skip(&format!("{why:?}")),
        Err(NoRing::NoTier { why, .. }) => skip(&why),
        Err(NoRing::Error(error)) => panic!("{error}"),
    }
}

pub(super) fn skip<T>(why: &str) -> Option<T> {
    println!("skipped: {why}");
    None
}

/// A payload that counts its drop.
struct DropCounter(Arc<AtomicUsize>);

impl AsRef<[u8]> for DropCounter {
    fn as_ref(&self) -> &[u8] {
        &[b'z'; 1000]
    }
}

impl Drop for DropCounter {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A ring with an operation of each kind in flight.
pub(super) struct ScriptedRing {
    pub(super) uring: Uring,
    memory: SendMemory,
    recv_memory: RecvBufPool,
    pub(super) receiving: [bool; SLOTS],
    pub(super) leases: Vec<Lease>,
    /// Batches and payloads that came back.
    pub(super) batches: Vec<SendBatch>,
    pub(super) released: Vec<Payload>,
    /// Operations that completed: slot and kind.
    pub(super) ended: Vec<(usize, OpKind)>,
    /// Dropped payloads of the sends and of the connect.
    pub(super) dropped: Arc<AtomicUsize>,
    /// Descriptors that the ring owns by a CLOSE in flight.
    closing: Vec<RawFd>,
    _peers: Vec<UnixStream>,
}

impl Drop for ScriptedRing {
    fn drop(&mut self) {
        // SAFETY: the ring never entered the kernel, so that no CLOSE was submitted.
        self.closing.drain(..).for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
}

impl ScriptedRing {
    /// `None`, and the reason is printed, if this machine has no such ring.
    pub(super) fn new(variant: usize) -> Option<ScriptedRing> {
        let uring = open(variant, &WakerShared::new().expect("an event fd"))?;
        let mut ring = ScriptedRing {
            uring,
            memory: SendMemory::default(),
            recv_memory: RecvBufPool::default(),
            receiving: [false; SLOTS],
            leases: Vec::new(),
            batches: Vec::new(),
            released: Vec::new(),
            ended: Vec::new(),
            dropped: Arc::default(),
            closing: Vec::new(),
            _peers: Vec::new(),
        };
        ring.open_slots();
        ring.start_operations();
        Some(ring)
    }

    fn open_slots(&mut self) {
        for slot in (0..SLOTS).filter(|slot| ![CONNECT, ACCEPT, CLOSE_LISTENER].contains(slot)) {
            let (near, far) = UnixStream::pair().expect("a socketpair");
            self.uring.open(key(slot), Open::Stream(near.into())).expect("a slot");
            self._peers.push(far);
        }
        let addr = Addr::Inet(([127, 0, 0, 1], 0).into());
        for slot in [ACCEPT, CLOSE_LISTENER] {
            let open = Open::Listen(&addr, &ListenOptions::default());
            self.uring.open(key(slot), open).expect("a listener");
        }
    }

    fn start_operations(&mut self) {
        self.uring.buffers.refill();
        self.uring.arm_wake();
        self.uring.slot(key(LATER_RECV)).set(flag::NO_RECV_STARTED, false);
        for slot in [FIRST_RECV, LATER_RECV, SEND, SEND_ZERO_COPY] {
            self.receive(slot);
        }
        self.uring.cancel(key(LATER_RECV), OpKind::Recv);
        let recv_buf = self.recv_memory.begin(BytesMut::new(), 100);
        self.start(RECV_INTO, Operation::RecvInto(recv_buf));
        let mut batch = self.new_batch();
        batch.push(vec![2; 1000].into(), None);
        self.start(SEND, Operation::Send(batch));
        let mut batch = self.new_batch();
        batch.set_zero_copy(true);
        self.start(SEND_ZERO_COPY, Operation::Send(batch));
        let first = Some(self.new_batch());
        let addr = Addr::Inet(([127, 0, 0, 1], 9).into());
        let connect = Connect { addr, options: ConnectOptions::default(), first };
        self.start(CONNECT, Operation::Connect(Box::new(connect)));
        for slot in [CLOSE, CLOSE_LISTENER] {
            self.closing.push(self.uring.fd(key(slot)).expect("an open slot").as_raw_fd());
            self.start(slot, Operation::Close(CloseMode::Orderly));
        }
        self.start(ACCEPT, Operation::Accept);
    }

    fn new_batch(&mut self) -> SendBatch {
        let mut batch = self.memory.queue();
        batch.push(Bytes::from_owner(DropCounter(Arc::clone(&self.dropped))).into(), Some(1));
        batch
    }

    fn start(&mut self, slot: usize, operation: Operation) {
        let started = self.uring.start(key(slot), operation);
        assert!(matches!(started, Started::InFlight), "{started:?}");
    }

    /// Starts a receive into the pool, unless one is in flight or the slot is closed.
    pub(super) fn receive(&mut self, slot: usize) {
        if !self.receiving[slot] && self.uring.fd(key(slot)).is_some() {
            self.start(slot, Operation::Recv);
            self.receiving[slot] = true;
        }
    }

    /// Injects a CQE, and takes the completed operations as the engine would.
    pub(super) fn post(&mut self, (user_data, result, flags): Cqe) {
        let (result, new_fd) = without_foreign_fds(user_data, result);
        let dropped = self.dropped.load(Ordering::Relaxed);
        self.uring.inject((user_data, result, flags));
        if self.violation().is_some() {
            // SAFETY: opened for this CQE; after a violation nothing else owns it.
            drop(new_fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        assert_eq!(self.dropped.load(Ordering::Relaxed), dropped, "the backend drops no payload");
        while let Some(completed) = self.uring.next() {
            assert!(self.violation().is_none(), "{completed:?} after a violation");
            self.record(completed);
        }
        assert_disjoint(&self.uring.buffers.pools(), self.leases.iter());
    }

    fn record(&mut self, Completed { key, more, outcome }: Completed<OwnedFd>) {
        let slot = if matches!(outcome, Outcome::Woken) { SLOTS } else { key.slot() };
        let kind = match outcome {
            Outcome::Received(lease) => {
                assert!(!lease.is_empty() && lease.len() <= 4096);
                self.leases.push(lease);
                OpKind::Recv
            }
            Outcome::Filled(recv_buf, _) => {
                assert_eq!(slot, RECV_INTO);
                let buffer = self.recv_memory.end(recv_buf);
                assert!(buffer.len() <= 100);
                OpKind::Recv
            }
            Outcome::RecvEnded(_) => OpKind::Recv,
            Outcome::HungUp(_) => OpKind::Hangup,
            Outcome::Sent(batch, result) => {
                assert!(result.get().unwrap_or(0) <= batch.bytes());
                self.batches.push(batch);
                OpKind::Send
            }
            Outcome::Released(payload) => return self.released.push(*payload),
            Outcome::Connected(_) => OpKind::Connect,
            Outcome::Accepted(_) | Outcome::AcceptFailed(_) => OpKind::Accept,
            Outcome::Closed => OpKind::Close,
            Outcome::Woken => return,
        };
        if kind == OpKind::Recv {
            self.receiving[slot] &= more;
        }
        if !more {
            let repeats = kind == OpKind::Recv && slot != RECV_INTO;
            assert!(
                repeats || !self.ended.contains(&(slot, kind)),
                "{kind:?} of {slot} completes twice"
            );
            self.ended.push((slot, kind));
        }
    }

    pub(super) fn violation(&self) -> Option<&'static str> {
        self.uring.violation.map(|violation| violation.0)
    }

    /// A valid CQE of the operation in flight in a slot.
    pub(super) fn valid_cqe(&mut self, slot: usize, len: u32, more: bool) -> Cqe {
        let Some(state) = self.uring.find_slot(key(slot)) else {
            return (pack(Kind::Close, key(slot)), 0, 0);
        };
        let kinds = [state.recv, state.send, state.open];
        let kind = kinds.into_iter().find(|kind| *kind != Kind::Idle);
        let kind = kind.unwrap_or(Kind::Cancel);
        let zero_copy = kind == Kind::SendZeroCopy;
        let share = if zero_copy { self.uring.zero_copy_of(key(slot)) } else { None };
        let user_data = match kind {
            Kind::Cancel => pack(kind, Key::NONE),
            _ => pack(kind, share.unwrap_or(key(slot))),
        };
        let flag_if = |on: bool, flag| if on { flag } else { 0 };
        let buffers = &self.uring.buffers;
        if !matches!(kind, Kind::Recv | Kind::RecvFirst) || !buffers.has_ring() {
            return (user_data, len.min(100) as i32, flag_if(zero_copy && more, F_MORE));
        }
        let (pool, incremental) = buffers.group(kind == Kind::RecvFirst);
        // The kernel takes the buffers of a ring in order. This takes the first one with room.
        let id = (0..4).find(|id| pool.room(*id).1 > 0).unwrap_or(0);
        let len = len.clamp(1, pool.room(id).1.max(1));
        let multishot = kind == Kind::Recv && self.uring.features.multishot_recv;
        let flags = flag_if(more && multishot, F_MORE) | flag_if(more && incremental, F_BUF_MORE);
        (user_data, len as i32, F_BUFFER | u32::from(id) << 16 | flags)
    }
}

/// The backend owns a descriptor that a CQE returns. So such a result is replaced: by an error, or
/// by a descriptor that is opened here.
fn without_foreign_fds(user_data: u64, result: i32) -> (i32, Option<RawFd>) {
    let token = unpack(user_data, EngineNumber::TEST);
    let returns_fd = token.is_some_and(|token| matches!(token.kind, Kind::Accept | Kind::Socket));
    match returns_fd && result >= 0 {
        false => (result, None),
        true if result % 2 == 0 => (-libc::EMFILE, None),
        true => {
            let fd = std::fs::File::open("/dev/null").expect("/dev/null").into_raw_fd();
            (fd, Some(fd))
        }
    }
}
