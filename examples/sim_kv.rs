//! How to test a protocol in simulated worlds: a small replicated counter with a bug, which a seed
//! finds in under a second, and the same protocol with the bug fixed.
//!
//! A client sends increments to a primary. The primary applies each, replicates it to a backup, and
//! responds when the backup has confirmed. When a connection breaks, the client connects again and
//! repeats the increment that has no response. The bug: if the increment was applied and only its
//! response was lost, it is applied twice. The fix: the primary remembers the numbers of the
//! increments that it has applied.
//!
//! ```text
//! cargo run --release --example sim_kv              # finds the bug, then runs the fixed version
//! cargo run --release --example sim_kv -- --seed 3  # one seed with the bug, event by event
//! cargo run --release --example sim_kv -- --real    # the fixed version on the kernel's network
//! ```
//!
//! Prints the first seed that fails and the counters that it left, then the number of seeds that
//! the fixed version passed. `docs/testing-your-protocol.md` explains it step by step.

use clap::Parser;
use proactor::sim::{Fault, Faults, Host, World};
use proactor::*;
use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const INCREMENTS: u64 = 30;
/// How long one poll waits. The client repeats an increment after twice this time.
const TIMEOUT: Duration = Duration::from_millis(50);
const FRAME: usize = 17;

/// A replicated counter in simulated worlds: a bug that a seed finds, and its fix
#[derive(Parser)]
struct Args {
    /// Run one seed of the version with the bug, and print its trace
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds to try
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Run the fixed version on this machine's kernel, without a simulation
    #[arg(long)]
    real: bool,
}

/// The messages of the protocol, 17 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// Client to primary: add one. A repeated increment has the same number.
    Increment { number: u64 },
    /// Primary to client: the increment is done, the counter is at `value`.
    Done { number: u64, value: u64 },
    /// Primary to backup: the counter is at `value`.
    Replicate { number: u64, value: u64 },
    /// Backup to primary: the value is stored.
    Confirm { number: u64, value: u64 },
}

impl Message {
    fn encode(self) -> [u8; FRAME] {
        let (kind, number, value) = match self {
            Message::Increment { number } => (0, number, 0),
            Message::Done { number, value } => (1, number, value),
            Message::Replicate { number, value } => (2, number, value),
            Message::Confirm { number, value } => (3, number, value),
        };
        let mut frame = [kind; FRAME];
        frame[1..9].copy_from_slice(&number.to_be_bytes());
        frame[9..].copy_from_slice(&value.to_be_bytes());
        frame
    }

    fn decode(frame: &[u8; FRAME]) -> Option<Message> {
        let field = |from: usize| {
            u64::from_be_bytes(frame[from..from + 8].try_into().expect("eight bytes"))
        };
        let (number, value) = (field(1), field(9));
        match frame[0] {
            0 => Some(Message::Increment { number }),
            1 => Some(Message::Done { number, value }),
            2 => Some(Message::Replicate { number, value }),
            3 => Some(Message::Confirm { number, value }),
            _ => None,
        }
    }
}

/// The bytes of an incomplete message: a stream is cut at any byte.
#[derive(Default)]
struct Frames(Vec<u8>);

impl Frames {
    fn add(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.0.extend_from_slice(bytes);
        let whole = self.0.len() / FRAME * FRAME;
        let frames: Vec<u8> = self.0.drain(..whole).collect();
        frames
            .chunks_exact(FRAME)
            .filter_map(|frame| Message::decode(frame.try_into().expect("whole frames")))
            .collect()
    }
}

/// The state of every program: its engine, and a flag that stops it.
struct Node {
    engine: Engine,
    completions: Completions,
    frames: BTreeMap<ConnId, Frames>,
    stop: Arc<AtomicBool>,
}

/// An event of the engine, in terms of the protocol.
enum Input {
    Message(ConnId, Message),
    Connected(ConnId),
    Closed(ConnId),
}

impl Node {
    fn new(engine: Engine, stop: Arc<AtomicBool>) -> Node {
        Node { engine, completions: Completions::with_capacity(64), frames: BTreeMap::new(), stop }
    }

