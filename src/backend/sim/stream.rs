//! The streams between sockets. Owns: what read, write, FIN, reset and close do to both ends, and
//! what is on its way between them. Whoever holds an end, an engine or a peer of a test, is told by
//! [`Net::touched`].

use super::events::Event;
use super::faults::Fault;
use super::net::Net;
use super::pipe::Cargo;
use super::sock::{ListenId, Owner, Read, Sock, SockId};
use crate::error::Errno;

impl Net {
    /// Takes bytes to send; `Ok(0)`: there is no room now.
    pub(crate) fn write<'a>(
        &mut self,
        id: SockId,
        parts: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<usize, Errno> {
        let (host, peer_host, peer) = {
            let Some(sock) = self.sock_mut(id) else { return Err(Errno(libc::ECONNRESET)) };
            if let Some(errno) = sock.error.take() {
                sock.dead = true;
                return Err(errno);
            }
            if sock.dead || sock.fin_sent {
                return Err(Errno(libc::EPIPE));
            }
            (sock.host, sock.peer_host, sock.peer)
        };
        let is_unix = self.sock(id).is_some_and(Sock::is_unix);
        let Some(peer) = peer.filter(|peer| self.sock(*peer).is_some()) else {
            if is_unix {
                return Err(Errno(libc::EPIPE));
            }
            // Nobody is there any more; the answer will be a reset.
            self.probe(id);
            return Ok(parts.map(<[u8]>::len).sum());
        };
        let way = self.way(host, peer_host);
        let (capacity, reset_after) = (way.buffer, way.reset_after);
        let mut room = capacity.saturating_sub(self.sock(peer).expect("just seen").rx.len());
        if room > 0 && self.chance(host, Fault::ShortWrite) {
            room = 1 + self.rng.below(room.min(4096) as u64) as usize;
        }
        let reset = room > 0 && self.chance(host, Fault::Reset);
        if !reset && reset_after.is_none() {
            let taken = self.load(peer, parts, room);
            if taken > 0 {
                self.depart(peer, Cargo::Data(taken));
            }
            return Ok(taken);
        }
        // The rare way: a reset after so many bytes, if that many are there to be sent.
        let parts: Vec<&[u8]> = parts.collect();
        let given = parts.iter().map(|part| part.len()).sum::<usize>().min(room);
        let scripted = reset_after.filter(|left| *left < given as u64).map(|left| left as usize);
        let cut = scripted
            .or_else(|| (reset && given > 0).then(|| self.rng.below(given as u64) as usize));
        let taken = self.load(peer, parts.into_iter(), cut.unwrap_or(given));
        if taken > 0 {
            self.depart(peer, Cargo::Data(taken));
        }
        self.way_mut(host, peer_host).reset_after = match scripted {
            Some(_) => None,
            None => reset_after.map(|left| left - taken as u64),
        };
        if cut.is_none() {
            return Ok(taken);
        }
        self.break_both(id, peer);
        if let Some(sock) = self.sock_mut(id) {
            (sock.error, sock.dead) = (None, true);
        }
        Err(Errno(libc::ECONNRESET))
    }

