//! Connections that send a request for each response, with level-triggered epoll: one read per
//! event, then the next request at once.

use super::{Options, Outcome};
use crate::sys::{self, Addr, Epoll};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

struct Conn {
    socket: socket2::Socket,
    missing: usize,
    sent_at: Instant,
}

pub fn run(addr: &Addr, options: &Options) -> io::Result<Outcome> {
    let (mut epoll, addr) = (Epoll::new()?, addr.to_sockaddr()?);
    let message = vec![b'x'; options.size];
    let mut conns = Vec::with_capacity(options.conns);
    let start = Instant::now();
    for index in 0..options.conns {
        let socket = socket2::Socket::new(addr.domain(), socket2::Type::STREAM, None)?;
        if !addr.is_unix() {
            socket.set_tcp_nodelay(true)?;
        }
        socket.connect(&addr)?;
        socket.set_nonblocking(true)?;
        epoll.add(socket.as_raw_fd(), libc::EPOLLIN, index as u64)?;
        for _ in 0..options.depth {
            sys::send(socket.as_raw_fd(), &message)?;
        }
        conns.push(Conn { socket, missing: options.size, sent_at: start });
    }
    let mut outcome = Outcome { requests: 0, elapsed: Duration::ZERO, latencies_us: Vec::new() };
    let mut buffer = vec![0; 64 << 10];
    let mut ready = Vec::with_capacity(1024);
    let end = start + Duration::from_secs_f64(options.seconds);
    while Instant::now() < end {
        ready.clear();
        ready.extend(
            epoll.wait(Some(Duration::from_millis(20)))?.iter().map(|event| event.u64 as usize),
        );
        let now = Instant::now();
        for &index in &ready {
            let conn = &mut conns[index];
            let fd = conn.socket.as_raw_fd();
            let mut len = match sys::recv(fd, &mut buffer) {
                Ok(0) => return Err(io::Error::other("the server closed a connection")),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            while len >= conn.missing {
                len -= conn.missing;
                conn.missing = options.size;
                outcome.requests += 1;
                outcome.latencies_us.push((now - conn.sent_at).as_micros() as u32);
                conn.sent_at = now;
                sys::send(fd, &message)?;
            }
            conn.missing -= len;
        }
    }
    outcome.elapsed = start.elapsed();
    // The close resets the connections, so that they hold no port in TIME_WAIT.
    conns.iter().for_each(|conn| drop(conn.socket.set_linger(Some(Duration::ZERO))));
    Ok(outcome)
}
