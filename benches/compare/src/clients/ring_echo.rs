//! Connections that ask again when they were answered, on a bare ring: SINGLE_ISSUER and
//! DEFER_TASKRUN, one multishot receive a connection, one SEND a request; a turn receives all that
//! there is, and then asks. The floor of what the interface allows for the echo workload.

use super::{Options, Outcome, push};
use crate::bufring::{Buffers, GROUP};
use crate::sys::Addr;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const RECV: u64 = 0;
const SEND: u64 = 1 << 32;
const BUFFERS: u16 = 1024;

struct Conn {
    socket: socket2::Socket,
    missing: usize,
    asked_at: Instant,
    /// Requests that were answered in this turn.
    owed: usize,
}

pub fn run(addr: &Addr, options: &Options) -> io::Result<Outcome> {
    let mut ring: IoUring = IoUring::builder()
        .setup_cqsize(16_384)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(4096)?;
    let mut buffers = Buffers::new(BUFFERS, 4096);
    buffers.register(&ring, false)?;
    let addr = addr.to_sockaddr()?;
    let message = vec![b'x'; options.size];
    let start = Instant::now();
    let mut conns = Vec::with_capacity(options.conns);
    for index in 0..options.conns {
        let socket = socket2::Socket::new(addr.domain(), socket2::Type::STREAM, None)?;
        if !addr.is_unix() {
            socket.set_tcp_nodelay(true)?;
        }
        socket.connect(&addr)?;
        conns.push(Conn { socket, missing: options.size, asked_at: start, owed: options.depth });
        push(&mut ring, receive(&conns[index], index));
    }
    let mut asking: Vec<usize> = (0..options.conns).collect();
    let mut outcome = Outcome { requests: 0, elapsed: Duration::ZERO, latencies_us: Vec::new() };
    let (mut batch, mut pieces) = (Vec::with_capacity(16_384), Vec::new());
    let end = start + Duration::from_secs_f64(options.seconds);
    let mut now = start;
    while now < end {
        for index in asking.drain(..) {
            let conn = &mut conns[index];
            conn.asked_at = now;
            for _ in 0..std::mem::take(&mut conn.owed) {
                let fd = types::Fd(conn.socket.as_raw_fd());
                let send = opcode::Send::new(fd, message.as_ptr(), message.len() as u32)
                    .flags(libc::MSG_NOSIGNAL);
                push(&mut ring, send.build().user_data(SEND | index as u64));
            }
        }
        buffers.publish();
        ring.submit_and_wait(1)?;
        now = Instant::now();
        batch.clear();
        batch.extend(ring.completion());
        for entry in &batch {
            let (result, index) = (entry.result(), entry.user_data() as u32 as usize);
            if entry.user_data() & SEND != 0 {
                if result < options.size as i32 {
                    return Err(io::Error::other(format!("a request was cut short: {result}")));
                }
                continue;
            }
            if !cqueue::more(entry.flags()) {
                push(&mut ring, receive(&conns[index], index));
            }
            let Some(buffer) = cqueue::buffer_select(entry.flags()) else {
                match -result {
                    libc::ENOBUFS => continue,
                    0 => return Err(io::Error::other("the server closed a connection")),
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
            };
            buffers.take(buffer, result as usize, false, &mut pieces);
            pieces.drain(..).for_each(|piece| buffers.end_claim(piece.buffer));
            let (conn, mut len) = (&mut conns[index], result as usize);
            while len >= conn.missing {
                len -= conn.missing;
                (conn.missing, conn.owed) = (options.size, conn.owed + 1);
                outcome.requests += 1;
                outcome.latencies_us.push((now - conn.asked_at).as_micros() as u32);
            }
            conn.missing -= len;
            if conn.owed > 0 {
                asking.push(index);
            }
        }
        asking.dedup();
    }
    outcome.elapsed = start.elapsed();
    conns.iter().for_each(|conn| drop(conn.socket.set_linger(Some(Duration::ZERO))));
    // Entries in flight name memory of this frame: the process ends with them.
    std::mem::forget((message, buffers));
    Ok(outcome)
}

fn receive(conn: &Conn, index: usize) -> Entry {
    opcode::RecvMulti::new(types::Fd(conn.socket.as_raw_fd()), GROUP)
        .build()
        .user_data(RECV | index as u64)
}
