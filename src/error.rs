//! Errors. Owns: the error types of the crate and the names of errno values. Invariant: an error of
//! a send contains the payload. Must not know the engine or the backends.

use crate::buf::Payload;
use std::{fmt, io};

/// An error number of the kernel (errno(3)).
///
/// ```
/// use proactor::Errno;
/// let errno = Errno(111);
/// assert_eq!(errno.name(), "ECONNREFUSED");
/// assert_eq!(std::io::Error::from(errno).kind(), std::io::ErrorKind::ConnectionRefused);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errno_names {
    ($($name:ident)*) => {
        fn errno_name(number: i32) -> Option<&'static str> {
            match number {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

errno_names! {
    EPERM ENOENT EINTR EIO ENXIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV
    ENOTDIR EINVAL ENFILE EMFILE EFBIG ENOSPC EPIPE EDOM ERANGE ENAMETOOLONG ENOSYS ELOOP ETIME
    EPROTO EBADMSG EOVERFLOW EBADFD EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT
    EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL
    ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN
    ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ECANCELED EROFS EBADR
}

impl Errno {
    /// The symbolic name, for instance `ECONNREFUSED`. `errno` if the number has no known name.
    pub fn name(self) -> &'static str {
        errno_name(self.0).unwrap_or("errno")
    }

    pub(crate) fn of(error: &io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }

    pub(crate) fn last() -> Errno {
        Errno::of(&io::Error::last_os_error())
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match errno_name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", io::Error::from_raw_os_error(self.0))
    }
}

const FORKED: &str = "the engine belongs to the parent process; a forked child cannot use it";
const STALE: &str = "the id is stale: its connection, listener or timer no longer exists";
const SEND_QUEUE_FULL: &str = "the send queue is full";
const WRITE_CLOSED: &str = "the write side of the connection is closed";

/// A result of the kernel is invalid, and memory safety depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) &'static str);

/// Why a call of the engine failed. A failure of a connection is not an error of a call: it is
/// reported as [`Event::Closed`](crate::Event::Closed).
///
/// ```
/// use proactor::{Config, Engine, Error};
/// match Engine::new(Config::default().connections_max(0)) {
///     Err(Error::Config { field, why }) => {
///         assert_eq!(field, "connections_max");
///         assert!(why.contains("0 is outside 1 to"));
///     }
///     other => panic!("expected an error of the configuration, got {other:?}"),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A value of the configuration is invalid.
    Config {
        /// The name of the method of `Config` or `Tuning`, or of the environment variable.
        field: &'static str,
        /// The reason.
        why: String,
    },
    /// The requested backend, tier, capability or operation is not available.
    Unsupported {
        /// What was requested.
        what: String,
        /// The reason.
        why: String,
    },
    /// The address cannot be used with a socket, for instance because a unix path is too long.
    Address {
        /// The address as text.
        addr: String,
        /// The reason.
        why: &'static str,
    },
    /// The id is stale: its connection, listener or timer no longer exists.
    Stale,
    /// The connection does not allow this call in its current state. The text is the reason.
    State(&'static str),
    /// A limit of [`Config`](crate::Config) was reached.
    Limit {
        /// The name of the limit in `Config`.
        limit: &'static str,
        /// Its value.
        value: usize,
    },
    /// [`Engine::close_all`](crate::Engine::close_all) was called. The engine accepts no new
    /// connections and listeners.
    Closing,
    /// The call was made in a forked child (fork(2)). Only the process that made an engine can use
    /// it. A child makes its own engine.
    Forked,
    /// A result of the kernel was invalid, and memory safety depends on it. The text describes the
    /// result. All connections of the engine are closed with
    /// [`CloseKind::Failed`](crate::CloseKind::Failed). The engine can only be dropped.
    EngineFailed(&'static str),
    /// The engine cannot continue in its simulated world. With the feature `sim`.
    #[cfg(feature = "sim")]
    Simulation(Halt),
    /// A system call failed.
    Os {
        /// The system call or operation.
        call: &'static str,
        /// The error number.
        errno: Errno,
    },
}

impl Error {
    pub(crate) fn os(call: &'static str, error: &io::Error) -> Error {
        Error::Os { call, errno: Errno::of(error) }
    }

    /// The error number of [`Error::Os`]. `None` for the other errors.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Os { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config { field, why } => write!(f, "invalid configuration: {field}: {why}"),
            Error::Unsupported { what, why } => write!(f, "{what} is not available: {why}"),
            Error::Address { addr, why } => write!(f, "invalid address {addr:?}: {why}"),
            Error::Stale => f.write_str(STALE),
            Error::State(why) => f.write_str(why),
            Error::Limit { limit, value } => write!(f, "limit reached: {limit} = {value}"),
            Error::Closing => {
                f.write_str("the engine is closing: it accepts no new connections and listeners")
            }
            Error::Forked => f.write_str(FORKED),
            Error::EngineFailed(what) => write!(f, "the engine has failed: {what}"),
            #[cfg(feature = "sim")]
            Error::Simulation(halt) => write!(f, "the simulation ended: {halt}"),
            Error::Os { call, errno } => write!(f, "{call} failed: {errno}"),
        }
    }
}

