//! Where the engines of a run live. Owns: the simulated world, or nothing; addresses to listen on;
//! the passing of time.

use super::{Plan, Rng};
use proactor::sim::{Host, Link, World};
use proactor::{Addr, Backend, Config, Engine, Error};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub enum Stage {
    Sim { world: World, hosts: Vec<Host>, traced: bool },
    Kernel(Backend),
}

/// An address that never answers, and one that does not exist.
const BLACK_HOLE: [u8; 4] = [192, 0, 2, 1];
const NOWHERE: [u8; 4] = [192, 0, 2, 2];

impl Stage {
    pub fn simulated(plan: &Plan, trace: usize) -> Stage {
        let mut rng = Rng::new(plan.seed ^ 0x5747_4745);
        let world = World::new(plan.seed);
        world.keep_trace(trace);
        let link = Link {
            latency: Duration::from_micros(1 + rng.below(300) as u64),
            jitter: Duration::from_micros(rng.below(200) as u64),
            bandwidth: rng.one_in(3).then(|| 1_000_000 << rng.below(8)),
            buffer_bytes: 512 << rng.below(10),
        };
        world.set_default_link(link);
        let hosts: Vec<Host> =
            (0..1 + rng.below(3)).map(|index| world.host(&format!("host{index}"))).collect();
        for host in &hosts {
            world.set_link(
                host,
                host,
                Link { latency: Duration::from_micros(1 + rng.below(50) as u64), ..link },
            );
        }
        world.black_hole(IpAddr::from(BLACK_HOLE));
        world.set_faults(plan.faults.clone());
        Stage::Sim { world, hosts, traced: trace > 0 }
    }

    pub fn look(&self, look: impl FnOnce(&World)) {
        if let Stage::Sim { world, .. } = self {
            look(world);
        }
    }

    pub fn is_simulated(&self) -> bool {
        matches!(self, Stage::Sim { .. })
    }

    pub fn engine(&self, index: usize, config: Config) -> Result<Engine, Error> {
        match self {
            Stage::Sim { hosts, .. } => hosts[index % hosts.len()].engine(config),
            Stage::Kernel(backend) => {
                Engine::new(config.ignore_environment(true).backend(*backend))
            }
        }
    }

    /// Where engine `index` can listen: an internet address, or a unix name.
    pub fn address(&self, index: usize, unix: bool, number: usize) -> Addr {
        match (self, unix) {
            (Stage::Sim { hosts, .. }, false) => (hosts[index % hosts.len()].ip(), 0).into(),
            (Stage::Kernel(_), false) => ([127, 0, 0, 1], 0).into(),
            (_, true) => {
                let thread = format!("{:?}", std::thread::current().id());
                let process = if self.is_simulated() { 0 } else { std::process::id() };
                let thread = if self.is_simulated() { "" } else { &thread };
                Addr::UnixAbstract(format!("fuzz-{process}-{thread}-{index}-{number}").into_bytes())
            }
        }
    }

    /// Two engines that can reach each other by a unix name.
    pub fn same_host(&self, a: usize, b: usize) -> bool {
        match self {
            Stage::Sim { hosts, .. } => a % hosts.len() == b % hosts.len(),
            Stage::Kernel(_) => true,
        }
    }

    /// An address where a connect fails, or hangs.
    pub fn dead_end(&self, rng: &mut Rng) -> Addr {
        match (self, rng.below(3)) {
            (Stage::Sim { .. }, 0) => (BLACK_HOLE, 9).into(),
            (Stage::Sim { .. }, 1) => (NOWHERE, 9).into(),
            // The discard port; nobody listens there.
            _ => ([127, 0, 0, 1], 9).into(),
        }
    }

    /// Lets time pass: some events in a simulated world, a moment on a kernel. False if nothing is
    /// coming any more.
    pub fn step(&self, events: usize) -> bool {
        match self {
            // Programs are quick to take what is there.
            Stage::Sim { world, .. } => {
                (0..events).take_while(|_| !world.has_ready()).fold(true, |_, _| world.step())
            }
            Stage::Kernel(_) => {
                if events > 6 {
                    std::thread::sleep(Duration::from_micros(50));
                }
                true
            }
        }
    }

    /// Time since some moment in the past.
    pub fn now(&self) -> Duration {
        match self {
            Stage::Sim { world, .. } => world.now(),
            Stage::Kernel(_) => {
                static START: OnceLock<Instant> = OnceLock::new();
                START.get_or_init(Instant::now).elapsed()
            }
        }
    }

    /// Completions that engines got of a simulated world.
    pub fn completions(&self) -> u64 {
        match self {
            Stage::Sim { world, .. } => world.completions(),
            Stage::Kernel(_) => 0,
        }
    }

    /// A note in the trace, if there is one.
    pub fn note(&self, text: impl FnOnce() -> String) {
        if let Stage::Sim { world, traced: true, .. } = self {
            world.note(&text());
        }
    }
}
