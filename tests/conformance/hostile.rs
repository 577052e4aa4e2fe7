//! Restrictions in one process: filters, limits, masks. The engine falls back, or returns an error
//! that names the cause. And peers that try to make the engine harm other connections.

use crate::Variant;
use crate::filters::{Filter, numbers};
use crate::peers::*;
use crate::report::skip;
use crate::rig::*;
use proactor::*;
use std::io::{Read, Write};
use std::time::Duration;

/// Makes system calls fail with `errno` from now on, in this thread and its children.
fn forbid(calls: &[&str], errno: i32) {
    Filter::open().refusing(&numbers(calls), errno).install().unwrap();
}

fn auto() -> Config {
    Config::default().ignore_environment(true)
}

/// Checks that data passes in both directions.
fn check_round_trip(rig: &mut Rig) {
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"ping").unwrap();
    assert_eq!(rig.receive(conn, 4), b"ping");
    rig.engine.send(conn, "pong").unwrap();
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");
}

/// Checks that the engine chooses epoll, with this reason.
fn check_fallback(errno: i32, cause: &str) {
    let mut rig = Rig::with(auto());
    let info = rig.engine.info().clone();
    assert_eq!((info.backend, info.tier), (Backend::Epoll, None));
    let fallback = info.fallback.clone().expect("a reason is kept");
    assert_eq!(fallback.errno, Some(Errno(errno)), "{fallback}");
    assert!(fallback.cause.contains(cause), "{fallback}");
    assert!(info.to_string().contains(&fallback.to_string()), "the report names the reason");
    check_round_trip(&mut rig);
    // If io_uring is required, the error has the same cause.
    let error = Engine::new(auto().backend(Backend::Uring)).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { .. }) && error.to_string().contains(cause),
        "{error}"
    );
}

fn seccomp_falls_back(variant: &Variant, calls: &[&str], errno: i32, cause: &str) {
    assert!(variant.is_epoll());
    forbid(calls, errno);
    check_fallback(errno, cause);
}

pub fn seccomp_eperm(variant: &Variant) {
    seccomp_falls_back(
        variant,
        &["io_uring_setup", "io_uring_enter", "io_uring_register"],
        libc::EPERM,
        "seccomp",
    );
}

pub fn seccomp_enosys(variant: &Variant) {
    seccomp_falls_back(
        variant,
        &["io_uring_setup", "io_uring_enter", "io_uring_register"],
        libc::ENOSYS,
        "answers ENOSYS",
    );
}

pub fn seccomp_enter_only(variant: &Variant) {
    if Engine::new(auto().backend(Backend::Uring)).is_err() {
        return skip("no io_uring on this machine");
    }
    seccomp_falls_back(variant, &["io_uring_enter"], libc::EPERM, "io_uring_enter is not");
}

pub fn forced_backend_says_why(_: &Variant) {
    forbid(&["io_uring_setup"], libc::EPERM);
    let error = Engine::new(auto().tier(Tier::Deferred)).unwrap_err();
    assert!(
        error.to_string().contains("tier `deferred`") && error.to_string().contains("EPERM"),
        "{error}"
    );
    let epoll = Engine::new(auto().backend(Backend::Epoll)).unwrap();
    assert_eq!(epoll.info().fallback, None, "epoll was requested: no fallback");
}

pub fn environment_decides(_: &Variant) {
    let set = |name: &str, value: &str| {
        // SAFETY: this process runs one scenario on one thread.
        unsafe { std::env::set_var(name, value) };
    };
    set("PROACTOR_BACKEND", "epoll");
    assert_eq!(Engine::new(Config::default()).unwrap().info().backend, Backend::Epoll);
    set("PROACTOR_BACKEND", "kqueue");
    let error = Engine::new(Config::default()).unwrap_err().to_string();
    assert!(
        error.contains("PROACTOR_BACKEND") && error.contains("uring") && error.contains("epoll"),
        "{error}"
    );
    set("PROACTOR_BACKEND", "");
    set("PROACTOR_DISABLE", "buf_ring,tachyons");
    let error = Engine::new(Config::default()).unwrap_err().to_string();
    assert!(error.contains("tachyons") && error.contains("registered_ring_fd"), "{error}");
    let Ok(plain) = Engine::new(auto()) else { panic!("an engine") };
    if plain.info().tier != Some(Tier::Deferred) {
        return skip("no lower tier to choose");
    }
    for (list, tier) in [
        ("defer_taskrun", Some(Tier::Multishot)),
        ("multishot_recv", Some(Tier::Oneshot)),
        ("fast_poll", None),
    ] {
        set("PROACTOR_DISABLE", list);
        let mut rig = Rig::with(Config::default());
        let info = rig.engine.info().clone();
        assert_eq!(info.tier, tier, "{info}");
        assert!(info.to_string().contains("switched off by PROACTOR_DISABLE"), "{info}");
        check_round_trip(&mut rig);
    }
    set("PROACTOR_TIER", "polled");
    assert_eq!(Engine::new(Config::default()).unwrap().info().tier, Some(Tier::Polled));
}

