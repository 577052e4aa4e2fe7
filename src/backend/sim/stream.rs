//! Established connections. Owns: what read, write, FIN, reset and close do to both ends, and the
//! segments between them. Invariant: a change that an engine's operation may wait for is followed
//! by [`Net::sock_changed`]. Must not know: operations and completions.

use super::events::Event;
use super::faults::Fault;
use super::net::Net;
use super::pipe::Segment;
use super::sock::{ListenId, Owner, Read, Sock, SockId};
use crate::error::Errno;

impl Net {
    /// Takes bytes to send, and returns how many. `Ok(0)`: there is no room now.
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
            // The peer's socket no longer exists: a reset follows.
            self.send_to_closed(id);
            return Ok(parts.map(<[u8]>::len).sum());
        };
        let direction = self.direction(host, peer_host);
        let (capacity, reset_after) = (direction.buffer, direction.reset_after);
        let mut room = capacity.saturating_sub(self.sock(peer).expect("found above").rx.len());
        if room > 0 && self.draw_fault(host, Fault::ShortWrite) {
            room = 1 + self.rng.below(room.min(4096) as u64) as usize;
        }
        let reset = room > 0 && self.draw_fault(host, Fault::Reset);
        if !reset && reset_after.is_none() {
            let taken = self.append(peer, parts, room);
            if taken > 0 {
                self.transmit(peer, Segment::Data(taken));
            }
            return Ok(taken);
        }
        // A fault or script resets the connection after `cut` bytes, if that many are sent.
        let parts: Vec<&[u8]> = parts.collect();
        let given = parts.iter().map(|part| part.len()).sum::<usize>().min(room);
        let scripted = reset_after.filter(|left| *left < given as u64).map(|left| left as usize);
        let cut = scripted
            .or_else(|| (reset && given > 0).then(|| self.rng.below(given as u64) as usize));
        let taken = self.append(peer, parts.into_iter(), cut.unwrap_or(given));
        if taken > 0 {
            self.transmit(peer, Segment::Data(taken));
        }
        self.direction_mut(host, peer_host).reset_after = match scripted {
            Some(_) => None,
            None => reset_after.map(|left| left - taken as u64),
        };
        if cut.is_none() {
            return Ok(taken);
        }
        self.reset_both(id, peer);
        if let Some(sock) = self.sock_mut(id) {
            (sock.error, sock.dead) = (None, true);
        }
        Err(Errno(libc::ECONNRESET))
    }

    /// Appends up to `room` bytes to the input of a socket, and returns how many.
    fn append<'a>(
        &mut self,
        to: SockId,
        parts: impl Iterator<Item = &'a [u8]>,
        room: usize,
    ) -> usize {
        let rx = &mut self.sock_mut(to).expect("found by the caller").rx;
        let mut taken = 0;
        for part in parts {
            let piece = part.len().min(room - taken);
            rx.append(&part[..piece]);
            taken += piece;
            if taken == room {
                break;
            }
        }
        taken
    }

    /// Resets a connection from the middle of the network: both ends get an RST.
    fn reset_both(&mut self, near: SockId, far: SockId) {
        self.transmit(far, Segment::Reset);
        for (end, other) in [(near, far), (far, near)] {
            if let Some(sock) = self.sock_mut(end).filter(|sock| sock.peer == Some(other)) {
                sock.peer = None;
            }
        }
        self.reset_arrives(near);
    }

    /// Sends a segment to a socket.
    fn transmit(&mut self, to: SockId, segment: Segment) {
        let Some(sock) = self.sock(to) else { return };
        let (host, from) = (sock.host, sock.peer_host);
        let bytes = if let Segment::Data(len) = segment { len } else { 0 };
        if host != from && self.draw_fault(from, Fault::Partition) {
            self.cut_temporarily(from, host);
        }
        let at = self
            .arrival(from, host, bytes)
            .max(self.sock(to).expect("found above").rx.last_arrival());
        if self.sock_mut(to).expect("found above").rx.transmit(at, segment) {
            self.events.push(at, Event::Arrive(to));
        }
    }

    /// The first segment in flight to a socket arrives.
    pub(crate) fn arrive(&mut self, id: SockId) {
        let Some(sock) = self.sock(id) else { return };
        if self.is_cut(sock.host, sock.peer_host) {
            self.sock_mut(id).expect("found above").rx.stalled = true;
            return;
        }
        let sock = self.sock_mut(id).expect("found above");
        let Some((segment, next)) = sock.rx.arrive() else { return };
        match segment {
            Segment::Data(_) => {}
            Segment::Fin => sock.rx_fin = true,
            Segment::Reset => return self.reset_arrives(id),
        }
        if let Some(at) = next {
            let at = at.max(self.now);
            self.events.push(at, Event::Arrive(id));
        }
        self.sock_changed(id);
    }

    /// Schedules the arrival of segments that waited for the end of a partition.
    pub(crate) fn resume_stalled(&mut self, a: u32, b: u32) {
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
            let sock = self.sock_mut(id).expect("listed above");
            sock.rx.stalled = false;
            let (host, from) = (sock.host, sock.peer_host);
            let at = self.arrival(from, host, 0);
            self.events.push(at, Event::Arrive(id));
        }
    }

    /// An RST arrives. Bytes that arrived before stay readable.
    pub(crate) fn reset_arrives(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id) else { return };
        if sock.dead || sock.error.is_some() {
            return;
        }
        sock.rx.discard_in_flight();
        sock.error = Some(Errno(libc::ECONNRESET));
        sock.peer = None;
        self.sock_changed(id);
    }

    /// Takes bytes that have arrived.
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
        let mut limit = max.min(arrived);
        if limit > 1 && self.draw_fault(host, Fault::ShortRead) {
            limit = 1 + self.rng.below(limit as u64 - 1) as usize;
        }
        let sock = self.sock_mut(id).expect("found above");
        let len = sock.rx.read(limit, sink);
        if let Some(peer) = sock.peer
            && self.sock(peer).is_some_and(|peer| peer.send_armed)
        {
            self.sock_changed(peer);
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
            Some(peer) => peer.rx.len() < self.direction(sock.host, sock.peer_host).buffer,
            None => true,
        }
    }

    pub(crate) fn send_fin(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id) else { return };
        if std::mem::replace(&mut sock.fin_sent, true) {
            return;
        }
        match sock.peer {
            Some(peer) => self.transmit(peer, Segment::Fin),
            None => self.send_to_closed(id),
        }
    }

    /// A segment was sent to a socket that no longer exists: its host answers with an RST, when it
    /// can be reached.
    fn send_to_closed(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id) else { return };
        if sock.connecting || std::mem::replace(&mut sock.retransmitting, true) {
            return;
        }
        let (host, peer_host) = (sock.host, sock.peer_host);
        let at = self.arrival(host, peer_host, 0) + self.direction(peer_host, host).latency_ns;
        self.events.push(at, Event::Retransmit { sock: id, attempt: 0 });
    }

    /// The RST that answers [`Net::send_to_closed`] arrives. While the host cannot be reached, the
    /// segment is retransmitted, for about 15 minutes (tcp_retries2, tcp(7)).
    pub(crate) fn retransmit(&mut self, id: SockId, attempt: u32) {
        let Some(sock) = self.sock(id) else { return };
        if !self.is_cut(sock.host, sock.peer_host) {
            // The RST does not overtake segments that were sent before it.
            return if sock.rx.has_in_flight() {
                self.transmit(id, Segment::Reset)
            } else {
                self.reset_arrives(id)
            };
        }
        if attempt >= 15 {
            let sock = self.sock_mut(id).expect("found above");
            sock.error = Some(Errno(libc::ETIMEDOUT));
            return self.sock_changed(id);
        }
        let at = self.now + (200_000_000 << attempt.min(9)).min(120_000_000_000);
        self.events.push(at, Event::Retransmit { sock: id, attempt: attempt + 1 });
    }

    /// Closes a socket. The peer gets an RST with `reset` or if received bytes were not read, else
    /// a FIN.
    pub(crate) fn close(&mut self, id: SockId, reset: bool) {
        if self.sock(id).is_none() {
            return;
        }
        let sock = self.socks.remove(id.index as usize);
        let is_unix = sock.is_unix();
        if matches!(sock.owner, Owner::Engine(..) | Owner::Accepted(_)) {
            self.hosts[sock.host as usize].descriptors -= 1;
        }
        let Some(peer) = sock.peer.filter(|peer| self.sock(*peer).is_some()) else { return };
        self.sock_mut(peer).expect("found above").peer = None;
        if sock.connecting || sock.rx.arrived() > 0 || reset && !is_unix {
            self.sock_mut(peer).expect("found above").rx.discard_in_flight();
            return self.transmit(peer, Segment::Reset);
        }
        if !sock.fin_sent {
            self.transmit(peer, Segment::Fin);
        }
        // Data that arrives at a closed socket is answered by a reset.
        if let Some(at) = sock.rx.next_data_arrival()
            && !is_unix
        {
            let back = self.direction(sock.host, sock.peer_host).latency_ns;
            self.events.push(at.max(self.now) + back, Event::Retransmit { sock: peer, attempt: 0 });
            self.sock_mut(peer).expect("found above").retransmitting = true;
        }
        // A send of the peer that waits for room now fails.
        self.sock_changed(peer);
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

    /// Removes all sockets and listeners of a host that has crashed. No FIN or RST is sent.
    pub(crate) fn remove_sockets(&mut self, host: u32) {
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
                let waits = sock.rx.has_in_flight() || other.send_armed || other.connecting;
                if waits && other.host != host {
                    // The segments of `peer` are no longer acknowledged.
                    self.send_to_closed(peer);
                }
                self.sock_changed(peer);
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
