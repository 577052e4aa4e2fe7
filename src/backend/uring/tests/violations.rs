//! CQEs that are violations, one by one, with the text that each must be reported with.

use super::harness::{
    ACCEPT, CLOSE, CONNECT, Cqe, DEFERRED, F_BUF_MORE, F_BUFFER, F_MORE, F_NOTIF, FIRST_RECV,
    LATER_RECV, MULTISHOT_WHOLE_BUFFERS, ONESHOT, ONESHOT_WITHOUT_BUF_RING, POLLED, RECV_INTO,
    SEND, ScriptedRing, VARIANTS, key, open,
};
use crate::backend::Backend;
use crate::backend::uring::token::{Kind, pack};
use crate::id::Key;
use crate::waker::WakerShared;
use std::time::Duration;

/// A part of the text of a violation, and a CQE that is one.
type Case = (&'static str, fn(&mut ScriptedRing) -> Cqe);

/// In tier `deferred`.
const DEFERRED_CASES: &[Case] = &[
    ("does not have", |_| (pack(Kind::RecvFirst, key(FIRST_RECV)), 1, F_BUFFER | 999 << 16)),
    ("has room for", |_| (pack(Kind::Recv, key(LATER_RECV)), 257, F_BUFFER)),
    ("has room for", |_| (pack(Kind::RecvFirst, key(FIRST_RECV)), 4097, F_BUFFER)),
    ("F_BUF_MORE", |_| (pack(Kind::RecvFirst, key(FIRST_RECV)), 1, F_BUFFER | F_BUF_MORE)),
    ("names no provided buffer", |_| (pack(Kind::RecvFirst, key(FIRST_RECV)), 1, 0)),
    ("completes once", |_| (pack(Kind::RecvFirst, key(FIRST_RECV)), 1, F_BUFFER | F_MORE)),
    ("without data", |_| (pack(Kind::Recv, key(LATER_RECV)), 0, F_MORE)),
    ("without data", |_| (pack(Kind::Recv, key(LATER_RECV)), -libc::ENOBUFS, F_MORE)),
    ("accept that failed", |_| (pack(Kind::Accept, key(ACCEPT)), -libc::EMFILE, F_MORE)),
    ("completes once", |_| (pack(Kind::Socket, key(CONNECT)), 0, F_MORE)),
    ("not in flight", |_| (pack(Kind::Connect, key(CONNECT)), 0, 0)),
    ("not in flight", |_| (pack(Kind::Recv, key(FIRST_RECV)), 0, 0)),
    ("not in flight", |_| (pack(Kind::RecvFirst, key(LATER_RECV)), 0, 0)),
    ("out of order", |_| (pack(Kind::SendZeroCopy, key(0)), 0, F_NOTIF)),
    ("more bytes than it was given", |_| (pack(Kind::SendZeroCopy, key(0)), 1001, 0)),
    ("selects none", |_| (pack(Kind::SendZeroCopy, key(0)), 1, F_BUFFER)),
    ("out of order", |ring| {
        ring.post((pack(Kind::SendZeroCopy, key(0)), 10, F_MORE));
        (pack(Kind::SendZeroCopy, key(0)), 10, F_MORE)
    }),
    ("out of order", |ring| {
        ring.post((pack(Kind::SendZeroCopy, key(0)), 10, F_MORE));
        (pack(Kind::SendZeroCopy, key(0)), 0, F_MORE | F_NOTIF)
    }),
];

/// In all variants.
const COMMON_CASES: &[Case] = &[
    ("not in flight", |_| (pack(Kind::Close, key(FIRST_RECV)), 0, 0)),
    ("not in flight", |_| (pack(Kind::Close, key(ACCEPT)), 0, 0)),
    ("not in flight", |_| (pack(Kind::Idle, key(FIRST_RECV)), 0, 0)),
    ("not in flight", |_| (pack(Kind::SendPoll, key(SEND)), 1, 0)),
    ("not in flight", |_| (pack(Kind::Timeout, key(0)), 0, 0)),
    ("completes once", |_| (pack(Kind::Close, key(CLOSE)), 0, F_MORE)),
    ("selects none", |_| (pack(Kind::Close, key(CLOSE)), 0, F_BUFFER)),
    ("not in flight", |_| (pack(Kind::Send, key(FIRST_RECV)), 1, F_NOTIF)),
    ("F_NOTIF", |_| (pack(Kind::Send, key(SEND)), 1, F_NOTIF)),
    ("completes once", |_| (pack(Kind::Send, key(SEND)), 1, F_MORE)),
    ("selects none", |_| (pack(Kind::Send, key(SEND)), 1, F_BUFFER)),
    ("more bytes than it was given", |_| (pack(Kind::Send, key(SEND)), 2001, 0)),
    ("selects none", |_| (pack(Kind::Wake, Key::NONE), 1, F_BUFFER)),
    ("completes once", |_| (pack(Kind::Wake, Key::NONE), 1, F_MORE)),
    ("not in flight", |ring| {
        ring.post((pack(Kind::Wake, Key::NONE), 1, 0));
        (pack(Kind::Wake, Key::NONE), 1, 0)
    }),
    ("not in flight", |ring| {
        let cancel = (pack(Kind::Cancel, Key::NONE), 0, 0);
        ring.post(cancel);
        cancel
    }),
    ("completes once", |_| (pack(Kind::Cancel, Key::NONE), 0, F_MORE)),
    ("not in flight", |ring| {
        let sent = (pack(Kind::Send, key(SEND)), 10, 0);
        ring.post(sent);
        sent
    }),
];

/// In all variants but tier `polled`, where a poll comes before a receive into a caller's buffer.
const RECV_INTO_CASES: &[Case] = &[
    ("its buffer has room for", |_| (pack(Kind::RecvInto, key(RECV_INTO)), i32::MAX, 0)),
    ("its buffer has room for", |_| (pack(Kind::RecvInto, key(RECV_INTO)), 101, 0)),
    ("completes once", |_| (pack(Kind::RecvInto, key(RECV_INTO)), 1, F_MORE)),
    ("selects none", |_| (pack(Kind::RecvInto, key(RECV_INTO)), 1, F_BUFFER)),
];

/// With multishot receives into buffers that are filled as a whole.
const WHOLE_BUFFER_CASES: &[Case] = &[
    ("F_BUF_MORE", |_| (pack(Kind::Recv, key(LATER_RECV)), 1, F_BUFFER | F_BUF_MORE)),
    ("has room for", |_| (pack(Kind::Recv, key(LATER_RECV)), 257, F_BUFFER)),
];

/// With single-shot receives and accepts.
const ONESHOT_CASES: &[Case] = &[
    ("completes once", |_| (pack(Kind::Recv, key(LATER_RECV)), 1, F_BUFFER | F_MORE)),
    ("F_BUF_MORE", |_| (pack(Kind::Recv, key(LATER_RECV)), 1, F_BUFFER | F_BUF_MORE)),
    ("completes once", |_| (pack(Kind::Accept, key(ACCEPT)), -libc::EAGAIN, F_MORE)),
];

/// With a poll before each receive.
const RECV_POLL_CASES: &[Case] = &[
    ("selects none", |_| (pack(Kind::RecvPoll, key(LATER_RECV)), 1, F_BUFFER)),
    ("completes once", |_| (pack(Kind::RecvPoll, key(LATER_RECV)), 1, F_MORE)),
    ("none is registered", |ring| {
        ring.post((pack(Kind::RecvPoll, key(SEND)), 1, 0));
        (pack(Kind::Recv, key(SEND)), 1, F_BUFFER)
    }),
    ("has room for", |ring| {
        ring.post((pack(Kind::RecvPoll, key(SEND)), 1, 0));
        (pack(Kind::Recv, key(SEND)), 257, 0)
    }),
    ("completes once", |ring| {
        ring.post((pack(Kind::RecvPoll, key(SEND)), 1, 0));
        (pack(Kind::Recv, key(SEND)), 1, F_MORE)
    }),
];

fn assert_violations(variant: usize, cases: &[Case]) {
    for (index, (text, cqe)) in cases.iter().enumerate() {
        let Some(mut ring) = ScriptedRing::new(variant) else { return };
        let cqe = cqe(&mut ring);
        assert_eq!(ring.violation(), None, "{text:?}, case {index} in variant {variant}");
        ring.post(cqe);
        let violation = ring.violation().unwrap_or("no violation");
        assert!(
            violation.contains(text),
            "{violation:?}, not {text:?}, case {index} in variant {variant}"
        );
    }
}

#[test]
fn violations_in_all_variants() {
    (0..VARIANTS).for_each(|variant| assert_violations(variant, COMMON_CASES));
    (0..POLLED).for_each(|variant| assert_violations(variant, RECV_INTO_CASES));
}

#[test]
fn violations_of_receives_and_zero_copy_sends() {
    assert_violations(DEFERRED, DEFERRED_CASES);
    assert_violations(MULTISHOT_WHOLE_BUFFERS, WHOLE_BUFFER_CASES);
    assert_violations(ONESHOT, ONESHOT_CASES);
    assert_violations(ONESHOT_WITHOUT_BUF_RING, RECV_POLL_CASES);
    assert_violations(POLLED, RECV_POLL_CASES);
}

/// A shut-down without a deadline ends at a violation.
#[test]
fn a_violation_ends_a_shut_down_without_a_deadline() {
    let waker_shared = WakerShared::new().expect("an event fd");
    let Some(mut uring) = open(DEFERRED, &waker_shared) else { return };
    uring.wait(Some(0)).expect("the poll of the waker is armed");
    // As if the poll had completed: its real CQE is one for an operation that is not in flight.
    uring.wake_armed = false;
    let eventfd = waker_shared.fd().try_clone_to_owned().expect("a duplicate");
    std::io::Write::write_all(&mut std::fs::File::from(eventfd), &1u64.to_ne_bytes())
        .expect("room in the counter");
    assert!(!uring.shut_down(Duration::MAX) && uring.violation.is_some());
}