impl std::error::Error for Error {}

/// Why a poll of a simulated engine cannot continue. With the feature `sim`.
#[cfg(feature = "sim")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Halt {
    /// The host crashed, and the connections of the engine are lost. After a restart a new engine
    /// can be made on the host.
    Crashed,
    /// All programs wait without a deadline, and no event is pending. On a real machine the poll
    /// would not return.
    AtRest,
    /// The world was dropped.
    Ended,
}

#[cfg(feature = "sim")]
impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Halt::Crashed => "the host of this engine crashed",
            Halt::AtRest => "all programs wait without a deadline, and nothing will ever happen",
            Halt::Ended => "the world has ended",
        })
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        match &error {
            Error::Os { errno, .. } => {
                io::Error::new(io::Error::from_raw_os_error(errno.0).kind(), error)
            }
            Error::Config { .. } | Error::Address { .. } => {
                io::Error::new(io::ErrorKind::InvalidInput, error)
            }
            Error::Unsupported { .. } => io::Error::new(io::ErrorKind::Unsupported, error),
            Error::Stale | Error::State(_) => io::Error::new(io::ErrorKind::NotConnected, error),
            _ => io::Error::other(error),
        }
    }
}

/// Why [`Engine::send`](crate::Engine::send) refused a payload. The error contains the payload.
///
/// ```
/// use proactor::{Config, ConnId, Engine, SendError};
/// let mut engine = Engine::new(Config::default())?;
/// let error = engine.send(ConnId::NONE, "data").unwrap_err();
/// assert!(matches!(error, SendError::Stale(_)) && !error.is_full());
/// assert_eq!(error.into_payload().as_slice(), b"data");
/// # Ok::<(), proactor::Error>(())
/// ```
#[derive(Debug)]
pub enum SendError {
    /// The send queue is at its high watermark ([`Config::send_watermarks`]) or at its maximum of
    /// payloads ([`Tuning::send_entries_max`]). [`Event::Drained`](crate::Event::Drained) follows.
    ///
    /// [`Config::send_watermarks`]: crate::Config::send_watermarks
    /// [`Tuning::send_entries_max`]: crate::Tuning::send_entries_max
    Full(Payload),
    /// The write side is closed: `close`, `abort` or `shutdown_write` was called, or an earlier
    /// send failed, for instance with EPIPE.
    Closed(Payload),
    /// The id is stale: the connection no longer exists.
    Stale(Payload),
    /// The call was made in a forked child. See [`Error::Forked`].
    Forked(Payload),
}

impl SendError {
    /// Returns the payload that was refused.
    pub fn into_payload(self) -> Payload {
        match self {
            SendError::Full(payload)
            | SendError::Closed(payload)
            | SendError::Stale(payload)
            | SendError::Forked(payload) => payload,
        }
    }

    /// True for [`SendError::Full`]: the send can be retried after
    /// [`Event::Drained`](crate::Event::Drained).
    pub fn is_full(&self) -> bool {
        matches!(self, SendError::Full(_))
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => SEND_QUEUE_FULL,
            SendError::Closed(_) => WRITE_CLOSED,
            SendError::Stale(_) => STALE,
            SendError::Forked(_) => FORKED,
        })
    }
}

impl std::error::Error for SendError {}

/// Why [`Engine::write`](crate::Engine::write) refused the bytes. It copied none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// See [`SendError::Full`].
    Full,
    /// See [`SendError::Closed`].
    Closed,
    /// See [`SendError::Stale`].
    Stale,
    /// See [`SendError::Forked`].
    Forked,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WriteError::Full => SEND_QUEUE_FULL,
            WriteError::Closed => WRITE_CLOSED,
            WriteError::Stale => STALE,
            WriteError::Forked => FORKED,
        })
    }
}

impl std::error::Error for WriteError {}
