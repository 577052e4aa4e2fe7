//! The server under soak: a process that echoes, and answers a line on its standard input with a
//! sample of itself.

use crate::echo::Echo;
use proactor::{Addr, Backend, Completions, Engine, ListenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

/// Set in the server's process: its backend.
pub const ROLE: &str = "PROACTOR_SOAK_SERVER";

/// Connections that say nothing for so long are closed.
pub const IDLE: Duration = Duration::from_secs(10);

/// What a server holds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub connections: usize,
    pub descriptors: usize,
    pub threads: usize,
    pub free_buffers: usize,
    /// As it is: with what the C library keeps of freed memory for later, which follows the largest
    /// crowd so far.
    pub resident_kib: usize,
    /// After the C library gave back what it can: what is in use.
    pub trimmed_kib: usize,
}

pub fn serve(backend: Backend) {
    let mut engine = Engine::new(crate::config(backend)).expect("this backend");
    let mut options = ListenOptions::default();
    options.socket.idle_timeout = Some(IDLE);
    let listener =
        engine.listen("127.0.0.1:0".parse::<Addr>().expect("an address"), options).expect("listen");
    println!("{}", engine.listener_addr(listener).expect("bound"));
    let (asked, questions) = channel();
    let waker = engine.waker();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let _ = asked.send(line);
            waker.wake();
        }
        drop(asked);
        waker.wake();
    });
    let mut completions = Completions::with_capacity(1024);
    let mut echo = Echo::default();
    while !engine.is_closed() {
        match questions.try_recv() {
            Ok(_) => answer(&engine),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => engine.close_all(Duration::from_secs(5)),
        }
        engine.poll(&mut completions, None).expect("poll");
        for completion in completions.drain() {
            echo.handle(&mut engine, completion);
        }
    }
}

fn answer(engine: &Engine) {
    engine.audit().expect("the engine's books are in order");
    assert_eq!(engine.stats().unknown_completions, 0);
    let count = |path| std::fs::read_dir(path).map_or(0, |entries| entries.count());
    let resident_kib = resident_kib();
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and nothing allocates meanwhile.
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
    answers: BufReader<ChildStdout>,
    addr: SocketAddr,
}

impl Server {
    pub fn start(backend: Backend) -> Server {
        let mut command = Command::new(std::env::current_exe().expect("procfs"));
        command.env(ROLE, backend.name()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this binary runs");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("the server says where it is");
        let addr = line.trim().parse().expect("an address");
        Server { child, answers, addr }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn sample(&mut self) -> Sample {
        let mut line = String::new();
        self.child.stdin.as_mut().expect("piped").write_all(b"sample\n").expect("the server lives");
        self.answers.read_line(&mut line).expect("the server lives");
        let numbers: Vec<usize> =
            line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [connections, descriptors, threads, free_buffers, resident_kib, trimmed_kib] =
            numbers[..]
        else {
            panic!("the server died: {line:?}")
        };
        Sample { connections, descriptors, threads, free_buffers, resident_kib, trimmed_kib }
    }

    /// Waits until all that the clients took is given back; an error if it never is.
    pub fn rest(&mut self, fresh: &Sample) -> Result<Sample, String> {
        let deadline = Instant::now() + 3 * IDLE;
        loop {
            let sample = self.sample();
            let same = sample.connections == 0
                && sample.descriptors <= fresh.descriptors
                && sample.threads <= fresh.threads + 2
                && sample.free_buffers == fresh.free_buffers;
            if same {
                return Ok(sample);
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "something is left when all clients are gone: {sample:?}, at first {fresh:?}"
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
