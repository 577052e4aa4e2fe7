//! Descriptors that come from the caller, and go back. Owns: the checks on both ways.

use super::conn::{Conn, Phase};
use super::{Core, Engine};
use crate::backend::{Backend as _, Open, with_backend};
use crate::error::Error;
use crate::id::{ConnId, ListenerId};
use crate::net::socket::{self, Adopted};
use crate::options::{ListenOptions, SocketOptions};
use std::os::fd::OwnedFd;

/// What [`Engine::adopt`] made of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptedId {
    /// It was a connected stream.
    Conn(ConnId),
    /// It was a listener.
    Listener(ListenerId),
}

impl Engine {
    /// Takes over a descriptor: a connected stream socket (one end of a socketpair, one passed by
    /// another process), or a listener (socket activation). A stream is open at once, without
    /// `Connected`.
    ///
    /// # Errors
    /// No stream socket, or neither connected nor listening; the limits of `connect` and `listen`.
    /// The descriptor is closed then.
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
        self.check()?;
        match socket::adopt(&fd, self.wants_nonblocking())? {
            Adopted::Stream => {
                self.core.room_for_conn()?;
                let conn = Conn::new(Phase::Open, 0, &options, self.core.config.idle_timeout);
                let key = self.core.endpoints.insert_conn(conn);
                let opened = with_backend!(&mut *self.backend, backend => {
                    backend.open(key, Open::Stream(fd))
                });
                if let Err(error) = opened {
                    self.core.endpoints.remove_conn(key);
                    return Err(error);
                }
                self.core.admission.came();
                self.refresh_clock();
                self.core.start_idle_timer(key);
                self.core.mark_dirty(key);
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

    /// Gives the descriptor of a quiet connection back. Quiet means: reads are paused, nothing is
    /// queued or in flight, and nothing received waits to be delivered. The id is stale afterwards,
    /// and there is no `Closed`.
    ///
    /// # Errors
    /// [`Error::State`] while it is not quiet: pause reads, poll, and try again.
    ///
    /// # Backends
    /// The descriptor is blocking on io_uring and non-blocking on epoll. The simulated backend has
    /// none to give, and answers [`Error::Unsupported`]; so it does to `adopt`.
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
        self.own()?.check_quiet(id)?;
        let fd = with_backend!(&mut *self.backend, backend => backend.release(id.0))?;
        self.core.set_conn_timer(id.0, None);
        if let Some(mut conn) = self.core.endpoints.remove_conn(id.0) {
            conn.send.retire(&mut self.core.send_memory);
        }
        self.core.admission.left();
        Ok(fd)
    }
}

impl Core {
    fn check_quiet(&mut self, id: ConnId) -> Result<(), Error> {
        let conn = self.conn(id.0)?;
        let busy = !conn.is_quiet() || !conn.send.is_empty() || conn.is_receiving_into();
        if conn.phase != Phase::Open || busy || conn.has_held() || conn.quota.has_deferred() {
            return Err(Error::State(
                "the connection is not quiet: pause reads, let sends finish, poll, and try again",
            ));
        }
        Ok(())
    }
}
