//! The baseline: a single-threaded, level-triggered epoll loop as it is written by hand. One read a
//! readiness, the answer at once, EPOLLOUT only while a peer does not take it. What is worth doing
//! otherwise can be switched on, to measure it.

use crate::sys::{self, Addr, Epoll};
use clap::Args;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const LISTENER: u64 = u64::MAX;
/// A read that goes through a pool has at least so much room.
const LEAST_ROOM: usize = 2048;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Bytes of a read
    #[arg(
        long, default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=16 << 20)
    )]
    read: u32,
    /// Reads go through so many bytes, each beginning where the last one ended, instead of using
    /// the same ones again
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1 << 30))]
    pool: u32,
    /// Edge-triggered
    #[arg(long)]
    edge: bool,
    /// Edge-triggered, for output too from the beginning: no EPOLL_CTL_MOD for a slow peer
    #[arg(long)]
    watch_output: bool,
}

impl Options {
    fn events(&self, input: bool) -> libc::c_int {
        let edge = if self.edge || self.watch_output { libc::EPOLLET } else { 0 };
        let wanted = if input { libc::EPOLLIN } else { libc::EPOLLOUT };
        edge | if self.watch_output { libc::EPOLLIN | libc::EPOLLOUT } else { wanted }
    }
}

/// Where reads go.
struct Room {
    bytes: Vec<u8>,
    at: usize,
    read: usize,
}

impl Room {
    fn next(&mut self) -> &mut [u8] {
        let end = self.bytes.len().min(self.at + self.read);
        &mut self.bytes[self.at..end]
    }

    /// The next read begins behind these, if there is room: there is none if all is for one read.
    fn used(&mut self, len: usize) {
        self.at += len;
        if self.bytes.len() - self.at < LEAST_ROOM || self.bytes.len() == self.read {
            self.at = 0;
        }
    }
}

struct Conn {
    fd: OwnedFd,
    /// What the peer has not taken yet; while there is some, nothing is read.
    rest: Vec<u8>,
}

pub fn serve(addr: &Addr, options: &Options) -> io::Result<()> {
    let listener = sys::listen(addr, true)?;
    let mut epoll = Epoll::new()?;
    epoll.add(listener.as_raw_fd(), libc::EPOLLIN, LISTENER)?;
    let read = options.read as usize;
    sys::announce(&listener, &format!("epoll loop, {read} byte reads"))?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut room = Room { bytes: vec![0; read.max(options.pool as usize)], at: 0, read };
    let mut ready = Vec::new();
    loop {
        ready.clear();
        ready.extend(epoll.wait(None)?.iter().map(|event| (event.u64, event.events as i32)));
        for &(token, events) in &ready {
            if token == LISTENER {
                accept(&listener, &epoll, options.events(true), &mut conns)?;
                continue;
            }
            let place = &mut conns[token as usize];
            let Some(conn) = place else { continue };
            if !go_on(conn, &epoll, token, events, options, &mut room) {
                *place = None;
            }
        }
    }
}

fn accept(
    listener: &socket2::Socket,
    epoll: &Epoll,
    events: libc::c_int,
    conns: &mut Vec<Option<Conn>>,
) -> io::Result<()> {
    loop {
        match sys::accept(listener.as_raw_fd()) {
            Ok(fd) => {
                // Descriptors are dense: the index of a connection is its descriptor.
                let index = fd.as_raw_fd() as usize;
                if conns.len() <= index {
                    conns.resize_with(index + 1, || None);
                }
                epoll.add(fd.as_raw_fd(), events, index as u64)?;
                conns[index] = Some(Conn { fd, rest: Vec::new() });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// False when the connection is over.
fn go_on(
    conn: &mut Conn,
    epoll: &Epoll,
    token: u64,
    events: i32,
    options: &Options,
    room: &mut Room,
) -> bool {
    let fd = conn.fd.as_raw_fd();
    let edge = options.edge || options.watch_output;
    if !conn.rest.is_empty() {
        if events & (libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP) == 0 {
            return true;
        }
        match sys::send(fd, &conn.rest) {
            Ok(sent) => drop(conn.rest.drain(..sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
        if !conn.rest.is_empty() {
            return true;
        }
        // With edges: what came meanwhile has told of itself, or tells when input is asked for
        // again.
        if !options.watch_output {
            return watch(epoll, fd, options.events(true), token);
        }
    } else if events & !libc::EPOLLOUT == 0 {
        return true;
    }
    loop {
        let buffer = room.next();
        let (len, whole) = match sys::recv(fd, buffer) {
            Ok(0) => return false,
            Ok(len) => (len, len == buffer.len()),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        let sent = match sys::send(fd, &buffer[..len]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return false,
        };
        if sent < len {
            conn.rest.extend_from_slice(&buffer[sent..len]);
            return options.watch_output || watch(epoll, fd, options.events(false), token);
        }
        room.used(len);
        // A short read emptied the socket; the next bytes make a new edge.
        if !edge || !whole {
            return true;
        }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, events: i32, token: u64) -> bool {
    epoll.control(libc::EPOLL_CTL_MOD, fd, events, token).is_ok()
}
