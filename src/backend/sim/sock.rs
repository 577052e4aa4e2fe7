//! Sockets and listeners of the simulated world, as a kernel would have them. Owns: what they are,
//! how they come to be, and the way from SYN to the accept queue. What then goes through them is in
//! `stream.rs`.

use super::events::Event;
use super::faults::Fault;
use super::net::Net;
use super::pipe::Pipe;
use crate::error::Errno;
use crate::id::Key;
use crate::net::Addr;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Names a socket; a stale one names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SockId {
    pub(crate) index: u32,
    pub(crate) serial: u32,
}

/// Names a listener, likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenId {
    pub(crate) index: u32,
    pub(crate) serial: u32,
}

/// Who holds a socket or listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Engine(u32, Key),
    /// Accepted by an engine, and not yet given a key.
    Fresh(u32),
    /// In the queue of a listener.
    Queue(ListenId),
    /// A peer in a test.
    Peer,
}

/// A receive that is armed: how much it takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recv {
    Stream,
    Window(usize),
}

#[derive(Debug)]
pub(crate) struct Sock {
    pub(crate) serial: u32,
    pub(crate) host: u32,
    pub(crate) owner: Owner,
    pub(crate) local: Addr,
    pub(crate) remote: Addr,
    /// The other end, while it exists.
    pub(crate) peer: Option<SockId>,
    pub(crate) peer_host: u32,
    pub(crate) connecting: bool,
    /// What comes to this end.
    pub(crate) rx: Pipe,
    pub(crate) rx_fin: bool,
    pub(crate) fin_sent: bool,
    /// To be told once; afterwards the socket is dead.
    pub(crate) error: Option<Errno>,
    pub(crate) dead: bool,
    /// A send took the error, and its owner does not know yet. A receive finds the end of the
    /// stream then; it is told later, as a kernel has it: the end would look like one in good
    /// order.
    pub(crate) failure_untold: bool,
    /// A segment went to nobody; the answer is on its way.
    pub(crate) probing: bool,
    pub(crate) recv: Option<Recv>,
    pub(crate) recv_told: bool,
    pub(crate) send_waits: bool,
    pub(crate) connect_armed: bool,
    /// A watch for a hang-up is armed.
    pub(crate) watched: bool,
    /// What is sent when the connect has succeeded.
    pub(crate) first_send: Option<Box<[u8]>>,
}

#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) serial: u32,
    pub(crate) host: u32,
    pub(crate) addr: Addr,
    pub(crate) owner: Owner,
    backlog: usize,
    v6_only: bool,
    reuse_port: bool,
    pub(crate) queue: VecDeque<SockId>,
    pub(crate) armed: bool,
    pub(crate) told: bool,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    End,
    Nothing,
    Failed(Errno),
}

impl Sock {
    pub(crate) fn is_unix(&self) -> bool {
        self.remote.is_unix() || self.local.is_unix()
    }

    /// The peer's FIN or reset arrived.
    pub(crate) fn has_hung_up(&self) -> bool {
        self.rx_fin || self.error.is_some() || self.dead
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.rx.arrived() > 0 || !self.failure_untold && self.has_hung_up()
    }
}

impl Net {
    /// Tells the next socket or listener in a place from those before it.
    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    pub(crate) fn add_sock(
        &mut self,
        host: u32,
        owner: Owner,
        local: Addr,
        remote: Addr,
    ) -> SockId {
        let serial = self.next_serial();
        let index = self.socks.insert(Sock {
            serial,
            host,
            owner,
            local,
            remote,
            peer: None,
            peer_host: host,
            connecting: true,
            rx: Pipe::default(),
            rx_fin: false,
            fin_sent: false,
            error: None,
            dead: false,
            failure_untold: false,
            probing: false,
            recv: None,
            recv_told: false,
            send_waits: false,
            connect_armed: false,
            watched: false,
            first_send: None,
        });
        SockId { index: index as u32, serial }
    }

