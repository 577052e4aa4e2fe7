//! Sockets. Owns: how listening and connecting sockets are made and configured. Invariant: each
//! descriptor is close-on-exec and is an `OwnedFd` as soon as it exists. Must not know the
//! backends: the caller says whether a socket is blocking (io_uring) or non-blocking (epoll).

use super::Addr;
use crate::error::{Errno, Error};
use crate::options::{ListenOptions, SocketOptions};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

fn stream(domain: Domain, nonblocking: bool) -> io::Result<Socket> {
    let protocol = (domain != Domain::UNIX).then_some(Protocol::TCP);
    let kind = if nonblocking { Type::STREAM.nonblocking() } else { Type::STREAM };
    Socket::new(domain, kind, protocol)
}

/// Makes and configures a socket for a connect to `addr`.
pub(crate) fn connecting(
    addr: &Addr,
    local: Option<SocketAddr>,
    options: &SocketOptions,
    nonblocking: bool,
) -> Result<OwnedFd, Errno> {
    let fd = OwnedFd::from(stream(addr.domain(), nonblocking).map_err(|error| Errno::of(&error))?);
    set_up(&fd, addr, local, options).map(|()| fd)
}

/// Configures a new socket for a connect to `addr`, and binds it to `local`.
pub(crate) fn set_up(
    fd: &OwnedFd,
    addr: &Addr,
    local: Option<SocketAddr>,
    options: &SocketOptions,
) -> Result<(), Errno> {
    let socket = SockRef::from(fd);
    let set_up = || {
        apply(&socket, !addr.is_unix(), options)?;
        let Some(local) = local else { return Ok(()) };
        // Connections to different destinations share the ports that connect(2) chooses. To share
        // a port that the caller chose needs SO_REUSEADDR.
        match local.port() {
            0 if !addr.is_unix() => crate::sys::set_bind_address_no_port(fd.as_fd()),
            _ => socket.set_reuse_address(true)?,
        }
        socket.bind(&local.into())
    };
    set_up().map_err(|error: io::Error| Errno::of(&error))
}

/// Makes a socket that listens on `addr`. Accepted sockets inherit its TCP options.
pub(crate) fn listening(
    addr: &Addr,
    options: &ListenOptions,
    nonblocking: bool,
) -> Result<OwnedFd, Error> {
    let name = addr.to_sockaddr()?;
    let socket = stream(addr.domain(), nonblocking).map_err(|error| Error::os("socket", &error))?;
    let set_up = || {
        apply(&socket, !addr.is_unix(), &options.socket)?;
        if !addr.is_unix() {
            socket.set_reuse_address(true)?;
            if options.reuse_port {
                socket.set_reuse_port(true)?;
            }
        }
        if addr.domain() == Domain::IPV6 {
            socket.set_only_v6(options.v6_only)?;
        }
        Ok(())
    };
    set_up().map_err(|error: io::Error| Error::os("setsockopt", &error))?;
    let mut bound = socket.bind(&name);
    if let (Err(error), Addr::Unix(path)) = (&bound, addr)
        && error.kind() == io::ErrorKind::AddrInUse
        && options.remove_stale_path
        && is_stale(path, &name)
    {
        let _ = std::fs::remove_file(path);
        bound = socket.bind(&name);
    }
    bound.map_err(|error| Error::os("bind", &error))?;
    let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
    socket.listen(backlog).map_err(|error| Error::os("listen", &error))?;
    Ok(socket.into())
}

/// True if `path` is a socket file without a listener: a connect fails with ECONNREFUSED.
fn is_stale(path: &Path, name: &socket2::SockAddr) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = || {
        let probe = stream(Domain::UNIX, true)?;
        probe.connect(name)
    };
    is_socket && refused().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn apply(socket: &Socket, tcp: bool, options: &SocketOptions) -> io::Result<()> {
    if tcp {
        // TCP_NODELAY is off by default.
        if options.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        if let Some((idle, interval)) = options.keepalive {
            let second = Duration::from_secs(1);
            let keepalive =
                TcpKeepalive::new().with_time(idle.max(second)).with_interval(interval.max(second));
            socket.set_tcp_keepalive(&keepalive)?;
        }
    }
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.recv_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

/// The kind of an adopted socket.
pub(crate) enum Adopted {
    Stream,
    Listener,
}

/// Checks and configures a descriptor of the caller.
pub(crate) fn adopt(fd: &OwnedFd, nonblocking: bool) -> Result<Adopted, Error> {
    let socket = SockRef::from(fd);
    let kind = socket.r#type().map_err(|error| Error::os("adopt", &error))?;
    if kind != Type::STREAM {
        return Err(Error::Unsupported {
            what: "adopting this descriptor".into(),
            why: "it is not a stream socket".into(),
        });
    }
    let listens = socket.is_listener().map_err(|error| Error::os("adopt", &error))?;
    if !listens {
        socket.peer_addr().map_err(|error| Error::os("adopt", &error))?;
    }
    socket.set_nonblocking(nonblocking).map_err(|error| Error::os("fcntl", &error))?;
    socket.set_cloexec(true).map_err(|error| Error::os("fcntl", &error))?;
    Ok(if listens { Adopted::Listener } else { Adopted::Stream })
}

pub(crate) fn peer_addr(fd: impl AsFd) -> io::Result<Addr> {
    SockRef::from(&fd).peer_addr().map(|addr| Addr::from_sockaddr(&addr))
}

pub(crate) fn local_addr(fd: impl AsFd) -> io::Result<Addr> {
    SockRef::from(&fd).local_addr().map(|addr| Addr::from_sockaddr(&addr))
}

/// Sends a FIN (shutdown(2)). An error is ignored: the socket is no longer connected.
pub(crate) fn shutdown_write(fd: impl AsFd) {
    let _ = SockRef::from(&fd).shutdown(std::net::Shutdown::Write);
}

/// Makes close(2) send a reset: SO_LINGER with a timeout of zero (socket(7)).
pub(crate) fn reset_on_close(fd: impl AsFd) {
    let _ = SockRef::from(&fd).set_linger(Some(Duration::ZERO));
}

/// Returns and clears the pending error of a socket (SO_ERROR, socket(7)).
pub(crate) fn take_error(fd: impl AsFd) -> Option<Errno> {
    match SockRef::from(&fd).take_error() {
        Ok(error) => error.map(|error| Errno::of(&error)),
        Err(error) => Some(Errno::of(&error)),
    }
}