pub fn capabilities_are_reported(_: &Variant) {
    for config in [auto(), auto().backend(Backend::Epoll)] {
        let engine = Engine::new(config).unwrap();
        let reports = engine.info().capabilities();
        assert_eq!(reports.len(), REQUIREMENTS.len());
        for report in reports {
            assert_eq!(report.why.is_empty(), report.state == CapabilityState::Used, "{report:?}");
        }
    }
}

pub fn refused_tiers_say_why(_: &Variant) {
    let Ok(_) = Engine::new(auto().tier(Tier::Deferred)) else {
        return skip("no tier `deferred` here");
    };
    let error = Engine::new(auto().tier(Tier::Deferred).disable(Capability::MultishotRecv))
        .unwrap_err()
        .to_string();
    assert!(error.contains("multishot_recv: switched off by Config::disable"), "{error}");
    let error = Engine::new(auto().hardened(true).disable(Capability::Restrictions))
        .unwrap_err()
        .to_string();
    assert!(error.contains("Config::hardened"), "{error}");
}

pub fn no_descriptors_is_an_error(_: &Variant) {
    let limit = libc::rlimit { rlim_cur: 3, rlim_max: 20_000 };
    // SAFETY: plain values.
    let (error, count) = unsafe {
        let mut before = limit;
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut before);
        libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_max: before.rlim_max, ..limit });
        let result = Engine::new(auto());
        libc::setrlimit(libc::RLIMIT_NOFILE, &before);
        (result.err(), before.rlim_cur)
    };
    let error = error.expect("no descriptor is available");
    assert_eq!(error.errno(), Some(Errno(libc::EMFILE)), "{error}");
    assert!(count > 3 && Engine::new(auto()).is_ok());
}

pub fn hardened_ring(variant: &Variant) {
    let mut rig = match Engine::new(variant.config().hardened(true)) {
        Ok(_) => Rig::with(variant.config().hardened(true).tuning(zero_copy(4096))),
        Err(Error::Unsupported { why, .. }) => return skip(why),
        Err(error) => panic!("{error}"),
    };
    check_round_trip(&mut rig);
    // The first payload is sent early, with the connect.
    let listener = listen_local().unwrap();
    let conn =
        rig.engine.connect(listener.local_addr().unwrap(), ConnectOptions::default()).unwrap();
    let payload = pattern(1 << 20);
    rig.engine.send(conn, payload[..3000].to_vec()).unwrap();
    rig.poll(Duration::from_millis(10));
    let reader = spawn(move || read_all(listener.accept().unwrap().0));
    for chunk in payload[3000..].chunks(30_000) {
        rig.send_all(conn, chunk.to_vec());
    }
    rig.engine.timer_after(Duration::from_millis(1), 1).unwrap();
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).unsent_bytes, 0);
    assert!(reader.join().unwrap() == pattern(1 << 20));
    rig.engine.as_fd().unwrap();
}

pub fn little_memlock_unprivileged(variant: &Variant) {
    // Without CAP_IPC_LOCK, rings count against RLIMIT_MEMLOCK: the engine makes smaller rings or
    // falls back to epoll. The report has the reason, and the engine works.
    if let Some(fallback) = Rig::with(auto()).engine.info().fallback.clone() {
        return skip(format_args!("no io_uring on this machine: {fallback}"));
    }
    let limit = |soft: u64| {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: 512 << 10 };
        // SAFETY: a plain value.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) == 0 }
    };
    if !limit(512 << 10) {
        return skip("RLIMIT_MEMLOCK is less already");
    }
    // SAFETY: plain values. The process gives its privileges up, as the scenario requires.
    unsafe {
        if libc::getuid() == 0 {
            assert_eq!(libc::setgid(65_534), 0);
            assert_eq!(libc::setuid(65_534), 0);
        }
        // LeakSanitizer attaches to this process by ptrace, which needs PR_SET_DUMPABLE.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    for kib in [512, 160, 128, 96, 64, 48, 32, 16, 8, 0] {
        assert!(limit(kib << 10));
        let mut rig = Rig::with(auto());
        let info = rig.engine.info().clone();
        assert_eq!(info.limits.memlock_bytes, Some(kib << 10));
        match &info.fallback {
            Some(fallback) => {
                assert_eq!(fallback.errno, Some(Errno(libc::ENOMEM)), "{fallback}");
                assert!(
                    fallback.cause.contains(&format!("RLIMIT_MEMLOCK is {} bytes", kib << 10)),
                    "{fallback}"
                );
            }
            None if info.ring_entries.0 < 256 => {
                assert!(info.notes.iter().any(|note| note.contains("RLIMIT_MEMLOCK")))
            }
            None => {}
        }
        check_round_trip(&mut rig);
        drop(rig);
        match Engine::new(variant.config()) {
            Ok(engine) => {
                assert!(
                    variant.is_auto()
                        || variant.is_epoll() == (engine.info().backend == Backend::Epoll)
                )
            }
            Err(error) => {
                assert!(
                    error.to_string().contains("RLIMIT_MEMLOCK")
                        || error.to_string().contains("tier"),
                    "{error}"
                )
            }
        }
    }
}

