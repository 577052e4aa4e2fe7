//! Fuzzes the engine in simulated worlds: random programs under random faults, checked against a
//! model. The same seed gives the same run, on every machine.
//!
//! ```text
//! cargo run --release --example sim_fuzz -- --seeds 0..10000
//! cargo run --release --example sim_fuzz -- --seed 42 --trace
//! ```
//!
//! Prints each failing seed with its reason, a smaller plan that fails too, and the commands that
//! repeat both. The last line is `seeds N failed F completions/s R trace HASH`: R is per second of
//! CPU time, the hash covers every event of every run. The exit status is 1 if a seed failed.

mod common;
#[path = "../tests/fuzz/mod.rs"]
mod fuzz;

use clap::Parser;
use fuzz::{Outcome, Plan};
use indicatif::{ProgressBar, ProgressStyle};
use proactor::sim::Fault;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many entries of the trace are printed at most: the last ones.
const TRACE_ENTRIES: usize = 20_000;
/// How many runs the shrinking of one failing seed takes at most.
const SHRINK_RUNS: u32 = 300;
/// How many failing seeds are shrunk.
const SHRINK_SEEDS: usize = 5;

/// Fuzzes the engine in simulated worlds
#[derive(Parser)]
struct Args {
    /// The seeds to run: A..B, without B
    #[arg(long, default_value = "0..1000", value_parser = range, conflicts_with = "seed")]
    seeds: Range<u64>,
    /// Run one seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print the trace, event by event (with --seed)
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Keep only these kinds of the seed's faults, separated by commas, or `none`
    #[arg(long, value_name = "FAULTS", value_parser = faults)]
    only: Option<Vec<Vec<Fault>>>,
    /// How many random actions, instead of the seed's own number
    #[arg(long, value_name = "N")]
    actions: Option<u32>,
    /// Stop at the first seed that fails, and do not look for a smaller plan
    #[arg(long)]
    fail_fast: bool,
    /// How many threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parse = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let (from, to) = text.split_once("..").ok_or("expected A..B")?;
    let range = parse(from)?..parse(to)?;
    if range.is_empty() { Err("the range is empty".into()) } else { Ok(range) }
}

fn faults(text: &str) -> Result<Vec<Fault>, String> {
    let known = || Fault::ALL.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(", ");
    let parse = |name: &str| {
        Fault::from_name(name).ok_or_else(|| format!("{name:?} is not one of: {}", known()))
    };
    if text == "none" { Ok(Vec::new()) } else { text.split(',').map(parse).collect() }
}

impl Args {
    fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan::of(seed);
        if let Some(only) = &self.only {
            plan = plan.only(&only.concat());
        }
        plan.actions = self.actions.unwrap_or(plan.actions);
        plan
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    fuzz::catch_panics(args.trace);
    let seeds = args.seed.map_or(args.seeds.clone(), |seed| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let bar = ProgressBar::new(count);
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {eta} left {msg}")
            .expect("the template is valid"),
    );
    let (next, failures) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let totals = Mutex::new((0u64, Vec::with_capacity(count as usize), Duration::ZERO));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                let start = common::cpu_time(false);
                let (mut completions, mut hashes) = (0, Vec::new());
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = args.plan(seed).run(if args.trace { TRACE_ENTRIES } else { 0 });
                    print!("{}", outcome.trace);
                    completions += outcome.completions;
                    hashes.push((seed, outcome.trace_hash));
                    if let Some(why) = outcome.failure {
                        if args.fail_fast {
                            next.store(seeds.end, Ordering::Relaxed);
                        }
                        failures.lock().expect("no thread panicked").push((seed, why));
                        bar.set_message("(some failed)");
                    }
                    bar.inc(1);
                }
                let mut totals = totals.lock().expect("no thread panicked");
                totals.0 += completions;
                totals.1.extend(hashes);
                totals.2 += common::cpu_time(false) - start;
            });
        }
    });
    bar.finish_and_clear();
    let mut failures = failures.into_inner().expect("no thread panicked");
    failures.sort();
    for (place, (seed, why)) in failures.iter().enumerate() {
        report(&args, *seed, why, !args.fail_fast && place < SHRINK_SEEDS);
    }
    let (completions, mut hashes, busy) = totals.into_inner().expect("no thread panicked");
    hashes.sort_unstable();
    let ran = hashes.len();
    let fold = |total: u64, (_, hash): &(u64, u64)| {
        (total ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
    };
    let hash = hashes.iter().fold(0, fold);
    let rate = completions as f64 / busy.as_secs_f64().max(1e-9);
    println!("seeds {ran} failed {} completions/s {rate:.0} trace {hash:016x}", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a failing seed with its reason, the command that repeats it, and a smaller plan that
/// fails too.
fn report(args: &Args, seed: u64, why: &str, shrink: bool) {
    let plan = args.plan(seed);
    println!("seed {seed} failed: {why}");
    println!("  again:   {}", plan.replay());
    if shrink {
        let smaller = plan.shrink(SHRINK_RUNS, Plan::fails);
        let Outcome { failure, .. } = smaller.run(0);
        println!(
            "  smaller: {} actions, faults: {}: {}",
            smaller.actions,
            smaller.faults,
            failure.unwrap_or_default()
        );
        println!("  again:   {}", smaller.replay());
    }
}
