//! Random programs. Owns: the engines of a run and its phases: random actions, rest, the end of
//! everything, the check for leaks. Must not know the actions (`actions.rs`) nor the events
//! (`events.rs`).

use super::model::Model;
use super::network::Network;
use super::panicking::catch_expected;
use super::{Plan, Rng};
use proactor::*;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How often everything is polled at the end before it counts as stuck: in total, and without a
/// completion.
const ROUNDS_MAX: u32 = 1_000_000;
const QUIET_ROUNDS_MAX: u32 = 20_000;
/// At rest: no event for this long. It is longer than any delay or outage of the network.
const QUIET_SIMULATED: Duration = Duration::from_secs(2);
const QUIET_KERNEL: Duration = Duration::from_millis(100);

/// One engine, and the state that the program keeps for it.
pub(super) struct Node {
    pub(super) engine: Option<Engine>,
    /// The number of the engine, unique in the run: an engine that replaces a crashed one has a new
    /// number.
    pub(super) number: usize,
    pub(super) config: Config,
    pub(super) buffers: usize,
    /// The high watermark of its send queues.
    pub(super) high: usize,
    pub(super) completions: Completions,
    pub(super) live: Vec<usize>,
    pub(super) ended: Vec<ConnId>,
    pub(super) listeners: Vec<Listening>,
    pub(super) timers: HashMap<TimerId, (Instant, u64)>,
    pub(super) timer_list: Vec<TimerId>,
    /// Leases kept for a while, with a copy of their bytes.
    pub(super) leases: VecDeque<(Lease, Vec<u8>)>,
    /// What echoing ends have received and not sent, by connection.
    pub(super) echoes_pending: HashMap<usize, VecDeque<Payload>>,
    /// The waker was called since the last poll.
    pub(super) wake_called: bool,
    /// How many `Woken` are due.
    pub(super) wakes_pending: usize,
    pub(super) closing_all: bool,
    /// The poll before the last had room for all its events; the last one had.
    pub(super) previous_poll_complete: bool,
    pub(super) last_poll_complete: bool,
}

pub(super) struct Listening {
    pub(super) id: ListenerId,
    pub(super) addr: Addr,
    /// What accepted connections inherit.
    pub(super) socket: SocketOptions,
    pub(super) closing: bool,
}

pub(super) struct Program<'a> {
    pub(super) plan: &'a Plan,
    pub(super) network: &'a Network,
    pub(super) rng: Rng,
    pub(super) model: Model,
    pub(super) nodes: Vec<Node>,
    pub(super) engines: usize,
    pub(super) names: usize,
    /// How many events were delivered.
    pub(super) events: u64,
    pub(super) rounds: u64,
    /// The completions of a poll; a field so that its memory is reused.
    pub(super) list: Vec<Completion>,
    /// The last phase has begun.
    pub(super) closing: bool,
}

/// Runs the program of a plan.
pub fn run(plan: &Plan, network: &Network) -> Result<(), String> {
    let mut program = Program::new(plan, network);
    let result = program.run();
    // The rest of the trace is caused by dropping the engines.
    if let Err(why) = &result {
        network.with_world(|world| world.note(&format!("FAILED: {why}")));
    }
    for node in &mut program.nodes {
        let _ = catch_expected(|| drop(node.engine.take()));
    }
    result
}

impl<'a> Program<'a> {
    fn new(plan: &'a Plan, network: &'a Network) -> Program<'a> {
        Program {
            plan,
            network,
            rng: Rng::new(plan.seed),
            model: Model::default(),
            nodes: Vec::new(),
            engines: 0,
            names: 0,
            events: 0,
            rounds: 0,
            list: Vec::new(),
            closing: false,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        let count = 2 + self.rng.below(3);
        for index in 0..count {
            self.add_node(index)?;
        }
        for _ in 0..self.plan.actions {
            let node = self.rng.below(count);
            self.act(node)?;
            if !self.rng.one_in(4) {
                let node = self.rng.below(count);
                self.poll(node)?;
            }
            let events = self.rng.below(9);
            self.network.step(events);
        }
        self.settle()?;
        self.close_everything()?;
        self.check_leaks()
    }

