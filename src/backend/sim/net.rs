//! The simulated network: hosts, the links between them, and all state of the world but its
//! programs. Owns: the clock and the only source of random numbers. Invariant: each random number
//! is drawn in an order that depends on the seed and the programs alone. Must not know: what
//! sockets (`sock.rs`), events (`events.rs`) and operations (`op/`) do with the state.

use super::engine_state::EngineState;
use super::events::Events;
use super::faults::{Fault, Faults};
use super::op::Ready;
use super::rng::Rng;
use super::script::Script;
use super::sock::{Listen, Sock, SockId};
use super::trace::{Kind, Trace};
use crate::error::Errno;
use slab::Slab;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The ephemeral ports of Linux: the default of ip_local_port_range (ip(7)).
const PORT_FIRST: u16 = 32_768;
const PORT_LAST: u16 = 60_999;

/// The properties of the link between two hosts, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// How long a packet takes. Default: 100 us; within one host 10 us.
    pub latency: Duration,
    /// The longest additional delay of a packet; drawn per packet. Packets of one connection stay
    /// in order. Default: none.
    pub jitter: Duration,
    /// Bytes per second, shared by all connections of the direction. Default: unlimited.
    pub bandwidth: Option<u64>,
    /// How many bytes of one direction of a connection may be sent and not yet read, as the socket
    /// buffers of both ends limit on Linux. Default: 256 KiB.
    pub buffer_bytes: usize,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            latency: Duration::from_micros(100),
            jitter: Duration::ZERO,
            bandwidth: None,
            buffer_bytes: 256 << 10,
        }
    }
}

/// One direction of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direction {
    pub(crate) latency_ns: u64,
    jitter_ns: u64,
    bandwidth: Option<u64>,
    pub(crate) buffer: usize,
    /// When the last packet so far has been serialized, with limited bandwidth.
    busy_until: u64,
    pub(crate) cut: bool,
    /// Scripted: after this many more bytes, the connection that sends the next byte is reset.
    pub(crate) reset_after: Option<u64>,
}

impl Direction {
    fn new(link: &Link) -> Direction {
        Direction {
            latency_ns: super::nanoseconds(link.latency),
            jitter_ns: super::nanoseconds(link.jitter),
            bandwidth: link.bandwidth,
            buffer: link.buffer_bytes.max(1),
            busy_until: 0,
            cut: false,
            reset_after: None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct HostState {
    pub(crate) name: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) up: bool,
    next_port: u16,
    /// Unix paths with a socket file, with or without a listener.
    pub(crate) files: BTreeSet<std::path::PathBuf>,
    /// Descriptors that engines of this host hold.
    pub(crate) descriptors: usize,
    /// The most that they may hold.
    pub(crate) descriptors_max: usize,
    /// Scripted: on how many of the next occasions each fault happens.
    forced: [u32; Fault::ALL.len()],
}

#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) hosts: Vec<HostState>,
    /// The direction from host `i` to host `j` is at `i * hosts + j`.
    directions: Vec<Direction>,
    default_link: Link,
    pub(crate) black_holes: BTreeSet<IpAddr>,
    pub(crate) socks: Slab<Sock>,
    pub(crate) serial: u32,
    pub(crate) listeners: Slab<Listen>,
    pub(crate) engines: Vec<EngineState>,
    pub(crate) events: Events,
    pub(crate) scripts: Slab<Script>,
    pub(crate) trace: Trace,
    pub(crate) completions: u64,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Net {
        Net {
            now: 0,
            rng: Rng::new(seed),
            faults: Faults::default(),
            hosts: Vec::new(),
            directions: Vec::new(),
            default_link: Link::default(),
            black_holes: BTreeSet::new(),
            socks: Slab::new(),
            serial: 0,
            listeners: Slab::new(),
            engines: Vec::new(),
            events: Events::default(),
            scripts: Slab::new(),
            trace: Trace::new(0),
            completions: 0,
        }
    }

    pub(crate) fn add_host(&mut self, name: &str) -> u32 {
        let old = self.hosts.len();
        let number = old as u32 + 1;
        let [_, _, high, low] = number.to_be_bytes();
        self.hosts.push(HostState {
            name: name.to_owned(),
            ips: vec![
                Ipv4Addr::new(10, 0, high, low).into(),
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number as u16).into(),
            ],
            up: true,
            next_port: PORT_FIRST,
            files: BTreeSet::new(),
            descriptors: 0,
            descriptors_max: usize::MAX,
            forced: [0; Fault::ALL.len()],
        });
        let loopback = Link { latency: Duration::from_micros(10), ..self.default_link };
        let mut directions = Vec::with_capacity((old + 1) * (old + 1));
        for from in 0..=old {
            for to in 0..=old {
                directions.push(match from < old && to < old {
                    true => self.directions[from * old + to],
                    false if from == to => Direction::new(&loopback),
                    false => Direction::new(&self.default_link),
                });
            }
        }
        self.directions = directions;
        old as u32
    }

