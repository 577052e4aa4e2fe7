//! Instructions per request in user space, counted by valgrind and compared with bounds: `cargo
//! bench --bench instructions`. Unlike a time, a count does not depend on the load of the machine.
//!
//! Each workload runs twice under `valgrind --tool=cachegrind`, with N and with 3 N requests. The
//! difference of the two counts, divided by 2 N, is the cost of a request: start-up, warm-up and
//! shutdown cancel out. `benches/instructions.txt` has the figures and their bounds; a workload
//! above its bound is an error. After a change that is meant to cost more, or with another
//! compiler, write the file again:
//!
//! ```sh
//! cargo bench --bench instructions                     # check
//! cargo bench --bench instructions -- epoll            # only workloads with this in their names
//! cargo bench --bench instructions -- --write          # measure, and write figures and bounds
//! ```
//!
//! The exit status is 1 if a workload is above its bound, and 2 if there was nothing to compare: no
//! valgrind, no bound, or a build without optimisation.
//!
//! One thread does everything in a fixed order. The peers of the epoll backend are the other ends
//! of socketpairs, read and written between polls; a simulated server has a simulated client. The
//! instructions of the peers are counted too: for epoll a small constant, for the simulator the
//! engine of the client and the network. No poll sleeps, and no hash map has a random seed.
//!
//! The count should not depend on the processor: valgrind emulates one, and [`TUNABLES`] make the C
//! library ignore its features when it selects copy routines. It does depend on the versions of the
//! compiler, valgrind and the C library, which the file names. System calls that valgrind does not
//! implement fail with ENOSYS (epoll_pwait2 in valgrind 3.19), and the engine uses its fallback.
//! io_uring is not counted: its path depends on the kernel.
//!
//! Without `--bench`, as in `cargo test`, each workload runs with few requests and is not counted.

use bytes::{Bytes, BytesMut};
use proactor::sim::World;
use proactor::*;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::time::Duration;

const CONNECTIONS: usize = 50;
/// The size of a response, and of a request that is echoed.
const SMALL: usize = 64;
/// The size of a request that is received with `recv_into`.
const LARGE: usize = 16 << 10;
/// Rounds of the warm-up, in which all lists and buffers reach their size.
const WARM_UP_ROUNDS: usize = 20;
/// Rounds of the shorter of the two runs; the other has three times as many.
const ROUNDS: usize = 100;
/// Rounds in `cargo test`.
const TEST_ROUNDS: usize = 2;
/// More polls than any round needs, so that a lost response is an error and not a hang.
const POLLS_MAX: usize = 100_000;
/// The bound, as a multiple of the measured figure.
const MARGIN: f64 = 1.01;
const BOUNDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// Processor features that the C library must not use, so that it copies with SSE2 everywhere. With
/// ERMS it would use `rep movsb`, which counts as one instruction per byte. It ignores names that
/// it does not know.
const TUNABLES: &str = "glibc.cpu.hwcaps=-ERMS,-FSRM,-AVX2,-AVX2_Usable,-AVX,-AVX_Usable,\
                        -AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL";

type Failure = Box<dyn std::error::Error>;

/// The backend of the server, and its peers.
#[derive(Clone, Copy)]
enum Setup {
    Epoll,
    Simulated,
}

/// How the server receives a request and sends the response.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    /// Echoes 64 B with `send`.
    Echo,
    /// Echoes 64 B with `send_tagged`.
    Tagged,
    /// Receives 16 KiB with `recv_into` and sends 64 B.
    RecvInto,
}

impl Method {
    fn request_bytes(self) -> usize {
        if self == Method::RecvInto { LARGE } else { SMALL }
    }
}

struct Workload {
    name: &'static str,
    setup: Setup,
    method: Method,
}

const WORKLOADS: [Workload; 5] = [
    Workload { name: "epoll", setup: Setup::Epoll, method: Method::Echo },
    Workload { name: "epoll-recv-into", setup: Setup::Epoll, method: Method::RecvInto },
    Workload { name: "epoll-tagged", setup: Setup::Epoll, method: Method::Tagged },
    Workload { name: "sim", setup: Setup::Simulated, method: Method::Echo },
    Workload { name: "sim-recv-into", setup: Setup::Simulated, method: Method::RecvInto },
];

