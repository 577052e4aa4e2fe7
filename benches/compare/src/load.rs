//! The load: so many requests in flight on each connection, on an epoll loop of its own. Owns: the
//! connections to one server. Counts answers; `load` of the examples is there to verify them.

use crate::sys::{self, Addr, Epoll};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const SCRATCH: usize = 256 << 10;

struct Conn {
    socket: socket2::Socket,
    /// Bytes that are still to be sent, and to come.
    unsent: usize,
    missing: usize,
}

pub struct Load {
    epoll: Epoll,
    conns: Vec<Conn>,
    size: usize,
    message: Vec<u8>,
    scratch: Vec<u8>,
    ready: Vec<(usize, i32)>,
}

impl Load {
    /// Connects, and puts `depth` requests of `size` bytes on the way on each connection.
    pub fn connect(addr: &Addr, conns: usize, size: usize, depth: usize) -> io::Result<Load> {
        let epoll = Epoll::new()?;
        let mut load = Load {
            epoll,
            conns: Vec::with_capacity(conns),
            size,
            message: vec![b'x'; (size * depth).max(64 << 10)],
            scratch: vec![0; SCRATCH],
            ready: Vec::with_capacity(1024),
        };
        load.open(addr, conns)?;
        (0..conns).try_for_each(|index| load.send(index, depth))?;
        Ok(load)
    }

    /// Adds connections that do nothing.
    pub fn open(&mut self, addr: &Addr, conns: usize) -> io::Result<()> {
        let sockaddr = addr.to_sockaddr()?;
        for index in self.conns.len()..self.conns.len() + conns {
            let socket = socket2::Socket::new(sockaddr.domain(), socket2::Type::STREAM, None)?;
            if !sockaddr.is_unix() {
                socket.set_tcp_nodelay(true)?;
                // The end is a reset, so that no port is kept for a minute.
                socket.set_linger(Some(Duration::ZERO))?;
            }
            socket.connect(&sockaddr)?;
            socket.set_nonblocking(true)?;
            let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET;
            self.epoll.add(socket.as_raw_fd(), events, index as u64)?;
            self.conns.push(Conn { socket, unsent: 0, missing: 0 });
        }
        Ok(())
    }

    /// Sends requests, as far as there is room.
    pub fn send(&mut self, index: usize, requests: usize) -> io::Result<()> {
        self.ask(index, requests);
        self.push(index)
    }

    fn ask(&mut self, index: usize, requests: usize) {
        let conn = &mut self.conns[index];
        conn.unsent += requests * self.size;
        conn.missing += requests * self.size;
    }

    fn push(&mut self, index: usize) -> io::Result<()> {
        let conn = &mut self.conns[index];
        while conn.unsent > 0 {
            let part = conn.unsent.min(self.message.len());
            match sys::send(conn.socket.as_raw_fd(), &self.message[..part]) {
                Ok(sent) => conn.unsent -= sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Keeps the requests going for so long, and returns how many were answered.
    pub fn run(&mut self, duration: Duration) -> io::Result<u64> {
        let end = Instant::now() + duration;
        let mut answered = 0;
        while Instant::now() < end {
            let ready = self.ready(Some(Duration::from_millis(20)))?;
            // First all receives, then all sends, as an engine does it: the server gets its
            // requests in one go.
            for &(index, events) in &ready {
                if events & libc::EPOLLIN != 0 {
                    let complete = self.take(index)?;
                    self.ask(index, complete);
                    answered += complete as u64;
                }
            }
            for &(index, _) in &ready {
                self.push(index)?;
            }
            self.ready = ready;
        }
        Ok(answered)
    }

    /// Without waiting: takes the answers that are there, tells how many on which connection, and
    /// sends what had no room before.
    pub fn look(&mut self, mut answered: impl FnMut(usize, usize)) -> io::Result<()> {
        let ready = self.ready(Some(Duration::ZERO))?;
        for &(index, events) in &ready {
            if events & libc::EPOLLIN != 0 {
                answered(index, self.take(index)?);
            }
            self.push(index)?;
        }
        self.ready = ready;
        Ok(())
    }

    /// The connections with something to do, and what; the list goes back to `self.ready` to be
    /// used again.
    fn ready(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(usize, i32)>> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let events = self.epoll.wait(timeout)?;
        ready.extend(events.iter().map(|event| (event.u64 as usize, event.events as i32)));
        Ok(ready)
    }

    /// Takes what came, and returns how many answers are complete.
    fn take(&mut self, index: usize) -> io::Result<usize> {
        let mut answered = 0;
        loop {
            let conn = &mut self.conns[index];
            let len = match sys::recv(conn.socket.as_raw_fd(), &mut self.scratch) {
                Ok(0) => return Err(io::Error::other("the server closed a connection")),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answered),
                Err(error) => return Err(error),
            };
            let before = conn.missing.div_ceil(self.size);
            conn.missing = conn
                .missing
                .checked_sub(len)
                .ok_or_else(|| io::Error::other("the server sent more than it was sent"))?;
            answered += before - conn.missing.div_ceil(self.size);
            if len < self.scratch.len() {
                // A short read emptied the socket; the next bytes make a new edge.
                return Ok(answered);
            }
        }
    }
}
