//! A small replicated counter with a bug that a seed finds in under a second, and the same protocol
//! without it.
//!
//! A client sends increments to a primary, which applies each, replicates it to a backup, and
//! answers when the backup has confirmed. When a connection breaks, the client connects again and
//! repeats what was not answered. The bug: an increment that was applied, and whose answer was
//! lost, is applied again. The fix: the primary remembers what it answered.
//!
//! ```text
//! cargo run --release --example sim_kv             # finds the bug, shows that the fix holds
//! cargo run --release --example sim_kv -- --seed 3 # one seed with the bug, event by event
//! cargo run --release --example sim_kv -- --real   # the same programs on a real network
//! ```
//!
//! The guide "Testing your protocol" in the documentation walks through it.

use clap::Parser;
use proactor::sim::{Fault, Faults, Host, World};
use proactor::*;
use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const INCREMENTS: u64 = 30;
/// How long the client waits for an answer before it tries again.
const PATIENCE: Duration = Duration::from_millis(50);
const FRAME: usize = 17;

/// A replicated counter, its bug and its fix, in simulated worlds
#[derive(Parser)]
struct Args {
    /// Run this seed of the version with the bug, and print its trace
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds at most
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Run the version without the bug on this machine's network instead
    #[arg(long)]
    real: bool,
}

/// What is said: 17 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// Client to primary: add one. The number is the client's, and stays when it is said again.
    Increment { number: u64 },
    /// Primary to client: done, the counter is now at `value`.
    Done { number: u64, value: u64 },
    /// Primary to backup: the counter is now at `value`.
    Replicate { number: u64, value: u64 },
    /// Backup to primary.
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
        let word = |from: usize| {
            u64::from_be_bytes(frame[from..from + 8].try_into().expect("eight bytes"))
        };
        let (number, value) = (word(1), word(9));
        match frame[0] {
            0 => Some(Message::Increment { number }),
            1 => Some(Message::Done { number, value }),
            2 => Some(Message::Replicate { number, value }),
            3 => Some(Message::Confirm { number, value }),
            _ => None,
        }
    }
}

/// Bytes of a connection that are no whole message yet: what arrives is cut anywhere.
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

/// What every program has: its engine, and the word to stop.
struct Node {
    engine: Engine,
    out: Completions,
    frames: BTreeMap<ConnId, Frames>,
    stop: Arc<AtomicBool>,
}

/// What happened, in terms of the protocol.
enum Heard {
    Message(ConnId, Message),
    Connected(ConnId),
    Gone(ConnId),
}

impl Node {
    fn new(engine: Engine, stop: Arc<AtomicBool>) -> Node {
        Node { engine, out: Completions::with_capacity(64), frames: BTreeMap::new(), stop }
    }

    /// One poll. `Err` also when it is time to stop.
    fn listen_for(&mut self, timeout: Duration) -> Result<Vec<Heard>, Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Closing);
        }
        self.engine.poll(&mut self.out, Some(timeout))?;
        let mut heard = Vec::new();
        for Completion { conn, event, .. } in self.out.drain() {
            match event {
                Event::Connected => heard.push(Heard::Connected(conn)),
                Event::Received(data) => {
                    let messages = self.frames.entry(conn).or_default().add(&data);
                    heard.extend(messages.into_iter().map(|message| Heard::Message(conn, message)));
                }
                Event::ReadClosed => drop(self.engine.close(conn)),
                Event::Closed(_) => {
                    self.frames.remove(&conn);
                    heard.push(Heard::Gone(conn));
                }
                _ => {}
            }
        }
        Ok(heard)
    }

    fn say(&mut self, to: ConnId, message: Message) {
        // If that connection is gone, its end is told, and what matters is said again.
        let _ = self.engine.send(to, message.encode().to_vec());
    }

    fn connect(&mut self, addr: &Addr) -> Result<ConnId, Error> {
        let options = ConnectOptions { timeout: Some(PATIENCE * 4), ..ConnectOptions::default() };
        self.engine.connect(addr.clone(), options)
    }
}

/// Applies increments, replicates them, and answers. With `careful`, each number only once.
fn primary(
    mut node: Node,
    own: Addr,
    backup: Addr,
    careful: bool,
    counter: Arc<AtomicU64>,
) -> Result<(), Error> {
    node.engine.listen(own, ListenOptions::default())?;
    let mut link = node.connect(&backup)?;
    // Applied, and not yet confirmed: replicated again when the link to the backup was broken.
    let mut waiting: VecDeque<(ConnId, u64, u64)> = VecDeque::new();
    let mut applied: BTreeMap<u64, u64> = BTreeMap::new();
    loop {
        for heard in node.listen_for(PATIENCE)? {
            match heard {
                Heard::Message(client, Message::Increment { number }) => {
                    let known = applied.get(&number).copied().filter(|_| careful);
                    let value =
                        known.unwrap_or_else(|| counter.fetch_add(1, Ordering::Relaxed) + 1);
                    applied.insert(number, value);
                    waiting.push_back((client, number, value));
                    node.say(link, Message::Replicate { number, value });
                }
                Heard::Message(_, Message::Confirm { number, value }) => {
                    while let Some(place) =
                        waiting.iter().position(|(_, n, v)| (*n, *v) == (number, value))
                    {
                        let (client, ..) = waiting.remove(place).expect("just found");
                        node.say(client, Message::Done { number, value });
                    }
                }
                Heard::Connected(conn) if conn == link => {
                    for (_, number, value) in waiting.clone() {
                        node.say(link, Message::Replicate { number, value });
                    }
                }
                Heard::Gone(conn) if conn == link => link = node.connect(&backup)?,
                _ => {}
            }
        }
    }
}

