//! Payloads whose owner panics when it is dropped. The panic reaches the caller, and the engine
//! loses no event, no byte and no memory.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use crate::timing::readable;
use bytes::Bytes;
use proactor::*;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The value that a [`PanickingOwner`] panics with.
struct ExpectedPanic;

/// Bytes whose owner counts its drop and then panics.
struct PanickingOwner {
    bytes: Vec<u8>,
    dropped: Arc<AtomicUsize>,
    /// Panic even while the thread is panicking. If that is not caught, the process aborts.
    always: bool,
}

impl AsRef<[u8]> for PanickingOwner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PanickingOwner {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if self.always || !std::thread::panicking() {
            // `resume_unwind` prints no message: the panic is expected.
            resume_unwind(Box::new(ExpectedPanic));
        }
    }
}

/// Makes payloads with a [`PanickingOwner`], and counts how many were dropped.
#[derive(Default)]
struct Payloads {
    dropped: Arc<AtomicUsize>,
    always: bool,
}

impl Payloads {
    fn make(&self, bytes: impl Into<Vec<u8>>) -> Bytes {
        Bytes::from_owner(PanickingOwner {
            bytes: bytes.into(),
            dropped: Arc::clone(&self.dropped),
            always: self.always,
        })
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Bytes that are overwritten on drop, like freed memory that is used again.
struct OverwrittenOnDrop(Vec<u8>);

impl AsRef<[u8]> for OverwrittenOnDrop {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for OverwrittenOnDrop {
    fn drop(&mut self) {
        self.0.fill(b'X');
        std::hint::black_box(&mut self.0);
    }
}

/// Whether `act` ends in the expected panic. Other panics are resumed.
fn panics_as_expected(act: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(()) => false,
        Err(panic) if panic.is::<ExpectedPanic>() => true,
        Err(panic) => resume_unwind(panic),
    }
}

/// Polls until `done` returns true, and catches the expected panics. Returns all completions, and
/// how many polls panicked.
fn poll_through(
    rig: &mut Rig,
    what: &str,
    mut done: impl FnMut(&Rig, &[Completion]) -> bool,
) -> (Vec<Completion>, usize) {
    let (mut all, mut panics) = (Vec::new(), 0);
    let deadline = now() + patience();
    while !done(rig, &all) {
        assert!(
            now() < deadline,
            "waited too long for {what}: {all:?}, {panics} panics, {:?}",
            rig.engine.stats()
        );
        let panicked = panics_as_expected(|| {
            rig.engine.poll(&mut rig.completions, Some(Duration::from_millis(5))).expect("poll");
        });
        if panicked {
            panics += 1;
            assert!(rig.engine.wants_poll(), "the rest of the turn is left to do");
        }
        assert_eq!(rig.engine.audit(), Ok(()));
        all.extend(rig.completions.drain());
    }
    (all, panics)
}

fn sent_tags(completions: &[Completion]) -> Vec<u64> {
    completions
        .iter()
        .filter_map(|c| if let Event::Sent { tag } = c.event { Some(tag) } else { None })
        .collect()
}

fn closes(completions: &[Completion]) -> Vec<CloseReason> {
    completions
        .iter()
        .filter_map(|c| if let Event::Closed(reason) = c.event { Some(reason) } else { None })
        .collect()
}

pub fn panic_in_poll(variant: &Variant) {
    let expected = b"one owned copied second two ".to_vec();
    // The last payload reaches the high watermark, so `Drained` is due.
    let mut rig = Rig::with(variant.config().send_watermarks(expected.len(), 1));
    let (conn, mut peer) = rig.pair();
    let (payloads, before) = (Payloads::default(), rig.engine.stats());
    rig.engine.send_tagged(conn, "one ", 1).unwrap();
    rig.engine.send_tagged(conn, payloads.make("owned "), 2).unwrap();
    rig.engine.write(conn, b"copied ").unwrap();
    rig.engine.send(conn, payloads.make("second ")).unwrap();
    rig.engine.send_tagged(conn, "two ", 3).unwrap();
    let is_drained = |c: &Completion| matches!(c.event, Event::Drained);
    let (all, panics) = poll_through(&mut rig, "the sends", |rig, all| {
        payloads.dropped() == 2
            && all.iter().any(is_drained)
            && rig.engine.queued_bytes(conn).unwrap() == 0
    });
    assert_eq!((panics, sent_tags(&all)), (2, vec![1, 2, 3]));
    assert_eq!(all.iter().filter(|c| is_drained(c)).count(), 1);
    // Later sends work as before.
    rig.engine.send(conn, " three").unwrap();
    rig.run("the last send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let expected = [&expected[..], b" three"].concat();
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
    let stats = rig.engine.stats();
    assert_eq!(stats.bytes_sent - before.bytes_sent, expected.len() as u64);
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).unsent_bytes, 0);
    assert_eq!(read_all(peer), b"", "bytes were sent twice");
}

pub fn panic_in_partial_sends(variant: &Variant) {
    for mode in [ZeroCopy::Never, ZeroCopy::Always(4096)] {
        let config = variant.config().tuning(Tuning::default().zero_copy(mode));
        let mut rig = Rig::with(config.send_watermarks(64 << 20, 0));
        let (conn, peer) = rig.pair();
        let payloads = Payloads::default();
        let expected = pattern(9 << 20);
        let mut rest = &expected[..];
        let mut next = |len| {
            let (piece, tail) = rest.split_at(len);
            rest = tail;
            piece.to_vec()
        };
        for tag in 0..3 {
            rig.engine.send(conn, next(1 << 20)).unwrap();
            rig.engine.send_tagged(conn, payloads.make(next((2 << 20) - 10)), tag).unwrap();
            rig.engine.send(conn, payloads.make(next(10))).unwrap();
        }
        let reader = spawn(move || {
            sleep(Duration::from_millis(20));
            read_all(peer)
        });
        let (all, panics) = poll_through(&mut rig, "the sends", |rig, _| {
            payloads.dropped() == 6 && rig.engine.queued_bytes(conn).unwrap() == 0
        });
        assert_eq!((panics, sent_tags(&all)), (6, vec![0, 1, 2]));
        assert_eq!(rig.engine.stats().bytes_sent, expected.len() as u64);
        rig.engine.close(conn).unwrap();
        assert_eq!(rig.wait_closed(conn).unsent_bytes, 0);
        assert!(reader.join().unwrap() == expected, "bytes were lost, repeated or reordered");
    }
}

pub fn panic_before_the_wait(variant: &Variant) {
    // A payload of zero bytes is dropped before the engine submits anything.
    let mut rig = Rig::new(variant);
    let (payloads, (first, _peer)) = (Payloads::default(), rig.pair());
    let (second, mut peer) = rig.pair();
    rig.engine.send_tagged(first, payloads.make(""), 1).unwrap();
    rig.engine.send_tagged(second, "staged", 2).unwrap();
    let (mut all, panics) = poll_through(&mut rig, "the panic", |_, _| payloads.dropped() == 1);
    assert_eq!(panics, 1);
    all.extend(
        poll_through(&mut rig, "the send", |rig, _| rig.engine.queued_bytes(second).unwrap() == 0)
            .0,
    );
    let mut tags = sent_tags(&all);
    tags.sort_unstable();
    assert_eq!(tags, [1, 2]);
    let mut got = [0; 6];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"staged");
}

