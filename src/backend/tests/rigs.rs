//! The backends under test. Owns: one [`Rig`] for each backend, and a test for each configuration
//! that uses memory in a different way. Must not know: what the random engine does.

use super::{Counts, run_seeds};
use crate::backend::epoll::EpollBackend;
use crate::backend::sim::{Faults, Peer, Shared, Sim};
use crate::backend::uring::Uring;
use crate::backend::uring::setup::{self, NoRing};
use crate::backend::{Backend, Open, Parameters};
use crate::caps::Capability;
use crate::config::Config;
use crate::id::Key;
use crate::tier::Tier;
use crate::tuning::{Tuning, ZeroCopy};
use crate::waker::WakerShared;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

/// A backend under test.
pub(super) trait Rig {
    type Backend: Backend;
    /// The peer of a connection. Its reads and writes do not block.
    type Peer: Read + Write;
    /// True if an operation that is invalid for its socket fails. False if the backend asserts that
    /// there is none: no receive on a listener, no accept on a connection, no send before the
    /// connect has completed.
    const ACCEPTS_INVALID: bool;

    /// A backend. `None` if it is unavailable; prints why.
    fn make(&mut self, parameters: Parameters) -> Option<Self::Backend>;

    /// A connected pair: the backend's end gets the key, the other is returned.
    fn pair(&mut self, backend: &mut Self::Backend, key: Key, tcp: bool) -> Self::Peer;

    /// Moves the clock, if it is virtual.
    fn pass_time(&mut self) {}
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A pair of connected sockets, for kernel backends. The peer does not block.
fn socket_pair(tcp: bool, nonblocking: bool) -> (OwnedFd, Box<dyn Stream>) {
    if tcp {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        ours.set_nonblocking(nonblocking).unwrap();
        peer.set_nonblocking(true).unwrap();
        (ours.into(), Box::new(peer))
    } else {
        let (ours, peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(nonblocking).unwrap();
        peer.set_nonblocking(true).unwrap();
        (ours.into(), Box::new(peer))
    }
}

struct EpollRig;

impl Rig for EpollRig {
    type Backend = EpollBackend;
    type Peer = Box<dyn Stream>;
    const ACCEPTS_INVALID: bool = true;

    fn make(&mut self, parameters: Parameters) -> Option<EpollBackend> {
        let precise_wait = EpollBackend::try_precise_wait().is_ok();
        let backend = EpollBackend::new(parameters, WakerShared::new().unwrap(), precise_wait);
        backend.inspect_err(|error| eprintln!("skipped: no epoll: {error}")).ok()
    }

    fn pair(&mut self, backend: &mut EpollBackend, key: Key, tcp: bool) -> Box<dyn Stream> {
        let (ours, peer) = socket_pair(tcp, true);
        backend.open(key, Open::Stream(ours)).unwrap();
        peer
    }
}

#[test]
fn random_engine_on_epoll() {
    let Some(counts) = run_seeds(EpollRig) else { return };
    assert!(counts.early_sends > 50, "{counts:?}");
}

/// A ring of a tier, without some capabilities.
struct UringRig {
    tier: Tier,
    without: &'static [Capability],
}

impl Rig for UringRig {
    type Backend = Uring;
    type Peer = Box<dyn Stream>;
    const ACCEPTS_INVALID: bool = true;

    fn make(&mut self, parameters: Parameters) -> Option<Uring> {
        let tuning = Tuning::default()
            .gather_max(parameters.gather_max)
            .buffers_low_watermark(parameters.low_watermark)
            .zero_copy(ZeroCopy::Always(1))
            .ring_entries(16, 512);
        let config = Config::default()
            .ignore_environment(true)
            .tier(self.tier)
            .buffers(parameters.buffers.0, parameters.buffers.1)
            .tuning(tuning);
        let config = self.without.iter().fold(config, |config, what| config.disable(*what));
        let why = match setup::open(&config, parameters.engine, &WakerShared::new().unwrap()) {
            Ok(opened) => return Some(opened.backend),
            Err(NoRing::Refused(why)) => format!("{why:?}"),
            Err(NoRing::NoTier { why, .. }) => why,
            Err(NoRing::Error(error)) => panic!("{error}"),
        };
        eprintln!("skipped: no tier {} of io_uring: {why}", self.tier);
        None
    }

    fn pair(&mut self, backend: &mut Uring, key: Key, tcp: bool) -> Box<dyn Stream> {
        let (ours, peer) = socket_pair(tcp, false);
        backend.open(key, Open::Stream(ours)).unwrap();
        peer
    }
}

fn uring(tier: Tier, without: &'static [Capability]) -> Option<Counts> {
    run_seeds(UringRig { tier, without })
}

#[test]
fn random_engine_on_tier_deferred() {
    let Some(counts) = uring(Tier::Deferred, &[]) else { return };
    assert!(counts.early_sends > 50 && counts.released > 50, "{counts:?}");
}

#[test]
fn random_engine_on_whole_buffers() {
    uring(Tier::Deferred, &[Capability::Incremental]);
}

#[test]
fn random_engine_on_tier_multishot() {
    uring(Tier::Multishot, &[]);
}

#[test]
fn random_engine_on_tier_oneshot() {
    uring(Tier::Oneshot, &[]);
}

#[test]
fn random_engine_on_tier_oneshot_without_a_buffer_ring() {
    uring(Tier::Oneshot, &[Capability::BufRing]);
}

#[test]
fn random_engine_on_tier_polled() {
    uring(Tier::Polled, &[]);
}

/// A peer that does not block.
struct SimPeer(Peer);

impl Read for SimPeer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_ready(false) {
            self.0.read(buffer)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

impl Write for SimPeer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.is_ready(true) {
            self.0.write(bytes)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A world for each seed, with a fault plan from the seed.
#[derive(Default)]
struct SimRig {
    world: Option<Arc<Shared>>,
    /// The host of the peers.
    host: u32,
    seed: u64,
}

impl Rig for SimRig {
    type Backend = Sim;
    type Peer = SimPeer;
    const ACCEPTS_INVALID: bool = false;

    fn make(&mut self, parameters: Parameters) -> Option<Sim> {
        self.seed += 1;
        let world = Shared::new(self.seed);
        let (near, far) = {
            let net = &mut world.lock().net;
            net.faults = Faults::from_seed(self.seed);
            (net.add_host("near"), net.add_host("far"))
        };
        self.host = far;
        self.world = Some(Arc::clone(&world));
        Some(Sim::new(world, near, parameters, WakerShared::simulated(), Instant::now()).unwrap())
    }

    fn pair(&mut self, backend: &mut Sim, key: Key, tcp: bool) -> SimPeer {
        let host = if tcp { Some(self.host) } else { None };
        SimPeer(backend.pair(key, host))
    }

    fn pass_time(&mut self) {
        if let Some(world) = &self.world {
            world.step();
        }
    }
}

#[test]
fn random_engine_on_the_simulated_backend() {
    let counts = run_seeds(SimRig::default()).expect("the simulated backend is always available");
    assert!(counts.early_sends > 50 && counts.no_room > 0, "{counts:?}");
}
