//! A load generator for echo servers. It verifies every byte that comes back.
//!
//! ```text
//! cargo run --release --example load -- --addr 127.0.0.1:7000 --conns 50 --depth 4 --size 1000
//! cargo run --release --example load -- --addr 127.0.0.1:7000 --mode connect --conns 64 --json
//! cargo run --release --example load -- --addr 127.0.0.1:7000 --conns 50 --rate 50000
//! ```
//!
//! Modes: `echo` keeps `--depth` requests in flight on each connection. `connect` opens a
//! connection, sends one request, closes it, and starts again; on loopback from a new source
//! address after every 16 connections. `stream` sends as fast as the connection accepts. With
//! `--rate` the load is an open loop: each request is sent when it is due, even if the server has
//! not answered the earlier ones, and its latency counts from that moment, so that a stall of the
//! server shows in full (no coordinated omission).
//!
//! Prints requests per second, latencies, CPU time and errors; with `--json` as one line of JSON on
//! stdout. The exit status is 1 after any error.

mod common;

use clap::Parser;
use common::load::{Load, Mode, Outcome, Plan};
use common::{BackendArgs, Failure};
use indicatif::{ProgressBar, ProgressStyle};
use proactor::{Addr, Engine};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "A load generator for echo servers, on proactor", version)]
struct Args {
    /// Where the server is: IP:PORT, [IPV6]:PORT, unix:PATH or unix:@NAME
    #[arg(long, default_value = "127.0.0.1:7000")]
    addr: Addr,
    /// Connections at once
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    conns: u32,
    /// Bytes per request
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    size: u32,
    /// Requests in flight per connection (mode echo)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    depth: u32,
    /// How long the load runs
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// What each connection does
    #[arg(long, value_enum, default_value = "echo")]
    mode: Mode,
    /// Requests per second over all connections, sent when they are due and not when responses
    /// arrive; latency counts from when a request was due (mode echo). Keeps one core busy
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// How long a close waits for the peer's FIN. The load closes a connection only after the whole
    /// response, so no data can arrive late
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=60_000))]
    fin_wait: u32,
    /// Print the result as one line of JSON, and no progress
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value| (0.01..=1e8).contains(value))
        .ok_or_else(|| "expected 0.01 to 100000000".into())
}

fn main() -> ExitCode {
    common::main(|| run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Failure> {
    if !(0.01..=86_400.0).contains(&args.seconds) {
        return Err("--seconds: expected 0.01 to 86400".into());
    }
    let fin_wait = Duration::from_millis(args.fin_wait.into());
    let mut engine = Engine::new(args.backend.config()?.fin_wait(fin_wait))?;
    let plan = Plan {
        addr: args.addr.clone(),
        conns: args.conns as usize,
        size: args.size as usize,
        depth: args.depth as usize,
        duration: Duration::from_secs_f64(args.seconds),
        mode: args.mode,
        rate: args.rate,
    };
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(1000) };
    bar.set_style(ProgressStyle::with_template("{bar:40} {percent:>3}%  {msg}")?);
    let load = Load::new(plan)?;
    let cpu = common::cpu_time(true);
    let outcome = load.run(&mut engine, |part, requests| {
        bar.set_position((part * 1000.0) as u64);
        bar.set_message(format!("{requests} requests"));
    })?;
    let cpu = common::cpu_time(true) - cpu;
    bar.finish_and_clear();
    let (backend, tier) = (engine.info().backend.name(), engine.info().tier_name());
    print(args.json, &outcome, cpu, backend, tier);
    match (&outcome.first_error, outcome.requests) {
        (Some(error), _) => Err(format!("{} errors, the first: {error}", outcome.errors).into()),
        (None, 0) => Err("no response arrived in that time".into()),
        (None, _) => Ok(()),
    }
}

fn print(json: bool, outcome: &Outcome, cpu: Duration, backend: &str, tier: &str) {
    let rate = outcome.requests as f64 / outcome.elapsed.as_secs_f64();
    let quantile = |q| outcome.latency_us.value_at_quantile(q);
    let cpu_us = cpu.as_secs_f64() * 1e6 / outcome.requests.max(1) as f64;
    if json {
        let line = serde_json::json!({
            "requests": outcome.requests, "requests_per_s": rate.round(),
            "p50_us": quantile(0.5), "p99_us": quantile(0.99), "p999_us": quantile(0.999),
            "unanswered": outcome.unanswered, "errors": outcome.errors,
            "cpu_us_per_request": (cpu_us * 1000.0).round() / 1000.0,
            "backend": backend, "tier": tier,
        });
        return println!("{line}");
    }
    println!("backend            {backend}, tier {tier}");
    println!(
        "requests           {} in {:.2} s, {rate:.0} per second",
        outcome.requests,
        outcome.elapsed.as_secs_f64()
    );
    println!(
        "latency            p50 {} us, p99 {} us, p99.9 {} us",
        quantile(0.5),
        quantile(0.99),
        quantile(0.999)
    );
    println!("CPU of the load    {cpu_us:.2} us per request");
    println!("errors             {}", outcome.errors);
    if outcome.unanswered > 0 {
        println!("unanswered         {} at the end", outcome.unanswered);
    }
}