pub fn panic_in_a_foreign_loop(variant: &Variant) {
    // As above, with an engine that is polled only when its descriptor is readable.
    let mut rig = Rig::new(variant);
    let (payloads, (first, _peer)) = (Payloads::default(), rig.pair());
    let (second, mut peer) = rig.pair();
    let fd = rig.engine.as_fd().unwrap().as_raw_fd();
    while !rig.poll(Duration::from_millis(5)).is_empty() {}
    rig.engine.send(first, payloads.make("")).unwrap();
    rig.engine.send(second, "staged").unwrap();
    let mut panics = 0;
    while rig.engine.queued_bytes(second).unwrap() > 0 || payloads.dropped() == 0 {
        assert!(
            readable(fd, Duration::from_secs(5)),
            "after {panics} panics the engine has something to do"
        );
        panics += usize::from(panics_as_expected(|| {
            rig.engine.poll(&mut rig.completions, Some(Duration::ZERO)).expect("poll");
        }));
        rig.completions.drain();
    }
    let mut got = [0; 6];
    peer.read_exact(&mut got).unwrap();
    assert_eq!((panics, &got), (1, b"staged"));
}

pub fn panic_after_close_and_abort(variant: &Variant) {
    for abort in [false, true] {
        let mut rig = Rig::with(
            variant.config().send_watermarks(64 << 20, 0).linger(Duration::from_millis(30)),
        );
        let payloads = Payloads::default();
        // The peer does not read.
        let (conn, peer) = rig.pair();
        rig.engine.send(conn, pattern(24 << 20)).unwrap();
        for tag in 0..3 {
            rig.engine.send_tagged(conn, payloads.make("never sent"), tag).unwrap();
        }
        rig.poll_for(Duration::from_millis(5));
        match abort {
            true => rig.engine.abort(conn).unwrap(),
            false => rig.engine.close(conn).unwrap(),
        }
        let (all, panics) = poll_through(&mut rig, "the end", |rig, _| {
            payloads.dropped() == 3 && !rig.engine.is_live(conn)
        });
        let [reason] = closes(&all)[..] else { panic!("{all:?}") };
        let kind = if abort { CloseKind::Aborted } else { CloseKind::LingerTimedOut };
        assert_eq!((panics, reason.kind, sent_tags(&all)), (3, kind, vec![]));
        assert!(reason.unsent_bytes > 30, "{reason:?}");
        assert_eq!(rig.engine.connections(), 0);
        drop(peer);
        // The slot and the buffers are reused.
        let (conn, peer) = rig.pair();
        rig.engine.send(conn, "again").unwrap();
        rig.engine.close(conn).unwrap();
        let reader = spawn(move || read_all(peer));
        assert_eq!(rig.wait_closed(conn).unsent_bytes, 0);
        assert_eq!(reader.join().unwrap(), b"again");
    }
}

