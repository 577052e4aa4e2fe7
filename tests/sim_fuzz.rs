//! The fuzzer of the engine as a test: many seeds in a simulated world, and some of the same
//! programs on this machine's kernel. By hand: `cargo run --release --example sim_fuzz -- --help`.

mod fuzz;

use fuzz::Plan;
use fuzz::exchange::{self, Observed};
use fuzz::network::Network;
use libtest_mimic::{Arguments, Failed, Trial};
use proactor::sim::{Fault, Faults};
use proactor::{Backend, Config, Engine};

/// How many seeds: all in release builds, a part in slow ones.
fn seeds() -> u64 {
    let asked = std::env::var("PROACTOR_FUZZ_SEEDS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(if cfg!(debug_assertions) { 150 } else { 10_000 })
}

fn main() {
    let arguments = Arguments::from_args();
    fuzz::catch_panics(false);
    let mut trials = vec![
        Trial::test("seeds", random_programs),
        Trial::test("same_seed_same_trace", same_seed_same_trace),
        Trial::test("backends_agree", backends_agree),
        Trial::test("shrinking_keeps_the_failure", shrinking_keeps_the_failure),
    ];
    for backend in [Backend::Uring, Backend::Epoll] {
        let lacking =
            Engine::new(Config::default().ignore_environment(true).backend(backend)).is_err();
        let trial = Trial::test(format!("seeds_on_{backend}"), move || programs_on(backend));
        trials.push(trial.with_ignored_flag(lacking));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn random_programs() -> Result<(), Failed> {
    for seed in 0..seeds() {
        let plan = Plan::of(seed);
        if let Some(why) = plan.run(0).failure {
            let smaller = plan.shrink(300, Plan::fails);
            let smaller_why = smaller.run(0).failure.unwrap_or_default();
            return Err(format!(
                "seed {seed}: {why}\n  again: {}\n  \
                 smaller ({} actions, faults {}): {smaller_why}\n  again: {}",
                plan.replay(),
                smaller.actions,
                smaller.faults,
                smaller.replay()
            )
            .into());
        }
    }
    Ok(())
}

fn same_seed_same_trace() -> Result<(), Failed> {
    let mut hashes = std::collections::HashSet::new();
    for seed in 0..40 {
        let (first, again) = (Plan::of(seed).run(0), Plan::of(seed).run(5_000));
        if (first.trace_hash, first.completions) != (again.trace_hash, again.completions) {
            return Err(
                format!("seed {seed}: {:x} and {:x}", first.trace_hash, again.trace_hash).into()
            );
        }
        hashes.insert(first.trace_hash);
    }
    if hashes.len() == 40 { Ok(()) } else { Err("different seeds, equal traces".into()) }
}

/// Here a plan "fails" if a fault of one kind happens in its run.
fn shrinking_keeps_the_failure() -> Result<(), Failed> {
    for kind in [Fault::Reset, Fault::ShortWrite, Fault::QueueFull] {
        let line = format!("FAULT {}", kind.name());
        let fails = |plan: &Plan| plan.run(20_000).trace.contains(&line);
        let plan = (0..200).map(Plan::of).find(fails).ok_or(format!("no seed has {line}"))?;
        let smaller = plan.shrink(300, fails);
        let is_smaller =
            smaller.kinds().len() < plan.kinds().len() && smaller.actions <= plan.actions;
        if !fails(&smaller) || !is_smaller {
            return Err(format!("{line}: {plan:?} was shrunk to {smaller:?}").into());
        }
    }
    Ok(())
}

fn programs_on(backend: Backend) -> Result<(), Failed> {
    for seed in 0..(seeds() / 100).clamp(20, 60) {
        Plan::of(seed).run_on(backend).map_err(|why| format!("seed {seed} on {backend}: {why}"))?;
    }
    Ok(())
}

/// What the exchanges of a seed observe in a simulated world with these faults.
fn simulated(seed: u64, faults: Faults) -> Result<Vec<Observed>, Failed> {
    let plan = Plan { seed, actions: 0, faults };
    let network = Network::simulated(&plan, 0);
    Ok(exchange::run(seed, &network).map_err(|why| format!("seed {seed}, simulated: {why}"))?)
}

fn backends_agree() -> Result<(), Failed> {
    let kernels = [Backend::Uring, Backend::Epoll];
    let there = |backend: &Backend| {
        Engine::new(Config::default().ignore_environment(true).backend(*backend)).is_ok()
    };
    let kernels: Vec<Backend> = kernels.into_iter().filter(there).collect();
    for seed in 0..(seeds() / 100).clamp(12, 16) {
        let expected = simulated(seed, Faults::default())?;
        let mut others =
            vec![("simulated, with faults".to_owned(), simulated(seed, Faults::harmless(0.2))?)];
        for backend in &kernels {
            let observed = exchange::run(seed, &Network::Kernel(*backend));
            others.push((
                backend.to_string(),
                observed.map_err(|why| format!("seed {seed} on {backend}: {why}"))?,
            ));
        }
        for (name, observed) in others {
            for (index, (observed, expected)) in observed.iter().zip(&expected).enumerate() {
                if observed != expected {
                    let text = format!(
                        "seed {seed}, exchange {index}: {name} {observed:?}, simulated {expected:?}"
                    );
                    return Err(text.into());
                }
            }
        }
    }
    Ok(())
}
