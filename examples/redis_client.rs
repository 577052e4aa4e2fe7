//! A Redis client that pipelines SET and GET requests and checks each response.
//!
//! ```text
//! redis-server --port 6379 --save '' &
//! cargo run --release --example redis_client -- --addr 127.0.0.1:6379 --requests 100000
//! ```
//!
//! Prints how many responses it checked, and how many per second. The exit status is 1 if one was
//! wrong.

mod common;

use clap::Parser;
use common::{BackendArgs, Failure};
use indicatif::{ProgressBar, ProgressStyle};
use proactor::Addr;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "A pipelining Redis client on proactor", version)]
struct Args {
    /// Where the server is: IP:PORT, [IPV6]:PORT or unix:PATH
    #[arg(long, default_value = "127.0.0.1:6379")]
    addr: Addr,
    /// How many keys to set and then get
    #[arg(long, default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    requests: u64,
    /// How many requests are in flight at most
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pipeline: u64,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    common::main(|| run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Failure> {
    let mut engine = args.backend.engine()?;
    let bar = ProgressBar::new(2 * args.requests);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len}")?);
    let report =
        common::redis::run(&mut engine, args.addr.clone(), args.requests, args.pipeline, |done| {
            bar.set_position(done)
        })?;
    bar.finish_and_clear();
    let rate = report.checked as f64 / report.elapsed.as_secs_f64();
    let (backend, tier) = (engine.info().backend, engine.info().tier_name());
    println!(
        "{} responses checked in {:.2} s, {rate:.0} per second, backend={backend} tier={tier}",
        report.checked,
        report.elapsed.as_secs_f64()
    );
    Ok(())
}
