//! Messages as fast as the connections accept them, one write per message. The echo is read and
//! discarded.

use super::{Options, Outcome};
use crate::sys::{self, Addr, Epoll};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How many messages a connection writes before the next connection.
const WRITES_MAX: usize = 64;

pub fn run(addr: &Addr, options: &Options) -> io::Result<Outcome> {
    let (mut epoll, addr) = (Epoll::new()?, addr.to_sockaddr()?);
    let message = vec![b'x'; options.size];
    let mut sockets = Vec::with_capacity(options.conns);
    let start = Instant::now();
    for index in 0..options.conns {
        let socket = socket2::Socket::new(addr.domain(), socket2::Type::STREAM, None)?;
        socket.set_tcp_nodelay(true)?;
        socket.connect(&addr)?;
        socket.set_nonblocking(true)?;
        let events = libc::EPOLLIN | libc::EPOLLOUT;
        epoll.add(socket.as_raw_fd(), events, index as u64)?;
        sockets.push((socket, 0));
    }
    let (mut received, mut buffer) = (0u64, vec![0; 64 << 10]);
    let mut ready = Vec::with_capacity(1024);
    let end = start + Duration::from_secs_f64(options.seconds);
    while Instant::now() < end {
        ready.clear();
        let events = epoll.wait(Some(Duration::from_millis(20)))?;
        ready.extend(events.iter().map(|event| (event.u64 as usize, event.events as i32)));
        for &(index, events) in &ready {
            let (socket, offset) = &mut sockets[index];
            if events & libc::EPOLLIN != 0 {
                match sys::recv(socket.as_raw_fd(), &mut buffer) {
                    Ok(0) => return Err(io::Error::other("the server closed a connection")),
                    Ok(len) => received += len as u64,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if events & libc::EPOLLOUT != 0 {
                for _ in 0..WRITES_MAX {
                    match sys::send(socket.as_raw_fd(), &message[*offset..]) {
                        Ok(sent) => *offset = (*offset + sent) % options.size,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
    let elapsed = start.elapsed();
    sockets.iter().for_each(|(socket, _)| drop(socket.set_linger(Some(Duration::ZERO))));
    Ok(Outcome { requests: received / options.size as u64, elapsed, latencies_us: Vec::new() })
}
