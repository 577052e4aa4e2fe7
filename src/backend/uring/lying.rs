//! A kernel that lies, for tests: completions, possible and impossible, fed to the reaper of a real
//! ring that is never entered. Owns: the way to feed them.

use super::setup::{self, NoRing};
use super::slot::mark;
use super::token::{Kind, pack, unpack};
use super::{Done, Next, Outcome, Uring};
use crate::backend::{Backend, CloseHow, ConnectRequest, Op};
use crate::buf::{Disposal, Fill, Lease, SendQueue, assert_disjoint};
use crate::caps::Capability;
use crate::config::{Config, Tier};
use crate::id::Key;
use crate::net::Addr;
use crate::options::{ConnectOptions, ListenOptions};
use crate::waker::Inbox;
use bytes::BytesMut;
use proptest::prelude::*;
use std::num::NonZeroU32;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const F_BUFFER: u32 = 1;
const F_MORE: u32 = 1 << 1;
const F_NOTIF: u32 = 1 << 3;
const F_BUF_MORE: u32 = 1 << 4;
/// The connections of a stage, and what each of them is for.
const CONNS: usize = 8;
const FILLS: usize = 2;
const SENDS: usize = 3;
const SENDS_ZERO_COPY: usize = 4;
const CONNECTS: usize = 5;
const CLOSES: usize = 6;

/// A completion: user_data, result and flags.
type Completion = (u64, i32, u32);