    /// Polls once. Returns an error when the program must stop.
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Input>, Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Closing);
        }
        self.engine.poll(&mut self.completions, Some(timeout))?;
        let mut inputs = Vec::new();
        for Completion { conn, event, .. } in self.completions.drain() {
            match event {
                Event::Connected => inputs.push(Input::Connected(conn)),
                Event::Received(data) => {
                    let messages = self.frames.entry(conn).or_default().add(&data);
                    inputs
                        .extend(messages.into_iter().map(|message| Input::Message(conn, message)));
                }
                Event::ReadClosed => drop(self.engine.close(conn)),
                Event::Closed(_) => {
                    self.frames.remove(&conn);
                    inputs.push(Input::Closed(conn));
                }
                _ => {}
            }
        }
        Ok(inputs)
    }

    fn send(&mut self, to: ConnId, message: Message) {
        // An error means that the connection has ended. `Closed` follows, and the program repeats
        // what matters.
        let _ = self.engine.send(to, message.encode().to_vec());
    }

    fn connect(&mut self, addr: &Addr) -> Result<ConnId, Error> {
        let options = ConnectOptions { timeout: Some(TIMEOUT * 4), ..ConnectOptions::default() };
        self.engine.connect(addr.clone(), options)
    }
}

/// Applies increments, replicates them, and responds. With `deduplicate` it applies each number
/// only once.
fn primary(
    mut node: Node,
    own: Addr,
    backup: Addr,
    deduplicate: bool,
    counter: Arc<AtomicU64>,
) -> Result<(), Error> {
    node.engine.listen(own, ListenOptions::default())?;
    let mut backup_conn = node.connect(&backup)?;
    // Applied, but not confirmed. They are replicated again over a new connection to the backup.
    let mut unconfirmed: VecDeque<(ConnId, u64, u64)> = VecDeque::new();
    let mut applied: BTreeMap<u64, u64> = BTreeMap::new();
    loop {
        for input in node.poll(TIMEOUT)? {
            match input {
                Input::Message(client, Message::Increment { number }) => {
                    let known = applied.get(&number).copied().filter(|_| deduplicate);
                    let value =
                        known.unwrap_or_else(|| counter.fetch_add(1, Ordering::Relaxed) + 1);
                    applied.insert(number, value);
                    unconfirmed.push_back((client, number, value));
                    node.send(backup_conn, Message::Replicate { number, value });
                }
                Input::Message(_, Message::Confirm { number, value }) => {
                    while let Some(index) =
                        unconfirmed.iter().position(|(_, n, v)| (*n, *v) == (number, value))
                    {
                        let (client, ..) = unconfirmed.remove(index).expect("position found it");
                        node.send(client, Message::Done { number, value });
                    }
                }
                Input::Connected(conn) if conn == backup_conn => {
                    for (_, number, value) in unconfirmed.clone() {
                        node.send(backup_conn, Message::Replicate { number, value });
                    }
                }
                Input::Closed(conn) if conn == backup_conn => {
                    backup_conn = node.connect(&backup)?
                }
                _ => {}
            }
        }
    }
}

fn backup(mut node: Node, own: Addr, counter: Arc<AtomicU64>) -> Result<(), Error> {
    node.engine.listen(own, ListenOptions::default())?;
    loop {
        for input in node.poll(TIMEOUT)? {
            if let Input::Message(from, Message::Replicate { number, value }) = input {
                counter.fetch_max(value, Ordering::Relaxed);
                node.send(from, Message::Confirm { number, value });
            }
        }
    }
}

/// Sends increments, one after the other, each until its response arrives.
fn client(mut node: Node, primary: Addr) -> Result<(), Error> {
    let mut conn = node.connect(&primary)?;
    for number in 1..=INCREMENTS {
        let mut sent_at = node.engine.now();
        node.send(conn, Message::Increment { number });
        'response: loop {
            let mut repeat = node.engine.now() - sent_at > TIMEOUT * 2;
            for input in node.poll(TIMEOUT)? {
                match input {
                    Input::Message(_, Message::Done { number: done, .. }) if done == number => {
                        break 'response;
                    }
                    Input::Closed(closed) if closed == conn => repeat = true,
                    _ => {}
                }
            }
            if repeat {
                let _ = node.engine.abort(conn);
                conn = node.connect(&primary)?;
                node.send(conn, Message::Increment { number });
                sent_at = node.engine.now();
            }
        }
    }
    node.engine.close(conn)
}

/// The counters of a run.
struct Counters {
    primary: Arc<AtomicU64>,
    backup: Arc<AtomicU64>,
}

impl Counters {
    fn new() -> Counters {
        Counters { primary: Arc::default(), backup: Arc::default() }
    }

    /// Checks what the protocol promises once the client has all responses: each increment counted
    /// once, on both hosts.
    fn check(&self) -> Result<(), String> {
        let (primary, backup) =
            (self.primary.load(Ordering::Relaxed), self.backup.load(Ordering::Relaxed));
        match (primary, backup) == (INCREMENTS, INCREMENTS) {
            true => Ok(()),
            false => Err(format!(
                "{INCREMENTS} increments have responses; the primary is at {primary}, \
                 the backup at {backup}"
            )),
        }
    }
}

