//! Tests of what is particular to the epoll backend. `backend/tests/` tests all backends.

use super::{EpollBackend, Slot};
use crate::backend::{
    Backend, Completed, Connect, OpKind, OpResult, Open, Operation, Outcome, Parameters, SendBatch,
    Side, Started,
};
use crate::error::Errno;
use crate::id::{EngineNumber, Key};
use crate::net::Addr;
use crate::options::{ConnectOptions, ListenOptions};
use crate::waker::WakerShared;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const CANCELED: Errno = Errno(libc::ECANCELED);

#[test]
fn a_slot_has_24_bytes() {
    assert_eq!(size_of::<Slot>(), 24);
}

fn backend() -> EpollBackend {
    let parameters = Parameters {
        engine: EngineNumber::TEST,
        gather_max: 64,
        budget: 32,
        low_watermark: 1,
        buffers: (4, 4096),
        connections_reserved: 4,
    };
    EpollBackend::new(parameters, WakerShared::new().unwrap(), false).unwrap()
}

fn key(slot: usize) -> Key {
    Key::new(slot, 1, EngineNumber::TEST)
}

fn batch() -> SendBatch {
    let mut batch = SendBatch::default();
    batch.push("hello".into(), None);
    batch
}

fn listen(backend: &mut EpollBackend, addr: &Addr, backlog: u32) -> Addr {
    let options = ListenOptions { backlog, ..ListenOptions::default() };
    backend.open(key(0), Open::Listen(addr, &options)).unwrap();
    backend.addr(key(0), Side::Local).unwrap()
}

fn connect(backend: &mut EpollBackend, key: Key, addr: &Addr) {
    let (addr, options) = (addr.clone(), ConnectOptions::default());
    let connect = Connect { addr, options, first: Some(batch()) };
    let started = backend.start(key, Operation::Connect(Box::new(connect)));
    assert!(matches!(started, Started::InFlight));
}

/// All completions of ten turns.
fn completions(backend: &mut EpollBackend) -> Vec<Completed<OwnedFd>> {
    let mut all = Vec::new();
    for _ in 0..10 {
        backend.wait(Some(0)).unwrap();
        all.extend(std::iter::from_fn(|| backend.next()));
    }
    all
}

/// Checks for two completions: of a connect, then of the send that was started with it.
fn assert_ended(all: Vec<Completed<OwnedFd>>, connected: Result<(), Errno>, sent: OpResult) {
    let [connect, send] = <[_; 2]>::try_from(all).expect("two completions");
    assert!(matches!(connect.outcome, Outcome::Connected(result) if result == connected));
    assert!(matches!(&send.outcome, Outcome::Sent(batch, result)
        if *result == sent && batch.bytes() == 5));
}

#[test]
fn a_connect_to_a_local_peer_sends_its_first_batch() {
    let mut backend = backend();
    let addr = listen(&mut backend, &"127.0.0.1:0".parse().unwrap(), 16);
    connect(&mut backend, key(1), &addr);
    assert_ended(completions(&mut backend), Ok(()), OpResult::bytes(5));
    assert_eq!(backend.stats().early_sends, 1);
}

#[test]
fn a_failed_connect_cancels_its_first_send() {
    let mut backend = backend();
    let addr = listen(&mut backend, &"127.0.0.1:0".parse().unwrap(), 16);
    let started = backend.start(key(0), Operation::Close(crate::backend::CloseMode::Orderly));
    assert!(matches!(started, Started::InFlight));
    assert!(matches!(completions(&mut backend)[..], [Completed { outcome: Outcome::Closed, .. }]));
    connect(&mut backend, key(1), &addr);
    let refused = Err(Errno(libc::ECONNREFUSED));
    assert_ended(completions(&mut backend), refused, OpResult::failed(CANCELED));
    let unbound = Addr::UnixAbstract(b"proactor-no-listener".to_vec());
    connect(&mut backend, key(2), &unbound);
    assert_ended(completions(&mut backend), refused, OpResult::failed(CANCELED));
}

/// A unix listener whose backlog is full, and a pending connect to it.
fn pending_connect(name: &str) -> (EpollBackend, Vec<OwnedFd>, Addr) {
    let mut backend = backend();
    let name = Addr::UnixAbstract(format!("proactor-{name}-{}", std::process::id()).into_bytes());
    let addr = listen(&mut backend, &name, 0);
    connect(&mut backend, key(1), &addr);
    assert_ended(completions(&mut backend), Ok(()), OpResult::bytes(0));
    let fds = vec![backend.release(key(1)).unwrap()];
    connect(&mut backend, key(2), &addr);
    assert!(completions(&mut backend).is_empty());
    (backend, fds, addr)
}

#[test]
fn a_cancelled_connect_returns_its_batch_once() {
    let (mut backend, _fds, _) = pending_connect("connect");
    for kind in [OpKind::Connect, OpKind::Send, OpKind::Connect] {
        backend.cancel(key(2), kind);
    }
    let all = completions(&mut backend);
    assert_ended(all, Err(CANCELED), OpResult::failed(CANCELED));
}

#[test]
fn a_cancelled_first_send_does_not_cancel_the_connect() {
    let (mut backend, fds, _) = pending_connect("send");
    backend.cancel(key(2), OpKind::Send);
    let all = completions(&mut backend);
    let [Completed { outcome: Outcome::Sent(batch, result), .. }] = &all[..] else { panic!() };
    assert_eq!((batch.bytes(), result.get()), (5, Err(CANCELED)));
    assert!(matches!(backend.start(key(0), Operation::Accept), Started::InFlight));
    let all = completions(&mut backend);
    let connected = all.iter().filter(|done| matches!(done.outcome, Outcome::Connected(Ok(()))));
    assert_eq!((connected.count(), all.len()), (1, 3), "two accepted, one connected");
    drop(fds);
}

#[test]
fn a_failed_open_leaves_no_key() {
    let mut backend = backend();
    // epoll_ctl(2) fails with EPERM for a regular file.
    let file = || OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    assert!(backend.open(key(1), Open::Stream(file())).is_err());
    assert!(backend.open(key(1), Open::Listener(file())).is_err());
    assert!(backend.fd(key(1)).is_none());
    let (ours, _peer) = UnixStream::pair().unwrap();
    backend.open(key(1), Open::Stream(ours.into())).unwrap();
    assert!(backend.fd(key(1)).is_some());
}