    fn add_node(&mut self, index: usize) -> Result<(), String> {
        let rng = &mut self.rng;
        let (buffers, size) = (1 << rng.below(7), 64 << rng.below(7));
        let high = 256 << rng.below(10);
        let tuning = Tuning::default()
            .send_entries_max(2 + rng.below(40))
            .gather_max(1 + rng.below(40))
            .budget(if rng.one_in(4) { 1 + rng.below(4) } else { 8 + rng.below(56) } as u32);
        let config = Config::default()
            .buffers(buffers, size)
            .send_watermarks(high, high / 4)
            .tuning(tuning)
            .connections_max(if rng.one_in(4) { 3 } else { 200 })
            .linger(Duration::from_millis(20 + rng.below(2000) as u64))
            .fin_wait(Duration::from_millis([0, 1, 250][rng.below(3)]))
            .connect_timeout(Some(Duration::from_millis(1 + rng.below(3000) as u64)));
        let capacity = if rng.one_in(4) { 1 + rng.below(4) } else { 16 + rng.below(112) };
        let node = Node {
            engine: None,
            number: 0,
            config,
            buffers: buffers as usize,
            high,
            completions: Completions::with_capacity(capacity),
            live: Vec::new(),
            ended: Vec::new(),
            listeners: Vec::new(),
            timers: HashMap::new(),
            timer_list: Vec::new(),
            leases: VecDeque::new(),
            echoes_pending: HashMap::new(),
            wake_called: false,
            wakes_pending: 0,
            closing_all: false,
            previous_poll_complete: false,
            last_poll_complete: false,
        };
        self.nodes.push(node);
        self.start(index)?;
        self.listen(index)
    }

    /// Starts the engine of a node, if its host is up.
    pub(super) fn start(&mut self, index: usize) -> Result<(), String> {
        match self.network.engine(index, self.nodes[index].config.clone()) {
            Ok(engine) => {
                self.nodes[index].engine = Some(engine);
                self.nodes[index].number = self.engines;
                self.engines += 1;
                Ok(())
            }
            Err(Error::Simulation(Halt::Crashed)) => Ok(()),
            Err(error) => Err(format!("cannot start an engine: {error}")),
        }
    }

    pub(super) fn listen(&mut self, index: usize) -> Result<(), String> {
        let unix = self.rng.one_in(3);
        self.names += 1;
        let addr = self.network.address(index, unix, self.names);
        let options = ListenOptions {
            backlog: if self.rng.one_in(3) { 1 } else { 64 },
            socket: self.socket_options(),
            ..ListenOptions::default()
        };
        let socket = options.socket.clone();
        let node = &mut self.nodes[index];
        let Some(engine) = node.engine.as_mut() else { return Ok(()) };
        match engine.listen(addr, options) {
            Ok(id) => {
                let addr = engine
                    .listener_addr(id)
                    .map_err(|error| format!("a listener without an address: {error}"))?;
                node.listeners.push(Listening { id, addr, socket, closing: false });
                Ok(())
            }
            Err(
                Error::Os { errno: Errno(libc::EMFILE), .. }
                | Error::Simulation(Halt::Crashed)
                | Error::Closing,
            ) => Ok(()),
            Err(error) => Err(format!("cannot listen: {error}")),
        }
    }

    pub(super) fn socket_options(&mut self) -> SocketOptions {
        let rng = &mut self.rng;
        SocketOptions {
            read_mode: if rng.one_in(6) { ReadMode::Paused } else { ReadMode::Streaming },
            half_open: !rng.one_in(6),
            idle_timeout: rng.one_in(8).then(|| Duration::from_millis(1 + rng.below(500) as u64)),
            ..SocketOptions::default()
        }
    }

    /// Polls the nodes whose engine has something to do, and every eighth time all of them.
    fn poll_all(&mut self) -> Result<(), String> {
        self.rounds += 1;
        // A poll also registers new timers with the world.
        let all = self.rounds.is_multiple_of(8) || !self.network.is_simulated();
        for index in 0..self.nodes.len() {
            let idle = !all
                && self.nodes[index].engine.as_ref().is_some_and(|engine| !engine.wants_poll());
            if !idle {
                self.poll(index)?;
            }
        }
        Ok(())
    }

    /// Resumes all reads, polls until no event comes any more, and checks that everything that was
    /// sent has arrived.
    fn settle(&mut self) -> Result<(), String> {
        for index in 0..self.nodes.len() {
            for conn in self.nodes[index].live.clone() {
                self.resume(index, conn)?;
            }
        }
        let quiet_for = if self.network.is_simulated() { QUIET_SIMULATED } else { QUIET_KERNEL };
        let (mut settled, mut rounds, mut since, mut events) =
            (false, 0, self.network.now(), self.events);
        let mut more = true;
        for _ in 0..3_000 {
            self.poll_all()?;
            if self.events != events {
                (rounds, since, events) = (0, self.network.now(), self.events);
            }
            rounds += 1;
            settled = rounds > 15 && (!more || self.network.now() - since > quiet_for);
            if settled {
                break;
            }
            more = self.network.step(100);
            for index in 0..self.nodes.len() {
                self.drop_leases(index, 2)?;
            }
        }
        for node in self.nodes.iter().filter(|_| settled) {
            let Some(engine) = node.engine.as_ref() else { continue };
            for conn in &node.live {
                self.model.check_settled(*conn)?;
                let end = &self.model.conns[*conn];
                let empty = engine.queued_bytes(end.id).is_ok_and(|bytes| bytes == 0);
                let closing = end.close_called || end.shutdown_write_called || end.closes_with_peer;
                if end.send_refused && end.connected && empty && !closing {
                    return Err(format!(
                        "{}: all was sent, and `Drained` never came; {end:?}",
                        end.id
                    ));
                }
            }
        }
        Ok(())
    }

