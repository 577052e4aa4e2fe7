//! Environments that take things away: filters, limits, switches. The engine must find another way,
//! or say what is wrong.

use crate::Variant;
use crate::filters::{Filter, numbers};
use crate::peers::*;
use crate::report::skip;
use crate::rig::*;
use proactor::*;
use std::io::{Read, Write};
use std::time::Duration;

/// Makes some system calls answer `errno` from now on, for this thread and its children.
fn forbid(calls: &[&str], errno: i32) {
    Filter::open().refusing(&numbers(calls), errno).install().unwrap();
}

fn free() -> Config {
    Config::default().ignore_environment(true)
}

/// A round trip, to see that what was chosen works.
fn works(rig: &mut Rig) {
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"ping").unwrap();
    assert_eq!(rig.receive(conn, 4), b"ping");
    rig.engine.send(conn, "pong").unwrap();
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");
}

fn falls_back(errno: i32, cause: &str) {
    let mut rig = Rig::with(free());
    let info = rig.engine.info().clone();
    assert_eq!((info.backend, info.tier), (Backend::Epoll, None));
    let fallback = info.fallback.clone().expect("a reason is kept");
    assert_eq!(fallback.errno, Some(Errno(errno)), "{fallback}");
    assert!(fallback.cause.contains(cause), "{fallback}");
    assert!(info.to_string().contains(&fallback.to_string()), "the report names the reason");
    works(&mut rig);
    // Forced, it is an error that says the same.
    let error = Engine::new(free().backend(Backend::Uring)).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { .. }) && error.to_string().contains(cause),
        "{error}"
    );
}

fn seccomp(variant: &Variant, calls: &[&str], errno: i32, cause: &str) {
    assert!(variant.is_epoll());
    forbid(calls, errno);
    falls_back(errno, cause);
}

pub fn seccomp_eperm(variant: &Variant) {
    seccomp(
        variant,
        &["io_uring_setup", "io_uring_enter", "io_uring_register"],
        libc::EPERM,
        "seccomp",
    );
}

pub fn seccomp_enosys(variant: &Variant) {
    seccomp(
        variant,
        &["io_uring_setup", "io_uring_enter", "io_uring_register"],
        libc::ENOSYS,
        "answers ENOSYS",
    );
}

pub fn seccomp_enter_only(variant: &Variant) {
    if Engine::new(free().backend(Backend::Uring)).is_err() {
        return skip("no io_uring here to begin with");
    }
    seccomp(variant, &["io_uring_enter"], libc::EPERM, "io_uring_enter is not");
}

pub fn forced_backend_says_why(_: &Variant) {
    forbid(&["io_uring_setup"], libc::EPERM);
    let error = Engine::new(free().tier(Tier::Deferred)).unwrap_err();
    assert!(
        error.to_string().contains("tier `deferred`") && error.to_string().contains("EPERM"),
        "{error}"
    );
    let epoll = Engine::new(free().backend(Backend::Epoll)).unwrap();
    assert_eq!(epoll.info().fallback, None, "asked for, not fallen back to");
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
    let Ok(plain) = Engine::new(free()) else { panic!("an engine") };
    if plain.info().tier != Some(Tier::Deferred) {
        return skip("no tier to walk down from");
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
        works(&mut rig);
    }
    set("PROACTOR_TIER", "polled");
    assert_eq!(Engine::new(Config::default()).unwrap().info().tier, Some(Tier::Polled));
}

pub fn capabilities_are_reported(_: &Variant) {
    for config in [free(), free().backend(Backend::Epoll)] {
        let engine = Engine::new(config).unwrap();
        let reports = engine.info().capabilities();
        assert_eq!(reports.len(), REQUIREMENTS.len());
        for report in reports {
            assert_eq!(report.why.is_empty(), report.state == CapabilityState::Used, "{report:?}");
        }
    }
}

pub fn refused_tiers_say_why(_: &Variant) {
    let Ok(_) = Engine::new(free().tier(Tier::Deferred)) else {
        return skip("no tier `deferred` here");
    };
    let error = Engine::new(free().tier(Tier::Deferred).disable(Capability::MultishotRecv))
        .unwrap_err()
        .to_string();
    assert!(error.contains("multishot_recv: switched off by Config::disable"), "{error}");
    let error = Engine::new(free().hardened(true).disable(Capability::Restrictions))
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
        let result = Engine::new(free());
        libc::setrlimit(libc::RLIMIT_NOFILE, &before);
        (result.err(), before.rlim_cur)
    };
    let error = error.expect("no descriptor to be had");
    assert_eq!(error.errno(), Some(Errno(libc::EMFILE)), "{error}");
    assert!(count > 3 && Engine::new(free()).is_ok());
}

pub fn hardened_ring(variant: &Variant) {
    let mut rig = match Engine::new(variant.config().hardened(true)) {
        Ok(_) => Rig::with(variant.config().hardened(true).tuning(zero_copy(4096))),
        Err(Error::Unsupported { why, .. }) => return skip(why),
        Err(error) => panic!("{error}"),
    };
    works(&mut rig);
    // The first payload leaves with the connect, the others as they come.
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
    assert_eq!(rig.end_of(conn).unsent_bytes, 0);
    assert!(reader.join().unwrap() == pattern(1 << 20));
    rig.engine.as_fd().unwrap();
}