    /// Makes a socket and sends its SYN.
    pub(crate) fn connect(
        &mut self,
        host: u32,
        owner: Owner,
        local: Option<SocketAddr>,
        remote: &Addr,
    ) -> Result<SockId, Errno> {
        let (local, target) = match remote {
            Addr::Inet(inet) => {
                // No TCP goes to a broadcast address.
                if inet.ip() == std::net::Ipv4Addr::new(127, 255, 255, 255) {
                    return Err(Errno(libc::ENETUNREACH));
                }
                (Addr::Inet(self.local_for(host, local, inet.ip())?), self.host_of(host, inet.ip()))
            }
            _ => (Addr::UnixUnnamed, Some(host)),
        };
        let id = self.add_sock(host, owner, local, remote.clone());
        match target {
            Some(target) => {
                self.sock_mut(id).expect("just made").peer_host = target;
                let at = self.arrival(host, target, 0);
                self.events.push(at, Event::Syn { client: id, attempt: 0 });
            }
            None if remote.as_inet().is_some_and(|inet| self.black_holes.contains(&inet.ip())) => {
                self.give_up_later(id)
            }
            None => {
                let at = self.now + 2 * self.way(host, host).latency_ns;
                self.events.push(at, Event::ConnectEnd { client: id, errno: libc::EHOSTUNREACH });
            }
        }
        Ok(id)
    }

    /// Nobody answers: the kernel gives up after its own time (tcp_syn_retries of 6, tcp(7)).
    pub(crate) fn give_up_later(&mut self, client: SockId) {
        let at = self.now + 127_000_000_000;
        self.events.push(at, Event::ConnectEnd { client, errno: libc::ETIMEDOUT });
    }

    pub(crate) fn listen(
        &mut self,
        host: u32,
        owner: Owner,
        addr: &Addr,
        options: &crate::ListenOptions,
    ) -> Result<ListenId, Errno> {
        let mut addr = addr.clone();
        match &mut addr {
            Addr::Inet(inet) => {
                if self.host_of(host, inet.ip()) != Some(host) {
                    return Err(Errno(libc::EADDRNOTAVAIL));
                }
                if inet.port() == 0 {
                    inet.set_port(self.next_port(host));
                }
            }
            Addr::Unix(path) => {
                let stale = self.hosts[host as usize].files.contains(path);
                if stale && !options.remove_stale_path {
                    return Err(Errno(libc::EADDRINUSE));
                }
            }
            _ => {}
        }
        let clashes = |other: &Listen| {
            other.host == host
                && overlap(&other.addr, &addr)
                && !(other.reuse_port && options.reuse_port)
        };
        if self.listeners.iter().any(|(_, other)| clashes(other)) {
            return Err(Errno(libc::EADDRINUSE));
        }
        if let Addr::Unix(path) = &addr {
            self.hosts[host as usize].files.insert(path.clone());
        }
        let serial = self.next_serial();
        let index = self.listeners.insert(Listen {
            serial,
            host,
            addr,
            owner,
            backlog: options.backlog as usize,
            v6_only: options.v6_only,
            reuse_port: options.reuse_port,
            queue: VecDeque::new(),
            armed: false,
            told: false,
        });
        Ok(ListenId { index: index as u32, serial })
    }

    pub(crate) fn listener(&self, id: ListenId) -> Option<&Listen> {
        self.listeners.get(id.index as usize).filter(|listen| listen.serial == id.serial)
    }

    pub(crate) fn listener_mut(&mut self, id: ListenId) -> Option<&mut Listen> {
        self.listeners.get_mut(id.index as usize).filter(|listen| listen.serial == id.serial)
    }

