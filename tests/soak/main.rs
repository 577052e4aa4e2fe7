//! The soak test: random and hostile clients against an echo server in a process of its own, in
//! rounds. At the end of each round all clients have ended, and the server must hold what it held
//! at its start: no connection, the same descriptors and threads, all receive buffers, no more
//! memory. Owns: the rounds, and the comparison of samples.
//!
//! ```text
//! cargo test --release --test soak                              # some seconds
//! PROACTOR_SOAK_MINUTES=30 PROACTOR_SOAK_CONNECTIONS=2000 \
//!     cargo test --release --test soak -- --nocapture
//! ```
//!
//! `PROACTOR_SOAK_MINUTES` is the time for each of the two backends (`soak/uring`, `soak/epoll`).
//! The clients run on the other backend, so that both are tested on both sides.
//! `PROACTOR_SOAK_SEED` chooses the load.

mod actor;
mod client;
#[path = "../../examples/common/echo.rs"]
mod echo;
mod server;

use client::Clients;
use libtest_mimic::{Arguments, Failed, Trial};
use proactor::{Backend, Config, Engine};
use server::{Sample, Server};
use std::time::{Duration, Instant};

fn main() {
    if let Ok(backend) = std::env::var(server::ROLE) {
        return server::serve(Backend::from_name(&backend).expect("uring or epoll"));
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = [Backend::Uring, Backend::Epoll].map(|backend| {
        let unavailable = Engine::new(config(backend)).err();
        if let Some(why) = unavailable.as_ref().filter(|_| !arguments.list) {
            println!("skipping soak/{backend}: {why}");
        }
        Trial::test(format!("soak/{backend}"), move || soak(backend))
            .with_ignored_flag(unavailable.is_some())
    });
    libtest_mimic::run(&arguments, trials.into()).exit();
}

fn config(backend: Backend) -> Config {
    Config::default().ignore_environment(true).backend(backend)
}

fn number(name: &str, default: f64) -> f64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is not a number")),
        Err(_) => default,
    }
}

/// How long one backend is tested, and in how many rounds.
struct Plan {
    rounds: u32,
    round: Duration,
    connections: usize,
    seed: u64,
}

impl Plan {
    fn from_environment() -> Plan {
        let minutes = number("PROACTOR_SOAK_MINUTES", 0.1).clamp(0.01, 10_000.0);
        let connections = number("PROACTOR_SOAK_CONNECTIONS", 200.0).clamp(1.0, 9_000.0) as usize;
        let seed = number("PROACTOR_SOAK_SEED", 1.0) as u64;
        // Enough rounds to see a trend, and long enough for clients to end within one.
        let rounds = (minutes * 2.0).clamp(8.0, 60.0) as u32;
        Plan {
            rounds,
            round: Duration::from_secs_f64(minutes * 60.0 / f64::from(rounds)),
            connections,
            seed,
        }
    }
}

fn soak(backend: Backend) -> Result<(), Failed> {
    let plan = Plan::from_environment();
    let mut server = Server::start(backend);
    let at_start = server.sample();
    let other = if backend == Backend::Uring { Backend::Epoll } else { Backend::Uring };
    let engine = Engine::new(config(other)).or_else(|_| Engine::new(config(Backend::Epoll)))?;
    let mut clients = Clients::new(engine, server.addr(), plan.seed);
    let (start, mut rounds) = (Instant::now(), Vec::new());
    for round in 1..=plan.rounds {
        let busy = clients.run(plan.round, plan.connections, || server.sample())?;
        if busy.descriptors > busy.connections + at_start.descriptors + 16 {
            return Err(format!(
                "{} descriptors for {} connections",
                busy.descriptors, busy.connections
            )
            .into());
        }
        let rest = server.wait_at_rest(&at_start)?;
        eprintln!(
            "soak/{backend} round {round} of {}, {:.0} s: {}; server {} connections and {} KiB, \
             then {} KiB in use, {} KiB resident, {} descriptors",
            plan.rounds,
            start.elapsed().as_secs_f64(),
            clients.report(),
            busy.connections,
            busy.resident_kib,
            rest.trimmed_kib,
            rest.resident_kib,
            rest.descriptors,
        );
        rounds.push(Round { busy, rest });
    }
    clients.check_all_kinds_ended()?;
    server.stop();
    check_memory(&rounds)
}

/// The samples of a round: under load, and at rest after it.
struct Round {
    busy: Sample,
    rest: Sample,
}

/// Compares the memory of the last quarter of the rounds with that of the first half. What is in
/// use at rest must not grow. What the C library keeps must not grow beyond what the server needed
/// under load: how much that is depends on the speed of the peers, so the rounds differ.
fn check_memory(rounds: &[Round]) -> Result<(), Failed> {
    let quarter = rounds.len() / 4;
    let most = |part: &[Round], kib: fn(&Round) -> usize| {
        part.iter().map(kib).max().expect("rounds in each part")
    };
    let last = &rounds[rounds.len() - quarter..];
    let check = |what, before: usize, after: usize, allowed: usize| match after <= allowed {
        true => Ok(()),
        false => Err(format!(
            "the server grew: {before} KiB {what} before the last quarter, {after} in it"
        )),
    };
    let before = most(&rounds[quarter..2 * quarter], |round| round.rest.trimmed_kib);
    let after = most(last, |round| round.rest.trimmed_kib);
    check("in use", before, after, before + before / 20 + (1 << 10))?;
    let resident = |round: &Round| round.busy.resident_kib.max(round.rest.resident_kib);
    let before = most(&rounds[..2 * quarter], resident);
    let after = most(last, |round| round.rest.resident_kib);
    check("resident", before, after, before + before / 2 + (16 << 10))?;
    Ok(())
}
