//! The server of the soak test: a process that echoes, and for each line on its standard input
//! prints what it holds. Owns: the process, and its samples. Must not know the clients.

use crate::echo::Echo;
use proactor::{Addr, Backend, Completions, Engine, ListenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

/// Set in the process of the server: its backend.
pub const ROLE: &str = "PROACTOR_SOAK_SERVER";

/// The idle timeout of the server's connections.
pub const IDLE: Duration = Duration::from_secs(10);

/// What a server holds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub connections: usize,
    pub descriptors: usize,
    pub threads: usize,
    pub free_buffers: usize,
    /// With the freed memory that the C library keeps, which depends on the largest number of
    /// connections so far.
    pub resident_kib: usize,
    /// After `malloc_trim`: what is in use.
    pub trimmed_kib: usize,
}

pub fn serve(backend: Backend) {
    let mut engine = Engine::new(crate::config(backend)).expect("this backend");
    let mut options = ListenOptions::default();
    options.socket.idle_timeout = Some(IDLE);
    let listener =
        engine.listen("127.0.0.1:0".parse::<Addr>().expect("an address"), options).expect("listen");
    println!("{}", engine.listener_addr(listener).expect("bound"));
    let (sender, requests) = channel();
    let waker = engine.waker();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let _ = sender.send(line);
            waker.wake();
        }
        drop(sender);
        waker.wake();
    });
    let mut completions = Completions::with_capacity(1024);
    let mut echo = Echo::default();
    while !engine.is_closed() {
        match requests.try_recv() {
            Ok(_) => print_sample(&engine),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => engine.close_all(Duration::from_secs(5)),
        }
        engine.poll(&mut completions, None).expect("poll");
        for completion in completions.drain() {
            echo.handle(&mut engine, completion);
        }
    }
}

fn print_sample(engine: &Engine) {
    engine.audit().expect("the engine is consistent");
    assert_eq!(engine.stats().unknown_completions, 0);
    let count = |path| std::fs::read_dir(path).map_or(0, |entries| entries.count());
    let resident_kib = resident_kib();
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer.
    unsafe {
        libc::malloc_trim(0)
    };
    let (connections, buffers) = (engine.connections(), engine.free_buffers());
    let (descriptors, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
    println!(
        "{connections} {descriptors} {threads} {buffers} {resident_kib} {}",
        self::resident_kib()
    );
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let text =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("of a live process");
    text.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A running server.
pub struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    addr: SocketAddr,
}

impl Server {
    pub fn start(backend: Backend) -> Server {
        let mut command = Command::new(std::env::current_exe().expect("procfs"));
        command.env(ROLE, backend.name()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this binary runs");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("the server prints its address");
        let addr = line.trim().parse().expect("an address");
        Server { child, output, addr }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn sample(&mut self) -> Sample {
        let mut line = String::new();
        self.child.stdin.as_mut().expect("piped").write_all(b"sample\n").expect("the server runs");
        self.output.read_line(&mut line).expect("the server runs");
        let numbers: Vec<usize> =
            line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [connections, descriptors, threads, free_buffers, resident_kib, trimmed_kib] =
            numbers[..]
        else {
            panic!("the server has exited: {line:?}")
        };
        Sample { connections, descriptors, threads, free_buffers, resident_kib, trimmed_kib }
    }

    /// Waits until the server holds what it held at its start.
    pub fn wait_at_rest(&mut self, at_start: &Sample) -> Result<Sample, String> {
        let deadline = Instant::now() + 3 * IDLE;
        loop {
            let sample = self.sample();
            let same = sample.connections == 0
                && sample.descriptors <= at_start.descriptors
                && sample.threads <= at_start.threads + 2
                && sample.free_buffers == at_start.free_buffers;
            if same {
                return Ok(sample);
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "not at rest after the last client: {sample:?}, at the start {at_start:?}"
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("a child").success(), "the server failed");
    }
}