    /// Ends all connections, listeners and timers, and polls until the last one has ended.
    fn close_everything(&mut self) -> Result<(), String> {
        self.closing = true;
        for index in 0..self.nodes.len() {
            self.begin_close(index)?;
        }
        let (mut rounds_left, mut last_progress) = (QUIET_ROUNDS_MAX, 0);
        for round in 0..ROUNDS_MAX {
            self.poll_all()?;
            self.network.step(100);
            // Completions of discarded input cause no event, but they are progress.
            let progress = self.events + self.network.completions();
            rounds_left =
                if progress == last_progress { rounds_left - 1 } else { QUIET_ROUNDS_MAX };
            last_progress = progress;
            if rounds_left == 0 {
                break;
            }
            let mut open = 0;
            for index in 0..self.nodes.len() {
                let node = &self.nodes[index];
                let Some(engine) = node.engine.as_ref() else {
                    open += 1;
                    continue;
                };
                open += engine.connections()
                    + node.listeners.len()
                    + node.timers.len()
                    + node.live.len();
                // For connections accepted, and engines started, in the meantime.
                if round % 16 == 15 && !node.closing_all {
                    self.begin_close(index)?;
                }
            }
            if open == 0 {
                return Ok(());
            }
        }
        let stuck: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|node| node.live.iter())
            .map(|conn| &self.model.conns[*conn])
            .collect();
        let timers: usize = self.nodes.iter().map(|node| node.timers.len()).sum();
        Err(format!("stuck: {} connections ({:?}), {timers} timers", stuck.len(), stuck.first()))
    }

    /// Ends what a node has, in one of three ways: `close_all`, `close` or `abort`.
    fn begin_close(&mut self, index: usize) -> Result<(), String> {
        let close_all = self.rng.one_in(2);
        let Some(engine) = self.nodes[index].engine.as_mut() else { return Ok(()) };
        if close_all {
            engine.close_all(Duration::from_millis(500));
            let node = &mut self.nodes[index];
            node.closing_all = true;
            node.listeners.iter_mut().for_each(|listening| listening.closing = true);
            for conn in &node.live {
                self.model.conns[*conn].close_all_called = true;
            }
            return Ok(());
        }
        for conn in self.nodes[index].live.clone() {
            let abort = self.rng.one_in(4);
            let end = &mut self.model.conns[conn];
            if abort {
                end.abort_called = true
            } else {
                end.close_called = true
            }
            self.call(
                index,
                conn,
                |engine, id| if abort { engine.abort(id) } else { engine.close(id) },
            )?;
        }
        let node = &mut self.nodes[index];
        let engine = node.engine.as_mut().expect("checked above");
        for listening in node.listeners.iter_mut().filter(|listening| !listening.closing) {
            listening.closing = true;
            engine
                .close_listener(listening.id)
                .map_err(|error| format!("an open listener refused to close: {error}"))?;
        }
        Ok(())
    }

    /// Checks that nothing is left open, and that the counters agree with the model.
    fn check_leaks(&mut self) -> Result<(), String> {
        for index in 0..self.nodes.len() {
            let count = self.nodes[index].leases.len();
            self.drop_leases(index, count)?;
            let node = &self.nodes[index];
            let engine = node.engine.as_ref().ok_or("no engine")?;
            engine.audit()?;
            let free = engine.free_buffers();
            if self.network.is_simulated() && free != node.buffers {
                return Err(format!("{free} receive buffers are free of {}", node.buffers));
            }
            let (counted, expected) =
                (engine.stats().bytes_sent, self.model.bytes_sent(node.number));
            if counted != expected {
                return Err(format!("{counted} bytes were handed over, by the events {expected}"));
            }
            let stats = engine.stats();
            if stats.unknown_completions != 0 {
                return Err(format!(
                    "{} completions of unknown operations",
                    stats.unknown_completions
                ));
            }
        }
        let mut left = None;
        self.network.with_world(|world| left = Some(world.census()));
        match left {
            Some(census) if (census.sockets, census.listeners, census.descriptors) != (0, 0, 0) => {
                Err(format!("left open: {census:?}"))
            }
            _ => Ok(()),
        }
    }
}
