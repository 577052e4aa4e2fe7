//! A fuzzer of the engine: random programs under random faults, checked against a model. Owns: what
//! a run is, how it is repeated, and how a failing one is shrunk. Used by `tests/sim_fuzz.rs` and
//! `examples/sim_fuzz.rs`.
//!
//! One seed decides a run. `program.rs` runs its phases, `actions.rs` calls the engines at random,
//! `events.rs` handles what they report, `model.rs` checks it. `network.rs` is the network of the
//! engines: a simulated world, or this machine's kernel. `exchange.rs` is a second kind of program,
//! whose outcome is the same on every backend.
#![allow(dead_code)]

mod actions;
mod events;
pub mod exchange;
mod model;
pub mod network;
mod panicking;
mod program;

use proactor::Backend;
use proactor::sim::{Fault, Faults};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Everything that decides a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// How many random actions.
    pub actions: u32,
    pub faults: Faults,
}

/// The outcome of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it failed, if it did.
    pub failure: Option<String>,
    pub completions: u64,
    pub trace_hash: u64,
    /// As text; empty unless it was asked for.
    pub trace: String,
}

impl Plan {
    /// The run of a seed.
    pub fn of(seed: u64) -> Plan {
        // In one run of eight, hosts may crash.
        let faults = Faults::from_seed(seed);
        let faults = if seed % 8 == 5 { faults.with(Fault::Crash, 0.002) } else { faults };
        Plan { seed, actions: 60 + (seed % 7) as u32 * 40, faults }
    }

    /// The plan with only these of its faults.
    pub fn only(mut self, kept: &[Fault]) -> Plan {
        self.faults = Fault::ALL
            .iter()
            .filter(|fault| !kept.contains(fault))
            .fold(self.faults, |faults, fault| faults.without(*fault));
        self
    }

    /// The faults that can happen in it.
    pub fn kinds(&self) -> Vec<Fault> {
        Fault::ALL.iter().copied().filter(|fault| self.faults.probability(*fault) > 0.0).collect()
    }

    /// The command that repeats it.
    pub fn replay(&self) -> String {
        let full = Plan::of(self.seed);
        let mut command =
            format!("cargo run --release --example sim_fuzz -- --seed {} --trace", self.seed);
        if self.actions != full.actions {
            command.push_str(&format!(" --actions {}", self.actions));
        }
        if self.kinds() != full.kinds() {
            let names: Vec<&str> = self.kinds().into_iter().map(Fault::name).collect();
            let list = if names.is_empty() { "none".to_owned() } else { names.join(",") };
            command.push_str(&format!(" --only {list}"));
        }
        command
    }

    /// True if its run fails.
    pub fn fails(&self) -> bool {
        self.run(0).failure.is_some()
    }

    /// Runs it in a simulated world, keeping the last `trace` entries of the trace.
    pub fn run(&self, trace: usize) -> Outcome {
        let (network, mut completions, mut hash, mut text) =
            (network::Network::simulated(self, trace), 0, 0, String::new());
        let result = caught(|| program::run(self, &network));
        network.with_world(|world| {
            (completions, hash) = (world.completions(), world.trace_hash());
            text = world.trace();
        });
        // Dropping what a failed run has left open may panic too.
        let ended = caught(move || {
            drop(network);
            Ok(())
        });
        let failure = result.err().or(ended.err());
        Outcome {
            failure,
            completions,
            trace_hash: hash,
            trace: if trace > 0 { text } else { String::new() },
        }
    }

    /// Runs the same program on this machine's kernel, without injected faults.
    ///
    /// # Errors
    /// Why it failed.
    pub fn run_on(&self, backend: Backend) -> Result<(), String> {
        let network = network::Network::Kernel(backend);
        caught(|| program::run(self, &network))
    }

    /// A smaller plan that `fails` too: fewer kinds of faults, fewer actions. Asks at most `tries`
    /// times.
    pub fn shrink(&self, mut tries: u32, fails: impl Fn(&Plan) -> bool) -> Plan {
        let mut best = self.clone();
        let mut fails = |plan: &Plan| {
            tries = tries.saturating_sub(1);
            tries > 0 && fails(plan)
        };
        let none = best.clone().only(&[]);
        if fails(&none) {
            best = none;
        }
        loop {
            let before = best.kinds().len();
            for fault in best.kinds() {
                let kept: Vec<Fault> =
                    best.kinds().into_iter().filter(|kind| *kind != fault).collect();
                let smaller = best.clone().only(&kept);
                if fails(&smaller) {
                    best = smaller;
                }
            }
            if best.kinds().len() == before {
                break;
            }
        }
        let mut step = best.actions / 2;
        while step > 0 {
            let smaller = Plan { actions: best.actions - step, ..best.clone() };
            match smaller.actions > 0 && fails(&smaller) {
                true => {
                    best = smaller;
                    step = step.min(best.actions / 2);
                }
                false => step /= 2,
            }
        }
        best
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Turns a panic into a failure, with its location.
fn caught(run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(format!("panic: {}", PANIC.take().unwrap_or_else(|| "see above".to_owned())))
    })
}

/// Installs a panic hook that keeps the message for the outcome. With `print` the previous hook
/// prints it too, with a backtrace if the environment asks for one.
pub fn catch_panics(print: bool) {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANIC.set(Some(info.to_string().replace('\n', ": ")));
        if print {
            previous(info);
        }
    }));
}

/// The random numbers of the program, independent of those of the world (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x7072_6f67_7261_6d21)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        if list.is_empty() { None } else { list.get(self.below(list.len())) }
    }
}