    /// A SYN arrives.
    pub(crate) fn syn(&mut self, client: SockId, attempt: u32) {
        let Some(sock) = self.sock(client) else { return };
        let (host, target, remote, local) =
            (sock.host, sock.peer_host, sock.remote.clone(), sock.local.clone());
        let inet = remote.as_inet().is_some();
        if self.is_cut(host, target) {
            return self.syn_again(client, attempt);
        }
        let found = self.listener_for(target, &remote);
        let Some(listener) = found else {
            let errno = match &remote {
                Addr::Unix(path) if !self.hosts[target as usize].files.contains(path) => {
                    libc::ENOENT
                }
                _ => libc::ECONNREFUSED,
            };
            return self.answer_connect(client, errno);
        };
        if self.chance(target, Fault::Refuse) {
            return self.answer_connect(client, libc::ECONNREFUSED);
        }
        if inet && self.chance(target, Fault::Hang) {
            return self.give_up_later(client);
        }
        let listen = self.listener(listener).expect("just found");
        // The kernel lets one more in than the backlog says.
        if listen.queue.len() > listen.backlog {
            return match inet {
                true => self.syn_again(client, attempt),
                // A unix connect waits for room.
                false => {
                    let at = self.now + 1_000_000;
                    self.events.push(at, Event::Syn { client, attempt });
                }
            };
        }
        let server_local = match (&remote, inet) {
            (Addr::Inet(inet), true) if inet.ip().is_unspecified() => match local {
                Addr::Inet(local) => Addr::Inet(SocketAddr::new(local.ip(), inet.port())),
                _ => remote,
            },
            _ => remote,
        };
        let server = self.add_sock(target, Owner::Queue(listener), server_local, local);
        let end = self.sock_mut(server).expect("just made");
        (end.connecting, end.peer, end.peer_host) = (false, Some(client), host);
        self.sock_mut(client).expect("looked up above").peer = Some(server);
        self.listener_mut(listener).expect("just found").queue.push_back(server);
        self.listener_touched(listener);
        self.answer_connect(client, 0);
    }

    fn syn_again(&mut self, client: SockId, attempt: u32) {
        match attempt {
            0..6 => {
                let at = self.now + (1_000_000_000 << attempt);
                self.events.push(at, Event::Syn { client, attempt: attempt + 1 });
            }
            _ => {
                let at = self.now + 64_000_000_000;
                self.events.push(at, Event::ConnectEnd { client, errno: libc::ETIMEDOUT });
            }
        }
    }

    fn answer_connect(&mut self, client: SockId, errno: i32) {
        let Some(sock) = self.sock(client) else { return };
        let (host, target) = (sock.host, sock.peer_host);
        let at = self.arrival(target, host, 0);
        self.events.push(at, Event::ConnectEnd { client, errno });
    }

    fn listener_for(&mut self, host: u32, addr: &Addr) -> Option<ListenId> {
        let matching: Vec<ListenId> = self
            .listeners
            .iter()
            .filter(|(_, listen)| listen.host == host && listen.takes(addr))
            .map(|(index, listen)| ListenId { index: index as u32, serial: listen.serial })
            .collect();
        match matching.len() {
            0 | 1 => matching.first().copied(),
            several => Some(matching[self.rng.below(several as u64) as usize]),
        }
    }
}

impl Listen {
    fn takes(&self, addr: &Addr) -> bool {
        match (&self.addr, addr) {
            (Addr::Inet(own), Addr::Inet(wanted)) => {
                let (ip, wanted_ip) = (own.ip(), wanted.ip());
                let same = ip.to_canonical() == wanted_ip.to_canonical();
                let any = ip.is_unspecified()
                    && (ip.is_ipv4() == wanted_ip.is_ipv4() || ip.is_ipv6() && !self.v6_only);
                own.port() == wanted.port() && (same || any || wanted_ip.is_unspecified())
            }
            (own, wanted) => own == wanted,
        }
    }
}

fn overlap(a: &Addr, b: &Addr) -> bool {
    match (a, b) {
        (Addr::Inet(a), Addr::Inet(b)) => {
            a.port() == b.port()
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        }
        (a, b) => a == b,
    }
}
