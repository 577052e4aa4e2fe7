//! Exchanges of a request and a response that have one possible outcome each, however the kernel
//! cuts the bytes and in whatever order the peers run. Owns: the exchanges of a seed, and what each
//! peer observed. Every backend must produce the same observations. Must not know how a backend
//! works.

use super::Rng;
use super::network::Network;
use bytes::BytesMut;
use proactor::*;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How an exchange ends, after both peers have received everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ClientCloses,
    /// After one more byte of the client.
    ServerCloses,
    /// The client shuts its write side down after the request; the server responds and closes.
    HalfClose,
    ClientAborts,
    /// After one more byte of the client.
    ServerAborts,
    /// No listener accepts the connection.
    Refused,
}

#[derive(Clone, Debug)]
struct Exchange {
    unix: bool,
    request_bytes: usize,
    response_bytes: usize,
    /// How many sends the request is cut into.
    request_sends: usize,
    /// The client receives the response by `recv_into`.
    uses_recv_into: bool,
    /// The server pauses its reads from time to time.
    server_pauses: bool,
    ending: Ending,
}

/// What both peers of an exchange observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    client: ObservedEnd,
    server: ObservedEnd,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ObservedEnd {
    received: usize,
    order_kept: bool,
    read_closed: bool,
    reason: Option<(CloseKind, Option<Errno>, u64)>,
}

/// The progress of one connection.
struct Progress {
    /// Index of the exchange; `None` until the first byte has arrived at the server.
    exchange: Option<usize>,
    server: bool,
    sent: usize,
    received: usize,
    recv_into_pending: bool,
    fin_received: bool,
}

impl Progress {
    fn client(exchange: usize) -> Progress {
        Progress { exchange: Some(exchange), server: false, ..Progress::server() }
    }

    fn server() -> Progress {
        Progress {
            exchange: None,
            server: true,
            sent: 0,
            received: 0,
            recv_into_pending: false,
            fin_received: false,
        }
    }
}

const HEAD: usize = 4;

/// The byte at a place of a stream. The first `HEAD` bytes are the index of the exchange.
fn byte(exchange: usize, at: usize) -> u8 {
    match at {
        0..HEAD => (exchange as u32).to_le_bytes()[at],
        _ => (at.wrapping_mul(0x9e37_79b9) >> 11) as u8 ^ exchange as u8,
    }
}

fn random_exchange(rng: &mut Rng) -> Exchange {
    use Ending::*;
    let endings = [ClientCloses, ServerCloses, HalfClose, ClientAborts, ServerAborts, Refused];
    let size =
        |rng: &mut Rng| HEAD + if rng.one_in(4) { rng.below(300_000) } else { rng.below(2_000) };
    let ending = endings[rng.below(endings.len())];
    Exchange {
        unix: rng.one_in(3),
        request_bytes: size(rng),
        response_bytes: size(rng),
        request_sends: 1 + rng.below(30),
        uses_recv_into: rng.one_in(3),
        server_pauses: rng.one_in(4),
        ending,
    }
}

/// The engine of all clients, or that of all servers.
struct Peer {
    engine: Engine,
    completions: Completions,
    conns: HashMap<ConnId, Progress>,
}

impl Peer {
    fn new(rng: &mut Rng, network: &Network) -> Result<Peer, String> {
        let config = Config::default()
            .buffers(1 << rng.below(6), 64 << rng.below(8))
            .send_watermarks(2_048 << rng.below(8), 1_024)
            .tuning(
                Tuning::default().gather_max(1 + rng.below(64)).budget(1 + rng.below(16) as u32),
            )
            // Longer than a run: these timeouts differ between backends and are not compared.
            .fin_wait(Duration::from_secs(20))
            .linger(Duration::from_secs(20));
        let engine = network.engine(0, config).map_err(|error| error.to_string())?;
        Ok(Peer {
            engine,
            completions: Completions::with_capacity(1 + rng.below(64)),
            conns: HashMap::new(),
        })
    }

