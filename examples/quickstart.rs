//! Start here: an echo server and a client in one process, on each backend of this machine.
//!
//! ```text
//! cargo run --release --example quickstart
//! cargo run --release --example quickstart -- --seconds 1 --conns 500
//! ```
//!
//! Prints one line for each backend (requests per second, latencies, CPU time and system calls of
//! the server per request), then the capability report.

mod common;

use clap::Parser;
use common::echo::Echo;
use common::load::{Load, Mode, Outcome, Plan};
use common::{BackendArgs, Failure};
use indicatif::{ProgressBar, ProgressStyle};
use proactor::{Addr, Completions, Engine, Info, ListenOptions, Stats, Waker};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "An echo server and a client on each backend of this machine", version)]
struct Args {
    /// How long to measure each backend
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Connections
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=5000))]
    conns: u32,
    /// Bytes per request
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    size: u32,
    #[command(flatten)]
    backend: BackendArgs,
}

struct Row {
    info: Info,
    outcome: Outcome,
    server_cpu: Duration,
    server: Stats,
}

fn main() -> ExitCode {
    common::main(|| run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Failure> {
    if !(0.01..=3600.0).contains(&args.seconds) {
        return Err("--seconds: expected 0.01 to 3600".into());
    }
    let mut rows = Vec::new();
    for backend in backends(args)? {
        rows.push(measure(args, &backend)?);
    }
    println!(
        "{} connections, one request of {} bytes in flight on each, server and client in one \
         process\n",
        args.conns, args.size
    );
    println!(
        "{:<17} {:>11} {:>8} {:>8} {:>9} {:>13} {:>13}",
        "backend/tier", "requests/s", "p50 us", "p99 us", "p99.9 us", "CPU us/req", "syscalls/req"
    );
    for row in &rows {
        print_row(row);
    }
    println!("\nCPU and system calls are the server's.\n\n{}", rows[0].info);
    match rows.iter().find_map(|row| row.outcome.first_error.as_ref()) {
        Some(error) => Err(error.clone().into()),
        None => Ok(()),
    }
}

/// The backends to run on: the one that was asked for, or all of this machine.
fn backends(args: &Args) -> Result<Vec<BackendArgs>, Failure> {
    if args.backend.backend != "auto" || args.backend.tier.is_some() {
        return Ok(vec![args.backend.clone()]);
    }
    let first = args.backend.engine()?;
    let epoll = BackendArgs { backend: "epoll".into(), ..args.backend.clone() };
    Ok(match first.info().backend {
        proactor::Backend::Uring => {
            vec![BackendArgs { backend: "uring".into(), ..args.backend.clone() }, epoll]
        }
        // The engine falls back to epoll: keep `auto`, so that the report shows the reason.
        _ => vec![args.backend.clone()],
    })
}

fn measure(args: &Args, backend: &BackendArgs) -> Result<Row, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = sync_channel(1);
    let config = backend.config()?;
    let server = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            serve(config, &stop, |addr, waker, info| drop(sender.send((addr, waker, info))))
                .map_err(|e| e.to_string())
        })
    };
    let Ok((addr, waker, info)) = receiver.recv() else {
        return Err(server
            .join()
            .expect("no panic")
            .err()
            .unwrap_or("the server did not start".into())
            .into());
    };
    let bar = ProgressBar::new(1000);
    bar.set_style(ProgressStyle::with_template("{prefix:<17} {bar:40} {msg}")?);
    bar.set_prefix(format!("{}/{}", info.backend, info.tier_name()));
    let plan = Plan {
        addr,
        conns: args.conns as usize,
        size: args.size as usize,
        depth: 1,
        duration: Duration::from_secs_f64(args.seconds),
        mode: Mode::Echo,
        rate: None,
    };
    let mut engine = backend.engine()?;
    let outcome = Load::new(plan)?.run(&mut engine, |part, requests| {
        bar.set_position((part * 1000.0) as u64);
        bar.set_message(format!("{requests} requests"));
    });
    bar.finish_and_clear();
    stop.store(true, Ordering::Release);
    waker.wake();
    let (server_cpu, stats) = server.join().expect("no panic")?;
    Ok(Row { info, outcome: outcome?, server_cpu, server: stats })
}

fn serve(
    config: proactor::Config,
    stop: &AtomicBool,
    ready: impl FnOnce(Addr, Waker, Info),
) -> Result<(Duration, Stats), Failure> {
    let mut engine = Engine::new(config)?;
    let listener = engine.listen("127.0.0.1:0".parse::<Addr>()?, ListenOptions::default())?;
    ready(engine.listener_addr(listener)?, engine.waker(), engine.info().clone());
    let mut completions = Completions::with_capacity(1024);
    let mut echo = Echo::default();
    let before = common::cpu_time(false);
    while !stop.load(Ordering::Acquire) {
        engine.poll(&mut completions, None)?;
        for completion in completions.drain() {
            echo.handle(&mut engine, completion);
        }
    }
    Ok((common::cpu_time(false) - before, engine.stats()))
}

fn print_row(row: &Row) {
    let requests = row.outcome.requests.max(1) as f64;
    let quantile = |q| row.outcome.latency_us.value_at_quantile(q);
    println!(
        "{:<17} {:>11.0} {:>8} {:>8} {:>9} {:>13.2} {:>13.2}",
        format!("{}/{}", row.info.backend, row.info.tier_name()),
        requests / row.outcome.elapsed.as_secs_f64(),
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        row.server_cpu.as_secs_f64() * 1e6 / requests,
        row.server.syscalls as f64 / requests,
    );
}
