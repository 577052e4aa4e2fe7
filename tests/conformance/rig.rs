//! The test rig: an engine with its completions. Owns: loops that poll until a condition holds,
//! with a deadline. Its invariant: after `Closed` no event of the same connection comes. Must not
//! know whether the network is simulated.

use crate::Variant;
use crate::lossy::addresses;
use crate::peers::*;
use crate::report::skip;
use proactor::*;
use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// How long a wait may take before the scenario fails. It is long because the suite also runs on
/// emulated machines, which are fifty times slower.
pub fn patience() -> Duration {
    let seconds = std::env::var("PROACTOR_TEST_PATIENCE_S").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(600))
}

pub struct Rig {
    pub engine: Engine,
    pub completions: Completions,
    /// How each connection ended.
    pub ended: HashMap<ConnId, CloseReason>,
    /// Completions of the last poll that no caller has seen yet.
    unhandled: Vec<Completion>,
}

impl Rig {
    pub fn new(variant: &Variant) -> Rig {
        Rig::with(variant.config())
    }

    pub fn with(config: Config) -> Rig {
        let engine = engine(config).expect("an engine");
        Rig {
            engine,
            completions: Completions::with_capacity(256),
            ended: HashMap::new(),
            unhandled: Vec::new(),
        }
    }

    /// Whether the engine uses a capability.
    pub fn uses(&self, capability: Capability) -> bool {
        let used = |report: &CapabilityReport| {
            report.capability == capability && report.state == CapabilityState::Used
        };
        self.engine.info().capabilities().iter().any(used)
    }

    /// Polls once, and checks that no event comes after `Closed`.
    pub fn poll(&mut self, timeout: Duration) -> Vec<Completion> {
        if !self.unhandled.is_empty() {
            return std::mem::take(&mut self.unhandled);
        }
        self.engine.poll(&mut self.completions, Some(timeout)).expect("poll");
        let list: Vec<Completion> = self.completions.drain().collect();
        for completion in &list {
            let conn = completion.conn;
            if conn.is_none() {
                continue;
            }
            assert!(
                !self.ended.contains_key(&conn),
                "{:?} after `Closed` of {conn}",
                completion.event
            );
            if let Event::Closed(reason) = completion.event {
                self.ended.insert(conn, reason);
            }
        }
        list
    }

    /// Polls until `find` returns a value.
    pub fn until<T>(
        &mut self,
        what: &str,
        mut find: impl FnMut(&mut Engine, Completion) -> Option<T>,
    ) -> T {
        let mut found = None;
        self.run(what, |engine, completion| {
            found = completion.and_then(|completion| find(engine, completion));
            found.is_some()
        });
        found.expect("run ends when it is found")
    }

    /// The lease of the next `Received`.
    pub fn next_lease(&mut self) -> Lease {
        self.until("data", |_, completion| match completion.event {
            Event::Received(data) => Some(data),
            _ => None,
        })
    }