/// The names of the threads of this process, including io_uring's workers. Without /proc it reports
/// the scenario as skipped and returns none.
fn threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        skip("no /proc to count threads in");
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .collect()
}

pub fn worker_threads_stay_few(variant: &Variant) {
    // A hundred connections wait for data and for room to send, without a kernel worker each.
    let mut rig = Rig::new(variant);
    let mut peers = Vec::new();
    for _ in 0..100 {
        let (conn, peer) = rig.pair();
        rig.engine.send(conn, vec![0; 6 << 20]).unwrap();
        peers.push(peer);
    }
    rig.poll_for(Duration::from_millis(100));
    let threads = threads();
    assert!(threads.len() <= 10, "{threads:?}");
}

pub fn slow_readers_hold_no_workers(variant: &Variant) {
    // Large payloads to peers that read small pieces, with a small send buffer: hundreds of partial
    // sends each.
    let mut rig = Rig::new(variant);
    let mut options = ConnectOptions::default();
    options.socket.send_buffer_bytes = Some(16 << 10);
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (conn, mut peer) = rig.pair_with(options.clone());
            rig.engine.send(conn, pattern(2 << 20)).unwrap();
            rig.engine.close(conn).unwrap();
            spawn(move || {
                let mut seen = Vec::new();
                let mut piece = vec![0; 9_000];
                while let Ok(len @ 1..) = peer.read(&mut piece) {
                    seen.extend_from_slice(&piece[..len]);
                }
                assert!(seen == pattern(2 << 20));
            })
        })
        .collect();
    let (mut workers, mut counted) = (0, now());
    rig.run("the slow readers", |engine, _| {
        if counted.elapsed() > Duration::from_millis(5) {
            counted = now();
            workers =
                workers.max(threads().iter().filter(|name| name.starts_with("iou-wrk")).count());
        }
        engine.connections() == 0
    });
    assert_eq!(workers, 0, "a kernel worker was needed");
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

/// Three connections of an engine. The peer of each sends its own letter.
struct Senders {
    rig: Rig,
    addr: std::net::SocketAddr,
    peers: Vec<(ConnId, std::net::TcpStream, u8)>,
    sent: [usize; 3],
    received: [usize; 3],
}

impl Senders {
    fn add_sender(&mut self, letter: u8) {
        let peer = std::net::TcpStream::connect(self.addr).unwrap();
        peer.set_nodelay(true).unwrap();
        let conn = self.rig.until("accept", |_, completion| {
            matches!(completion.event, Event::Accepted { .. }).then_some(completion.conn)
        });
        self.peers.push((conn, peer, letter));
        // Arms its first receive.
        self.receive(Duration::from_millis(5));
    }

    fn send(&mut self, index: usize, bytes: usize) {
        let (_, peer, letter) = &mut self.peers[index];
        peer.write_all(&vec![*letter; bytes]).unwrap();
        self.sent[index] += bytes;
        self.receive(Duration::from_millis(1));
    }

    fn receive(&mut self, span: Duration) {
        for completion in self.rig.poll_for(span) {
            let Event::Received(data) = completion.event else { continue };
            let index = self
                .peers
                .iter()
                .position(|(conn, ..)| *conn == completion.conn)
                .expect("accepted");
            let letter = self.peers[index].2;
            let wrong = data.iter().filter(|byte| **byte != letter && **byte != b'!').count();
            assert_eq!(wrong, 0, "connection {index}: {wrong} wrong bytes of {}", data.len());
            self.received[index] += data.len();
        }
    }
}

pub fn urgent_data_stays_on_its_connection(variant: &Variant) {
    // After 128 wake-ups without data, the kernel moves a oneshot receive to a worker thread, which
    // selects provided buffers in another way.
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    let mut senders = Senders { rig, addr, peers: Vec::new(), sent: [0; 3], received: [0; 3] };
    senders.add_sender(b's');
    // The attacker's receive must find a buffer that others have filled in part.
    (0..60).for_each(|_| senders.send(0, 1000));
    senders.add_sender(b'a');
    (0..7).for_each(|_| senders.send(0, 1000));
    senders.add_sender(b'v');
    senders.send(2, 10);
    for _ in 0..130 {
        socket2::SockRef::from(&senders.peers[1].1).send_out_of_band(b"!").unwrap();
        // Long enough for one wake-up per byte.
        senders.receive(Duration::from_millis(3));
    }
    senders.receive(Duration::from_millis(50));
    senders.send(2, 100);
    senders.send(1, 50);
    (0..50).for_each(|_| senders.send(2, 1000));
    let deadline = now() + patience();
    while senders.received[0] < senders.sent[0] || senders.received[2] < senders.sent[2] {
        assert!(now() < deadline, "{:?} bytes arrived of {:?}", senders.received, senders.sent);
        senders.receive(Duration::from_millis(20));
    }
    assert_eq!((senders.received[0], senders.received[2]), (senders.sent[0], senders.sent[2]));
    assert_eq!(senders.rig.engine.stats().kernel_violations, 0);
}
