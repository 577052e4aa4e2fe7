//! Adopting descriptors and releasing them. Owns: the checks of both. Invariant: a connection is
//! released only while no operation can read from it or write to it. Must not know how a backend
//! uses a descriptor.

use super::conn::{Conn, Phase};
use super::{Core, Engine};
use crate::backend::{Backend as _, Open, with_backend};
use crate::error::Error;
use crate::id::{ConnId, ListenerId};
use crate::net::socket::{self, Adopted};
use crate::options::{ListenOptions, SocketOptions};
use std::os::fd::OwnedFd;

/// The result of [`Engine::adopt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptedId {
    /// The descriptor is a connected stream socket.
    Conn(ConnId),
    /// The descriptor is a listening socket.
    Listener(ListenerId),
}

impl Engine {
    /// Takes ownership of a descriptor: a connected stream socket (for instance of socketpair(2),
    /// or received from another process), or a listening socket (socket activation). A stream is
    /// open at once: there is no `Connected`.
    ///
    /// # Errors
    /// If the descriptor is no stream socket, or neither connected nor listening; the limits of
    /// [`Engine::connect`] and [`Engine::listen`]. The descriptor is closed on an error.
    ///
    /// ```
    /// use proactor::{AdoptedId, Config, Engine, SocketOptions};
    /// use std::os::unix::net::UnixStream;
    /// let mut engine = Engine::new(Config::default())?;
    /// let (ours, theirs) = UnixStream::pair()?;
    /// let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    ///     panic!("expected a connection");
    /// };
    /// assert!(engine.is_live(conn));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn adopt(&mut self, fd: OwnedFd, options: SocketOptions) -> Result<AdoptedId, Error> {
        self.check_usable()?;
        match socket::adopt(&fd, self.wants_nonblocking())? {
            Adopted::Stream => {
                self.core.check_room_for_conn()?;
                let conn = Conn::new(Phase::Open, 0, &options, self.core.config.idle_timeout);
                let key = self.core.endpoints.insert_conn(conn);
                let opened = with_backend!(&mut *self.backend, backend => {
                    backend.open(key, Open::Stream(fd))
                });
                if let Err(error) = opened {
                    self.core.endpoints.remove_conn(key);
                    return Err(error);
                }
                self.core.admission.add_conn();
                self.refresh_clock();
                self.core.start_idle_timer(key);
                self.core.stage(key);
                Ok(AdoptedId::Conn(ConnId(key)))
            }
            Adopted::Listener => {
                let key = self
                    .core
                    .new_listener(ListenOptions { socket: options, ..ListenOptions::default() })?;
                let opened = with_backend!(&mut *self.backend, backend => {
                    backend.open(key, Open::Listener(fd))
                });
                self.core.listener_opened(key, opened).map(AdoptedId::Listener)
            }
        }
    }

    /// Returns the descriptor of a quiet connection to the caller. A connection is quiet if its
    /// reads are paused, nothing is queued or in flight, and no received data waits for delivery.
    /// The id is stale afterwards, and there is no `Closed`.
    ///
    /// # Errors
    /// [`Error::State`] if it is not quiet: pause reads, poll, and try again. [`Error::Stale`].
    ///
    /// # Backends
    /// The descriptor is blocking on io_uring and non-blocking on epoll. The simulated backend has
    /// no descriptors: `release` and [`Engine::adopt`] fail with [`Error::Unsupported`].
    ///
    /// ```
    /// use proactor::{AdoptedId, Config, Engine, ReadMode, SocketOptions};
    /// use std::os::unix::net::UnixStream;
    /// let mut engine = Engine::new(Config::default())?;
    /// let (ours, theirs) = UnixStream::pair()?;
    /// let options = SocketOptions { read_mode: ReadMode::Paused, ..SocketOptions::default() };
    /// let AdoptedId::Conn(conn) = engine.adopt(ours.into(), options)? else { unreachable!() };
    /// let stream = UnixStream::from(engine.release(conn)?);
    /// assert!(stream.peer_addr()?.is_unnamed() && !engine.is_live(conn));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn release(&mut self, id: ConnId) -> Result<OwnedFd, Error> {
        self.core_mut()?.check_quiet(id)?;
        let fd = with_backend!(&mut *self.backend, backend => backend.release(id.0))?;
        self.core.set_conn_timer(id.0, None);
        if let Some(mut conn) = self.core.endpoints.remove_conn(id.0) {
            conn.send.retire(&mut self.core.send_memory);
        }
        self.core.admission.remove_conn();
        Ok(fd)
    }
}

impl Core {
    fn check_quiet(&mut self, id: ConnId) -> Result<(), Error> {
        let conn = self.conn_mut(id.0)?;
        let busy = !conn.is_quiet() || !conn.send.is_empty() || conn.is_receiving_into();
        if conn.phase != Phase::Open || busy || conn.has_held() || conn.quota.has_deferred() {
            return Err(Error::State(
                "the connection is not quiet: pause reads, let sends finish, poll, and try again",
            ));
        }
        Ok(())
    }
}
