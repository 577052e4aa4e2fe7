//! The simulated network: hosts, the links between them, and everything that is in the world. Owns:
//! all state, the clock, and the one source of chance. What sockets do is in `sock.rs`, what
//! happens later in `events.rs`, what engines want in `ops.rs`.

use super::events::Events;
use super::faults::{Fault, Faults};
use super::op::Notice;
use super::rng::Rng;
use super::script::Script;
use super::sock::{Listen, Sock, SockId};
use super::trace::{Kind, Trace};
use super::view::View;
use crate::error::Errno;
use slab::Slab;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The first port given out to those that ask for none, as Linux has it.
const PORT_FIRST: u16 = 32_768;
const PORT_LAST: u16 = 60_999;

/// What the way between two hosts is like, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// How long a packet takes. Default: 100 µs; within one host 10 µs.
    pub latency: Duration,
    /// Up to how much longer some take; drawn per packet. Packets of one connection stay in order.
    /// Default: none.
    pub jitter: Duration,
    /// Bytes per second, shared by all connections of the direction. Default: unlimited.
    pub bandwidth: Option<u64>,
    /// How many bytes of one direction of a connection may be sent and not yet read: what socket
    /// buffers hold in real life. Default: 256 KiB.
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

/// One direction between two hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) latency_ns: u64,
    jitter_ns: u64,
    bandwidth: Option<u64>,
    pub(crate) buffer: usize,
    /// When the last packet sent so far has left.
    busy_until: u64,
    pub(crate) cut: bool,
    /// Scripted: the connection that sends the byte after so many more is reset there.
    pub(crate) reset_after: Option<u64>,
}

impl Way {
    fn new(link: &Link) -> Way {
        Way {
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
    /// Unix paths with a socket file, alive or stale.
    pub(crate) files: BTreeSet<std::path::PathBuf>,
    /// Descriptors that engines of this host hold, and how many they may.
    pub(crate) descriptors: usize,
    pub(crate) descriptors_max: usize,
    /// Scripted: so many next occasions of a fault.
    forced: [u32; Fault::ALL.len()],
}

#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) hosts: Vec<HostState>,
    /// From host `i` to host `j` at `i * hosts + j`.
    ways: Vec<Way>,
    default_link: Link,
    pub(crate) black_holes: BTreeSet<IpAddr>,
    pub(crate) socks: Slab<Sock>,
    pub(crate) serial: u32,
    pub(crate) listeners: Slab<Listen>,
    pub(crate) engines: Vec<View>,
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
            ways: Vec::new(),
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
        let mut ways = Vec::with_capacity((old + 1) * (old + 1));
        for from in 0..=old {
            for to in 0..=old {
                ways.push(match from < old && to < old {
                    true => self.ways[from * old + to],
                    false if from == to => Way::new(&loopback),
                    false => Way::new(&self.default_link),
                });
            }
        }
        self.ways = ways;
        old as u32
    }

    pub(crate) fn set_default_link(&mut self, link: Link) {
        self.default_link = link;
        let hosts = self.hosts.len();
        for from in 0..hosts {
            for to in (0..hosts).filter(|to| *to != from) {
                self.set_way(from as u32, to as u32, &link);
            }
        }
    }

    pub(crate) fn set_link(&mut self, a: u32, b: u32, link: &Link) {
        self.set_way(a, b, link);
        self.set_way(b, a, link);
    }

    fn set_way(&mut self, from: u32, to: u32, link: &Link) {
        let way = self.way_mut(from, to);
        *way = Way {
            busy_until: way.busy_until,
            cut: way.cut,
            reset_after: way.reset_after,
            ..Way::new(link)
        };
    }

    pub(crate) fn way(&self, from: u32, to: u32) -> &Way {
        &self.ways[from as usize * self.hosts.len() + to as usize]
    }

    pub(crate) fn way_mut(&mut self, from: u32, to: u32) -> &mut Way {
        let hosts = self.hosts.len();
        &mut self.ways[from as usize * hosts + to as usize]
    }

    /// When a packet of so many bytes that leaves now arrives.
    pub(crate) fn arrival(&mut self, from: u32, to: u32, bytes: usize) -> u64 {
        let now = self.now;
        let way = self.way_mut(from, to);
        let mut leaves = now;
        if let Some(bandwidth) = way.bandwidth {
            let takes = bytes as u64 * 1_000_000_000 / bandwidth.max(1);
            leaves = way.busy_until.max(now) + takes;
            way.busy_until = leaves;
        }
        let (latency, jitter) = (way.latency_ns, way.jitter_ns);
        leaves + latency + if jitter > 0 { self.rng.below(jitter + 1) } else { 0 }
    }

    /// Whether packets get from one host to the other now.
    pub(crate) fn is_cut(&self, a: u32, b: u32) -> bool {
        self.way(a, b).cut || !self.hosts[a as usize].up || !self.hosts[b as usize].up
    }

    /// Whether a fault happens on this occasion, at this host.
    #[inline]
    pub(crate) fn chance(&mut self, host: u32, fault: Fault) -> bool {
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

    /// A delay of at least a nanosecond, up to the longest of the plan.
    pub(crate) fn some_delay(&mut self) -> u64 {
        1 + self.rng.below(self.faults.delay_max_ns.max(1))
    }

    pub(crate) fn some_outage(&mut self) -> u64 {
        1 + self.rng.below(self.faults.partition_max_ns.max(1))
    }

    pub(crate) fn sock(&self, id: SockId) -> Option<&Sock> {
        self.socks.get(id.index as usize).filter(|sock| sock.serial == id.serial)
    }

    pub(crate) fn sock_mut(&mut self, id: SockId) -> Option<&mut Sock> {
        self.socks.get_mut(id.index as usize).filter(|sock| sock.serial == id.serial)
    }

    /// The host that has this address, seen from `host`.
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

    pub(crate) fn next_port(&mut self, host: u32) -> u16 {
        // With a listener on each of them, the last one is as good as any.
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

    /// Tells an engine something, unless a fault delays it.
    pub(crate) fn notify(&mut self, engine: u32, notice: Notice) {
        let host = self.engines[engine as usize].host;
        match self.chance(host, Fault::Delay) {
            true => {
                let at = self.now + self.some_delay();
                self.events.tell(at, engine, notice);
            }
            false => self.push_ready(engine, notice),
        }
    }

    pub(crate) fn push_ready(&mut self, engine: u32, notice: Notice) {
        let state = &self.engines[engine as usize];
        if state.is_dead() {
            return;
        }
        let (host, waiting) = (state.host, state.waiting());
        let place = match waiting > 0 && self.chance(host, Fault::Reorder) {
            true => self.rng.below(waiting as u64 + 1) as usize,
            false => waiting,
        };
        self.engines[engine as usize].put_ready(place, notice);
    }

    /// What is left in the world, for tests that look for leaks.
    pub(crate) fn census(&self) -> (usize, usize, usize) {
        let descriptors = self.hosts.iter().map(|host| host.descriptors).sum();
        (self.socks.len(), self.listeners.len(), descriptors)
    }
}