/// A part of what a violation is called, and a completion that is one.
type Case = (&'static str, fn(&mut Stage) -> Completion);

impl Uring {
    /// Takes a completion as if it came from the kernel; what it means comes with the next
    /// [`Backend::next`].
    fn feed(&mut self, user_data: u64, result: i32, flags: u32, data: impl FnMut(Key, bool, Lease)) {
        match self.translate(user_data, result, flags, data) {
            Ok(Some(Next::Done(done))) => self.done.push_back(done),
            Ok(_) => {}
            Err(violation) => self.distrust(violation),
        }
    }

    /// Says that the descriptor of an open connection was closed.
    pub(crate) fn lie_about_a_close(&mut self, key: Key) {
        self.feed(pack(Kind::Close, key), 0, 0, |_, _, _| panic!("no data"));
    }

    /// Says that a send in flight sent much more than it was given.
    pub(crate) fn lie_about_a_send(&mut self, key: Key) {
        self.feed(pack(Kind::Send, key), i32::MAX, 0, |_, _, _| panic!("no data"));
    }
}

fn key(slot: usize) -> Key {
    Key { slot: slot as u32, generation: NonZeroU32::MIN }
}

/// The ways to run a ring that differ in how it receives.
fn config(way: usize) -> Config {
    let config = Config::default().submission_entries(512).completion_entries(1024).buffers(4, 256);
    match way {
        0 => config.tier(Tier::Deferred),
        1 => config.tier(Tier::Multishot).disable(Capability::Incremental),
        2 => config.tier(Tier::Oneshot),
        3 => config.tier(Tier::Oneshot).disable(Capability::BufRing),
        _ => config.tier(Tier::Polled),
    }
}

const WAYS: usize = 5;

/// A ring with something of each kind in flight, and what the engine would keep for it.
struct Stage {
    uring: Uring,
    queues: Vec<SendQueue>,
    disposal: Disposal,
    fill: Option<Fill>,
    receiving: [bool; CONNS],
    leases: Vec<Lease>,
    /// Descriptors that the ring was told to close.
    closing: Vec<RawFd>,
    _peers: Vec<UnixStream>,
}

impl Stage {
    /// `None`, and it says why, if this machine has no such ring.
    fn new(config: &Config) -> Option<Stage> {
        let uring = match setup::open(config, &Inbox::new().expect("an eventfd")) {
            Ok(opened) => opened.backend,
            Err(NoRing::Refused(why)) => return skip(&format!("{why:?}")),
            Err(NoRing::NoTier { why, .. }) => return skip(&why),
            Err(NoRing::Error(error)) => panic!("{error}"),
        };
        let mut stage = Stage {
            uring,
            queues: std::iter::repeat_with(SendQueue::default).take(CONNS).collect(),
            disposal: Disposal::default(),
            fill: None,
            receiving: [false; CONNS],
            leases: Vec::new(),
            closing: Vec::new(),
            _peers: Vec::new(),
        };
        stage.start();
        Some(stage)
    }

    fn start(&mut self) {
        self.uring.buf_ring.iter_mut().chain(&mut self.uring.single_shot_ring).for_each(super::BufRing::refill);
        self.uring.arm_wake();
        for slot in (0..CONNS).filter(|slot| *slot != CONNECTS) {
            let (near, far) = UnixStream::pair().expect("a socketpair");
            self.uring.attach(key(slot), near.into()).expect("a slot");
            self._peers.push(far);
        }
        self.uring.slot(key(1)).set(mark::FRESH, false);
        (0..CLOSES).filter(|slot| ![FILLS, CONNECTS].contains(slot)).for_each(|slot| self.receive(slot));
        self.uring.cancel(key(1), Op::Recv).expect("room");
        let fill = self.fill.insert(Fill::new(BytesMut::new(), 100));
        self.uring.start_recv_into(key(FILLS), fill).expect("room");
        for slot in [SENDS, SENDS_ZERO_COPY, CONNECTS] {
            self.queues[slot].push(vec![1; 1000].into(), Some(slot as u64));
        }
        self.queues[SENDS].push(vec![2; 1000].into(), None);
        self.uring.start_send(key(SENDS), &mut self.queues[SENDS], false).expect("room");
        let zero_copy = self.uring.can_zero_copy();
        let queue = &mut self.queues[SENDS_ZERO_COPY];
        self.uring.start_send(key(SENDS_ZERO_COPY), queue, zero_copy).expect("room");
        let nobody = Addr::Inet(([127, 0, 0, 1], 9).into());
        let request = ConnectRequest { addr: nobody, options: ConnectOptions::default() };
        self.uring.start_connect(key(CONNECTS), &request, Some(&mut self.queues[CONNECTS])).expect("room");
        self.closing.push(self.uring.slot(key(CLOSES)).raw_fd());
        self.uring.start_close(key(CLOSES), CloseHow::Quiet).expect("room");
        for slot in 0..2 {
            let addr = Addr::Inet(([127, 0, 0, 1], 0).into());
            self.uring.listen(key(slot), &addr, &ListenOptions::default()).expect("a listener");
        }
        self.uring.start_accept(key(0)).expect("room");
        self.closing.push(self.uring.listener(key(1)).raw_fd());
        self.uring.start_close_listener(key(1)).expect("room");
    }

    fn receive(&mut self, slot: usize) {
        if !self.receiving[slot] && self.uring.slot(key(slot)).fd.is_some() {
            self.uring.start_recv(key(slot)).expect("room");
            self.receiving[slot] = true;
        }
    }

    /// Feeds a completion, and takes what comes of it as the engine would.
    fn take(&mut self, (user_data, result, flags): Completion) {
        let (result, made) = without_foreign_descriptors(user_data, result);
        let mut received = Vec::new();
        self.uring.feed(user_data, result, flags, |key, more, lease| received.push((key, more, lease)));
        if self.uring.violation().is_some() {
            assert!(received.is_empty(), "data of a completion that cannot be");
            // SAFETY: made for this completion, and nobody took it.
            drop(made.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        for (key, more, lease) in received {
            self.receiving[key.slot as usize] &= more;
            assert!(!lease.is_empty() && lease.len() <= 4096);
            self.leases.push(lease);
        }
        while let Next::Done(done) = self.uring.next(|_, _, _| panic!("the ring itself has nothing")) {
            assert!(self.uring.violation().is_none(), "{done:?} is handed out after a violation");
            self.finish(done);
        }
        let rings = [&self.uring.buf_ring, &self.uring.single_shot_ring];
        let mut pools: Vec<_> = rings.into_iter().flatten().map(|ring| ring.pool()).collect();
        pools.push(&self.uring.pool);
        assert_disjoint(&pools, self.leases.iter());
    }

    fn finish(&mut self, done: Done<OwnedFd>) {
        let slot = done.key.slot as usize;
        match (done.op, done.outcome) {
            (Op::Recv, Outcome::Filled(written)) => self.fill.take().expect("one fill").advance(written),
            (Op::Recv, _) if slot == FILLS => {}
            (Op::Recv, _) => self.receiving[slot] = false,
            (Op::Send, Outcome::Notified) => {
                if let Err(violation) = self.queues[slot].notice(&mut self.disposal) {
                    self.uring.distrust(violation);
                }
            }
            (Op::Send, outcome) => {
                if done.more {
                    self.queues[slot].expect_notice();
                }
                let taken = if let Outcome::Count(taken) = outcome { taken } else { 0 };
                if let Err(violation) = self.queues[slot].complete(taken, &mut self.disposal, |_| {}) {
                    self.uring.distrust(violation);
                }
            }
            _ => {}
        }
    }

    /// A completion that can be, of what is in flight in a slot.
    fn honest(&mut self, slot: usize, len: u32, more: bool) -> Completion {
        let kinds = [self.uring.slot(key(slot)).recv, self.uring.slot(key(slot)).send, self.uring.slot(key(slot)).open];
        let kind = kinds.into_iter().find(|kind| *kind != Kind::Idle).unwrap_or(Kind::Cancel);
        let user_data = pack(kind, if kind == Kind::Cancel { Key::NONE } else { key(slot) });
        let own = self.uring.single_shot_ring.as_ref().filter(|_| kind == Kind::RecvFirst);
        let ring = own.or(self.uring.buf_ring.as_ref()).filter(|_| matches!(kind, Kind::Recv | Kind::RecvFirst));
        let Some(ring) = ring else { return (user_data, len.min(100) as i32, 0) };
        // The ring holds its buffers in order; one that is used up is not tried again here.
        let id = (0..4).find(|id| ring.pool().room(*id).1 > 0).unwrap_or(0);
        let len = len.clamp(1, ring.pool().room(id).1.max(1));
        let flag_if = |on: bool, flag| if on { flag } else { 0 };
        // Only the main group can be piecewise, and is where the first receives have another.
        let piecewise = kind == Kind::Recv && self.uring.single_shot_ring.is_some();
        let multishot = kind == Kind::Recv && self.uring.style.multishot_recv;
        let flags = flag_if(more && multishot, F_MORE) | flag_if(more && piecewise, F_BUF_MORE);
        (user_data, len as i32, F_BUFFER | u32::from(id) << 16 | flags)
    }
}

fn skip<T>(why: &str) -> Option<T> {
    println!("skipped: {why}");
    None
}

/// A descriptor that the kernel says it made must be nobody else's: an error, or one that was made
/// for this.
fn without_foreign_descriptors(user_data: u64, result: i32) -> (i32, Option<RawFd>) {
    let makes = unpack(user_data).is_some_and(|token| matches!(token.kind, Kind::Accept | Kind::Socket));
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
    DropLease(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = 0u64..20;
    let generation = prop_oneof![9 => Just(1u64), 1 => 0u64..3];
    let token = (kind, generation, 0u64..10).prop_map(|(kind, generation, slot)| kind << 56 | generation << 32 | slot);
    let own = prop_oneof![Just(pack(Kind::Wake, Key::NONE)), Just(pack(Kind::Cancel, Key::NONE))];
    let user_data = prop_oneof![8 => token, 1 => own, 1 => any::<u64>()];
    let errno = prop_oneof![Just(libc::EAGAIN), Just(libc::ENOBUFS), Just(libc::ECANCELED), Just(libc::ECONNRESET)];
    let result = prop_oneof![4 => errno.prop_map(|errno| -errno), 1 => Just(0), 6 => 1..2100i32, 1 => any::<i32>(),
        1 => Just(i32::MIN)];
    let buffer = prop_oneof![8 => 0u32..5, 1 => 0u32..0x1_0000].prop_map(|id| F_BUFFER | id << 16);
    let buffer = prop_oneof![Just(0), buffer];
    let bits = prop_oneof![5 => Just(0), 2 => Just(F_MORE), 1 => Just(F_BUF_MORE), 1 => Just(F_MORE | F_BUF_MORE),
        1 => Just(F_NOTIF), 1 => any::<u32>()];
    let flags = (buffer, bits).prop_map(|(buffer, bits)| buffer | bits);
    prop_oneof![
        10 => (0..CONNS, 0u32..300, any::<bool>()).prop_map(|(slot, len, more)| Step::Honest(slot, len, more)),
        3 => (user_data, result, flags).prop_map(Step::Any),
        4 => (0..CLOSES).prop_map(Step::Receive),
        4 => any::<prop::sample::Index>().prop_map(Step::DropLease),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever a kernel says, in whatever order: no panic, no byte in two leases or outside the
    /// filled part of a buffer, and nothing at all after the first thing that cannot be.
    #[test]
    fn a_lying_kernel_is_found_out(way in 0..WAYS, steps in prop::collection::vec(step(), 1..60)) {
        let Some(mut stage) = Stage::new(&config(way)) else { return Ok(()) };
        for step in steps {
            match step {
                Step::Honest(slot, len, more) => {
                    let completion = stage.honest(slot, len, more);
                    stage.take(completion);
                }
                Step::Any(completion) => stage.take(completion),
                Step::Receive(slot) if stage.uring.violation().is_none() && ![FILLS, CONNECTS].contains(&slot) => {
                    stage.receive(slot);
                }
                Step::DropLease(pick) if !stage.leases.is_empty() => {
                    drop(stage.leases.swap_remove(pick.index(stage.leases.len())));
                }
                Step::Receive(_) | Step::DropLease(_) => {}
            }
            if stage.uring.violation().is_some() {
                prop_assert!(!stage.uring.has_next());
                let next = stage.uring.next(|_, _, _| panic!("data after a violation"));
                prop_assert!(matches!(next, Next::Nothing), "something after a violation");
                break;
            }
        }
        let violated = stage.uring.violation().is_some();
        let clean = stage.uring.shut_down(Duration::ZERO);
        prop_assert!(!(violated && clean), "a kernel that lied has let go of nothing");
        let closing = std::mem::take(&mut stage.closing);
        drop(stage);
        // SAFETY: given to a ring that was never entered.
        closing.into_iter().for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
}

/// Each of these by itself is one.
#[test]
fn violations_by_name() {
    let cases: &[Case] = &[
        ("not given", |_| (pack(Kind::RecvFirst, key(0)), 1, F_BUFFER | 999 << 16)),
        ("beyond its end", |_| (pack(Kind::Recv, key(1)), 257, F_BUFFER)),
        ("beyond its end", |_| (pack(Kind::RecvFirst, key(0)), 4097, F_BUFFER)),
        ("whole buffer", |_| (pack(Kind::RecvFirst, key(0)), 1, F_BUFFER | F_BUF_MORE)),
        ("into no buffer", |_| (pack(Kind::RecvFirst, key(0)), 1, 0)),
        ("caller's buffer", |_| (pack(Kind::Fill, key(FILLS)), i32::MAX, 0)),
        ("not in flight", |_| (pack(Kind::Recv, key(0)), 0, 0)),
        ("not in flight", |_| (pack(Kind::Close, key(0)), 0, 0)),
        ("not in flight", |_| (pack(Kind::CloseListener, key(0)), 0, 0)),
        ("not in flight", |_| (pack(Kind::Send, key(0)), 1, F_NOTIF)),
        ("not in flight", |stage| {
            let cancel = (pack(Kind::Cancel, Key::NONE), 0, 0);
            stage.take(cancel);
            cancel
        }),
        ("goes on", |_| (pack(Kind::Fill, key(FILLS)), 1, F_MORE)),
        ("goes on", |_| (pack(Kind::Recv, key(1)), 0, F_MORE)),
        ("none is asked for", |_| (pack(Kind::Fill, key(FILLS)), 1, F_BUFFER)),
        ("more bytes than it was given", |_| (pack(Kind::Send, key(SENDS)), 2001, 0)),
    ];
    for (what, lie) in cases {
        let Some(mut stage) = Stage::new(&config(0)) else { return };
        let completion = lie(&mut stage);
        assert_eq!(stage.uring.violation(), None);
        stage.take(completion);
        let violation = stage.uring.violation().expect(what).0;
        assert!(violation.contains(what), "{violation:?} instead of {what:?}");
        let closing = std::mem::take(&mut stage.closing);
        drop(stage);
        // SAFETY: given to a ring that was never entered.
        closing.into_iter().for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
}

/// Without buffers of its own left, a first receive goes on with those of the others.
#[test]
fn a_first_receive_without_a_buffer_goes_on() {
    let Some(mut stage) = Stage::new(&config(0)) else { return };
    if stage.uring.single_shot_ring.is_none() {
        return skip::<()>("buffers are not piecewise here").unwrap_or_default();
    }
    assert_eq!(stage.uring.slot(key(0)).recv, Kind::RecvFirst);
    stage.take((pack(Kind::RecvFirst, key(0)), -libc::ENOBUFS, 0));
    assert_eq!((stage.uring.slot(key(0)).recv, stage.uring.violation()), (Kind::Recv, None));
    assert!(stage.receiving[0], "nothing is told of it");
}
