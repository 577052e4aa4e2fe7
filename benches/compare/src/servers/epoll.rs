//! The baseline: a single-threaded, level-triggered epoll loop as it is written by hand. One read a readiness, the answer at once, EPOLLOUT only
//! while a peer does not take it.

use crate::sys::{self, Addr, Epoll};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const LISTENER: u64 = u64::MAX;

struct Conn {
    fd: OwnedFd,
    /// What the peer has not taken yet; while there is some, nothing is read.
    rest: Vec<u8>,
}

pub fn serve(addr: &Addr, read_bytes: usize) -> io::Result<()> {
    let listener = sys::listen(addr, true)?;
    let mut epoll = Epoll::new()?;
    epoll.add(listener.as_raw_fd(), libc::EPOLLIN, LISTENER)?;
    sys::announce(&listener, &format!("epoll loop, {read_bytes} byte reads"))?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut buffer = vec![0; read_bytes];
    let mut ready = Vec::new();
    loop {
        ready.clear();
        ready.extend(epoll.wait(None)?.iter().map(|event| (event.u64, event.events as i32)));
        for &(token, events) in &ready {
            if token == LISTENER {
                accept(&listener, &epoll, &mut conns)?;
                continue;
            }
            let place = &mut conns[token as usize];
            let Some(conn) = place else { continue };
            if !go_on(conn, &epoll, token, events, &mut buffer) {
                *place = None;
            }
        }
    }
}

fn accept(listener: &socket2::Socket, epoll: &Epoll, conns: &mut Vec<Option<Conn>>) -> io::Result<()> {
    loop {
        match sys::accept(listener.as_raw_fd()) {
            Ok(fd) => {
                // Descriptors are dense: the index of a connection is its descriptor.
                let index = fd.as_raw_fd() as usize;
                if conns.len() <= index {
                    conns.resize_with(index + 1, || None);
                }
                epoll.add(fd.as_raw_fd(), libc::EPOLLIN, index as u64)?;
                conns[index] = Some(Conn { fd, rest: Vec::new() });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// False when the connection is over.
fn go_on(conn: &mut Conn, epoll: &Epoll, token: u64, events: i32, buffer: &mut [u8]) -> bool {
    let fd = conn.fd.as_raw_fd();
    if events & libc::EPOLLOUT != 0 && !conn.rest.is_empty() {
        match sys::send(fd, &conn.rest) {
            Ok(sent) => drop(conn.rest.drain(..sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
        return !conn.rest.is_empty() || watch(epoll, fd, libc::EPOLLIN, token);
    }
    match sys::recv(fd, buffer) {
        Ok(0) => false,
        Ok(len) => {
            let sent = match sys::send(fd, &buffer[..len]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return false,
            };
            if sent == len {
                return true;
            }
            conn.rest.extend_from_slice(&buffer[sent..len]);
            watch(epoll, fd, libc::EPOLLOUT, token)
        }
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn watch(epoll: &Epoll, fd: RawFd, events: i32, token: u64) -> bool {
    epoll.control(libc::EPOLL_CTL_MOD, fd, events, token).is_ok()
}
