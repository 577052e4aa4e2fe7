//! mio: edge-triggered, read until it would block, one buffer for all connections, as its
//! `tcp_server` example does.

use crate::sys::{self, Addr};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, ErrorKind, Read, Write};

const LISTENER: Token = Token(usize::MAX);
const READ_BYTES: usize = 64 << 10;

struct Conn {
    stream: TcpStream,
    rest: Vec<u8>,
}

pub fn serve(addr: &Addr) -> io::Result<()> {
    addr.tcp()?;
    let listener = sys::listen(addr, true)?;
    sys::announce(&listener, "mio")?;
    let mut listener = TcpListener::from_std(listener.into());
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut free = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let index = free.pop().unwrap_or_else(|| {
                        conns.push(None);
                        conns.len() - 1
                    });
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(index), both)?;
                    conns[index] = Some(Conn { stream, rest: Vec::new() });
                }
                continue;
            }
            let index = event.token().0;
            let Some(conn) = conns[index].as_mut() else { continue };
            if !handle(conn, &mut buffer) {
                conns[index] = None;
                free.push(index);
            }
        }
    }
}

/// Handles an event. Returns false if the connection has ended.
fn handle(conn: &mut Conn, buffer: &mut [u8]) -> bool {
    loop {
        while !conn.rest.is_empty() {
            match conn.stream.write(&conn.rest) {
                Ok(sent) => drop(conn.rest.drain(..sent)),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        let len = match conn.stream.read(buffer) {
            Ok(0) => return false,
            Ok(len) => len,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        let sent = match conn.stream.write(&buffer[..len]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return false,
        };
        if sent < len {
            conn.rest.extend_from_slice(&buffer[sent..len]);
        } else if len < buffer.len() {
            // After a short read the socket is empty.
            return true;
        }
    }
}
