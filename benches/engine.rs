//! Wall-clock time per request of the io_uring backend and of the epoll backend, in one run: `cargo
//! bench`. A name or a part of one selects, for instance `cargo bench -- round_trip/64x64B`. Client
//! and server are two engines of the same backend on two threads. On a machine with few cores or
//! other load, compare the two backends of one run, not two runs.
//!
//! Without `--bench`, as in `cargo test`, each benchmark runs once, with one request.

#[allow(unused)]
#[path = "../examples/common/mod.rs"]
mod common;

use bytes::Bytes;
use common::echo::Echo;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group};
use proactor::sim::World;
use proactor::*;
use std::collections::HashMap;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The backends that this machine has.
fn backends() -> Vec<(&'static str, Config)> {
    let both = [("uring", Backend::Uring), ("epoll", Backend::Epoll)];
    let configs = both
        .map(|(name, backend)| (name, Config::default().ignore_environment(true).backend(backend)));
    configs.into_iter().filter(|(_, config)| Engine::new(config.clone()).is_ok()).collect()
}

/// An echo server on a thread of its own.
struct Server {
    addr: Addr,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(config: Config) -> Server {
        let (sender, receiver) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut engine = Engine::new(config).expect("checked by backends()");
            let listener =
                engine.listen((Ipv4Addr::LOCALHOST, 0), ListenOptions::default()).expect("listen");
            let addr = engine.listener_addr(listener).expect("bound");
            sender.send((addr, engine.waker())).expect("the caller waits");
            let (mut completions, mut echo) = (Completions::with_capacity(1024), Echo::default());
            while !flag.load(Ordering::Acquire) {
                engine.poll(&mut completions, None).expect("poll");
                completions.drain().for_each(|completion| echo.handle(&mut engine, completion));
            }
        });
        let (addr, waker) = receiver.recv().expect("the server starts");
        Server { addr, stop, waker, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        self.thread.take().expect("joined once").join().expect("the server does not panic");
    }
}

/// Connections with one request in flight on each.
struct Client {
    engine: Engine,
    completions: Completions,
    conns: Vec<ConnId>,
    missing: Vec<usize>,
    message: Bytes,
}

impl Client {
    fn connect(config: Config, addr: &Addr, conns: usize, size: usize) -> Client {
        let mut engine = Engine::new(config).expect("checked by backends()");
        let mut completions = Completions::with_capacity(1024);
        let connect = |tag| ConnectOptions { tag, ..ConnectOptions::default() };
        let conns: Vec<_> = (0..conns)
            .map(|i| engine.connect(addr.clone(), connect(i as u64)).expect("connect"))
            .collect();
        let mut open = 0;
        while open < conns.len() {
            engine.poll(&mut completions, None).expect("poll");
            open += completions
                .drain()
                .filter(|completion| matches!(completion.event, Event::Connected))
                .count();
        }
        Client {
            engine,
            completions,
            missing: vec![0; conns.len()],
            conns,
            message: vec![7; size].into(),
        }
    }

    fn send_request(&mut self, index: usize) {
        self.missing[index] = self.message.len();
        self.engine.send(self.conns[index], self.message.clone()).expect("room for one request");
    }

    /// Runs `count` requests until each has its response.
    fn requests(&mut self, count: u64) {
        let (mut sent, mut answered) = (0, 0);
        for index in 0..self.conns.len().min(count as usize) {
            self.send_request(index);
            sent += 1;
        }
        while answered < count {
            self.engine.poll(&mut self.completions, None).expect("poll");
            while let Some(completion) = self.completions.pop() {
                let Event::Received(data) = completion.event else { continue };
                let index = completion.tag as usize;
                self.missing[index] -= data.len();
                if self.missing[index] == 0 {
                    answered += 1;
                    if sent < count {
                        sent += 1;
                        self.send_request(index);
                    }
                }
            }
        }
    }
}

fn timed(mut work: impl FnMut(u64)) -> impl FnMut(u64) -> Duration {
    move |count| {
        let start = Instant::now();
        work(count);
        start.elapsed()
    }
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group
}

