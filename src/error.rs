//! Errors. Owns: the error types of the crate and the names of errno values. Knows nothing above
//! it.

use crate::buf::Payload;
use std::{fmt, io};

/// An error number of the kernel, as in errno(3).
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
    EPERM ENOENT EINTR EIO ENXIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV ENOTDIR
    EINVAL ENFILE EMFILE EFBIG ENOSPC EPIPE EDOM ERANGE ENAMETOOLONG ENOSYS ELOOP ETIME EPROTO
    EBADMSG EOVERFLOW EBADFD EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT
    EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL
    ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN
    ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ECANCELED EROFS EBADR
}

impl Errno {
    /// The symbolic name, for instance `ECONNREFUSED`.
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

/// The kernel said something that cannot be true, and that memory safety rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) &'static str);

/// What a call of the engine can fail with. What happens to a connection later is an
/// [`Event`](crate::Event), not an error.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A value of the configuration makes no sense; says which and why.
    Config {
        /// The name of the `Config` method or of the environment variable.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The backend, tier or capability that was asked for by name is not to be had here.
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why it cannot be had.
        why: String,
    },
    /// An address that no socket can use (a unix path that is too long, an empty one).
    Address {
        /// The address as text.
        addr: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The id names nothing (any more).
    Stale,
    /// The connection is in no state for this call; says why.
    State(&'static str),
    /// A limit of [`Config`](crate::Config) was reached.
    Limit {
        /// The name of the limit in `Config`.
        limit: &'static str,
        /// Its value.
        value: usize,
    },
    /// [`Engine::close_all`](crate::Engine::close_all) was called: the engine takes nothing new.
    Closing,
    /// This process is a fork of the one that made the engine; only that one may use it. A child
    /// makes an engine of its own.
    Forked,
    /// The kernel said something that cannot be true, and that memory safety rests on; says what.
    /// All connections of the engine have ended with
    /// [`CloseKind::Failed`](crate::CloseKind::Failed), and it can only be dropped.
    EngineFailed(&'static str),
    /// The simulated world has nothing more for this engine. With the feature `sim`.
    #[cfg(feature = "sim")]
    Simulation(Halt),
    /// The kernel refused.
    Os {
        /// The system call or operation.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
}

impl Error {
    pub(crate) fn os(call: &'static str, error: &io::Error) -> Error {
        Error::Os { call, errno: Errno::of(error) }
    }

    /// The kernel's error number, where the kernel refused.
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
            Error::Config { field, why } => write!(f, "configuration: {field}: {why}"),
            Error::Unsupported { what, why } => write!(f, "{what} is not available: {why}"),
            Error::Address { addr, why } => write!(f, "address {addr:?}: {why}"),
            Error::Stale => f.write_str("stale id: it names nothing any more"),
            Error::State(why) => f.write_str(why),
            Error::Limit { limit, value } => write!(f, "limit reached: {limit} = {value}"),
            Error::Closing => f.write_str("the engine is closing and takes nothing new"),
            Error::Forked => f.write_str(FORKED),
            Error::EngineFailed(what) => write!(f, "the engine has failed: {what}"),
            #[cfg(feature = "sim")]
            Error::Simulation(halt) => write!(f, "simulation: {halt}"),
            Error::Os { call, errno } => write!(f, "{call}: {errno}"),
        }
    }
}

impl std::error::Error for Error {}

/// Why a simulated world has nothing more for an engine that waits in it. With the feature `sim`.
#[cfg(feature = "sim")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Halt {
    /// The host crashed: all that the engine had is gone. After the restart a new engine can be
    /// made there.
    Crashed,
    /// Everybody waits without a deadline, and no event is coming: on a real machine this wait
    /// would last for ever.
    AtRest,
    /// The world was dropped.
    Ended,
}

#[cfg(feature = "sim")]
impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Halt::Crashed => "the host of this engine crashed",
            Halt::AtRest => "everybody waits without a deadline, and nothing will ever happen",
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

/// Why [`Engine::send`](crate::Engine::send) did not take a payload. The payload comes back:
/// nothing is lost.
#[derive(Debug)]
pub enum SendError {
    /// The send queue is at its high watermark or its entry limit;
    /// [`Event::Drained`](crate::Event::Drained) follows when there is room.
    Full(Payload),
    /// The write side is shut: `close`, `abort` or `shutdown_write` was called, or the peer is
    /// gone.
    Closed(Payload),
    /// The id names nothing (any more).
    Stale(Payload),
    /// This process is a fork of the one that made the engine: see [`Error::Forked`].
    Forked(Payload),
}

impl SendError {
    /// The payload that was refused.
    pub fn into_payload(self) -> Payload {
        match self {
            SendError::Full(payload)
            | SendError::Closed(payload)
            | SendError::Stale(payload)
            | SendError::Forked(payload) => payload,
        }
    }

    /// True if trying again after [`Event::Drained`](crate::Event::Drained) makes sense.
    pub fn is_full(&self) -> bool {
        matches!(self, SendError::Full(_))
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "the send queue is full",
            SendError::Closed(_) => "the write side is shut",
            SendError::Stale(_) => "stale id: it names nothing any more",
            SendError::Forked(_) => FORKED,
        })
    }
}

impl std::error::Error for SendError {}

/// Why [`Engine::write`](crate::Engine::write) copied nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// As [`SendError::Full`].
    Full,
    /// As [`SendError::Closed`].
    Closed,
    /// As [`SendError::Stale`].
    Stale,
    /// As [`SendError::Forked`].
    Forked,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WriteError::Full => "the send queue is full",
            WriteError::Closed => "the write side is shut",
            WriteError::Stale => "stale id: it names nothing any more",
            WriteError::Forked => FORKED,
        })
    }
}

impl std::error::Error for WriteError {}
