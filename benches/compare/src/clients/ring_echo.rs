//! Connections that send a request for each response, on a bare ring: SINGLE_ISSUER and
//! DEFER_TASKRUN, one multishot receive per connection, one SEND per request. A turn handles all
//! completions, then sends. It is the lower bound of the echo workload on io_uring.

use super::{Options, Outcome, push};
use crate::bufring::{Buffers, GROUP, Piece};
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
    sent_at: Instant,
    /// How many requests the next turn sends.
    to_send: usize,
}

pub fn run(addr: &Addr, options: &Options) -> io::Result<Outcome> {
    let mut client = Client::connect(addr, options)?;
    let end = client.now + Duration::from_secs_f64(options.seconds);
    let (start, mut batch) = (client.now, Vec::with_capacity(16_384));
    while client.now < end {
        client.send_requests();
        client.buffers.publish();
        client.ring.submit_and_wait(1)?;
        client.now = Instant::now();
        batch.clear();
        batch.extend(client.ring.completion());
        for entry in &batch {
            client.handle(entry)?;
        }
        client.to_send.dedup();
    }
    client.outcome.elapsed = start.elapsed();
    let Client { conns, outcome, message, buffers, .. } = client;
    conns.iter().for_each(|conn| drop(conn.socket.set_linger(Some(Duration::ZERO))));
    // SQEs in flight point to this memory, which must live until the process ends.
    std::mem::forget((message, buffers));
    Ok(outcome)
}

struct Client {
    ring: IoUring,
    buffers: Buffers,
    conns: Vec<Conn>,
    /// Connections with requests to send.
    to_send: Vec<usize>,
    message: Vec<u8>,
    pieces: Vec<Piece>,
    now: Instant,
    outcome: Outcome,
}

impl Client {
    fn connect(addr: &Addr, options: &Options) -> io::Result<Client> {
        let mut ring: IoUring = IoUring::builder()
            .setup_cqsize(16_384)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(4096)?;
        let mut buffers = Buffers::new(BUFFERS, 4096);
        buffers.register(&ring, false)?;
        let (addr, now) = (addr.to_sockaddr()?, Instant::now());
        let mut conns = Vec::with_capacity(options.conns);
        for index in 0..options.conns {
            let socket = socket2::Socket::new(addr.domain(), socket2::Type::STREAM, None)?;
            if !addr.is_unix() {
                socket.set_tcp_nodelay(true)?;
            }
            socket.connect(&addr)?;
            conns.push(Conn {
                socket,
                missing: options.size,
                sent_at: now,
                to_send: options.depth,
            });
            push(&mut ring, receive(&conns[index], index));
        }
        Ok(Client {
            ring,
            buffers,
            conns,
            to_send: (0..options.conns).collect(),
            message: vec![b'x'; options.size],
            pieces: Vec::new(),
            now,
            outcome: Outcome { requests: 0, elapsed: Duration::ZERO, latencies_us: Vec::new() },
        })
    }

    fn send_requests(&mut self) {
        for index in self.to_send.drain(..) {
            let conn = &mut self.conns[index];
            conn.sent_at = self.now;
            for _ in 0..std::mem::take(&mut conn.to_send) {
                let (fd, message) = (types::Fd(conn.socket.as_raw_fd()), &self.message);
                let send = opcode::Send::new(fd, message.as_ptr(), message.len() as u32)
                    .flags(libc::MSG_NOSIGNAL);
                push(&mut self.ring, send.build().user_data(SEND | index as u64));
            }
        }
    }

    fn handle(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
        let (result, index) = (entry.result(), entry.user_data() as u32 as usize);
        let size = self.message.len();
        if entry.user_data() & SEND != 0 {
            return match result < size as i32 {
                true => Err(io::Error::other(format!("a request was cut short: {result}"))),
                false => Ok(()),
            };
        }
        if !cqueue::more(entry.flags()) {
            push(&mut self.ring, receive(&self.conns[index], index));
        }
        let Some(buffer) = cqueue::buffer_select(entry.flags()) else {
            return match -result {
                libc::ENOBUFS => Ok(()),
                0 => Err(io::Error::other("the server closed a connection")),
                errno => Err(io::Error::from_raw_os_error(errno)),
            };
        };
        self.buffers.add_pieces(buffer, result as usize, false, &mut self.pieces);
        self.pieces.drain(..).for_each(|piece| self.buffers.end_claim(piece.buffer));
        let (conn, mut len) = (&mut self.conns[index], result as usize);
        while len >= conn.missing {
            len -= conn.missing;
            (conn.missing, conn.to_send) = (size, conn.to_send + 1);
            self.outcome.requests += 1;
            self.outcome.latencies_us.push((self.now - conn.sent_at).as_micros() as u32);
        }
        conn.missing -= len;
        if conn.to_send > 0 {
            self.to_send.push(index);
        }
        Ok(())
    }
}

fn receive(conn: &Conn, index: usize) -> Entry {
    opcode::RecvMulti::new(types::Fd(conn.socket.as_raw_fd()), GROUP)
        .build()
        .user_data(RECV | index as u64)
}