    /// Puts up to `room` bytes on their way to a socket; how many.
    fn load<'a>(
        &mut self,
        to: SockId,
        parts: impl Iterator<Item = &'a [u8]>,
        room: usize,
    ) -> usize {
        let rx = &mut self.sock_mut(to).expect("looked up by the caller").rx;
        let mut taken = 0;
        for part in parts {
            let piece = part.len().min(room - taken);
            rx.load(&part[..piece]);
            taken += piece;
            if taken == room {
                break;
            }
        }
        taken
    }

    /// Resets a connection in the middle of the network: both ends learn of it.
    fn break_both(&mut self, near: SockId, far: SockId) {
        self.depart(far, Cargo::Reset);
        for (end, other) in [(near, far), (far, near)] {
            if let Some(sock) = self.sock_mut(end).filter(|sock| sock.peer == Some(other)) {
                sock.peer = None;
            }
        }
        self.reset_arrives(near);
    }

    /// Sends a piece on its way to a socket.
    fn depart(&mut self, to: SockId, cargo: Cargo) {
        let Some(sock) = self.sock(to) else { return };
        let (host, from) = (sock.host, sock.peer_host);
        let bytes = if let Cargo::Data(len) = cargo { len } else { 0 };
        if host != from && self.chance(from, Fault::Partition) {
            self.cut_for_a_while(from, host);
        }
        let at = self
            .arrival(from, host, bytes)
            .max(self.sock(to).expect("just seen").rx.last_arrival());
        if self.sock_mut(to).expect("just seen").rx.depart(at, cargo) {
            self.events.push(at, Event::Arrive(to));
        }
    }

    /// The first piece on its way to a socket arrives.
    pub(crate) fn arrive(&mut self, id: SockId) {
        let Some(sock) = self.sock(id) else { return };
        if self.is_cut(sock.host, sock.peer_host) {
            self.sock_mut(id).expect("just seen").rx.stalled = true;
            return;
        }
        let sock = self.sock_mut(id).expect("just seen");
        let Some((cargo, next)) = sock.rx.arrive() else { return };
        match cargo {
            Cargo::Data(_) => {}
            Cargo::Fin => sock.rx_fin = true,
            Cargo::Reset => return self.reset_arrives(id),
        }
        if let Some(at) = next {
            let at = at.max(self.now);
            self.events.push(at, Event::Arrive(id));
        }
        self.touched(id);
    }

    /// What had stalled on its way arrives after all.
    pub(crate) fn unstall(&mut self, a: u32, b: u32) {
        let between = |sock: &Sock| {
            (sock.host, sock.peer_host) == (a, b) || (sock.host, sock.peer_host) == (b, a)
        };
        let stalled: Vec<SockId> = self
            .socks
            .iter()
            .filter(|(_, sock)| sock.rx.stalled && between(sock))
            .map(|(index, sock)| SockId { index: index as u32, serial: sock.serial })
            .collect();
        for id in stalled {
            let sock = self.sock_mut(id).expect("just listed");
            sock.rx.stalled = false;
            let (host, from) = (sock.host, sock.peer_host);
            let at = self.arrival(from, host, 0);
            self.events.push(at, Event::Arrive(id));
        }
    }

    /// A reset reaches a socket: what arrived before stays readable.
    pub(crate) fn reset_arrives(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id) else { return };
        if sock.dead || sock.error.is_some() {
            return;
        }
        sock.rx.lose_flight();
        sock.error = Some(Errno(libc::ECONNRESET));
        sock.peer = None;
        self.touched(id);
    }

    /// Takes arrived bytes.
    pub(crate) fn read(&mut self, id: SockId, max: usize, sink: impl FnMut(&[u8])) -> Read {
        let Some(sock) = self.sock_mut(id) else { return Read::Failed(Errno(libc::ECONNRESET)) };
        if sock.rx.arrived() == 0 {
            if let Some(errno) = sock.error.take() {
                sock.dead = true;
                return Read::Failed(errno);
            }
            return if sock.rx_fin || sock.dead { Read::End } else { Read::Nothing };
        }
        let (host, arrived) = (sock.host, sock.rx.arrived());
        let mut most = max.min(arrived);
        if most > 1 && self.chance(host, Fault::ShortRead) {
            most = 1 + self.rng.below(most as u64 - 1) as usize;
        }
        let sock = self.sock_mut(id).expect("just seen");
        let len = sock.rx.read(most, sink);
        if let Some(peer) = sock.peer
            && self.sock(peer).is_some_and(|peer| peer.send_waits)
        {
            self.touched(peer);
        }
        Read::Bytes(len)
    }

    /// True if a write would take at least a byte, or fail.
    pub(crate) fn is_writable(&self, id: SockId) -> bool {
        let Some(sock) = self.sock(id) else { return true };
        if sock.error.is_some() || sock.dead || sock.fin_sent {
            return true;
        }
        match sock.peer.and_then(|peer| self.sock(peer)) {
            Some(peer) => peer.rx.len() < self.way(sock.host, sock.peer_host).buffer,
            None => true,
        }
    }

    pub(crate) fn send_fin(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id) else { return };
        if std::mem::replace(&mut sock.fin_sent, true) {
            return;
        }
        match sock.peer {
            Some(peer) => self.depart(peer, Cargo::Fin),
            None => self.probe(id),
        }
    }

    /// A segment went to nobody: a reset comes back, when somebody is there to send it.
    fn probe(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id) else { return };
        if sock.connecting || std::mem::replace(&mut sock.probing, true) {
            return;
        }
        let (host, peer_host) = (sock.host, sock.peer_host);
        let at = self.arrival(host, peer_host, 0) + self.way(peer_host, host).latency_ns;
        self.events.push(at, Event::Probe { sock: id, attempt: 0 });
    }

    /// What comes back of [`Net::probe`]; retransmitted as long as nothing does (tcp_retries2,
    /// tcp(7): some 15 minutes).
    pub(crate) fn probe_ends(&mut self, id: SockId, attempt: u32) {
        let Some(sock) = self.sock(id) else { return };
        if !self.is_cut(sock.host, sock.peer_host) {
            // It does not overtake what was sent before it.
            return if sock.rx.in_flight() {
                self.depart(id, Cargo::Reset)
            } else {
                self.reset_arrives(id)
            };
        }
        if attempt >= 15 {
            let sock = self.sock_mut(id).expect("just seen");
            sock.error = Some(Errno(libc::ETIMEDOUT));
            return self.touched(id);
        }
        let at = self.now + (200_000_000 << attempt.min(9)).min(120_000_000_000);
        self.events.push(at, Event::Probe { sock: id, attempt: attempt + 1 });
    }

    /// The end of a socket on this side. With `reset`, or with input that nobody read, the peer
    /// gets an RST, else a FIN.
    pub(crate) fn close(&mut self, id: SockId, reset: bool) {
        if self.sock(id).is_none() {
            return;
        }
        let sock = self.socks.remove(id.index as usize);
        let is_unix = sock.is_unix();
        if matches!(sock.owner, Owner::Engine(..) | Owner::Fresh(_)) {
            self.hosts[sock.host as usize].descriptors -= 1;
        }
        let Some(peer) = sock.peer.filter(|peer| self.sock(*peer).is_some()) else { return };
        self.sock_mut(peer).expect("just seen").peer = None;
        if sock.connecting || sock.rx.arrived() > 0 || reset && !is_unix {
            self.sock_mut(peer).expect("just seen").rx.lose_flight();
            return self.depart(peer, Cargo::Reset);
        }
        if !sock.fin_sent {
            self.depart(peer, Cargo::Fin);
        }
        // Data that arrives at a closed socket is answered by a reset.
        if let Some(at) = sock.rx.next_data()
            && !is_unix
        {
            let back = self.way(sock.host, sock.peer_host).latency_ns;
            self.events.push(at.max(self.now) + back, Event::Probe { sock: peer, attempt: 0 });
            self.sock_mut(peer).expect("just seen").probing = true;
        }
        // A writer that waits for room finds out that there is nobody.
        self.touched(peer);
    }

    pub(crate) fn close_listener(&mut self, id: ListenId) {
        if self.listener(id).is_none() {
            return;
        }
        let listen = self.listeners.remove(id.index as usize);
        if matches!(listen.owner, Owner::Engine(..)) {
            self.hosts[listen.host as usize].descriptors -= 1;
        }
        for sock in listen.queue {
            self.close(sock, true);
        }
    }

    /// The host of these sockets is gone without a word.
    pub(crate) fn vanish(&mut self, host: u32) {
        let socks: Vec<usize> = self
            .socks
            .iter()
            .filter(|(_, sock)| sock.host == host)
            .map(|(index, _)| index)
            .collect();
        for index in socks {
            let sock = self.socks.remove(index);
            if let Some(peer) = sock.peer
                && let Some(other) = self.sock_mut(peer)
            {
                other.peer = None;
                let waits = sock.rx.in_flight() || other.send_waits || other.connecting;
                if waits && other.host != host {
                    // Its packets are not acknowledged any more.
                    self.probe(peer);
                }
                self.touched(peer);
            }
        }
        let listeners: Vec<usize> = self
            .listeners
            .iter()
            .filter(|(_, listen)| listen.host == host)
            .map(|(index, _)| index)
            .collect();
        for index in listeners {
            self.listeners.remove(index);
        }
        self.hosts[host as usize].descriptors = 0;
    }
}