    pub(crate) fn set_default_link(&mut self, link: Link) {
        self.default_link = link;
        let hosts = self.hosts.len();
        for from in 0..hosts {
            for to in (0..hosts).filter(|to| *to != from) {
                self.set_direction(from as u32, to as u32, &link);
            }
        }
    }

    pub(crate) fn set_link(&mut self, a: u32, b: u32, link: &Link) {
        self.set_direction(a, b, link);
        self.set_direction(b, a, link);
    }

    fn set_direction(&mut self, from: u32, to: u32, link: &Link) {
        let direction = self.direction_mut(from, to);
        *direction = Direction {
            busy_until: direction.busy_until,
            cut: direction.cut,
            reset_after: direction.reset_after,
            ..Direction::new(link)
        };
    }

    pub(crate) fn direction(&self, from: u32, to: u32) -> &Direction {
        &self.directions[from as usize * self.hosts.len() + to as usize]
    }

    pub(crate) fn direction_mut(&mut self, from: u32, to: u32) -> &mut Direction {
        let hosts = self.hosts.len();
        &mut self.directions[from as usize * hosts + to as usize]
    }

    /// When a packet of `bytes` bytes arrives that is sent now.
    pub(crate) fn arrival(&mut self, from: u32, to: u32, bytes: usize) -> u64 {
        let now = self.now;
        let direction = self.direction_mut(from, to);
        let mut sent_at = now;
        if let Some(bandwidth) = direction.bandwidth {
            let duration = bytes as u64 * 1_000_000_000 / bandwidth.max(1);
            sent_at = direction.busy_until.max(now) + duration;
            direction.busy_until = sent_at;
        }
        let (latency, jitter) = (direction.latency_ns, direction.jitter_ns);
        sent_at + latency + if jitter > 0 { self.rng.below(jitter + 1) } else { 0 }
    }

    /// True if packets between the hosts do not arrive: a partition, or a host is down.
    pub(crate) fn is_cut(&self, a: u32, b: u32) -> bool {
        self.direction(a, b).cut || !self.hosts[a as usize].up || !self.hosts[b as usize].up
    }

    /// Draws whether a fault happens on this occasion, at this host.
    #[inline]
    pub(crate) fn draw_fault(&mut self, host: u32, fault: Fault) -> bool {
        let forced = &mut self.hosts[host as usize].forced[fault as usize];
        let happens = match *forced > 0 {
            true => {
                *forced -= 1;
                true
            }
            false => self.rng.chance(self.faults.chance(fault)),
        };
        if happens {
            self.trace.add(self.now, Kind::Fault, host, fault as u64, 0);
        }
        happens
    }

    pub(crate) fn force(&mut self, host: u32, fault: Fault, times: u32) {
        self.hosts[host as usize].forced[fault as usize] = times;
    }

    /// Draws a delay: at least 1 ns, at most the longest of the plan.
    pub(crate) fn draw_delay_ns(&mut self) -> u64 {
        1 + self.rng.below(self.faults.delay_max_ns.max(1))
    }