    fn listen(&mut self, addr: Addr) -> Result<Addr, String> {
        let id = self.engine.listen(addr, ListenOptions::default());
        id.and_then(|id| self.engine.listener_addr(id)).map_err(|error| error.to_string())
    }

    fn connect(&mut self, exchange: usize, addr: Addr, small_buffer: bool) -> Result<(), String> {
        let mut options = ConnectOptions::default();
        // Small buffers in the kernel cause partial sends.
        options.socket.send_buffer_bytes = small_buffer.then_some(4_096);
        let conn = self.engine.connect(addr, options).map_err(|error| error.to_string())?;
        self.conns.insert(conn, Progress::client(exchange));
        Ok(())
    }
}

/// Runs the exchanges of a seed and returns what each of them observed.
///
/// # Errors
/// If an event is wrong, or if the exchanges do not end.
pub fn run(seed: u64, network: &Network) -> Result<Vec<Observed>, String> {
    let mut rng = Rng::new(seed);
    let exchanges: Vec<Exchange> =
        (0..6 + rng.below(10)).map(|_| random_exchange(&mut rng)).collect();
    let (mut client, mut server) = (Peer::new(&mut rng, network)?, Peer::new(&mut rng, network)?);
    let inet = server.listen(network.address(0, false, seed as usize))?;
    let unix = server.listen(network.address(0, true, seed as usize))?;
    let no_listener = network.address(0, true, usize::MAX);
    let mut observed = vec![Observed::default(); exchanges.len()];
    for (index, exchange) in exchanges.iter().enumerate() {
        let addr = match exchange {
            Exchange { ending: Ending::Refused, unix: true, .. } => no_listener.clone(),
            Exchange { ending: Ending::Refused, .. } => ([127, 0, 0, 1], 9).into(),
            Exchange { unix: true, .. } => unix.clone(),
            _ => inet.clone(),
        };
        client.connect(index, addr, rng.one_in(2))?;
        observed[index].client.order_kept = true;
        observed[index].server.order_kept = true;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    for round in 0u64.. {
        let mut quiet = true;
        for peer in [&mut client, &mut server] {
            send_next(peer, &exchanges, round)?;
            let timeout =
                if network.is_simulated() { Duration::ZERO } else { Duration::from_micros(300) };
            peer.engine
                .poll(&mut peer.completions, Some(timeout))
                .map_err(|error| error.to_string())?;
            let list: Vec<Completion> = peer.completions.drain().collect();
            quiet &= list.is_empty();
            for completion in list {
                handle(peer, completion, &exchanges, &mut observed)?;
            }
        }
        network.step(usize::from(quiet));
        let open = |(observed, exchange): &(&Observed, &Exchange)| {
            observed.client.reason.is_none()
                || observed.server.reason.is_none() && exchange.ending != Ending::Refused
        };
        let mut stuck = observed.iter().zip(&exchanges).filter(open).peekable();
        if stuck.peek().is_none() {
            return Ok(observed);
        }
        if round > 3_000_000 || Instant::now() > deadline {
            return Err(format!("stuck: {:?}", stuck.collect::<Vec<_>>()));
        }
    }
    unreachable!("the loop returns")
}

/// Records an event, and closes the connection if the exchange requires it.
fn handle(
    peer: &mut Peer,
    completion: Completion,
    exchanges: &[Exchange],
    observed: &mut [Observed],
) -> Result<(), String> {
    let conn = completion.conn;
    if let Event::Accepted { .. } = completion.event {
        peer.conns.insert(conn, Progress::server());
        return Ok(());
    }
    let progress =
        peer.conns.get_mut(&conn).ok_or_else(|| format!("{conn} was never announced"))?;
    let bytes = match &completion.event {
        Event::Received(data) => &data[..],
        Event::Filled(buffer) => &buffer[..],
        _ => &[],
    };
    // There are fewer than 256 exchanges, so the first byte of the head is enough. The head may
    // arrive in pieces.
    let first = bytes.first().map(|byte| usize::from(*byte));
    let Some(index) = progress.exchange.or(first) else {
        return match completion.event {
            Event::Closed(reason) => Err(format!("closed before the first byte: {reason}")),
            _ => Ok(()),
        };
    };
    progress.exchange = Some(index);
    let exchange = &exchanges[index];
    let observed =
        if progress.server { &mut observed[index].server } else { &mut observed[index].client };
    for (at, got) in bytes.iter().enumerate() {
        observed.order_kept &= *got == byte(index, progress.received + at);
    }
    progress.received += bytes.len();
    observed.received = progress.received;
    match completion.event {
        Event::Filled(_) => progress.recv_into_pending = false,
        Event::ReadClosed => {
            (observed.read_closed, progress.fin_received) = (true, true);
            // In a half-close the client's connection ends without a call, and the server sends
            // its response first.
            if exchange.ending != Ending::HalfClose {
                let _ = peer.engine.close(conn);
            }
        }
        Event::Closed(reason) => {
            observed.reason = Some((reason.kind, reason.errno, reason.unsent_bytes));
            peer.conns.remove(&conn);
        }
        _ => {}
    }
    Ok(())
}

/// Sends the next bytes of each connection, as many as its send queue accepts, and ends those that
/// are done.
fn send_next(peer: &mut Peer, exchanges: &[Exchange], round: u64) -> Result<(), String> {
    let mut conns: Vec<(usize, ConnId)> = peer
        .conns
        .iter()
        .filter_map(|(conn, progress)| Some((progress.exchange?, *conn)))
        .collect();
    conns.sort_unstable_by_key(|(index, _)| *index);
    for (index, conn) in conns {
        let exchange = &exchanges[index];
        let progress = peer.conns.get_mut(&conn).expect("listed above");
        let engine = &mut peer.engine;
        let (to_receive, to_send) = match progress.server {
            true => (exchange.request_bytes, exchange.response_bytes),
            false => (exchange.response_bytes, exchange.request_bytes),
        };
        let incomplete = progress.received < to_receive;
        if progress.server && exchange.server_pauses && round % 64 < 32 && incomplete {
            let _ = engine.pause_reads(conn);
        } else {
            let _ = engine.resume_reads(conn);
        }
        if progress.server && incomplete {
            continue;
        }
        if !progress.server && exchange.uses_recv_into && !progress.recv_into_pending && incomplete
        {
            let len = to_receive - progress.received;
            progress.recv_into_pending = engine.recv_into(conn, BytesMut::new(), len).is_ok();
        }
        let last_byte = matches!(exchange.ending, Ending::ServerCloses | Ending::ServerAborts);
        let end = to_send + usize::from(!progress.server && !incomplete && last_byte);
        let piece = match progress.server {
            true => 16_384,
            false => exchange.request_bytes.div_ceil(exchange.request_sends).max(HEAD),
        };
        while progress.sent < end {
            let to =
                (progress.sent + piece).min(if progress.sent < to_send { to_send } else { end });
            let payload: Vec<u8> = (progress.sent..to).map(|at| byte(index, at)).collect();
            match engine.send(conn, payload) {
                Ok(()) => progress.sent = to,
                Err(_) => break,
            }
        }
        finish(engine, conn, exchange, progress, to_receive, to_send);
    }
    Ok(())
}

/// Closes, aborts or shuts down a connection when its exchange has come to that.
fn finish(
    engine: &mut Engine,
    conn: ConnId,
    exchange: &Exchange,
    progress: &Progress,
    to_receive: usize,
    to_send: usize,
) {
    let (sent, received) = (progress.sent, progress.received);
    let last_byte_received = received == to_receive + 1;
    let _ = match (exchange.ending, progress.server) {
        (Ending::HalfClose, false) if sent == to_send => engine.shutdown_write(conn),
        (Ending::HalfClose, true) if sent == to_send && progress.fin_received => engine.close(conn),
        (Ending::ClientCloses, false) if received == to_receive => engine.close(conn),
        (Ending::ClientAborts, false) if received == to_receive => engine.abort(conn),
        (Ending::ServerCloses, true) if last_byte_received => engine.close(conn),
        (Ending::ServerAborts, true) if last_byte_received => engine.abort(conn),
        _ => Ok(()),
    };
}