pub fn little_memlock_unprivileged(variant: &Variant) {
    // Without CAP_IPC_LOCK ring memory counts against RLIMIT_MEMLOCK on newer kernels: rings
    // shrink, or epoll takes over. Either way the report says so, and the engine works.
    if let Some(fallback) = Rig::with(free()).engine.info().fallback.clone() {
        return skip(format_args!("no io_uring here to begin with: {fallback}"));
    }
    let limit = |soft: u64| {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: 512 << 10 };
        // SAFETY: a plain value.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) == 0 }
    };
    if !limit(512 << 10) {
        return skip("RLIMIT_MEMLOCK is less already");
    }
    // SAFETY: afterwards this process is nobody, which is the point.
    unsafe {
        if libc::getuid() == 0 {
            assert_eq!(libc::setgid(65_534), 0);
            assert_eq!(libc::setuid(65_534), 0);
        }
        // So that sanitizers may look at this process all the same.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    for kib in [512, 160, 128, 96, 64, 48, 32, 16, 8, 0] {
        assert!(limit(kib << 10));
        let mut rig = Rig::with(free());
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
        works(&mut rig);
        drop(rig);
        match Engine::new(variant.config()) {
            Ok(engine) => {
                assert!(
                    variant.is_free()
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

/// The names of this process's threads, kernel workers among them; none, and the scenario is
/// skipped, without /proc.
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
    // A hundred connections that wait for data, and for room to send, need no kernel worker each.
    let mut rig = Rig::new(variant);
    let mut peers = Vec::new();
    for _ in 0..100 {
        let (conn, peer) = rig.pair();
        rig.engine.send(conn, vec![0; 6 << 20]).unwrap();
        peers.push(peer);
    }
    rig.watch(Duration::from_millis(100));
    let threads = threads();
    assert!(threads.len() <= 10, "{threads:?}");
}

pub fn slow_readers_hold_no_workers(variant: &Variant) {
    // Large payloads to peers that read in small sips, with a small send buffer: hundreds of
    // partial sends each.
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
                let mut sip = vec![0; 9_000];
                while let Ok(len @ 1..) = peer.read(&mut sip) {
                    seen.extend_from_slice(&sip[..len]);
                }
                assert!(seen == pattern(2 << 20));
            })
        })
        .collect();
    let (mut workers, mut looked) = (0, now());
    rig.run("the slow readers", |engine, _| {
        if looked.elapsed() > Duration::from_millis(5) {
            looked = now();
            workers =
                workers.max(threads().iter().filter(|name| name.starts_with("iou-wrk")).count());
        }
        engine.connections() == 0
    });
    assert_eq!(workers, 0, "a kernel worker was needed");
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

/// Three connections of an engine, whose peers each write bytes of their own.
struct Voices {
    rig: Rig,
    addr: std::net::SocketAddr,
    peers: Vec<(ConnId, std::net::TcpStream, u8)>,
    sent: [usize; 3],
    received: [usize; 3],
}

impl Voices {
    fn join(&mut self, voice: u8) {
        let peer = std::net::TcpStream::connect(self.addr).unwrap();
        peer.set_nodelay(true).unwrap();
        let conn = self.rig.until("accept", |_, completion| {
            matches!(completion.event, Event::Accepted { .. }).then_some(completion.conn)
        });
        self.peers.push((conn, peer, voice));
        // Its first receive is armed.
        self.listen(Duration::from_millis(5));
    }

    fn speak(&mut self, index: usize, bytes: usize) {
        let (_, peer, voice) = &mut self.peers[index];
        peer.write_all(&vec![*voice; bytes]).unwrap();
        self.sent[index] += bytes;
        self.listen(Duration::from_millis(1));
    }

    fn listen(&mut self, span: Duration) {
        for completion in self.rig.watch(span) {
            let Event::Received(data) = completion.event else { continue };
            let index = self
                .peers
                .iter()
                .position(|(conn, ..)| *conn == completion.conn)
                .expect("accepted");
            let voice = self.peers[index].2;
            let foreign = data.iter().filter(|byte| **byte != voice && **byte != b'!').count();
            assert_eq!(foreign, 0, "connection {index}: {foreign} foreign bytes of {}", data.len());
            self.received[index] += data.len();
        }
    }
}

pub fn urgent_data_reaches_nobody_else(variant: &Variant) {
    // After 128 wake-ups without data a single-shot receive goes to a kernel worker, which takes
    // buffers in another way.
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    let mut voices = Voices { rig, addr, peers: Vec::new(), sent: [0; 3], received: [0; 3] };
    voices.join(b's');
    // The attacker's receive is to find a buffer that is filled in part, by the others.
    (0..60).for_each(|_| voices.speak(0, 1000));
    voices.join(b'a');
    (0..7).for_each(|_| voices.speak(0, 1000));
    voices.join(b'v');
    voices.speak(2, 10);
    for _ in 0..130 {
        socket2::SockRef::from(&voices.peers[1].1).send_out_of_band(b"!").unwrap();
        // Long enough for each byte to be a wake-up of its own.
        voices.listen(Duration::from_millis(3));
    }
    voices.listen(Duration::from_millis(50));
    voices.speak(2, 100);
    voices.speak(1, 50);
    (0..50).for_each(|_| voices.speak(2, 1000));
    let deadline = now() + patience();
    while voices.received[0] < voices.sent[0] || voices.received[2] < voices.sent[2] {
        assert!(now() < deadline, "{:?} bytes arrived of {:?}", voices.received, voices.sent);
        voices.listen(Duration::from_millis(20));
    }
    assert_eq!((voices.received[0], voices.received[2]), (voices.sent[0], voices.sent[2]));
    assert_eq!(voices.rig.engine.stats().kernel_violations, 0);
}
