//! What a program can ask of a connection: its tag, its addresses, its descriptor. Owns: nothing.
//! Must not change a connection, except its tag.

use super::Engine;
use crate::backend::{Backend as _, Side, with_backend};
use crate::error::Error;
use crate::id::ConnId;
use crate::net::Addr;
use std::os::fd::BorrowedFd;

impl Engine {
    /// Sets the tag of a connection, which is in each of its completions from later polls.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// engine.set_tag(conn, 7)?;
    /// assert_eq!(engine.tag(conn)?, 7);
    /// engine.abort(conn)?;
    /// engine.poll(&mut completions, None)?;
    /// assert_eq!(completions.pop().map(|completion| completion.tag), Some(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_tag(&mut self, id: ConnId, tag: u64) -> Result<(), Error> {
        self.core_mut()?.conn_mut(id.0)?.tag = tag;
        Ok(())
    }

    /// The tag of a connection.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn tag(&self, id: ConnId) -> Result<u64, Error> {
        Ok(self.conn(id)?.tag)
    }

    /// True if the id names a connection whose [`Event::Closed`](crate::Event::Closed) was not
    /// emitted yet.
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// assert!(engine.is_live(conn) && engine.connections() == 1);
    /// engine.abort(conn)?;
    /// engine.poll(&mut completions, None)?; // reports Event::Closed
    /// assert!(!engine.is_live(conn) && engine.connections() == 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_live(&self, id: ConnId) -> bool {
        self.conn(id).is_ok()
    }

    /// The number of connections whose [`Event::Closed`](crate::Event::Closed) was not emitted yet.
    pub fn connections(&self) -> usize {
        if self.is_child() { 0 } else { self.core.admission.live() }
    }

    /// The address of the peer. Makes a system call.
    ///
    /// # Errors
    /// [`Error::Stale`], or an error of getpeername(2).
    pub fn peer_addr(&self, id: ConnId) -> Result<Addr, Error> {
        self.conn(id)?;
        with_backend!(&*self.backend, backend => backend.addr(id.0, Side::Peer))
            .map_err(|error| Error::os("getpeername", &error))
    }

    /// The local address. Makes a system call.
    ///
    /// # Errors
    /// [`Error::Stale`], or an error of getsockname(2).
    pub fn local_addr(&self, id: ConnId) -> Result<Addr, Error> {
        self.conn(id)?;
        with_backend!(&*self.backend, backend => backend.addr(id.0, Side::Local))
            .map_err(|error| Error::os("getsockname", &error))
    }

    /// The descriptor of a connection, for setsockopt(2) and the like. `None` before the socket
    /// exists, and on the simulated backend. The caller must not read from it, write to it or close
    /// it.
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// let fd = engine.fd(conn).expect("an adopted socket has a descriptor");
    /// let buffer_bytes = socket2::SockRef::from(&fd).recv_buffer_size()?;
    /// assert!(buffer_bytes > 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fd(&self, id: ConnId) -> Option<BorrowedFd<'_>> {
        self.conn(id).ok()?;
        with_backend!(&*self.backend, backend => backend.fd(id.0))
    }
}
