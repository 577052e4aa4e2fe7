//! The load: a number of requests in flight on each connection, in an epoll loop. Owns: the
//! connections to one server. It counts responses and does not verify them; the example `load`
//! does.

use crate::sys::{self, Addr, Epoll};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const SCRATCH: usize = 256 << 10;

struct Conn {
    socket: socket2::Socket,
    /// Bytes still to be sent.
    unsent: usize,
    /// Bytes still to be received.
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
    /// Connects, and sends `depth` requests of `size` bytes on each connection.
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

    /// Adds idle connections.
    pub fn open(&mut self, addr: &Addr, conns: usize) -> io::Result<()> {
        let sockaddr = addr.to_sockaddr()?;
        for index in self.conns.len()..self.conns.len() + conns {
            let socket = socket2::Socket::new(sockaddr.domain(), socket2::Type::STREAM, None)?;
            if !sockaddr.is_unix() {
                socket.set_tcp_nodelay(true)?;
                // The close resets the connection, so that it does not hold a port in TIME_WAIT.
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

    /// Sends requests, as many as the socket accepts; the rest follows on EPOLLOUT.
    pub fn send(&mut self, index: usize, requests: usize) -> io::Result<()> {
        self.add(index, requests);
        self.flush(index)
    }

    fn add(&mut self, index: usize, requests: usize) {
        let conn = &mut self.conns[index];
        conn.unsent += requests * self.size;
        conn.missing += requests * self.size;
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
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

    /// Sends a request for each response, for a duration. Returns how many responses came.
    pub fn run(&mut self, duration: Duration) -> io::Result<u64> {
        let end = Instant::now() + duration;
        let mut answered = 0;
        while Instant::now() < end {
            let ready = self.ready(Some(Duration::from_millis(20)))?;
            // First all receives, then all sends, as an engine does it, so that the server wakes up
            // once for all of them.
            for &(index, events) in &ready {
                if events & libc::EPOLLIN != 0 {
                    let complete = self.receive(index)?;
                    self.add(index, complete);
                    answered += complete as u64;
                }
            }
            for &(index, _) in &ready {
                self.flush(index)?;
            }
            self.ready = ready;
        }
        Ok(answered)
    }

    /// Without waiting: receives responses, calls `answered` with the connection and their number,
    /// and sends what the socket did not accept before.
    pub fn poll(&mut self, mut answered: impl FnMut(usize, usize)) -> io::Result<()> {
        let ready = self.ready(Some(Duration::ZERO))?;
        for &(index, events) in &ready {
            if events & libc::EPOLLIN != 0 {
                answered(index, self.receive(index)?);
            }
            self.flush(index)?;
        }
        self.ready = ready;
        Ok(())
    }

    /// Ready connections with their events. The caller puts the list back into `self.ready`, so
    /// that its memory is reused.
    fn ready(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(usize, i32)>> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let events = self.epoll.wait(timeout)?;
        ready.extend(events.iter().map(|event| (event.u64 as usize, event.events as i32)));
        Ok(ready)
    }

    /// Receives, and returns how many responses are complete.
    fn receive(&mut self, index: usize) -> io::Result<usize> {
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
                .ok_or_else(|| io::Error::other("the server sent more bytes than it received"))?;
            answered += before - conn.missing.div_ceil(self.size);
            if len < self.scratch.len() {
                // After a short read the socket is empty; the next bytes cause a new edge.
                return Ok(answered);
            }
        }
    }
}