impl Workload {
    /// Setup the warm-up and `rounds` rounds, each with one request on each connection.
    fn run(&self, rounds: usize) {
        match self.setup {
            Setup::Epoll => {
                let mut pairs = Pairs::new(self.method);
                (0..WARM_UP_ROUNDS + rounds).for_each(|_| pairs.round());
            }
            Setup::Simulated => {
                let mut pair = SimulatedPair::new(self.method);
                (0..WARM_UP_ROUNDS + rounds).for_each(|_| pair.round());
            }
        }
    }

    /// Instructions per request.
    fn measure(&self) -> Result<f64, Failure> {
        let (short, long) = (self.count(ROUNDS)?, self.count(3 * ROUNDS)?);
        Ok((long as f64 - short as f64) / (2 * ROUNDS * CONNECTIONS) as f64)
    }

    /// The instructions of a whole run, in a child process under valgrind.
    fn count(&self, rounds: usize) -> Result<u64, Failure> {
        let output = Command::new("valgrind")
            .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
            .arg(std::env::current_exe()?)
            .args(["--run", self.name, &rounds.to_string()])
            .env("GLIBC_TUNABLES", TUNABLES)
            .output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        match log.lines().find_map(instructions) {
            Some(count) if output.status.success() => Ok(count),
            _ => Err(format!("{}: {} under valgrind\n{log}", self.name, output.status).into()),
        }
    }
}

/// Parses 7438708 from `==42== I   refs:      7,438,708`.
fn instructions(line: &str) -> Option<u64> {
    let (label, count) = line.split_once("refs:")?;
    label.trim_end().ends_with(" I").then(|| count.trim().replace(',', "").parse().ok())?
}

/// The server under test.
struct Server {
    engine: Engine,
    completions: Completions,
    method: Method,
    response: Bytes,
    sent_tags: u64,
}

impl Server {
    fn new(engine: Engine, method: Method) -> Server {
        let response = Bytes::from_static(&[7; SMALL]);
        Server {
            engine,
            completions: Completions::with_capacity(256),
            method,
            response,
            sent_tags: 0,
        }
    }

    fn options(method: Method) -> SocketOptions {
        // Reads are paused, so that only `recv_into` receives.
        let read_mode =
            if method == Method::RecvInto { ReadMode::Paused } else { ReadMode::Streaming };
        SocketOptions { read_mode, ..SocketOptions::default() }
    }

    fn opened(&mut self, conn: ConnId) {
        if self.method == Method::RecvInto {
            self.engine
                .recv_into(conn, BytesMut::with_capacity(LARGE), LARGE)
                .expect("none is pending");
        }
    }

    /// Polls once and serves what came.
    fn turn(&mut self) {
        self.engine.poll(&mut self.completions, Some(Duration::ZERO)).expect("poll");
        while let Some(completion) = self.completions.pop() {
            let conn = completion.conn;
            match completion.event {
                Event::Accepted { .. } => self.opened(conn),
                Event::Received(data) if self.method == Method::Tagged => {
                    self.engine.send_tagged(conn, data, 1).expect("room");
                }
                Event::Received(data) => self.engine.send(conn, data).expect("room"),
                Event::Filled(mut buffer) => {
                    assert_eq!(buffer.len(), LARGE);
                    buffer.clear();
                    self.engine.recv_into(conn, buffer, LARGE).expect("none is pending");
                    self.engine.send(conn, self.response.clone()).expect("room");
                }
                Event::Sent { tag } => self.sent_tags += tag,
                Event::Closed(reason) => panic!("{reason}"),
                _ => {}
            }
        }
    }
}

/// A server on the epoll backend, and the other ends of its connections.
struct Pairs {
    server: Server,
    peers: Vec<UnixStream>,
    request: Vec<u8>,
    answered: u64,
}

impl Pairs {
    fn new(method: Method) -> Pairs {
        let config = Config::default().backend(Backend::Epoll).ignore_environment(true);
        let mut server = Server::new(Engine::new(config).expect("epoll"), method);
        let mut peers = Vec::new();
        for _ in 0..CONNECTIONS {
            let (socket, peer) = UnixStream::pair().expect("a socketpair");
            peer.set_nonblocking(true).expect("fcntl");
            peers.push(peer);
            match server
                .engine
                .adopt(socket.into(), Server::options(method))
                .expect("a stream socket")
            {
                AdoptedId::Conn(conn) => server.opened(conn),
                _ => unreachable!("a socketpair is not a listener"),
            }
        }
        Pairs { server, peers, request: vec![7; method.request_bytes()], answered: 0 }
    }