fn round_trip(c: &mut Criterion) {
    let mut group = group(c, "round_trip");
    for conns in [1, 64, 512] {
        for (size, name) in [(64, "64B"), (1024, "1KiB"), (16 << 10, "16KiB")] {
            group.throughput(Throughput::Elements(1));
            for (backend, config) in backends() {
                let server = Server::start(config.clone());
                let mut client = Client::connect(config, &server.addr, conns, size);
                let id = BenchmarkId::new(format!("{conns}x{name}"), backend);
                group.bench_function(id, |b| b.iter_custom(timed(|count| client.requests(count))));
            }
        }
    }
}

fn connect(c: &mut Criterion) {
    let mut group = group(c, "connect_request_close");
    group.throughput(Throughput::Elements(1));
    for (backend, config) in backends() {
        let server = Server::start(config.clone());
        let mut engine = Engine::new(config).expect("checked by backends()");
        let (mut completions, mut opened) = (Completions::with_capacity(1024), 0u64);
        group.bench_function(BenchmarkId::new("64 at once", backend), |b| {
            b.iter_custom(timed(|count| {
                let (mut started, mut ended, mut missing) = (0, 0, HashMap::new());
                while ended < count {
                    while started < count && started - ended < 64 {
                        started += 1;
                        opened += 1;
                        // New source addresses: closed connections hold the ports of an address for
                        // a minute in TIME_WAIT.
                        let source = [
                            127,
                            2 + (opened / 4_000_000) as u8,
                            (opened / 16_000 % 250) as u8,
                            (opened / 64 % 250 + 1) as u8,
                        ];
                        let local = Some(SocketAddr::from((source, 0)));
                        let options = ConnectOptions { local, ..ConnectOptions::default() };
                        let conn = engine.connect(server.addr.clone(), options).expect("connect");
                        engine.send(conn, &[1; 64]).expect("room");
                        missing.insert(conn, 64);
                    }
                    engine.poll(&mut completions, None).expect("poll");
                    for completion in completions.drain() {
                        match completion.event {
                            Event::Received(data) => {
                                let missing = missing.get_mut(&completion.conn).expect("open");
                                *missing -= data.len();
                                if *missing == 0 {
                                    engine.close(completion.conn).expect("open");
                                }
                            }
                            Event::Closed(reason) => {
                                assert_eq!(reason.kind, CloseKind::Local, "{reason}");
                                ended += 1;
                            }
                            _ => {}
                        }
                    }
                }
            }));
        });
    }
}

fn stream(c: &mut Criterion) {
    const CHUNK: usize = 256 << 10;
    let mut group = group(c, "stream");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    for (backend, config) in backends() {
        let server = Server::start(config.clone());
        let mut client = Client::connect(config, &server.addr, 1, CHUNK);
        let conn = client.conns[0];
        group.bench_function(BenchmarkId::new("echo of 256 KiB chunks", backend), |b| {
            b.iter_custom(timed(|count| {
                let (mut sent, mut back) = (0, 0);
                while back < count * CHUNK as u64 {
                    while sent < count && client.engine.send(conn, client.message.clone()).is_ok() {
                        sent += 1;
                    }
                    client.engine.poll(&mut client.completions, None).expect("poll");
                    for completion in client.completions.drain() {
                        if let Event::Received(data) = completion.event {
                            back += data.len() as u64;
                        }
                    }
                }
            }));
        });
    }
}

