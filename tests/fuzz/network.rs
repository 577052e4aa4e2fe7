//! The network of a run: simulated, or this machine's kernel. Owns: the simulated world, the
//! addresses to listen on and to connect to, and the passing of time. Must not know what the
//! programs do.

use super::{Plan, Rng};
use proactor::sim::{Host, Link, World};
use proactor::{Addr, Backend, Config, Engine, Error};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub enum Network {
    Simulated { world: World, hosts: Vec<Host>, traced: bool },
    Kernel(Backend),
}

/// An address that does not answer, and one that has no route.
const BLACK_HOLE: [u8; 4] = [192, 0, 2, 1];
const UNROUTED: [u8; 4] = [192, 0, 2, 2];

impl Network {
    pub fn simulated(plan: &Plan, trace: usize) -> Network {
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
        Network::Simulated { world, hosts, traced: trace > 0 }
    }

    /// Calls `visit` with the simulated world, if there is one.
    pub fn with_world(&self, visit: impl FnOnce(&World)) {
        if let Network::Simulated { world, .. } = self {
            visit(world);
        }
    }

    pub fn is_simulated(&self) -> bool {
        matches!(self, Network::Simulated { .. })
    }

    pub fn engine(&self, index: usize, config: Config) -> Result<Engine, Error> {
        match self {
            Network::Simulated { hosts, .. } => hosts[index % hosts.len()].engine(config),
            Network::Kernel(backend) => {
                Engine::new(config.ignore_environment(true).backend(*backend))
            }
        }
    }

    /// Where engine `index` can listen: an internet address, or a unix name.
    pub fn address(&self, index: usize, unix: bool, number: usize) -> Addr {
        match (self, unix) {
            (Network::Simulated { hosts, .. }, false) => {
                (hosts[index % hosts.len()].ip(), 0).into()
            }
            (Network::Kernel(_), false) => ([127, 0, 0, 1], 0).into(),
            (_, true) => {
                let thread = format!("{:?}", std::thread::current().id());
                let process = if self.is_simulated() { 0 } else { std::process::id() };
                let thread = if self.is_simulated() { "" } else { &thread };
                Addr::UnixAbstract(format!("fuzz-{process}-{thread}-{index}-{number}").into_bytes())
            }
        }
    }

    /// Whether two engines can reach each other by a unix name.
    pub fn same_host(&self, a: usize, b: usize) -> bool {
        match self {
            Network::Simulated { hosts, .. } => a % hosts.len() == b % hosts.len(),
            Network::Kernel(_) => true,
        }
    }

    /// An address where a connect fails, or hangs.
    pub fn unreachable_addr(&self, rng: &mut Rng) -> Addr {
        match (self, rng.below(3)) {
            (Network::Simulated { .. }, 0) => (BLACK_HOLE, 9).into(),
            (Network::Simulated { .. }, 1) => (UNROUTED, 9).into(),
            // The discard port: no listener.
            _ => ([127, 0, 0, 1], 9).into(),
        }
    }

    /// Lets time pass: at most `events` events in a simulated world, a short sleep on a kernel.
    /// Returns false if the world has no more events.
    pub fn step(&self, events: usize) -> bool {
        match self {
            // Time does not pass while an engine has a completion to reap.
            Network::Simulated { world, .. } => {
                (0..events).take_while(|_| !world.has_ready()).fold(true, |_, _| world.step())
            }
            Network::Kernel(_) => {
                if events > 6 {
                    std::thread::sleep(Duration::from_micros(50));
                }
                true
            }
        }
    }

    /// The time since an arbitrary start.
    pub fn now(&self) -> Duration {
        match self {
            Network::Simulated { world, .. } => world.now(),
            Network::Kernel(_) => {
                static START: OnceLock<Instant> = OnceLock::new();
                START.get_or_init(Instant::now).elapsed()
            }
        }
    }

    /// How many completions engines have reaped from a simulated world.
    pub fn completions(&self) -> u64 {
        match self {
            Network::Simulated { world, .. } => world.completions(),
            Network::Kernel(_) => 0,
        }
    }

    /// Adds a line to the trace, if one is kept.
    pub fn note(&self, text: impl FnOnce() -> String) {
        if let Network::Simulated { world, traced: true, .. } = self {
            world.note(&text());
        }
    }
}