    /// All peers send a request; then the server polls until all have received their response.
    fn round(&mut self) {
        for peer in &mut self.peers {
            peer.write_all(&self.request).expect("the socket's buffer holds a request");
        }
        let mut answered = 0;
        for _ in 0..POLLS_MAX {
            self.server.turn();
            while answered < CONNECTIONS && has_response(&mut self.peers[answered]) {
                answered += 1;
            }
            if answered == CONNECTIONS {
                self.answered += answered as u64;
                return;
            }
        }
        panic!("{answered} responses of {CONNECTIONS} in {POLLS_MAX} polls");
    }
}

impl Drop for Pairs {
    fn drop(&mut self) {
        if self.server.method == Method::Tagged && !std::thread::panicking() {
            self.server.turn();
            assert_eq!(self.server.sent_tags, self.answered, "each response has one `Sent`");
        }
    }
}

/// Reads a response from a peer's socket. False if it has not arrived.
fn has_response(peer: &mut UnixStream) -> bool {
    let mut response = [0; SMALL];
    match peer.read(&mut response) {
        Ok(len) => {
            assert_eq!((len, response), (SMALL, [7; SMALL]));
            true
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("read: {error}"),
    }
}

/// A server and a client in one simulated world.
struct SimulatedPair {
    world: World,
    server: Server,
    client: Engine,
    completions: Completions,
    conns: Vec<ConnId>,
    request: Bytes,
}

impl SimulatedPair {
    fn new(method: Method) -> SimulatedPair {
        let world = World::new(1);
        let (server_host, client_host) = (world.host("server"), world.host("client"));
        let mut server =
            Server::new(server_host.engine(Config::default()).expect("an engine"), method);
        let mut client = client_host.engine(Config::default()).expect("an engine");
        let options = ListenOptions { socket: Server::options(method), ..ListenOptions::default() };
        server.engine.listen((server_host.ip(), 7), options).expect("listen");
        let addr = SocketAddr::from((server_host.ip(), 7));
        let connect = |_| client.connect(addr, ConnectOptions::default()).expect("connect");
        let conns = (0..CONNECTIONS).map(connect).collect();
        let request = Bytes::from(vec![7; method.request_bytes()]);
        SimulatedPair {
            world,
            server,
            client,
            completions: Completions::with_capacity(256),
            conns,
            request,
        }
    }

    /// The client sends on all connections; then both poll until all responses have arrived.
    fn round(&mut self) {
        for conn in &self.conns {
            self.client.send(*conn, self.request.clone()).expect("room");
        }
        let mut missing = CONNECTIONS * SMALL;
        for _ in 0..POLLS_MAX {
            self.server.turn();
            self.client.poll(&mut self.completions, Some(Duration::ZERO)).expect("poll");
            for completion in self.completions.drain() {
                match completion.event {
                    Event::Received(data) => missing -= data.len(),
                    Event::Closed(reason) => panic!("{reason}"),
                    _ => {}
                }
            }
            if missing == 0 {
                return;
            }
            self.world.step();
        }
        panic!("{missing} bytes of responses are missing after {POLLS_MAX} polls");
    }
}

/// A line of the file.
struct Bound {
    recorded: f64,
    bound: f64,
}

/// The versions that the counts depend on.
fn versions() -> String {
    let version = |program: &str, argument: &str| match Command::new(program).arg(argument).output()
    {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => format!("{program} unknown"),
    };
    let programs =
        [("rustc", "--version"), ("valgrind", "--version"), ("getconf", "GNU_LIBC_VERSION")];
    let versions = programs.map(|(program, argument)| version(program, argument));
    format!("{}, {}", versions.join(", "), std::env::consts::ARCH)
}

/// The bounds by workload, and the versions of their measurement.
fn read_bounds() -> Result<(BTreeMap<String, Bound>, String), Failure> {
    let text = std::fs::read_to_string(BOUNDS).map_err(|error| format!("{BOUNDS}: {error}"))?;
    let versions = text.lines().find_map(|line| line.strip_prefix("# with ")).unwrap_or_default();
    let mut bounds = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let [name, recorded, bound] = cells[..] else {
            return Err(
                format!("{BOUNDS}: {line:?} is not a workload, a figure and a bound").into()
            );
        };
        bounds.insert(name.into(), Bound { recorded: recorded.parse()?, bound: bound.parse()? });
    }
    Ok((bounds, versions.into()))
}

