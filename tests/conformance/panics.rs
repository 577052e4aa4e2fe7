//! Payloads whose owner panics when it is dropped: the panic reaches the caller, and nothing is
//! lost by it.

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

/// What a [`Bomb`] panics with.
struct Boom;

/// Bytes whose owner panics when it is dropped, and counts that before.
struct Bomb {
    bytes: Vec<u8>,
    dropped: Arc<AtomicUsize>,
    /// Also while its thread panics already. If that is not caught, it is the end of the process.
    always: bool,
}

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if self.always || !std::thread::panicking() {
            // Without a message: it is meant to happen.
            resume_unwind(Box::new(Boom));
        }
    }
}

/// Makes bombs, and knows how many were dropped.
#[derive(Default)]
struct Bombs {
    dropped: Arc<AtomicUsize>,
    always: bool,
}

impl Bombs {
    fn make(&self, bytes: impl Into<Vec<u8>>) -> Bytes {
        Bytes::from_owner(Bomb {
            bytes: bytes.into(),
            dropped: Arc::clone(&self.dropped),
            always: self.always,
        })
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Bytes that are others when they were dropped, as freed memory is that is used again.
struct Scribble(Vec<u8>);

impl AsRef<[u8]> for Scribble {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Scribble {
    fn drop(&mut self) {
        self.0.fill(b'X');
        std::hint::black_box(&mut self.0);
    }
}

/// Whether this ends in the panic of a bomb. Another panic goes on.
fn explodes(act: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(()) => false,
        Err(panic) if panic.is::<Boom>() => true,
        Err(panic) => resume_unwind(panic),
    }
}

/// Polls until `done` says so, through the panics of bombs. Returns all completions, and how many
/// polls panicked.
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
        let exploded = explodes(|| {
            rig.engine.poll(&mut rig.out, Some(Duration::from_millis(5))).expect("poll");
        });
        if exploded {
            panics += 1;
            assert!(rig.engine.wants_poll(), "the rest of the turn is left to do");
        }
        assert_eq!(rig.engine.audit(), Ok(()));
        all.extend(rig.out.drain());
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
    let expected = b"one bomb copied second two ".to_vec();
    // The last payload reaches the high watermark, so `Drained` is owed.
    let mut rig = Rig::with(variant.config().send_watermarks(expected.len(), 1));
    let (conn, mut peer) = rig.pair();
    let (bombs, before) = (Bombs::default(), rig.engine.stats());
    rig.engine.send_tagged(conn, "one ", 1).unwrap();
    rig.engine.send_tagged(conn, bombs.make("bomb "), 2).unwrap();
    rig.engine.write(conn, b"copied ").unwrap();
    rig.engine.send(conn, bombs.make("second ")).unwrap();
    rig.engine.send_tagged(conn, "two ", 3).unwrap();
    let told = |c: &Completion| matches!(c.event, Event::Drained);
    let (all, panics) = poll_through(&mut rig, "the sends", |rig, all| {
        bombs.dropped() == 2 && all.iter().any(told) && rig.engine.queued_bytes(conn).unwrap() == 0
    });
    assert_eq!((panics, sent_tags(&all)), (2, vec![1, 2, 3]));
    assert_eq!(all.iter().filter(|c| told(c)).count(), 1);
    // All goes on as before.
    rig.engine.send(conn, " three").unwrap();
    rig.run("the last send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let expected = [&expected[..], b" three"].concat();
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
    let stats = rig.engine.stats();
    assert_eq!(stats.bytes_sent - before.bytes_sent, expected.len() as u64);
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.end_of(conn).unsent_bytes, 0);
    assert_eq!(read_all(peer), b"", "nothing is sent twice");
}

pub fn panic_in_partial_sends(variant: &Variant) {
    for mode in [ZeroCopy::Never, ZeroCopy::Always(4096)] {
        let config = variant.config().tuning(Tuning::default().zero_copy(mode));
        let mut rig = Rig::with(config.send_watermarks(64 << 20, 0));
        let (conn, peer) = rig.pair();
        let bombs = Bombs::default();
        let expected = pattern(9 << 20);
        let mut rest = &expected[..];
        let mut next = |len| {
            let (piece, behind) = rest.split_at(len);
            rest = behind;
            piece.to_vec()
        };
        for tag in 0..3 {
            rig.engine.send(conn, next(1 << 20)).unwrap();
            rig.engine.send_tagged(conn, bombs.make(next((2 << 20) - 10)), tag).unwrap();
            rig.engine.send(conn, bombs.make(next(10))).unwrap();
        }
        let reader = spawn(move || {
            sleep(Duration::from_millis(20));
            read_all(peer)
        });
        let (all, panics) = poll_through(&mut rig, "the sends", |rig, _| {
            bombs.dropped() == 6 && rig.engine.queued_bytes(conn).unwrap() == 0
        });
        assert_eq!((panics, sent_tags(&all)), (6, vec![0, 1, 2]));
        assert_eq!(rig.engine.stats().bytes_sent, expected.len() as u64);
        rig.engine.close(conn).unwrap();
        assert_eq!(rig.end_of(conn).unsent_bytes, 0);
        assert!(reader.join().unwrap() == expected, "each byte once, in order");
    }
}

pub fn panic_before_the_wait(variant: &Variant) {
    // A payload of no bytes has left before anything is handed to the kernel.
    let mut rig = Rig::new(variant);
    let (bombs, (first, _peer)) = (Bombs::default(), rig.pair());
    let (second, mut peer) = rig.pair();
    rig.engine.send_tagged(first, bombs.make(""), 1).unwrap();
    rig.engine.send_tagged(second, "staged", 2).unwrap();
    let (mut all, panics) = poll_through(&mut rig, "the panic", |_, _| bombs.dropped() == 1);
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
    // As above, by an engine that is polled only when its descriptor says so.
    let mut rig = Rig::new(variant);
    let (bombs, (first, _peer)) = (Bombs::default(), rig.pair());
    let (second, mut peer) = rig.pair();
    let fd = rig.engine.as_fd().unwrap().as_raw_fd();
    while !rig.poll(Duration::from_millis(5)).is_empty() {}
    rig.engine.send(first, bombs.make("")).unwrap();
    rig.engine.send(second, "staged").unwrap();
    let mut panics = 0;
    while rig.engine.queued_bytes(second).unwrap() > 0 || bombs.dropped() == 0 {
        assert!(
            readable(fd, Duration::from_secs(5)),
            "after {panics} panics the engine has something to do"
        );
        panics += usize::from(explodes(|| {
            rig.engine.poll(&mut rig.out, Some(Duration::ZERO)).expect("poll");
        }));
        rig.out.drain();
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
        let bombs = Bombs::default();
        // The peer does not read.
        let (conn, peer) = rig.pair();
        rig.engine.send(conn, pattern(24 << 20)).unwrap();
        for tag in 0..3 {
            rig.engine.send_tagged(conn, bombs.make("never sent"), tag).unwrap();
        }
        rig.watch(Duration::from_millis(5));
        match abort {
            true => rig.engine.abort(conn).unwrap(),
            false => rig.engine.close(conn).unwrap(),
        }
        let (all, panics) = poll_through(&mut rig, "the end", |rig, _| {
            bombs.dropped() == 3 && !rig.engine.is_live(conn)
        });
        let [reason] = closes(&all)[..] else { panic!("{all:?}") };
        let kind = if abort { CloseKind::Aborted } else { CloseKind::LingerTimedOut };
        assert_eq!((panics, reason.kind, sent_tags(&all)), (3, kind, vec![]));
        assert!(reason.unsent_bytes > 30, "{reason:?}");
        assert_eq!(rig.engine.connections(), 0);
        drop(peer);
        // The slot, and what else was given back, is used again.
        let (conn, peer) = rig.pair();
        rig.engine.send(conn, "again").unwrap();
        rig.engine.close(conn).unwrap();
        let reader = spawn(move || read_all(peer));
        assert_eq!(rig.end_of(conn).unsent_bytes, 0);
        assert_eq!(reader.join().unwrap(), b"again");
    }
}

pub fn panic_in_drop(variant: &Variant) {
    // What the kernel still reads stays as it is; on loopback a zero-copy send is read until the
    // peer does.
    let config = variant.config().tuning(zero_copy(1024));
    let mut rig = Rig::with(config.teardown_max(patience()));
    let bombs = Bombs::default();
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
    rig.engine.send(conn, Bytes::from_owner(Scribble(sent.clone()))).unwrap();
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let zero_copy = rig.engine.stats().zero_copy_sends;
    assert_eq!(zero_copy > 0, rig.uses(Capability::SendZc));
    for _ in 0..3 {
        rig.engine.send(other, bombs.make("never sent")).unwrap();
    }
    let reader = spawn(move || {
        sleep(Duration::from_millis(50));
        read_all(peer)
    });
    assert!(explodes(|| drop(rig.engine)), "the panic goes on when all is closed");
    assert_eq!(bombs.dropped(), 3);
    let got = reader.join().unwrap();
    let wrong = got.iter().filter(|byte| **byte != b'P').count();
    assert_eq!((wrong, got.len()), (0, sent.len()), "bytes of freed memory, and bytes in all");
}

pub fn panic_in_drop_while_panicking(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let bombs = Bombs { always: true, ..Bombs::default() };
    let (conn, _peer) = rig.pair();
    for _ in 0..3 {
        rig.engine.send(conn, bombs.make("never sent")).unwrap();
    }
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let _dropped_on_the_way = rig;
        resume_unwind(Box::new("the program's own"));
    }));
    let panic = ended.expect_err("the program panicked");
    assert_eq!(panic.downcast_ref(), Some(&"the program's own"));
    assert_eq!(bombs.dropped(), 3);
}
