//! Connect, one request, close, on a bare ring: an SQE for each step (socket, connect, send,
//! receive, close), SINGLE_ISSUER and DEFER_TASKRUN. The send is linked to the connect, and the
//! receive waits for the completion of the send; options change both. It is the lower bound of the
//! connect workload on io_uring.

use super::{Options, Outcome, connect, push};
use crate::sys::Addr;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const SOCKET: u64 = 0;
const CONNECT: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
const RECV: u64 = 3 << 32;
const CLOSE: u64 = 4 << 32;

struct Conn {
    fd: RawFd,
    missing: usize,
    buffer: Vec<u8>,
    sent_at: Instant,
}

pub fn run(addr: &Addr, options: &Options) -> io::Result<Outcome> {
    let mut ring: IoUring = IoUring::builder()
        .setup_cqsize(4096)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(1024)?;
    let addr = addr.to_sockaddr()?;
    let message = vec![b'x'; options.size];
    let (start, mut opened) = (Instant::now(), connect::first_source());
    let mut outcome = Outcome { requests: 0, elapsed: Duration::ZERO, latencies_us: Vec::new() };
    let closed = |_| Conn { fd: -1, missing: 0, buffer: vec![0; options.size], sent_at: start };
    let mut conns: Vec<Conn> = (0..options.conns).map(closed).collect();
    for index in 0..conns.len() {
        push(&mut ring, socket(&addr, index as u64));
    }
    let end = start + Duration::from_secs_f64(options.seconds);
    let mut batch = Vec::with_capacity(4096);
    while Instant::now() < end {
        ring.submit_and_wait(1)?;
        batch.clear();
        batch.extend(ring.completion());
        for entry in &batch {
            let (step, index) =
                (entry.user_data() & !u64::from(u32::MAX), entry.user_data() & u64::from(u32::MAX));
            if entry.result() < 0 {
                return Err(io::Error::from_raw_os_error(-entry.result()));
            }
            let conn = &mut conns[index as usize];
            match step {
                SOCKET => {
                    (conn.fd, conn.missing, conn.sent_at) =
                        (entry.result(), options.size, Instant::now());
                    connect::set_up(conn.fd, &mut opened)?;
                    let fd = types::Fd(conn.fd);
                    let connect =
                        opcode::Connect::new(fd, addr.as_ptr().cast(), addr.len()).build();
                    let link = if options.unlinked { Flags::empty() } else { Flags::IO_LINK };
                    push(&mut ring, connect.flags(link).user_data(CONNECT | index));
                    if !options.unlinked {
                        push_send(&mut ring, conn, index, &message, options);
                    }
                }
                CONNECT if options.unlinked => push_send(&mut ring, conn, index, &message, options),
                SEND if !options.early_receive => push(&mut ring, recv(conn, index)),
                CONNECT | SEND => {}
                RECV => {
                    conn.missing = conn.missing.saturating_sub(entry.result() as usize);
                    if conn.missing > 0 && entry.result() > 0 {
                        push(&mut ring, recv(conn, index));
                        continue;
                    }
                    outcome.requests += 1;
                    outcome.latencies_us.push(conn.sent_at.elapsed().as_micros() as u32);
                    push(
                        &mut ring,
                        opcode::Close::new(types::Fd(conn.fd)).build().user_data(CLOSE | index),
                    );
                    push(&mut ring, socket(&addr, index));
                }
                _ => {}
            }
        }
    }
    outcome.elapsed = start.elapsed();
    // SQEs in flight point to this memory, which must live until the process ends.
    std::mem::forget((conns, message, addr));
    Ok(outcome)
}

fn socket(addr: &socket2::SockAddr, index: u64) -> Entry {
    let (domain, kind) = (i32::from(addr.domain()), libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
    opcode::Socket::new(domain, kind, 0).build().user_data(SOCKET | index)
}

fn push_send(ring: &mut IoUring, conn: &mut Conn, index: u64, message: &[u8], options: &Options) {
    let send = opcode::Send::new(types::Fd(conn.fd), message.as_ptr(), message.len() as u32)
        .flags(libc::MSG_NOSIGNAL);
    let link = if options.early_receive { Flags::IO_LINK } else { Flags::empty() };
    push(ring, send.build().flags(link).user_data(SEND | index));
    if options.early_receive {
        push(ring, recv(conn, index));
    }
}

fn recv(conn: &mut Conn, index: u64) -> Entry {
    let (start, len) = (conn.buffer.as_mut_ptr(), conn.buffer.len() as u32);
    opcode::Recv::new(types::Fd(conn.fd), start, len).build().user_data(RECV | index)
}
