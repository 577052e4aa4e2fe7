//! Random sequences of valid and invalid CQEs, mixed with what an engine does.

use super::harness::{
    Cqe, F_BUF_MORE, F_BUFFER, F_MORE, F_NOTIF, FIRST_RECV, LATER_RECV, SEND, SEND_ZERO_COPY,
    SLOTS, ScriptedRing, VARIANTS, key,
};
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Backend, OpKind};
use crate::id::Key;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Step {
    /// A valid CQE of a slot: at most this many bytes, and whether the operation continues.
    Valid(usize, u32, bool),
    Any(Cqe),
    Receive(usize),
    Cancel(usize, OpKind),
    DropLease(prop::sample::Index),
}

/// Of each kind and of some invalid kinds, for keys that are open, stale or never used.
fn user_data() -> impl Strategy<Value = u64> {
    let generation = prop_oneof![9 => Just(1u64), 1 => 0u64..3];
    let token = (0u64..Kind::Cancel as u64 + 3, generation, 0u64..SLOTS as u64 + 2);
    let token = token
        .prop_map(|(kind, generation, slot)| kind << Key::ENGINE_SHIFT | generation << 36 | slot);
    let without_slot = prop_oneof![
        Just(pack(Kind::Wake, Key::NONE)),
        Just(pack(Kind::Cancel, Key::NONE)),
        Just(pack(Kind::SendZeroCopy, key(0))),
    ];
    prop_oneof![8 => token, 2 => without_slot, 1 => any::<u64>()]
}

fn cqe() -> impl Strategy<Value = Cqe> {
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
    (user_data(), result, flags)
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = [OpKind::Connect, OpKind::Accept, OpKind::Recv, OpKind::Send, OpKind::Close];
    let kind = prop::sample::select(kinds.to_vec());
    prop_oneof![
        10 => (0..SLOTS, 0u32..300, any::<bool>())
            .prop_map(|(slot, len, more)| Step::Valid(slot, len, more)),
        3 => cqe().prop_map(Step::Any),
        4 => (0..SLOTS).prop_map(Step::Receive),
        1 => (0..SLOTS, kind).prop_map(|(slot, kind)| Step::Cancel(slot, kind)),
        4 => any::<prop::sample::Index>().prop_map(Step::DropLease),
    ]
}

fn take(ring: &mut ScriptedRing, step: Step) {
    match step {
        Step::Valid(slot, len, more) => {
            let cqe = ring.valid_cqe(slot, len, more);
            ring.post(cqe);
        }
        Step::Any(cqe) => ring.post(cqe),
        Step::Receive(slot @ (FIRST_RECV | LATER_RECV | SEND | SEND_ZERO_COPY)) => {
            ring.receive(slot);
        }
        Step::DropLease(pick) if !ring.leases.is_empty() => {
            drop(ring.leases.swap_remove(pick.index(ring.leases.len())));
        }
        Step::Cancel(slot, kind) => ring.uring.cancel(key(slot), kind),
        Step::Receive(_) | Step::DropLease(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// With any CQEs in any order: no panic, no byte in two leases or outside the filled part of a
    /// buffer, and no completion after the first violation.
    #[test]
    fn any_sequence_of_cqes_is_safe(
        variant in 0..VARIANTS,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let Some(mut ring) = ScriptedRing::new(variant) else { return Ok(()) };
        for step in steps {
            take(&mut ring, step);
            if ring.violation().is_some() {
                prop_assert!(ring.uring.has_next(), "the engine must call next or wait");
                prop_assert!(ring.uring.next().is_none(), "a completion after a violation");
                prop_assert!(ring.uring.wait(Some(0)).is_err());
                break;
            }
        }
        if ring.violation().is_some() {
            let clean = ring.uring.shut_down(Duration::ZERO);
            prop_assert!(!clean, "after a violation the kernel may still use the memory");
        }
        let dropped = Arc::clone(&ring.dropped);
        let returned = ring.batches.len() + ring.released.len();
        ring.batches.clear();
        ring.released.clear();
        let dropped = dropped.load(Ordering::Relaxed);
        prop_assert!(dropped <= returned, "a payload in flight was dropped");
    }
}
