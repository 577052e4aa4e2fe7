//! A kernel that lies, for tests: completions, possible and impossible, fed to a real ring that is
//! never entered. Owns: the way to feed them.

use super::Uring;
use super::setup::{self, NoRing};
use super::token::{Kind, pack, unpack};
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
use crate::waker::Inbox;
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const F_BUFFER: u32 = 1;
const F_MORE: u32 = 1 << 1;
const F_NOTIF: u32 = 1 << 3;
const F_BUF_MORE: u32 = 1 << 4;

/// The slots of a stage, and what is in flight in each. The first ones receive.
const FIRST: usize = 0;
const AGAIN: usize = 1;
const FILLS: usize = 2;
const SENDS: usize = 3;
const SENDS_ZERO_COPY: usize = 4;
const CONNECTS: usize = 5;
const CLOSES: usize = 6;
const LISTENS: usize = 7;
const CLOSES_LISTENER: usize = 8;
const SLOTS: usize = 9;

/// A completion: user_data, result and flags.
type Completion = (u64, i32, u32);

/// A part of what a violation is called, and a completion that is one.
type Case = (&'static str, fn(&mut Stage) -> Completion);

impl Uring {
    /// Takes a completion as if it came from the kernel; what it means comes with the next
    /// [`Backend::next`].
    fn feed(&mut self, (user_data, result, flags): Completion) {
        let completed = self.translate(user_data, result, flags);
        assert!(completed.is_none() || self.violation.is_none(), "a violation is handed out");
        self.done.extend(completed);
    }

    /// Says that the descriptor of an open connection was closed.
    pub(crate) fn lie_about_a_close(&mut self, key: Key) {
        self.feed((pack(Kind::Close, key), 0, 0));
    }

    /// Says that a send in flight sent much more than it was given.
    pub(crate) fn lie_about_a_send(&mut self, key: Key) {
        self.feed((pack(Kind::Send, key), i32::MAX, 0));
    }
}

fn key(slot: usize) -> Key {
    Key::new(slot, 1, EngineNumber::TEST)
}

/// The ways to run a ring that differ in how it receives.
fn config(way: usize) -> Config {
    let tuning = Tuning::default().ring_entries(512, 1024);
    let config = Config::default().ignore_environment(true).tuning(tuning).buffers(4, 256);
    match way {
        0 => config.tier(Tier::Deferred),
        1 => config.tier(Tier::Multishot).disable(Capability::Incremental),
        2 => config.tier(Tier::Oneshot),
        3 => config.tier(Tier::Oneshot).disable(Capability::BufRing),
        _ => config.tier(Tier::Polled),
    }
}

const WAYS: usize = 5;

/// A payload that counts its drop.
struct Counted(Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &[b'z'; 1000]
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A ring with something of each kind in flight.
struct Stage {
    uring: Uring,
    memory: SendMemory,
    recv_memory: RecvBufPool,
    receiving: [bool; SLOTS],
    leases: Vec<Lease>,
    /// What came back, and was not handed on.
    batches: Vec<SendBatch>,
    released: Vec<Payload>,
    /// Operations that ended: slot and kind.
    ended: Vec<(usize, OpKind)>,
    /// Drops of the payloads of the two sends, and of the connect's.
    dropped: Arc<AtomicUsize>,
    /// Descriptors that the ring was told to close.
    closing: Vec<RawFd>,
    _peers: Vec<UnixStream>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: given to a ring that was never entered.
        self.closing.drain(..).for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
}

impl Stage {
    /// `None`, and it says why, if this machine has no such ring.
    fn new(config: &Config) -> Option<Stage> {
        let uring = open(config, &Inbox::new().expect("an eventfd"))?;
        let mut stage = Stage {
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
        stage.begin();
        Some(stage)
    }

    fn begin(&mut self) {
        self.uring.buffers.refill();
        self.uring.arm_wake();
        for slot in (0..SLOTS).filter(|slot| ![CONNECTS, LISTENS, CLOSES_LISTENER].contains(slot)) {
            let (near, far) = UnixStream::pair().expect("a socketpair");
            self.uring.open(key(slot), Open::Stream(near.into())).expect("a slot");
            self._peers.push(far);
        }
        let addr = Addr::Inet(([127, 0, 0, 1], 0).into());
        for slot in [LISTENS, CLOSES_LISTENER] {
            let open = Open::Listen(&addr, &ListenOptions::default());
            self.uring.open(key(slot), open).expect("a listener");
        }
        self.uring.slot(key(AGAIN)).set(super::slot::mark::FRESH, false);
        for slot in [FIRST, AGAIN, SENDS, SENDS_ZERO_COPY] {
            self.receive(slot);
        }
        self.uring.cancel(key(AGAIN), OpKind::Recv);
        let recv_buf = self.recv_memory.begin(BytesMut::new(), 100);
        self.start(FILLS, Operation::RecvInto(recv_buf));
        let mut batch = self.batch();
        batch.push(vec![2; 1000].into(), None);
        self.start(SENDS, Operation::Send(batch));
        let mut batch = self.batch();
        batch.set_zero_copy(true);
        self.start(SENDS_ZERO_COPY, Operation::Send(batch));
        let first = Some(self.batch());
        let nobody = Addr::Inet(([127, 0, 0, 1], 9).into());
        let connect = Connect { addr: nobody, options: ConnectOptions::default(), first };
        self.start(CONNECTS, Operation::Connect(Box::new(connect)));
        for slot in [CLOSES, CLOSES_LISTENER] {
            self.closing.push(self.uring.fd(key(slot)).expect("open").as_raw_fd());
            self.start(slot, Operation::Close(CloseMode::Orderly));
        }
        self.start(LISTENS, Operation::Accept);
    }

    fn batch(&mut self) -> SendBatch {
        let mut batch = self.memory.queue();
        batch.push(Bytes::from_owner(Counted(Arc::clone(&self.dropped))).into(), Some(1));
        batch
    }

    fn start(&mut self, slot: usize, operation: Operation) {
        let started = self.uring.start(key(slot), operation);
        assert!(matches!(started, Started::InFlight), "{started:?}");
    }

    fn receive(&mut self, slot: usize) {
        if !self.receiving[slot] && self.uring.fd(key(slot)).is_some() {
            self.start(slot, Operation::Recv);
            self.receiving[slot] = true;
        }
    }

    /// Feeds a completion, and takes what comes of it as the engine would.
    fn take(&mut self, (user_data, result, flags): Completion) {
        let (result, made) = without_foreign_descriptors(user_data, result);
        let before = self.dropped.load(Ordering::Relaxed);
        self.uring.feed((user_data, result, flags));
        if self.violation().is_some() {
            // SAFETY: made for this completion, and nobody took it.
            drop(made.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        assert_eq!(self.dropped.load(Ordering::Relaxed), before, "a payload is given back alive");
        while let Some(completed) = self.uring.next() {
            assert!(self.violation().is_none(), "{completed:?} comes after a violation");
            self.finish(completed);
        }
        assert_disjoint(&self.uring.buffers.pools(), self.leases.iter());
    }

    fn finish(&mut self, Completed { key, more, outcome }: Completed<OwnedFd>) {
        let slot = if matches!(outcome, Outcome::Woken) { SLOTS } else { key.slot() };
        let kind = match outcome {
            Outcome::Received(lease) => {
                assert!(!lease.is_empty() && lease.len() <= 4096);
                self.leases.push(lease);
                OpKind::Recv
            }
            Outcome::Filled(recv_buf, _) => {
                assert_eq!(slot, FILLS);
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
            let again = kind == OpKind::Recv && slot != FILLS;
            assert!(again || !self.ended.contains(&(slot, kind)), "{kind:?} of {slot} ends twice");
            self.ended.push((slot, kind));
        }
    }

    fn violation(&self) -> Option<&'static str> {
        self.uring.violation.map(|violation| violation.0)
    }

    /// A completion that can be, of what is in flight in a slot.
    fn honest(&mut self, slot: usize, len: u32, more: bool) -> Completion {
        let Some(state) = self.uring.known(key(slot)) else {
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
        // The ring holds its buffers in order; one that is used up is not tried again here.
        let id = (0..4).find(|id| pool.room(*id).1 > 0).unwrap_or(0);
        let len = len.clamp(1, pool.room(id).1.max(1));
        let multishot = kind == Kind::Recv && self.uring.style.multishot_recv;
        let flags = flag_if(more && multishot, F_MORE) | flag_if(more && incremental, F_BUF_MORE);
        (user_data, len as i32, F_BUFFER | u32::from(id) << 16 | flags)
    }
}

/// `None`, and it says why, if this machine has no such ring.
fn open(config: &Config, inbox: &Arc<Inbox>) -> Option<Uring> {
    match setup::open(config, EngineNumber::TEST, inbox) {
        Ok(opened) => Some(opened.backend),
        Err(NoRing::Refused(why)) => skip(&format!("{why:?}")),
        Err(NoRing::NoTier { why, .. }) => skip(&why),
        Err(NoRing::Error(error)) => panic!("{error}"),
    }
}

fn skip<T>(why: &str) -> Option<T> {
    println!("skipped: {why}");
    None
}

/// A descriptor that the kernel says it made must be nobody else's: an error, or one that was made
/// for this.
fn without_foreign_descriptors(user_data: u64, result: i32) -> (i32, Option<RawFd>) {
    let token = unpack(user_data, EngineNumber::TEST);
    let makes = token.is_some_and(|token| matches!(token.kind, Kind::Accept | Kind::Socket));
    match makes && result >= 0 {
        false => (result, None),
        true if result % 2 == 0 => (-libc::EMFILE, None),
        true => {
            let fd = std::fs::File::open("/dev/null").expect("/dev/null").into_raw_fd();
            (fd, Some(fd))
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Honest(usize, u32, bool),
    Any(Completion),
    Receive(usize),
    Cancel(usize, OpKind),
    DropLease(prop::sample::Index),
}

/// Of each kind there is, and of some that there are not; for keys in use, stale and never used.
fn user_data() -> impl Strategy<Value = u64> {
    let generation = prop_oneof![9 => Just(1u64), 1 => 0u64..3];
    let token = (0u64..Kind::Cancel as u64 + 3, generation, 0u64..SLOTS as u64 + 2);
    let token = token
        .prop_map(|(kind, generation, slot)| kind << Key::ENGINE_SHIFT | generation << 36 | slot);
    let own = prop_oneof![
        Just(pack(Kind::Wake, Key::NONE)),
        Just(pack(Kind::Cancel, Key::NONE)),
        Just(pack(Kind::SendZeroCopy, key(0))),
    ];
    prop_oneof![8 => token, 2 => own, 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let errnos = vec![libc::EAGAIN, libc::ENOBUFS, libc::ECANCELED, libc::ECONNRESET];
    let errno = prop::sample::select(errnos).prop_map(|errno| -errno);
    let result = prop_oneof![
        4 => errno,
        1 => Just(0),
        6 => 1..2100i32,
        1 => any::<i32>(),
        1 => Just(i32::MIN),
        1 => Just(i32::MAX),
    ];
    let buffer = prop_oneof![8 => 0u32..5, 1 => 0u32..0x1_0000].prop_map(|id| F_BUFFER | id << 16);
    let buffer = prop_oneof![Just(0), buffer];
    let bits = prop_oneof![
        5 => Just(0),
        2 => Just(F_MORE),
        1 => Just(F_BUF_MORE),
        1 => Just(F_MORE | F_BUF_MORE),
        1 => Just(F_NOTIF),
        1 => any::<u32>(),
    ];
    let flags = (buffer, bits).prop_map(|(buffer, bits)| buffer | bits);
    let kinds = [OpKind::Connect, OpKind::Accept, OpKind::Recv, OpKind::Send, OpKind::Close];
    let kind = prop::sample::select(kinds.to_vec());
    prop_oneof![
        10 => (0..SLOTS, 0u32..300, any::<bool>())
            .prop_map(|(slot, len, more)| Step::Honest(slot, len, more)),
        3 => (user_data(), result, flags).prop_map(Step::Any),
        4 => (0..SLOTS).prop_map(Step::Receive),
        1 => (0..SLOTS, kind).prop_map(|(slot, kind)| Step::Cancel(slot, kind)),
        4 => any::<prop::sample::Index>().prop_map(Step::DropLease),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever a kernel says, in whatever order: no panic, no byte in two leases or outside the
    /// filled part of a buffer, and nothing at all after the first thing that cannot be.
    #[test]
    fn a_lying_kernel_is_found_out(
        way in 0..WAYS,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let Some(mut stage) = Stage::new(&config(way)) else { return Ok(()) };
        for step in steps {
            match step {
                Step::Honest(slot, len, more) => {
                    let completion = stage.honest(slot, len, more);
                    stage.take(completion);
                }
                Step::Any(completion) => stage.take(completion),
                Step::Receive(slot @ (FIRST | AGAIN | SENDS | SENDS_ZERO_COPY)) => {
                    stage.receive(slot);
                }
                Step::DropLease(pick) if !stage.leases.is_empty() => {
                    drop(stage.leases.swap_remove(pick.index(stage.leases.len())));
                }
                Step::Cancel(slot, kind) => stage.uring.cancel(key(slot), kind),
                Step::Receive(_) | Step::DropLease(_) => {}
            }
            if stage.violation().is_some() {
                prop_assert!(stage.uring.has_next(), "the engine is to ask");
                prop_assert!(stage.uring.next().is_none(), "something after a violation");
                prop_assert!(stage.uring.wait(Some(0)).is_err());
                break;
            }
        }
        let violated = stage.violation().is_some();
        if violated {
            let clean = stage.uring.shut_down(Duration::ZERO);
            prop_assert!(!clean, "a kernel that lied has let go of nothing");
        }
        let dropped = Arc::clone(&stage.dropped);
        let back = stage.batches.len() + stage.released.len();
        stage.batches.clear();
        stage.released.clear();
        prop_assert!(dropped.load(Ordering::Relaxed) <= back, "what was in flight lives");
    }
}

/// Each of these by itself is one.
#[test]
fn violations_by_name() {
    let modern: &[Case] = &[
        ("does not have", |_| (pack(Kind::RecvFirst, key(FIRST)), 1, F_BUFFER | 999 << 16)),
        ("has room for", |_| (pack(Kind::Recv, key(AGAIN)), 257, F_BUFFER)),
        ("has room for", |_| (pack(Kind::RecvFirst, key(FIRST)), 4097, F_BUFFER)),
        ("as a whole", |_| (pack(Kind::RecvFirst, key(FIRST)), 1, F_BUFFER | F_BUF_MORE)),
        ("names no buffer", |_| (pack(Kind::RecvFirst, key(FIRST)), 1, 0)),
        ("goes on", |_| (pack(Kind::RecvFirst, key(FIRST)), 1, F_BUFFER | F_MORE)),
        ("goes on", |_| (pack(Kind::Recv, key(AGAIN)), 0, F_MORE)),
        ("goes on", |_| (pack(Kind::Recv, key(AGAIN)), -libc::ENOBUFS, F_MORE)),
        ("goes on without", |_| (pack(Kind::Accept, key(LISTENS)), -libc::EMFILE, F_MORE)),
        ("goes on", |_| (pack(Kind::Socket, key(CONNECTS)), 0, F_MORE)),
        ("not in flight", |_| (pack(Kind::Connect, key(CONNECTS)), 0, 0)),
        ("not in flight", |_| (pack(Kind::Recv, key(FIRST)), 0, 0)),
        ("not in flight", |_| (pack(Kind::RecvFirst, key(AGAIN)), 0, 0)),
        ("out of order", |_| (pack(Kind::SendZeroCopy, key(0)), 0, F_NOTIF)),
        ("more bytes than it was given", |_| (pack(Kind::SendZeroCopy, key(0)), 1001, 0)),
        ("none is asked for", |_| (pack(Kind::SendZeroCopy, key(0)), 1, F_BUFFER)),
        ("out of order", |stage| {
            stage.take((pack(Kind::SendZeroCopy, key(0)), 10, F_MORE));
            (pack(Kind::SendZeroCopy, key(0)), 10, F_MORE)
        }),
        ("out of order", |stage| {
            stage.take((pack(Kind::SendZeroCopy, key(0)), 10, F_MORE));
            (pack(Kind::SendZeroCopy, key(0)), 0, F_MORE | F_NOTIF)
        }),
    ];
    let every: &[Case] = &[
        ("more bytes than it was given room", |_| (pack(Kind::RecvInto, key(FILLS)), i32::MAX, 0)),
        ("more bytes than it was given room", |_| (pack(Kind::RecvInto, key(FILLS)), 101, 0)),
        ("goes on", |_| (pack(Kind::RecvInto, key(FILLS)), 1, F_MORE)),
        ("none is asked for", |_| (pack(Kind::RecvInto, key(FILLS)), 1, F_BUFFER)),
        ("not in flight", |_| (pack(Kind::Close, key(FIRST)), 0, 0)),
        ("not in flight", |_| (pack(Kind::Close, key(LISTENS)), 0, 0)),
        ("not in flight", |_| (pack(Kind::Idle, key(FIRST)), 0, 0)),
        ("not in flight", |_| (pack(Kind::SendPoll, key(SENDS)), 1, 0)),
        ("not in flight", |_| (pack(Kind::Timeout, key(0)), 0, 0)),
        ("goes on", |_| (pack(Kind::Close, key(CLOSES)), 0, F_MORE)),
        ("none is asked for", |_| (pack(Kind::Close, key(CLOSES)), 0, F_BUFFER)),
        ("not in flight", |_| (pack(Kind::Send, key(FIRST)), 1, F_NOTIF)),
        ("notification", |_| (pack(Kind::Send, key(SENDS)), 1, F_NOTIF)),
        ("goes on", |_| (pack(Kind::Send, key(SENDS)), 1, F_MORE)),
        ("none is asked for", |_| (pack(Kind::Send, key(SENDS)), 1, F_BUFFER)),
        ("more bytes than it was given", |_| (pack(Kind::Send, key(SENDS)), 2001, 0)),
        ("none is asked for", |_| (pack(Kind::Wake, Key::NONE), 1, F_BUFFER)),
        ("goes on", |_| (pack(Kind::Wake, Key::NONE), 1, F_MORE)),
        ("not in flight", |stage| {
            stage.take((pack(Kind::Wake, Key::NONE), 1, 0));
            (pack(Kind::Wake, Key::NONE), 1, 0)
        }),
        ("not in flight", |stage| {
            let cancel = (pack(Kind::Cancel, Key::NONE), 0, 0);
            stage.take(cancel);
            cancel
        }),
        ("goes on", |_| (pack(Kind::Cancel, Key::NONE), 0, F_MORE)),
        ("not in flight", |stage| {
            let sent = (pack(Kind::Send, key(SENDS)), 10, 0);
            stage.take(sent);
            sent
        }),
    ];
    let whole: &[Case] = &[
        ("as a whole", |_| (pack(Kind::Recv, key(AGAIN)), 1, F_BUFFER | F_BUF_MORE)),
        ("has room for", |_| (pack(Kind::Recv, key(AGAIN)), 257, F_BUFFER)),
    ];
    let once: &[Case] = &[
        ("goes on", |_| (pack(Kind::Recv, key(AGAIN)), 1, F_BUFFER | F_MORE)),
        ("as a whole", |_| (pack(Kind::Recv, key(AGAIN)), 1, F_BUFFER | F_BUF_MORE)),
        ("goes on", |_| (pack(Kind::Accept, key(LISTENS)), -libc::EAGAIN, F_MORE)),
    ];
    let polled: &[Case] = &[
        ("none is asked for", |_| (pack(Kind::RecvPoll, key(AGAIN)), 1, F_BUFFER)),
        ("goes on", |_| (pack(Kind::RecvPoll, key(AGAIN)), 1, F_MORE)),
        ("the kernel has none", |stage| {
            stage.take((pack(Kind::RecvPoll, key(SENDS)), 1, 0));
            (pack(Kind::Recv, key(SENDS)), 1, F_BUFFER)
        }),
        ("has room for", |stage| {
            stage.take((pack(Kind::RecvPoll, key(SENDS)), 1, 0));
            (pack(Kind::Recv, key(SENDS)), 257, 0)
        }),
        ("goes on", |stage| {
            stage.take((pack(Kind::RecvPoll, key(SENDS)), 1, 0));
            (pack(Kind::Recv, key(SENDS)), 1, F_MORE)
        }),
    ];
    let not_filled = every.iter().filter(|(what, _)| !what.contains("given room"));
    let not_filled: Vec<Case> = not_filled.copied().collect();
    found_out(0, modern);
    (0..WAYS - 1).for_each(|way| found_out(way, every));
    found_out(1, whole);
    found_out(2, once);
    found_out(3, polled);
    found_out(4, polled);
    // There the caller's buffer waits for a poll first.
    found_out(4, &not_filled[2..]);
}

fn found_out(way: usize, cases: &[Case]) {
    for (index, (what, lie)) in cases.iter().enumerate() {
        let Some(mut stage) = Stage::new(&config(way)) else { return };
        let completion = lie(&mut stage);
        assert_eq!(stage.violation(), None, "{what:?}, {index} in way {way}");
        stage.take(completion);
        let violation = stage.violation().unwrap_or("nothing");
        assert!(violation.contains(what), "{violation:?}, not {what:?}, {index} in way {way}");
    }
}

/// Without buffers of its own left, a first receive goes on with those of the others.
#[test]
fn a_first_receive_without_a_buffer_goes_on() {
    let Some(mut stage) = Stage::new(&config(0)) else { return };
    assert_eq!(stage.uring.slot(key(FIRST)).recv, Kind::RecvFirst);
    stage.take((pack(Kind::RecvFirst, key(FIRST)), -libc::ENOBUFS, 0));
    assert_eq!(stage.uring.slot(key(FIRST)).recv, Kind::Recv);
    assert!(stage.violation().is_none() && stage.receiving[FIRST], "nothing is told of it");
}

/// The memory of a zero-copy send lives until its notification, and comes back once.
#[test]
fn a_violation_ends_an_endless_shut_down() {
    let inbox = Inbox::new().expect("an eventfd");
    let Some(mut uring) = open(&config(0), &inbox) else { return };
    uring.wait(Some(0)).expect("the poll of the waker is armed");
    // As if its completion had come already: the real one is a second one then.
    uring.wake_armed = false;
    let eventfd = inbox.fd().try_clone_to_owned().expect("a duplicate");
    std::io::Write::write_all(&mut std::fs::File::from(eventfd), &1u64.to_ne_bytes())
        .expect("room in the counter");
    assert!(!uring.shut_down(Duration::MAX) && uring.violation.is_some());
}

#[test]
fn a_payload_comes_back_with_its_notification() {
    let Some(mut stage) = Stage::new(&config(0)) else { return };
    let Some(share) = stage.uring.zero_copy_of(key(SENDS_ZERO_COPY)) else {
        return skip::<()>("no SEND_ZC here").unwrap_or_default();
    };
    let (result, notice) = (pack(Kind::SendZeroCopy, share), F_NOTIF);
    stage.take((result, 1000, F_MORE));
    assert_eq!((stage.batches.len(), stage.released.len()), (1, 0));
    stage.take((result, 0, notice));
    assert_eq!((stage.batches.len(), stage.released.len()), (1, 1));
    let before = stage.uring.ring.in_flight;
    stage.take((result, 0, notice));
    assert_eq!((stage.released.len(), stage.violation()), (1, None));
    assert_eq!(stage.uring.stats.unknown_completions, 1, "the share is nobody's any more");
    assert_eq!(stage.uring.ring.in_flight, before, "it ended nothing");
}

/// What comes for a key after its close is counted, and its descriptor closed.
#[test]
fn a_key_that_was_closed_is_nobodys() {
    for way in 0..WAYS {
        let Some(mut stage) = Stage::new(&config(way)) else { return };
        let close = (pack(Kind::Close, key(CLOSES)), 0, 0);
        stage.take(close);
        assert_eq!(stage.ended, [(CLOSES, OpKind::Close)]);
        let before = stage.uring.ring.in_flight;
        stage.take(close);
        for kind in [Kind::Recv, Kind::Send, Kind::RecvInto, Kind::Connect] {
            stage.take((pack(kind, key(CLOSES)), 1, F_BUFFER | F_MORE));
            stage.take((pack(kind, key(CLOSES)), i32::MIN, 0));
        }
        let mut expected = 9;
        for kind in [Kind::Accept, Kind::Socket] {
            let (near, far) = UnixStream::pair().expect("a socketpair");
            stage.uring.feed((pack(kind, key(CLOSES)), near.into_raw_fd(), 0));
            expected += 1;
            far.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let read = std::io::Read::read(&mut &far, &mut [0]).expect("the other end is closed");
            assert_eq!(read, 0);
        }
        assert_eq!(stage.uring.stats.unknown_completions, expected);
        assert_eq!((stage.violation(), stage.ended.len()), (None, 1));
        assert_eq!(stage.uring.ring.in_flight, before, "none of it ended anything");
    }
}

/// The least result is no number of bytes, whatever it is the result of.
#[test]
fn the_least_result_is_an_error_of_each_operation() {
    for way in 0..WAYS {
        let Some(mut stage) = Stage::new(&config(way)) else { return };
        for slot in 0..SLOTS {
            for _ in 0..4 {
                let (user_data, ..) = stage.honest(slot, 1, false);
                if unpack(user_data, EngineNumber::TEST).is_some_and(|t| t.kind != Kind::Cancel) {
                    stage.take((user_data, i32::MIN, 0));
                }
            }
        }
        assert_eq!(stage.violation(), None);
        // Of what began, a connect with its payload included.
        let kinds = |kind| stage.ended.iter().filter(|(_, ended)| *ended == kind).count();
        assert_eq!([OpKind::Recv, OpKind::Send, OpKind::Connect].map(kinds), [5, 3, 1]);
        assert_eq!([OpKind::Accept, OpKind::Close].map(kinds), [1, 2]);
    }
}