fn timers(c: &mut Criterion) {
    const LIVE: u64 = 100_000;
    let mut group = group(c, "timers");
    group.throughput(Throughput::Elements(1));
    for (backend, config) in backends() {
        let mut engine = Engine::new(config).expect("checked by backends()");
        let mut live = Vec::new();
        let mut tag = 0u64;
        for (count, name) in [(1000, "1,000"), (LIVE, "100,000"), (1_000_000, "1,000,000")] {
            let missing = live.len() as u64..count;
            live.extend(
                missing.map(|i| {
                    engine.timer_after(Duration::from_millis(60_000 + i), i).expect("room")
                }),
            );
            group.bench_function(
                BenchmarkId::new(format!("add and cancel, {name} live"), backend),
                |b| {
                    b.iter(|| {
                        tag += 1;
                        let id = engine
                            .timer_after(Duration::from_millis(tag % 60_000), tag)
                            .expect("room");
                        assert!(engine.timer_cancel(black_box(id)));
                    });
                },
            );
        }
        live.drain(LIVE as usize..).for_each(|id| assert!(engine.timer_cancel(id)));
        group.bench_function(BenchmarkId::new("move, 100,000 live", backend), |b| {
            b.iter(|| {
                tag += 1;
                assert!(engine.timer_reset(
                    live[(tag % LIVE) as usize],
                    Duration::from_millis(60_000 + tag % 1000)
                ));
            });
        });
        let mut completions = Completions::with_capacity(1024);
        group.bench_function(BenchmarkId::new("add and expire, 100,000 live", backend), |b| {
            b.iter_custom(timed(|count| {
                let mut left = count;
                while left > 0 {
                    let batch = left.min(10_000);
                    for tag in 0..batch {
                        engine.timer_after(Duration::ZERO, tag).expect("room");
                    }
                    let mut fired = 0;
                    while fired < batch {
                        fired += engine.poll(&mut completions, None).expect("poll") as u64;
                        completions.drain();
                    }
                    left -= batch;
                }
            }));
        });
    }
}

/// The simulator: client and server in one simulated world, on one thread. An element is a
/// completion.
fn simulated(c: &mut Criterion) {
    const CONNECTIONS: usize = 64;
    let mut group = group(c, "simulated");
    group.throughput(Throughput::Elements(1));
    group.bench_function("64x64B", |b| {
        b.iter_custom(timed(|count| {
            let world = World::new(1);
            let host = world.host("both");
            let engine = || host.engine(Config::default()).expect("an engine");
            let (mut server, mut client, mut echo) = (engine(), engine(), Echo::default());
            let listener =
                server.listen((Ipv4Addr::LOCALHOST, 0), ListenOptions::default()).expect("listen");
            let addr = server.listener_addr(listener).expect("bound");
            for _ in 0..CONNECTIONS {
                let conn =
                    client.connect(addr.clone(), ConnectOptions::default()).expect("connect");
                client.send(conn, vec![1; 64]).expect("room");
            }
            let mut completions = Completions::with_capacity(256);
            while world.completions() < count {
                server.poll(&mut completions, Some(Duration::ZERO)).expect("poll");
                completions.drain().for_each(|completion| echo.handle(&mut server, completion));
                client.poll(&mut completions, Some(Duration::ZERO)).expect("poll");
                for completion in completions.drain() {
                    if let Event::Received(data) = completion.event {
                        client.send(completion.conn, data).expect("room");
                    }
                }
                world.step();
            }
        }));
    });
}

criterion_group!(benches, round_trip, connect, stream, timers, simulated);

/// `cargo test` passes options of libtest that criterion does not have, such as `--test-threads`.
/// Only a filter and `--exact` are kept.
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| matches!(argument.as_str(), "--bench" | "--test" | "--list"))
    {
        benches();
        return Criterion::default().configure_from_args().final_summary();
    }
    let takes_value = |option: &str| {
        matches!(option, "--test-threads" | "--skip" | "--color" | "--format" | "--logfile" | "-Z")
    };
    let mut previous = "";
    let kept = arguments.iter().filter(|argument| {
        let value = takes_value(std::mem::replace(&mut previous, argument));
        !value && !argument.starts_with('-') || *argument == "--exact"
    });
    let this = std::env::current_exe().expect("a running program has a path");
    let status = std::process::Command::new(this)
        .arg("--test")
        .args(kept)
        .status()
        .expect("this binary runs");
    std::process::exit(status.code().unwrap_or(1));
}