    /// Draws the duration of a partition or of the downtime of a host.
    pub(crate) fn draw_outage_ns(&mut self) -> u64 {
        1 + self.rng.below(self.faults.partition_max_ns.max(1))
    }

    pub(crate) fn sock(&self, id: SockId) -> Option<&Sock> {
        self.socks.get(id.index as usize).filter(|sock| sock.serial == id.serial)
    }

    pub(crate) fn sock_mut(&mut self, id: SockId) -> Option<&mut Sock> {
        self.socks.get_mut(id.index as usize).filter(|sock| sock.serial == id.serial)
    }

    /// The host that has this address, as seen from `host`.
    pub(crate) fn host_of(&self, host: u32, ip: IpAddr) -> Option<u32> {
        let ip = ip.to_canonical();
        if ip.is_loopback() || ip.is_unspecified() {
            return Some(host);
        }
        self.hosts.iter().position(|state| state.ips.contains(&ip)).map(|index| index as u32)
    }

    /// The local address of a connection to `remote`.
    pub(crate) fn local_for(
        &mut self,
        host: u32,
        local: Option<SocketAddr>,
        remote: IpAddr,
    ) -> Result<SocketAddr, Errno> {
        let target = remote.to_canonical();
        if let Some(local) = local {
            if self.host_of(host, local.ip()) != Some(host) {
                return Err(Errno(libc::EADDRNOTAVAIL));
            }
            let port = if local.port() == 0 { self.next_port(host) } else { local.port() };
            return Ok(SocketAddr::new(local.ip(), port));
        }
        let ip = match target.is_loopback() || target.is_unspecified() {
            true if target.is_ipv4() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            true => IpAddr::V6(Ipv6Addr::LOCALHOST),
            false => {
                let ips = &self.hosts[host as usize].ips;
                *ips.iter()
                    .find(|ip| ip.is_ipv4() == target.is_ipv4())
                    .ok_or(Errno(libc::ENETUNREACH))?
            }
        };
        Ok(SocketAddr::new(ip, self.next_port(host)))
    }

    /// The next ephemeral port without a listener.
    pub(crate) fn next_port(&mut self, host: u32) -> u16 {
        // If each port has a listener, the last one is returned.
        for _ in PORT_FIRST..PORT_LAST {
            let state = &mut self.hosts[host as usize];
            let port = state.next_port;
            state.next_port = if port == PORT_LAST { PORT_FIRST } else { port + 1 };
            let taken = |listen: &Listen| {
                listen.host == host && listen.addr.as_inet().is_some_and(|a| a.port() == port)
            };
            if !self.listeners.iter().any(|(_, listen)| taken(listen)) {
                return port;
            }
        }
        PORT_LAST
    }

    /// Queues an entry for an engine, after a delay if a fault draws one.
    pub(crate) fn make_ready(&mut self, engine: u32, ready: Ready) {
        let host = self.engines[engine as usize].host;
        match self.draw_fault(host, Fault::Delay) {
            true => {
                let at = self.now + self.draw_delay_ns();
                self.events.push_ready(at, engine, ready);
            }
            false => self.push_ready(engine, ready),
        }
    }

    /// Queues an entry for an engine now.
    pub(crate) fn push_ready(&mut self, engine: u32, ready: Ready) {
        let state = &self.engines[engine as usize];
        if state.is_dead() {
            return;
        }
        let (host, ready_len) = (state.host, state.ready_len());
        let index = match ready_len > 0 && self.draw_fault(host, Fault::Reorder) {
            true => self.rng.below(ready_len as u64 + 1) as usize,
            false => ready_len,
        };
        self.engines[engine as usize].insert_ready(index, ready);
    }

    /// How many sockets, listeners and descriptors are open.
    pub(crate) fn census(&self) -> (usize, usize, usize) {
        let descriptors = self.hosts.iter().map(|host| host.descriptors).sum();
        (self.socks.len(), self.listeners.len(), descriptors)
    }
}