    /// Polls until `done` returns true. It is called with each completion, and without one before
    /// each poll.
    pub fn run(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Engine, Option<Completion>) -> bool,
    ) {
        let deadline = now() + patience();
        while !done(&mut self.engine, None) {
            assert!(
                now() < deadline,
                "waited too long for {what}; ended: {:?}; {:?}",
                self.ended,
                self.engine.stats()
            );
            let mut batch = self.poll(Duration::from_millis(20)).into_iter();
            while let Some(completion) = batch.next() {
                if done(&mut self.engine, Some(completion)) {
                    self.unhandled = batch.collect();
                    return;
                }
            }
        }
    }

    /// Polls until a connection has ended. Other completions are dropped.
    pub fn wait_closed(&mut self, conn: ConnId) -> CloseReason {
        let deadline = now() + patience();
        while !self.ended.contains_key(&conn) {
            assert!(now() < deadline, "{conn} never ended: {:?}", self.engine.stats());
            self.poll(Duration::from_millis(100));
        }
        self.ended[&conn]
    }

    /// Polls for a span and returns all completions.
    pub fn poll_for(&mut self, span: Duration) -> Vec<Completion> {
        let deadline = now() + span;
        let mut all = Vec::new();
        while now() < deadline {
            all.extend(self.poll(deadline.saturating_duration_since(now())));
        }
        all
    }

    pub fn listen(&mut self) -> (ListenerId, SocketAddr) {
        self.listen_with(ListenOptions::default())
    }

    pub fn listen_with(&mut self, options: ListenOptions) -> (ListenerId, SocketAddr) {
        let listener = self.engine.listen((addresses().0, 0), options).expect("listen");
        (listener, self.engine.listener_addr(listener).expect("bound").as_inet().expect("inet"))
    }

    /// Connects to a blocking peer.
    pub fn pair(&mut self) -> (ConnId, Peer) {
        self.pair_with(ConnectOptions::default())
    }

    pub fn pair_with(&mut self, options: ConnectOptions) -> (ConnId, Peer) {
        let listener = listen_local().expect("bind");
        let conn =
            self.engine.connect(listener.local_addr().expect("bound"), options).expect("connect");
        self.until("connect", |_, completion| {
            (completion.conn == conn).then(|| {
                assert!(matches!(completion.event, Event::Connected), "{:?}", completion.event)
            })
        });
        let (peer, _) = listener.accept().expect("accept");
        (conn, peer)
    }

    /// Receives at least `len` bytes.
    pub fn receive(&mut self, conn: ConnId, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.run("data", |_, completion| {
            match completion {
                Some(Completion { conn: from, event: Event::Received(data), .. })
                    if from == conn =>
                {
                    bytes.extend_from_slice(&data)
                }
                Some(Completion {
                    conn: from,
                    event: event @ (Event::Closed(_) | Event::ReadClosed),
                    ..
                }) if from == conn => {
                    panic!("{event:?} instead of data")
                }
                _ => {}
            }
            bytes.len() >= len
        });
        bytes
    }

    /// The data of a connection among the completions that the last `until` or `run` left.
    pub fn rest_of_batch(&mut self, conn: ConnId) -> Vec<u8> {
        let data = |completion: Completion| match completion.event {
            Event::Received(data) if completion.conn == conn => data.to_vec(),
            _ => Vec::new(),
        };
        std::mem::take(&mut self.unhandled).into_iter().flat_map(data).collect()
    }

    /// Sends a payload. Polls while the send queue is full.
    pub fn send_all(&mut self, conn: ConnId, payload: impl Into<Payload>) {
        let mut payload = payload.into();
        let deadline = now() + patience();
        loop {
            match self.engine.send(conn, payload) {
                Ok(()) => return,
                Err(SendError::Full(back)) => payload = back,
                Err(error) => panic!("{error}"),
            }
            assert!(now() < deadline, "the queue stayed full");
            self.poll(Duration::from_millis(20));
        }
    }
}

/// Pseudo-random bytes, so that a lost or repeated one changes the content.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Whether this machine has IPv6 on loopback. If not, reports the scenario as skipped.
pub fn has_ipv6() -> bool {
    let bound = TcpListener::bind("[::1]:0");
    if let Err(error) = &bound {
        skip(format_args!("no IPv6 on loopback: {error}"));
    }
    bound.is_ok()
}

/// Reads to the end of the stream.
pub fn read_all(mut peer: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    peer.read_to_end(&mut bytes).expect("the stream ends without an error");
    bytes
}

/// Handles a completion as an echo server does.
pub fn serve_echo(engine: &mut Engine, completion: Completion) {
    let conn = completion.conn;
    match completion.event {
        Event::Received(data) => match engine.send(conn, data) {
            Ok(()) | Err(SendError::Closed(_)) => {}
            Err(error) => panic!("{error}"),
        },
        Event::ReadClosed => engine.close(conn).expect("live"),
        _ => {}
    }
}

/// Sends payloads of at least `bytes_min` bytes by zero-copy, on loopback too.
pub fn zero_copy(bytes_min: usize) -> Tuning {
    Tuning::default().zero_copy(ZeroCopy::Always(bytes_min))
}
