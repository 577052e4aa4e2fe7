//! CQEs that are valid and rare: their operations complete, and nothing is a violation.

use super::harness::{
    CLOSE, DEFERRED, F_BUFFER, F_MORE, F_NOTIF, FIRST_RECV, SEND_ZERO_COPY, SLOTS, ScriptedRing,
    VARIANTS, key, skip,
};
use crate::backend::OpKind;
use crate::backend::uring::token::{Kind, pack, unpack};
use crate::id::EngineNumber;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// When the group of first receives has no buffer, the receive continues with the main group.
#[test]
fn a_first_receive_without_a_buffer_continues() {
    let Some(mut ring) = ScriptedRing::new(DEFERRED) else { return };
    assert_eq!(ring.uring.slot(key(FIRST_RECV)).recv, Kind::RecvFirst);
    ring.post((pack(Kind::RecvFirst, key(FIRST_RECV)), -libc::ENOBUFS, 0));
    assert_eq!(ring.uring.slot(key(FIRST_RECV)).recv, Kind::Recv);
    assert!(ring.violation().is_none() && ring.receiving[FIRST_RECV], "nothing completes");
}

/// The payload of a zero-copy send lives until its notification and is released once.
#[test]
fn a_notification_releases_its_payload_once() {
    let Some(mut ring) = ScriptedRing::new(DEFERRED) else { return };
    let Some(share) = ring.uring.zero_copy_of(key(SEND_ZERO_COPY)) else {
        return skip::<()>("no SEND_ZC").unwrap_or_default();
    };
    let user_data = pack(Kind::SendZeroCopy, share);
    ring.post((user_data, 1000, F_MORE));
    assert_eq!((ring.batches.len(), ring.released.len()), (1, 0));
    ring.post((user_data, 0, F_NOTIF));
    assert_eq!((ring.batches.len(), ring.released.len()), (1, 1));
    let in_flight = ring.uring.ring.in_flight;
    ring.post((user_data, 0, F_NOTIF));
    assert_eq!((ring.released.len(), ring.violation()), (1, None));
    assert_eq!(ring.uring.stats.unknown_completions, 1, "the key of the share is stale");
    assert_eq!(ring.uring.ring.in_flight, in_flight, "a stale CQE completes nothing");
}

/// CQEs for a closed key are counted, and their descriptors closed.
#[test]
fn completions_of_a_closed_key_are_counted_and_dropped() {
    for variant in 0..VARIANTS {
        let Some(mut ring) = ScriptedRing::new(variant) else { return };
        let close = (pack(Kind::Close, key(CLOSE)), 0, 0);
        ring.post(close);
        assert_eq!(ring.ended, [(CLOSE, OpKind::Close)]);
        let in_flight = ring.uring.ring.in_flight;
        ring.post(close);
        for kind in [Kind::Recv, Kind::Send, Kind::RecvInto, Kind::Connect] {
            ring.post((pack(kind, key(CLOSE)), 1, F_BUFFER | F_MORE));
            ring.post((pack(kind, key(CLOSE)), i32::MIN, 0));
        }
        let mut expected = 9;
        for kind in [Kind::Accept, Kind::Socket] {
            let (near, far) = UnixStream::pair().expect("a socketpair");
            ring.uring.inject((pack(kind, key(CLOSE)), near.into_raw_fd(), 0));
            expected += 1;
            far.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let read = std::io::Read::read(&mut &far, &mut [0]).expect("the peer is closed");
            assert_eq!(read, 0);
        }
        assert_eq!(ring.uring.stats.unknown_completions, expected);
        assert_eq!((ring.violation(), ring.ended.len()), (None, 1));
        assert_eq!(ring.uring.ring.in_flight, in_flight, "a stale CQE completes nothing");
    }
}

/// `i32::MIN` is an error for each operation, although its negation overflows.
#[test]
fn the_least_result_is_an_error_of_each_operation() {
    for variant in 0..VARIANTS {
        let Some(mut ring) = ScriptedRing::new(variant) else { return };
        for slot in 0..SLOTS {
            for _ in 0..4 {
                let (user_data, ..) = ring.valid_cqe(slot, 1, false);
                if unpack(user_data, EngineNumber::TEST).is_some_and(|t| t.kind != Kind::Cancel) {
                    ring.post((user_data, i32::MIN, 0));
                }
            }
        }
        assert_eq!(ring.violation(), None);
        // All operations that were started; the connect came with a send.
        let count = |kind| ring.ended.iter().filter(|(_, ended)| *ended == kind).count();
        assert_eq!([OpKind::Recv, OpKind::Send, OpKind::Connect].map(count), [5, 3, 1]);
        assert_eq!([OpKind::Accept, OpKind::Close].map(count), [1, 2]);
    }
}
