//! Connect, one request, close, repeatedly, as usual with epoll: a non-blocking connect,
//! EPOLL_CTL_ADD for output, SO_ERROR when it is writable, EPOLL_CTL_MOD for input, send, receive,
//! close. With `--edge` it makes as few calls as epoll allows. Source addresses change as in the
//! example `load`, so that ports do not run out.

use super::{Options, Outcome};
use crate::sys::{self, Addr, Epoll};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

struct Conn {
    socket: Option<socket2::Socket>,
    connecting: bool,
    missing: usize,
    sent_at: Instant,
}

pub fn run(addr: &Addr, options: &Options) -> io::Result<Outcome> {
    let (mut epoll, addr) = (Epoll::new()?, addr.to_sockaddr()?);
    let message = vec![b'x'; options.size];
    let once = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
    let wanted = if options.edge { once } else { libc::EPOLLOUT };
    let asks = !options.edge && !options.no_so_error;
    let (start, mut opened) = (Instant::now(), first_source());
    let mut outcome = Outcome { requests: 0, elapsed: Duration::ZERO, latencies_us: Vec::new() };
    let closed = |_| Conn { socket: None, connecting: true, missing: 0, sent_at: start };
    let mut conns: Vec<Conn> = (0..options.conns).map(closed).collect();
    for (index, conn) in conns.iter_mut().enumerate() {
        open(conn, index, &addr, &epoll, wanted, &mut opened)?;
    }
    let mut buffer = vec![0; 64 << 10];
    let mut ready = Vec::with_capacity(1024);
    let end = start + Duration::from_secs_f64(options.seconds);
    while Instant::now() < end {
        ready.clear();
        let events = epoll.wait(Some(Duration::from_millis(20)))?;
        ready.extend(events.iter().map(|event| (event.u64 as usize, event.events as i32)));
        for &(index, events) in &ready {
            let conn = &mut conns[index];
            let Some(socket) = &conn.socket else { continue };
            let fd = socket.as_raw_fd();
            if conn.connecting {
                if (asks || events & (libc::EPOLLERR | libc::EPOLLHUP) != 0)
                    && let Some(error) = socket.take_error()?
                {
                    return Err(error);
                }
                if !options.edge {
                    epoll.control(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN, index as u64)?;
                }
                sys::send(fd, &message)?;
                (conn.connecting, conn.missing) = (false, options.size);
                continue;
            }
            let len = match sys::recv(fd, &mut buffer) {
                // The event was for output only.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                result => result?,
            };
            conn.missing -= len;
            if conn.missing == 0 {
                outcome.requests += 1;
                outcome.latencies_us.push(conn.sent_at.elapsed().as_micros() as u32);
                if options.delete {
                    epoll.control(libc::EPOLL_CTL_DEL, fd, 0, 0)?;
                }
                conn.socket = None;
                open(conn, index, &addr, &epoll, wanted, &mut opened)?;
            }
        }
    }
    outcome.elapsed = start.elapsed();
    Ok(outcome)
}

fn open(
    conn: &mut Conn,
    index: usize,
    addr: &socket2::SockAddr,
    epoll: &Epoll,
    wanted: libc::c_int,
    opened: &mut u64,
) -> io::Result<()> {
    let kind = socket2::Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(addr.domain(), kind, None)?;
    set_up(socket.as_raw_fd(), opened)?;
    match socket.connect(addr) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    epoll.add(socket.as_raw_fd(), wanted, index as u64)?;
    *conn = Conn { socket: Some(socket), connecting: true, missing: 0, sent_at: Instant::now() };
    Ok(())
}

/// The number of the first source address of this process.
pub fn first_source() -> u64 {
    u64::from(std::process::id()) * 64_000
}

/// Sets TCP_NODELAY and binds the next source address, with IP_BIND_ADDRESS_NO_PORT: the connect
/// chooses the port (ip(7)). The example `load` does the same.
pub fn set_up(fd: RawFd, opened: &mut u64) -> io::Result<()> {
    // SAFETY: the descriptor stays open in this function.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let socket = socket2::SockRef::from(&socket);
    socket.set_tcp_nodelay(true)?;
    let step = *opened / 16;
    *opened += 1;
    let source = Ipv4Addr::new(
        127,
        1 + (step / 64_000 % 200) as u8,
        (step / 250 % 256) as u8,
        (step % 250 + 1) as u8,
    );
    let on: libc::c_int = 1;
    let (value, bytes) = ((&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // It may fail; then the bind chooses the port.
    // SAFETY: the integer has the size that is passed, and outlives the call.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, value, bytes) };
    socket.bind(&SocketAddr::from((source, 0)).into())
}
