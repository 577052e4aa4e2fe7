//! Blocking sockets in a simulated world, for tests that need a peer to do an exact thing: send one
//! byte at a time, stop reading, reset. Owns: a stream and a listener that block in virtual time.
//! Must not know: engines.

use super::schedule::{Shared, Until};
use super::sock::{ListenId, Owner, Read, Sock, SockId};
use crate::error::{Errno, Error, Halt};
use crate::net::Addr;
use crate::options::ListenOptions;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A stream socket of a simulated world, with blocking reads and writes as those of
/// `std::net::TcpStream`. Clones are handles of the same socket; dropping the last one closes it.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    world: Arc<Shared>,
    sock: SockId,
    reset: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.world.lock().net.close(self.sock, self.reset.load(Ordering::Relaxed));
    }
}

/// A listening socket of a simulated world with a blocking accept. Dropping it closes it.
#[derive(Debug)]
pub struct PeerListener {
    world: Arc<Shared>,
    listener: ListenId,
}

impl Drop for PeerListener {
    fn drop(&mut self) {
        self.world.lock().net.close_listener(self.listener);
    }
}

fn halted(halt: Halt) -> io::Error {
    io::Error::other(Error::Simulation(halt))
}

fn os(errno: Errno) -> io::Error {
    errno.into()
}

fn not_connected() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTCONN)
}

impl PeerListener {
    pub(crate) fn bind(
        world: &Arc<Shared>,
        host: u32,
        addr: &Addr,
        options: &ListenOptions,
    ) -> io::Result<PeerListener> {
        let listener = world.lock().net.listen(host, Owner::Peer, addr, options).map_err(os)?;
        Ok(PeerListener { world: Arc::clone(world), listener })
    }

    /// Waits for a connection and takes it.
    ///
    /// # Errors
    /// If the world is at rest or has ended ([`Halt`]); ENOTCONN after its host
    /// crashed.
    pub fn accept(&self) -> io::Result<Peer> {
        loop {
            let taken = {
                let net = &mut self.world.lock().net;
                net.listener_mut(self.listener).ok_or_else(not_connected)?.queue.pop_front()
            };
            if let Some(sock) = taken {
                if let Some(sock) = self.world.lock().net.sock_mut(sock) {
                    sock.owner = Owner::Peer;
                }
                return Ok(Peer::new(&self.world, sock));
            }
            self.world.wait(Until::Queued(self.listener), None).map_err(halted)?;
        }
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// ENOTCONN after its host crashed.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.world
            .lock()
            .net
            .listener(self.listener)
            .map(|listen| listen.addr.clone())
            .ok_or_else(not_connected)
    }
}

impl Peer {
    fn new(world: &Arc<Shared>, sock: SockId) -> Peer {
        Peer(Arc::new(Inner { world: Arc::clone(world), sock, reset: AtomicBool::new(false) }))
    }

    /// Starts to connect, and does not wait.
    pub(crate) fn start_connect(world: &Arc<Shared>, host: u32, addr: &Addr) -> io::Result<Peer> {
        let sock = world.lock().net.connect(host, Owner::Peer, None, addr).map_err(os)?;
        Ok(Peer::new(world, sock))
    }

    /// Waits until the connect has succeeded or failed.
    pub(crate) fn finish_connect(self) -> io::Result<Peer> {
        self.0.world.wait(Until::Connected(self.0.sock), None).map_err(halted)?;
        let mut world = self.0.world.lock();
        match world.net.sock_mut(self.0.sock).ok_or_else(not_connected)?.error.take() {
            Some(errno) => Err(os(errno)),
            None => {
                drop(world);
                Ok(self)
            }
        }
    }

    fn addr(&self, of: impl FnOnce(&Sock) -> &Addr) -> io::Result<Addr> {
        let world = self.0.world.lock();
        world.net.sock(self.0.sock).map(|sock| of(sock).clone()).ok_or_else(not_connected)
    }

    /// The address of the peer.
    ///
    /// # Errors
    /// ENOTCONN after its host crashed.
    pub fn peer_addr(&self) -> io::Result<Addr> {
        self.addr(|sock| &sock.remote)
    }

    /// The local address.
    ///
    /// # Errors
    /// ENOTCONN after its host crashed.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.addr(|sock| &sock.local)
    }

    /// Sends the FIN ([`Shutdown::Write`] or `Both`). Bytes that arrive later can be read in each
    /// case, also after [`Shutdown::Read`].
    ///
    /// # Errors
    /// ENOTCONN after its host crashed.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let net = &mut self.0.world.lock().net;
        net.sock(self.0.sock).ok_or_else(not_connected)?;
        if how != Shutdown::Read {
            net.send_fin(self.0.sock);
        }
        Ok(())
    }

    /// Sends an RST instead of a FIN when the socket is dropped.
    pub fn reset_on_drop(&self) {
        self.0.reset.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl super::Sim {
    /// An established connection from the engine to a new peer: on `host`, or a unix socket on the
    /// engine's own host.
    pub(in crate::backend) fn pair(&mut self, key: crate::id::Key, host: Option<u32>) -> Peer {
        let net = &mut self.world.lock().net;
        let near = net.engines[self.engine as usize].host;
        let far = host.unwrap_or(near);
        let addr = |net: &mut super::net::Net, on: u32| match host {
            Some(_) => Addr::Inet((net.hosts[on as usize].ips[0], net.next_port(on)).into()),
            None => Addr::UnixUnnamed,
        };
        let (ours, theirs) = (addr(net, near), addr(net, far));
        let end = net.add_sock(near, Owner::Engine(self.engine, key), ours.clone(), theirs.clone());
        let peer = net.add_sock(far, Owner::Peer, theirs, ours);
        for (id, other, other_host) in [(end, peer, far), (peer, end, near)] {
            let sock = net.sock_mut(id).expect("created above");
            (sock.connecting, sock.peer, sock.peer_host) = (false, Some(other), other_host);
        }
        net.hosts[near as usize].descriptors += 1;
        assert!(net.attach(self.engine, key, end), "created above");
        Peer::new(&self.world, peer)
    }
}

#[cfg(test)]
impl Peer {
    /// Whether a read, or a write, would not block.
    pub(in crate::backend) fn is_ready(&self, to_write: bool) -> bool {
        let net = &self.0.world.lock().net;
        match to_write {
            true => net.is_writable(self.0.sock),
            false => net.sock(self.0.sock).is_none_or(Sock::is_readable),
        }
    }
}

impl io::Read for &Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let mut at = 0;
            let read = self.0.world.lock().net.read(self.0.sock, buffer.len(), |bytes| {
                buffer[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            });
            match read {
                Read::Bytes(len) => return Ok(len),
                Read::End => return Ok(0),
                Read::Failed(errno) => return Err(os(errno)),
                Read::Nothing => {
                    self.0.world.wait(Until::Readable(self.0.sock), None).map_err(halted)?
                }
            };
        }
    }
}

impl io::Write for &Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            match self.0.world.lock().net.write(self.0.sock, std::iter::once(bytes)) {
                Ok(0) => {}
                Ok(len) => return Ok(len),
                Err(errno) => return Err(os(errno)),
            }
            self.0.world.wait(Until::Writable(self.0.sock), None).map_err(halted)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &*self, buffer)
    }
}

impl io::Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut &*self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