pub fn panic_in_drop(variant: &Variant) {
    // Memory that the kernel still reads must not be freed. On loopback the kernel reads the
    // payload of a zero-copy send until the peer has received it.
    let config = variant.config().tuning(zero_copy(1024));
    let mut rig = Rig::with(config.teardown_max(patience()));
    let payloads = Payloads::default();
    let listener = listen_local().unwrap();
    if let Listener::Tcp(listener) = &listener {
        // Some of the payload stays in the sender's queue until the peer reads.
        socket2::SockRef::from(listener).set_recv_buffer_size(4096).unwrap();
    }
    let conn =
        rig.engine.connect(listener.local_addr().unwrap(), ConnectOptions::default()).unwrap();
    rig.until("the connect", |_, completion| {
        matches!(completion.event, Event::Connected).then_some(())
    });
    let (peer, ()) = listener.accept().unwrap();
    let (other, _peer) = rig.pair();
    let sent = vec![b'P'; 16 << 10];
    rig.engine.send(conn, Bytes::from_owner(OverwrittenOnDrop(sent.clone()))).unwrap();
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let zero_copy = rig.engine.stats().zero_copy_sends;
    assert_eq!(zero_copy > 0, rig.uses(Capability::SendZc));
    for _ in 0..3 {
        rig.engine.send(other, payloads.make("never sent")).unwrap();
    }
    let reader = spawn(move || {
        sleep(Duration::from_millis(50));
        read_all(peer)
    });
    assert!(
        panics_as_expected(|| drop(rig.engine)),
        "the panic is resumed after everything is closed"
    );
    assert_eq!(payloads.dropped(), 3);
    let got = reader.join().unwrap();
    let wrong = got.iter().filter(|byte| **byte != b'P').count();
    assert_eq!((wrong, got.len()), (0, sent.len()), "bytes of freed memory, and all bytes");
}

pub fn panic_in_drop_while_panicking(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let payloads = Payloads { always: true, ..Payloads::default() };
    let (conn, _peer) = rig.pair();
    for _ in 0..3 {
        rig.engine.send(conn, payloads.make("never sent")).unwrap();
    }
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let _dropped_by_the_panic = rig;
        resume_unwind(Box::new("panic of the caller"));
    }));
    let panic = ended.expect_err("the closure panics");
    assert_eq!(panic.downcast_ref(), Some(&"panic of the caller"));
    assert_eq!(payloads.dropped(), 3);
}
