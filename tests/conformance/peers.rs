//! Peers, clock and threads of a scenario: the kernel's, or those of a simulated world. A scenario
//! that uses only these runs on both. Owns: the world that the current scenario runs in. Must not
//! know the scenarios.

use crate::Variant;
use crate::lossy::{addresses, in_peer_namespace};
use crate::rig::patience;
use crate::sandbox::{self, ClientProcess};
use proactor::sim::{self, Host, World};
use proactor::*;
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

thread_local! {
    /// The simulated world of the scenario of this thread, if it has one.
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    /// The host in that world. Also set in the threads that the scenario spawns.
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// Runs a scenario on the kernel, or in a new simulated world if the variant is simulated.
pub fn run_on(variant: &Variant, run: impl FnOnce()) {
    let Some(faults) = variant.simulated() else { return run() };
    let seed =
        std::env::var("PROACTOR_SIM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let world = World::new(seed);
    world.set_faults(faults);
    world.keep_trace(2_000);
    HOST.set(Some(world.host("local")));
    WORLD.set(Some(world));
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    HOST.set(None);
    let world = WORLD.take().expect("set above");
    if let Err(panic) = ended {
        let tail: Vec<String> = world.trace().lines().rev().take(40).map(str::to_owned).collect();
        tail.iter().rev().for_each(|line| println!("{line}"));
        println!("repeat with: PROACTOR_SIM_SEED={seed}");
        drop(world);
        std::panic::resume_unwind(panic);
    }
}

fn host() -> Option<Host> {
    HOST.with_borrow(Clone::clone)
}

/// An engine on the network of the scenario.
pub fn engine(config: Config) -> Result<Engine, Error> {
    host().map_or_else(|| Engine::new(config.clone()), |host| host.engine(config.clone()))
}

/// The time by the clock of the engines.
pub fn now() -> Instant {
    host().map_or_else(Instant::now, |host| host.instant())
}

pub fn since(start: Instant) -> Duration {
    now().saturating_duration_since(start)
}

pub fn sleep(duration: Duration) {
    match host() {
        Some(host) => host.sleep(duration),
        None => std::thread::sleep(duration),
    }
}

/// A thread of the scenario, or a program of the simulated world.
pub enum Task<T> {
    Thread(std::thread::JoinHandle<T>),
    Program(sim::Program<T>),
}

pub fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    match host() {
        None => Task::Thread(std::thread::spawn(run)),
        Some(host) => {
            let inner = host.clone();
            Task::Program(host.spawn("peer", move || {
                HOST.set(Some(inner));
                run()
            }))
        }
    }
}

impl<T> Task<T> {
    pub fn join(self) -> std::thread::Result<T> {
        match self {
            Task::Thread(thread) => thread.join(),
            Task::Program(program) => program.join(),
        }
    }

    pub fn is_finished(&self) -> bool {
        match self {
            Task::Thread(thread) => thread.is_finished(),
            Task::Program(program) => program.is_finished(),
        }
    }
}

/// A plain blocking stream.
#[derive(Debug)]
pub enum Peer {
    Tcp(TcpStream),
    Unix(UnixStream),
    Sim(sim::Peer),
}

/// Connects a plain blocking stream.
pub fn connect(addr: SocketAddr) -> io::Result<Peer> {
    match host() {
        Some(host) => host.connect(addr).map(Peer::Sim),
        None => in_peer_namespace(|| TcpStream::connect(addr)).map(Peer::tcp),
    }
}

impl Peer {
    fn tcp(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(patience())).expect("timeout");
        stream.set_write_timeout(Some(patience())).expect("timeout");
        Peer::Tcp(stream)
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Peer::Tcp(stream) => stream.local_addr(),
            Peer::Sim(peer) => {
                peer.local_addr()?.as_inet().ok_or_else(|| io::ErrorKind::Unsupported.into())
            }
            Peer::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Peer::Tcp(stream) => stream.peer_addr(),
            Peer::Sim(peer) => {
                peer.peer_addr()?.as_inet().ok_or_else(|| io::ErrorKind::Unsupported.into())
            }
            Peer::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Peer::Tcp(stream) => stream.shutdown(how),
            Peer::Unix(stream) => stream.shutdown(how),
            Peer::Sim(peer) => peer.shutdown(how),
        }
    }

    pub fn try_clone(&self) -> io::Result<Peer> {
        match self {
            Peer::Tcp(stream) => stream.try_clone().map(Peer::Tcp),
            Peer::Unix(stream) => stream.try_clone().map(Peer::Unix),
            Peer::Sim(peer) => Ok(Peer::Sim(peer.clone())),
        }
    }

    /// Makes the drop reset the connection.
    pub fn reset_on_drop(&self) {
        match self {
            Peer::Tcp(stream) => {
                socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("linger")
            }
            Peer::Unix(_) => panic!("unix sockets have no reset"),
            Peer::Sim(peer) => peer.reset_on_drop(),
        }
    }
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Peer::Tcp(stream) => stream.read(buffer),
            Peer::Unix(stream) => stream.read(buffer),
            Peer::Sim(peer) => peer.read(buffer),
        }
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Peer::Tcp(stream) => stream.write(bytes),
            Peer::Unix(stream) => stream.write(bytes),
            Peer::Sim(peer) => peer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A plain blocking listener.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
    Sim(sim::PeerListener),
}