fn backup(mut node: Node, own: Addr, counter: Arc<AtomicU64>) -> Result<(), Error> {
    node.engine.listen(own, ListenOptions::default())?;
    loop {
        for heard in node.listen_for(PATIENCE)? {
            if let Heard::Message(from, Message::Replicate { number, value }) = heard {
                counter.fetch_max(value, Ordering::Relaxed);
                node.say(from, Message::Confirm { number, value });
            }
        }
    }
}

/// Increments, one after the other, each until it is answered.
fn client(mut node: Node, primary: Addr) -> Result<(), Error> {
    let mut conn = node.connect(&primary)?;
    for number in 1..=INCREMENTS {
        let mut asked = node.engine.now();
        node.say(conn, Message::Increment { number });
        'answered: loop {
            let mut again = node.engine.now() - asked > PATIENCE * 2;
            for heard in node.listen_for(PATIENCE)? {
                match heard {
                    Heard::Message(_, Message::Done { number: done, .. }) if done == number => {
                        break 'answered;
                    }
                    Heard::Gone(gone) if gone == conn => again = true,
                    _ => {}
                }
            }
            if again {
                let _ = node.engine.abort(conn);
                conn = node.connect(&primary)?;
                node.say(conn, Message::Increment { number });
                asked = node.engine.now();
            }
        }
    }
    node.engine.close(conn)
}

/// The counters of a run, when the client has all its answers.
struct Counters {
    primary: Arc<AtomicU64>,
    backup: Arc<AtomicU64>,
}

impl Counters {
    fn new() -> Counters {
        Counters { primary: Arc::default(), backup: Arc::default() }
    }

    /// What the client may rely on: each increment counts once, on both.
    fn check(&self) -> Result<(), String> {
        let (primary, backup) =
            (self.primary.load(Ordering::Relaxed), self.backup.load(Ordering::Relaxed));
        match (primary, backup) == (INCREMENTS, INCREMENTS) {
            true => Ok(()),
            false => Err(format!(
                "{INCREMENTS} increments were answered; the primary is at {primary}, the backup at {backup}"
            )),
        }
    }
}

/// The three programs in a world of their own.
fn simulate(seed: u64, careful: bool, trace: bool) -> (Result<(), String>, World) {
    let world = World::new(seed);
    if trace {
        world.keep_trace(2_000);
    }
    let faults = Faults::harmless(0.05).with(Fault::Reset, 0.02).with(Fault::Partition, 0.01);
    world.set_faults(faults.partition_max(PATIENCE * 3));
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
    world
        .spawn("primary", move || primary(make(primary_host)?, own, backup_addr, careful, counter));
    let client = world.spawn("client", move || client(node(client_host)?, primary_addr));
    let result = match client.join() {
        Ok(Ok(())) => counters.check(),
        Ok(Err(error)) => Err(format!("the client: {error}")),
        Err(_) => Err("the client panicked".to_owned()),
    };
    (result, world)
}

/// The same programs on threads of this machine.
fn really() -> Result<(), String> {
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
        really()?;
        println!("{INCREMENTS} increments on this machine's network: each counted once");
        return Ok(());
    }
    if let Some(seed) = args.seed {
        let (result, world) = simulate(seed, false, true);
        print!("{}", world.trace());
        println!(
            "seed {seed}: {}, trace {:016x}",
            result.err().unwrap_or("no bug shown".into()),
            world.trace_hash()
        );
        return Ok(());
    }
    let start = Instant::now();
    let found = (0..args.seeds)
        .find_map(|seed| simulate(seed, false, false).0.err().map(|why| (seed, why)));
    let (seed, why) = found.ok_or(format!("none of {} seeds found the bug", args.seeds))?;
    println!("without care, seed {seed}: {why}");
    println!("  found in {:.0?}; event by event: --seed {seed}", start.elapsed());
    let start = Instant::now();
    for seed in 0..args.seeds {
        simulate(seed, true, false).0.map_err(|why| format!("with care, seed {seed}: {why}"))?;
    }
    println!(
        "with care: {} seeds, each increment counted once ({:.1?})",
        args.seeds,
        start.elapsed()
    );
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