fn write_bounds() -> Result<(), Failure> {
    let mut text = format!(
        "# Instructions per request in user space; benches/instructions.rs has the details.\n\
         # Written by `cargo bench --bench instructions -- --write`\n\
         # with {}\n\
         #\n\
         # {:<18}{:>10}{:>10}\n",
        versions(),
        "workload",
        "measured",
        "bound"
    );
    for workload in &WORKLOADS {
        let measured = workload.measure()?;
        text += &format!("{:<20}{measured:>10.1}{:>10.1}\n", workload.name, measured * MARGIN);
    }
    std::fs::write(BOUNDS, &text)?;
    print!("{text}");
    Ok(())
}

/// Measures the workloads and compares. False if one is above its bound.
fn check(workloads: &[&Workload]) -> Result<bool, Failure> {
    let (bounds, recorded_versions) = read_bounds()?;
    println!(
        "{:<20}{:>10}{:>10}{:>9}{:>10}",
        "workload", "measured", "recorded", "change", "bound"
    );
    let mut above = Vec::new();
    for workload in workloads {
        let name = workload.name;
        let hint = "`cargo bench --bench instructions -- --write` adds it";
        let Bound { recorded, bound } =
            bounds.get(name).ok_or_else(|| format!("{BOUNDS} has no bound for {name}; {hint}"))?;
        let measured = workload.measure()?;
        let change = (measured / recorded - 1.0) * 100.0;
        println!("{name:<20}{measured:>10.1}{recorded:>10.1}{change:>+8.2}%{bound:>10.1}");
        if measured > *bound {
            above.push(format!(
                "{name}: {measured:.1} instructions per request, {:.1} ({:.2}%) above its bound of \
                 {bound:.1}",
                measured - bound,
                (measured / bound - 1.0) * 100.0
            ));
        }
    }
    if above.is_empty() {
        return Ok(true);
    }
    eprintln!("error: {}", above.join("\nerror: "));
    eprintln!("A change that is meant to cost more sets new bounds with `-- --write`.");
    let versions = versions();
    if recorded_versions != versions {
        eprintln!("The bounds were measured with {recorded_versions};\nthis is {versions}.");
    }
    Ok(false)
}

/// `cargo bench`. False if a workload is above its bound.
fn bench(arguments: &[&str]) -> Result<bool, Failure> {
    let (options, filters): (Vec<&str>, Vec<&str>) =
        arguments.iter().partition(|argument| argument.starts_with('-'));
    let write = options.contains(&"--write");
    if let Some(unknown) = options.iter().find(|option| !["--bench", "--write"].contains(option)) {
        return Err(format!("unknown option {unknown}").into());
    }
    let chosen = |w: &&Workload| filters.is_empty() || filters.iter().any(|f| w.name.contains(f));
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(chosen).collect();
    if workloads.is_empty() {
        return Ok(true);
    }
    if cfg!(debug_assertions) {
        return Err("a build without optimisation has other counts: use `cargo bench`".into());
    }
    match Command::new("valgrind").arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(
                "valgrind is missing, which counts the instructions; install the package valgrind"
                    .into(),
            );
        }
        found => found?,
    };
    match write {
        true if !filters.is_empty() => {
            Err("--write writes all workloads and accepts no filter".into())
        }
        true => write_bounds().map(|()| true),
        false => check(&workloads),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["--run", name, rounds] = arguments[..] {
        let workload = WORKLOADS.iter().find(|workload| workload.name == name);
        workload.expect("a name from the table").run(rounds.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    if arguments.contains(&"--list") {
        return ExitCode::SUCCESS;
    }
    if !arguments.contains(&"--bench") || arguments.contains(&"--test") {
        // Filters and options of libtest are ignored: all workloads take milliseconds.
        for workload in &WORKLOADS {
            workload.run(TEST_ROUNDS);
            println!("{}: ok", workload.name);
        }
        return ExitCode::SUCCESS;
    }
    match bench(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