/// Listens at the address of the peers (loopback, or the other namespace of a lossy network), on a
/// port that the kernel chooses.
pub fn listen_local() -> io::Result<Listener> {
    match host() {
        Some(host) => host.listen((Ipv4Addr::LOCALHOST, 0)).map(Listener::Sim),
        None => in_peer_namespace(|| TcpListener::bind((addresses().1, 0))).map(Listener::Tcp),
    }
}

impl Listener {
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            Listener::Sim(listener) => {
                listener.local_addr()?.as_inet().ok_or_else(|| io::ErrorKind::Unsupported.into())
            }
            Listener::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub fn accept(&self) -> io::Result<(Peer, ())> {
        match self {
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| (Peer::tcp(stream), ())),
            Listener::Unix(listener) => {
                listener.accept().map(|(stream, _)| (Peer::Unix(stream), ()))
            }
            Listener::Sim(listener) => listener.accept().map(|peer| (Peer::Sim(peer), ())),
        }
    }
}

/// A listener with a full backlog, which drops further SYNs, and the connections that fill it.
pub fn full_listener(backlog: u32) -> (Listener, Vec<Box<dyn std::any::Any>>) {
    if let Some(host) = host() {
        let options = ListenOptions { backlog, ..ListenOptions::default() };
        let listener = host.listen_with((Ipv4Addr::LOCALHOST, 0), &options).unwrap();
        let fillers = (0..8).map(|_| {
            let filler = host.start_connect(listener.local_addr().unwrap()).unwrap();
            Box::new(filler) as Box<dyn std::any::Any>
        });
        let fillers = fillers.collect();
        host.sleep(Duration::from_millis(20));
        return (Listener::Sim(listener), fillers);
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(backlog as i32).unwrap();
    let listener: TcpListener = socket.into();
    let addr = listener.local_addr().unwrap().into();
    let fillers = (0..8).map(|_| {
        let filler =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&addr);
        Box::new(filler) as Box<dyn std::any::Any>
    });
    let fillers = fillers.collect();
    std::thread::sleep(Duration::from_millis(20));
    (Listener::Tcp(listener), fillers)
}

/// Listens on a name in the abstract namespace, with a backlog of one.
pub fn listen_abstract(name: &str) -> Listener {
    if let Some(host) = host() {
        let options = ListenOptions { backlog: 1, ..ListenOptions::default() };
        return Listener::Sim(
            host.listen_with(Addr::UnixAbstract(name.as_bytes().to_vec()), &options).unwrap(),
        );
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(format!("\0{name}")).unwrap()).unwrap();
    socket.listen(1).unwrap();
    Listener::Unix(socket.into())
}

/// Twelve clients that connect, send a letter each (`A` to `L`), and stay connected until they are
/// stopped. On a kernel they have a process of their own, so that only the engine runs out of
/// descriptors.
pub enum Clients {
    Process(ClientProcess),
    Program { stop: std::sync::Arc<std::sync::atomic::AtomicBool>, clients: Task<()> },
}

impl Clients {
    pub fn start(addr: SocketAddr) -> Clients {
        if host().is_none() {
            return Clients::Process(ClientProcess::start(addr, 12, 1));
        }
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let clients = spawn(move || {
            let mut clients: Vec<Peer> = (0..12).map(|_| connect(addr).unwrap()).collect();
            for (client, letter) in clients.iter_mut().zip(b'A'..) {
                client.write_all(&[letter]).unwrap();
            }
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                sleep(Duration::from_millis(10));
            }
        });
        Clients::Program { stop, clients }
    }

    /// Waits until all are connected.
    pub fn wait_connected(&mut self) {
        if let Clients::Process(process) = self {
            process.wait_connected();
        }
    }

    pub fn stop(self) {
        match self {
            Clients::Process(process) => process.stop(),
            Clients::Program { stop, clients } => {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                clients.join().unwrap();
            }
        }
    }
}

/// While it lives, this process can open few more descriptors.
pub struct DescriptorLimit(Vec<std::fs::File>);

impl Drop for DescriptorLimit {
    fn drop(&mut self) {
        if let Some(host) = host() {
            limit_descriptors(&host, usize::MAX);
        }
        self.0.clear();
    }
}

fn limit_descriptors(host: &Host, max: usize) {
    WORLD.with_borrow(|world| {
        let world = world.as_ref().expect("called on the thread of the scenario");
        world.act(sim::Action::Descriptors { host: host.clone(), max });
    });
}

/// Lets this process, or the host of the scenario, open `spare` more descriptors.
pub fn limit_spare_descriptors(spare: usize) -> DescriptorLimit {
    if let Some(host) = host() {
        limit_descriptors(&host, host.descriptors() + spare);
        return DescriptorLimit(Vec::new());
    }
    sandbox::limit(libc::RLIMIT_NOFILE, 100.min(sandbox::descriptors_max())).unwrap();
    let mut fillers: Vec<_> =
        std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    fillers.truncate(fillers.len() - spare);
    DescriptorLimit(fillers)
}