/// Runs the three programs in a simulated world.
fn simulate(seed: u64, deduplicate: bool, trace: bool) -> (Result<(), String>, World) {
    let world = World::new(seed);
    if trace {
        world.keep_trace(2_000);
    }
    let faults = Faults::harmless(0.05).with(Fault::Reset, 0.02).with(Fault::Partition, 0.01);
    world.set_faults(faults.partition_max(TIMEOUT * 3));
    let hosts = ["client", "primary", "backup"].map(|name| world.host(name));
    let [client_host, primary_host, backup_host] = hosts.clone();
    let addr = |host: &Host| Addr::from((host.ip(), 7000));
    let (primary_addr, backup_addr) = (addr(&primary_host), addr(&backup_host));
    let (stop, counters) = (Arc::new(AtomicBool::new(false)), Counters::new());
    let node = {
        let stop = Arc::clone(&stop);
        move |host: Host| {
            Ok::<_, Error>(Node::new(host.engine(Config::default())?, Arc::clone(&stop)))
        }
    };
    let (make, own, counter) = (node.clone(), backup_addr.clone(), Arc::clone(&counters.backup));
    world.spawn("backup", move || backup(make(backup_host)?, own, counter));
    let (make, own, counter) = (node.clone(), primary_addr.clone(), Arc::clone(&counters.primary));
    world.spawn("primary", move || {
        primary(make(primary_host)?, own, backup_addr, deduplicate, counter)
    });
    let client = world.spawn("client", move || client(node(client_host)?, primary_addr));
    let result = match client.join() {
        Ok(Ok(())) => counters.check(),
        Ok(Err(error)) => Err(format!("the client: {error}")),
        Err(_) => Err("the client panicked".to_owned()),
    };
    (result, world)
}

/// Runs the same programs on threads of this process, on the kernel's network.
fn run_on_kernel() -> Result<(), String> {
    let (stop, counters) = (Arc::new(AtomicBool::new(false)), Counters::new());
    let port =
        || std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let free = || port().map(Addr::from).map_err(|error| error.to_string());
    let (primary_addr, backup_addr) = (free()?, free()?);
    let node = |stop: &Arc<AtomicBool>| {
        let stop = Arc::clone(stop);
        move || Ok::<_, Error>(Node::new(Engine::new(Config::default())?, stop))
    };
    let (make, own, counter) = (node(&stop), backup_addr.clone(), Arc::clone(&counters.backup));
    let backup = std::thread::spawn(move || backup(make()?, own, counter));
    let (make, own, counter) = (node(&stop), primary_addr.clone(), Arc::clone(&counters.primary));
    let primary = std::thread::spawn(move || primary(make()?, own, backup_addr, true, counter));
    let client = node(&stop)().and_then(|node| client(node, primary_addr));
    stop.store(true, Ordering::Relaxed);
    for server in [backup, primary] {
        match server.join() {
            Ok(Err(Error::Closing)) => {}
            Ok(other) => return Err(format!("a server ended early: {other:?}")),
            Err(_) => return Err("a server panicked".to_owned()),
        }
    }
    client.map_err(|error| error.to_string())?;
    counters.check()
}

fn run(args: &Args) -> Result<(), String> {
    if args.real {
        run_on_kernel()?;
        println!("{INCREMENTS} increments on this machine's network: each counted once");
        return Ok(());
    }
    if let Some(seed) = args.seed {
        let (result, world) = simulate(seed, false, true);
        print!("{}", world.trace());
        println!(
            "seed {seed}: {}, trace {:016x}",
            result.err().unwrap_or("the bug did not show".into()),
            world.trace_hash()
        );
        return Ok(());
    }
    let start = Instant::now();
    let found = (0..args.seeds)
        .find_map(|seed| simulate(seed, false, false).0.err().map(|why| (seed, why)));
    let (seed, why) = found.ok_or(format!("none of {} seeds finds the bug", args.seeds))?;
    println!("with the bug, seed {seed}: {why}");
    println!("  found in {:.0?}; for its trace: --seed {seed}", start.elapsed());
    let start = Instant::now();
    for seed in 0..args.seeds {
        simulate(seed, true, false).0.map_err(|why| format!("fixed, seed {seed}: {why}"))?;
    }
    println!("fixed: {} seeds, each increment counted once ({:.1?})", args.seeds, start.elapsed());
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
