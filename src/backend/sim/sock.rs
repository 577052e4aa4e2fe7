//! Sockets and listeners of the simulated kernels. Owns: their state, their creation, and the
//! handshake from SYN to the accept queue. What an established connection does is in `stream.rs`.

use super::events::Event;
use super::faults::Fault;
use super::net::Net;
use super::pipe::Pipe;
use crate::error::Errno;
use crate::id::Key;
use crate::net::Addr;
use crate::options::ListenOptions;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Names a socket. The serial number tells it from earlier sockets with the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SockId {
    pub(crate) index: u32,
    pub(crate) serial: u32,
}

/// Names a listener, as [`SockId`] names a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenId {
    pub(crate) index: u32,
    pub(crate) serial: u32,
}

/// The holder of a socket or listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Engine(u32, Key),
    /// An engine that has accepted it and not yet opened it under a key.
    Accepted(u32),
    /// The accept queue of a listener.
    Queue(ListenId),
    /// A [`Peer`](super::Peer) or [`PeerListener`](super::PeerListener).
    Peer,
}

/// Where an armed receive puts its bytes: in the pool, or in a buffer with this much room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecvTarget {
    Pool,
    Buffer(usize),
}

#[derive(Debug)]
pub(crate) struct Sock {
    pub(crate) serial: u32,
    pub(crate) host: u32,
    pub(crate) owner: Owner,
    pub(crate) local: Addr,
    pub(crate) remote: Addr,
    /// The socket of the peer, while it exists.
    pub(crate) peer: Option<SockId>,
    pub(crate) peer_host: u32,
    pub(crate) connecting: bool,
    /// Bytes and segments from the peer to this socket.
    pub(crate) rx: Pipe,
    /// The peer's FIN has arrived.
    pub(crate) rx_fin: bool,
    pub(crate) fin_sent: bool,
    /// Reported once, as SO_ERROR is. Afterwards the socket is dead.
    pub(crate) error: Option<Errno>,
    pub(crate) dead: bool,
    /// A send failed with the error, and the engine has not taken that completion yet. A receive
    /// would find the end of the stream, as on Linux. It completes after the failed send, because
    /// an engine that sees the end first would take it for an orderly one.
    pub(crate) send_error_pending: bool,
    /// A segment is unacknowledged, and a [`Event::Retransmit`] is scheduled.
    pub(crate) retransmitting: bool,
    /// The armed receive.
    pub(crate) recv: Option<RecvTarget>,
    /// A `Ready::Recv` is queued for the engine.
    pub(crate) recv_queued: bool,
    /// A send waits for room.
    pub(crate) send_armed: bool,
    pub(crate) connect_armed: bool,
    pub(crate) hangup_armed: bool,
    /// Sent after the connect has succeeded.
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
    /// A `Ready::Accept` is queued for the engine.
    pub(crate) accept_queued: bool,
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    End,
    /// The read would block.
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
        self.rx.arrived() > 0 || !self.send_error_pending && self.has_hung_up()
    }
}

impl Net {
    /// The serial number of the next socket or listener.
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
            send_error_pending: false,
            retransmitting: false,
            recv: None,
            recv_queued: false,
            send_armed: false,
            connect_armed: false,
            hangup_armed: false,
            first_send: None,
        });
        SockId { index: index as u32, serial }
    }

    /// Creates a socket and sends its SYN.
    pub(crate) fn connect(
        &mut self,
        host: u32,
        owner: Owner,
        local: Option<SocketAddr>,
        remote: &Addr,
    ) -> Result<SockId, Errno> {
        let (local, target) = match remote {
            Addr::Inet(inet) => {
                // connect(2) to a broadcast address fails with ENETUNREACH for TCP.
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
                self.sock_mut(id).expect("created above").peer_host = target;
                let at = self.arrival(host, target, 0);
                self.events.push(at, Event::Syn { client: id, attempt: 0 });
            }
            None if remote.as_inet().is_some_and(|inet| self.black_holes.contains(&inet.ip())) => {
                self.schedule_connect_timeout(id)
            }
            None => {
                let at = self.now + 2 * self.direction(host, host).latency_ns;
                self.events.push(at, Event::ConnectEnd { client: id, errno: libc::EHOSTUNREACH });
            }
        }
        Ok(id)
    }

    /// The SYN is not answered: the connect fails with ETIMEDOUT after 127 s (tcp_syn_retries of 6,
    /// tcp(7)).
    pub(crate) fn schedule_connect_timeout(&mut self, client: SockId) {
        let at = self.now + 127_000_000_000;
        self.events.push(at, Event::ConnectEnd { client, errno: libc::ETIMEDOUT });
    }

    pub(crate) fn listen(
        &mut self,
        host: u32,
        owner: Owner,
        addr: &Addr,
        options: &ListenOptions,
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
            accept_queued: false,
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
            return self.retry_syn(client, attempt);
        }
        let Some(listener) = self.find_listener(target, &remote) else {
            let errno = match &remote {
                Addr::Unix(path) if !self.hosts[target as usize].files.contains(path) => {
                    libc::ENOENT
                }
                _ => libc::ECONNREFUSED,
            };
            return self.answer_syn(client, errno);
        };
        if self.draw_fault(target, Fault::Refuse) {
            return self.answer_syn(client, libc::ECONNREFUSED);
        }
        if inet && self.draw_fault(target, Fault::Hang) {
            return self.schedule_connect_timeout(client);
        }
        let listen = self.listener(listener).expect("found above");
        // Linux queues one connection more than the backlog.
        if listen.queue.len() > listen.backlog {
            return match inet {
                true => self.retry_syn(client, attempt),
                // A connect to a unix socket waits for room.
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
        let end = self.sock_mut(server).expect("created above");
        (end.connecting, end.peer, end.peer_host) = (false, Some(client), host);
        self.sock_mut(client).expect("looked up above").peer = Some(server);
        self.listener_mut(listener).expect("found above").queue.push_back(server);
        self.listener_changed(listener);
        self.answer_syn(client, 0);
    }

    fn retry_syn(&mut self, client: SockId, attempt: u32) {
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

    fn answer_syn(&mut self, client: SockId, errno: i32) {
        let Some(sock) = self.sock(client) else { return };
        let (host, target) = (sock.host, sock.peer_host);
        let at = self.arrival(target, host, 0);
        self.events.push(at, Event::ConnectEnd { client, errno });
    }

    fn find_listener(&mut self, host: u32, addr: &Addr) -> Option<ListenId> {
        let matching: Vec<ListenId> = self
            .listeners
            .iter()
            .filter(|(_, listen)| listen.host == host && listen.accepts(addr))
            .map(|(index, listen)| ListenId { index: index as u32, serial: listen.serial })
            .collect();
        match matching.len() {
            0 | 1 => matching.first().copied(),
            several => Some(matching[self.rng.below(several as u64) as usize]),
        }
    }
}

impl Listen {
    /// Whether a SYN to `addr` reaches this listener.
    fn accepts(&self, addr: &Addr) -> bool {
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

/// Whether two listeners cannot be bound to these addresses at the same time.
fn overlap(a: &Addr, b: &Addr) -> bool {
    match (a, b) {
        (Addr::Inet(a), Addr::Inet(b)) => {
            a.port() == b.port()
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        }
        (a, b) => a == b,
    }
}
