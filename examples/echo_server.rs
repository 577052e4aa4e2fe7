//! An echo server: accept, send back what arrives, half-close, backpressure, graceful end.
//!
//! ```text
//! cargo run --release --example echo_server -- --addr 127.0.0.1:7000
//! echo hello | nc -N 127.0.0.1 7000
//! socat -u /dev/zero TCP:127.0.0.1:7000
//! ```
//!
//! Prints `listening on ADDR backend=B tier=T` to stdout. Memory is bounded: it reads no more from
//! a peer that does not read its echo. When a peer closes its write side, the server sends what is
//! left and closes. On SIGINT or SIGTERM it stops accepting, gives connections `--grace` seconds to
//! finish, prints the counters of the engine to stderr, and exits with status 0.

mod common;

use clap::Parser;
use common::{BackendArgs, Failure, echo::Echo};
use proactor::{Addr, Completions, ListenOptions};
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(about = "An echo server on proactor", version)]
struct Args {
    /// Where to listen: IP:PORT (port 0 for any), [IPV6]:PORT, unix:PATH or unix:@NAME
    #[arg(long, default_value = "127.0.0.1:7000")]
    addr: Addr,
    /// After SIGINT or SIGTERM, how long connections may take to finish
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    grace: f64,
    /// Close connections that have been idle for this long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle: Option<f64>,
    /// How many completions one poll returns at most
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    completions: u32,
    #[command(flatten)]
    backend: BackendArgs,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value| (0.0..=1e6).contains(value))
        .ok_or_else(|| "expected 0 to 1000000 seconds".into())
}

fn main() -> ExitCode {
    common::main(|| run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Failure> {
    let mut engine = args.backend.engine()?;
    let mut options = ListenOptions::default();
    options.socket.idle_timeout = args.idle.map(Duration::from_secs_f64);
    let listener = engine.listen(args.addr.clone(), options)?;
    let stop = common::stop_on_signals(engine.waker())?;
    let info = engine.info();
    let (backend, tier) = (info.backend, info.tier_name());
    if let Some(fallback) = &info.fallback {
        eprintln!("io_uring is not used: {fallback}");
    }
    println!("listening on {} backend={backend} tier={tier}", engine.listener_addr(listener)?);
    std::io::stdout().flush()?;

    let mut completions = Completions::with_capacity(args.completions as usize);
    let mut echo = Echo::default();
    let mut closing: Option<Instant> = None;
    while !engine.is_closed() {
        if stop.load(Ordering::Acquire) && closing.is_none() {
            closing = Some(Instant::now());
            eprintln!("closing {} connections", engine.connections());
            engine.close_all(Duration::from_secs_f64(args.grace));
        }
        engine.poll(&mut completions, None)?;
        for completion in completions.drain() {
            echo.handle(&mut engine, completion);
        }
    }
    eprintln!(
        "closed in {:.3} s\n{:#?}",
        closing.map_or(0.0, |start| start.elapsed().as_secs_f64()),
        engine.stats()
    );
    Ok(())
}
