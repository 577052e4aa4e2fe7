//! The baseline: a single-threaded, level-triggered epoll loop, written by hand. One read per
//! event, the echo at once, EPOLLOUT only while a peer does not accept it. Options switch other
//! techniques on, to measure them.

use crate::sys::{self, Addr, Epoll};
use clap::Args;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const LISTENER: u64 = u64::MAX;
/// The smallest read with `--pool`.
const READ_MIN: usize = 2048;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Bytes of a read
    #[arg(long, default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    read: u32,
    /// Bytes of memory that reads pass through, each starting where the last one ended, instead of
    /// reusing the same bytes
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1 << 30))]
    pool: u32,
    /// Edge-triggered
    #[arg(long)]
    edge: bool,
    /// Edge-triggered, registered for output too: no EPOLL_CTL_MOD for a slow peer
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

/// The memory of reads.
struct ReadBuffer {
    bytes: Vec<u8>,
    at: usize,
    read: usize,
}

impl ReadBuffer {
    fn next(&mut self) -> &mut [u8] {
        let end = self.bytes.len().min(self.at + self.read);
        &mut self.bytes[self.at..end]
    }

    /// The next read starts after these bytes, unless too few are left or the memory is that of one
    /// read.
    fn used(&mut self, len: usize) {
        self.at += len;
        if self.bytes.len() - self.at < READ_MIN || self.bytes.len() == self.read {
            self.at = 0;
        }
    }
}

struct Conn {
    fd: OwnedFd,
    /// What the peer has not accepted. While there is some, nothing is read.
    rest: Vec<u8>,
}

pub fn serve(addr: &Addr, options: &Options) -> io::Result<()> {
    let listener = sys::listen(addr, true)?;
    let mut epoll = Epoll::new()?;
    epoll.add(listener.as_raw_fd(), libc::EPOLLIN, LISTENER)?;
    let read = options.read as usize;
    sys::announce(&listener, &format!("epoll loop, {read} byte reads"))?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut room = ReadBuffer { bytes: vec![0; read.max(options.pool as usize)], at: 0, read };
    let mut ready = Vec::new();
    loop {
        ready.clear();
        ready.extend(epoll.wait(None)?.iter().map(|event| (event.u64, event.events as i32)));
        for &(token, events) in &ready {
            if token == LISTENER {
                accept(&listener, &epoll, options.events(true), &mut conns)?;
                continue;
            }
            let slot = &mut conns[token as usize];
            let Some(conn) = slot else { continue };
            if !handle(conn, &epoll, token, events, options, &mut room) {
                *slot = None;
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
                // Descriptors are small numbers, so the descriptor is the index of the connection.
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

/// Handles an event. Returns false if the connection has ended.
fn handle(
    conn: &mut Conn,
    epoll: &Epoll,
    token: u64,
    events: i32,
    options: &Options,
    room: &mut ReadBuffer,
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
        // Edge-triggered: EPOLL_CTL_MOD reports input that came in the meantime.
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
        // After a short read the socket is empty; the next bytes cause a new edge.
        if !edge || !whole {
            return true;
        }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, events: i32, token: u64) -> bool {
    epoll.control(libc::EPOLL_CTL_MOD, fd, events, token).is_ok()
}
