//! Hosts of a simulated world. Owns: [`Host`], from which programs get engines and peers. Must not
//! know: how the network and the scheduler work (`backend/sim`).

use super::{Peer, PeerListener, Program};
use crate::backend::sim::{Shared, Sim, Until};
use crate::{Addr, Config, Engine, Error, ListenOptions};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A host of a [`World`](super::World). Programs get engines and peers from it. Clones name the
/// same host.
#[derive(Clone)]
pub struct Host {
    pub(super) world: Arc<Shared>,
    pub(super) threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    pub(super) epoch: Instant,
    pub(super) index: u32,
}

impl Host {
    /// An [`Engine`] on this host, with the simulated backend. The backend and tier of the
    /// configuration, and environment variables, have no effect.
    ///
    /// # Errors
    /// [`Error::Config`]; [`Error::Simulation`] while the host is down.
    pub fn engine(&self, config: Config) -> Result<Engine, Error> {
        let (world, host, epoch) = (Arc::clone(&self.world), self.index, self.epoch);
        Engine::simulated(config, |parameters, waker_shared| {
            Sim::new(world, host, parameters, waker_shared, epoch)
        })
    }

    /// The name of the host.
    pub fn name(&self) -> String {
        self.world.lock().net.hosts[self.index as usize].name.clone()
    }

    /// The IPv4 address of the host.
    pub fn ip(&self) -> IpAddr {
        self.world.lock().net.hosts[self.index as usize].ips[0]
    }

    /// The IPv6 address of the host.
    pub fn ipv6(&self) -> IpAddr {
        self.world.lock().net.hosts[self.index as usize].ips[1]
    }

    /// How many descriptors the engines of the host hold.
    pub fn descriptors(&self) -> usize {
        self.world.lock().net.hosts[self.index as usize].descriptors
    }

    /// Starts a program: as [`World::spawn`](super::World::spawn).
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        program: impl FnOnce() -> T + Send + 'static,
    ) -> Program<T> {
        let (handle, thread) = Program::spawn(&self.world, name, program);
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        handle
    }

    /// Connects a [`Peer`], and waits until it is connected.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(&self, addr: impl Into<Addr>) -> io::Result<Peer> {
        self.start_connect(addr)?.finish_connect()
    }

    /// Starts to connect a [`Peer`], and does not wait.
    ///
    /// # Errors
    /// As connect(2) on a non-blocking socket.
    pub fn start_connect(&self, addr: impl Into<Addr>) -> io::Result<Peer> {
        Peer::start_connect(&self.world, self.index, &addr.into())
    }

    /// A listener for [`Peer`]s.
    ///
    /// # Errors
    /// As bind(2).
    pub fn listen(&self, addr: impl Into<Addr>) -> io::Result<PeerListener> {
        self.listen_with(addr, &ListenOptions::default())
    }

    /// As [`Host::listen`], with options.
    ///
    /// # Errors
    /// As bind(2).
    pub fn listen_with(
        &self,
        addr: impl Into<Addr>,
        options: &ListenOptions,
    ) -> io::Result<PeerListener> {
        PeerListener::bind(&self.world, self.index, &addr.into(), options)
    }

    /// Time since the start of the world.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.world.now())
    }

    /// The time as an [`Instant`], as [`Engine::now`] returns it in this world.
    pub fn instant(&self) -> Instant {
        self.epoch + self.now()
    }

    /// Waits, and lets the other programs run.
    ///
    /// # Panics
    /// If the calling thread runs no program of this world.
    pub fn sleep(&self, duration: Duration) {
        let until = self.now().saturating_add(duration);
        // If the world ends meanwhile, the next poll fails.
        let _ =
            self.world.wait(Until::Time, Some(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX)));
    }

    /// Adds a line to the trace: as [`World::note`](super::World::note).
    pub fn note(&self, text: &str) {
        let net = &mut self.world.lock().net;
        net.trace.note(net.now, text);
    }
}

impl PartialEq for Host {
    fn eq(&self, other: &Host) -> bool {
        Arc::ptr_eq(&self.world, &other.world) && self.index == other.index
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.index)
    }
}
