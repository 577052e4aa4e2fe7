//! The bare ring: an echo server on io_uring without a library, as fast as the interface allows. It
//! has no limits, flow control, deadlines or reports. By default it uses what is fastest:
//! SINGLE_ISSUER and DEFER_TASKRUN, multishot accept and receive, provided buffers, one gathered
//! send per connection and turn. Options change each technique, to measure it.

use super::ring_options::{Receive, Send, Setup};
use crate::bufring::{Buffers, GROUP, Piece};
use crate::sys::{self, Addr};

pub use super::ring_options::Options;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

const GATHER_MAX: usize = 64;
const DIRECT_MAX: u32 = 19_000;
const POLL_FIRST: u16 = 1;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 2;
const ENTER_EXT_ARG: u32 = 8;
const ENTER_REGISTERED_RING: u32 = 16;

const ACCEPT: u64 = 0;
const RECV: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
const CLOSE: u64 = 3 << 32;

#[derive(Default)]
struct Conn {
    open: bool,
    receiving: bool,
    sending: bool,
    ended: bool,
    /// Its receive found no provided buffer.
    starved: bool,
    /// Listed in `Server::dirty`.
    dirty: bool,
    /// How many notifications of zero-copy sends have not come.
    notifications: u32,
    pieces: Vec<Piece>,
    in_flight: usize,
    /// Pieces that were sent and wait for their notification.
    held: Vec<Piece>,
    own: Vec<u8>,
    iovecs: Vec<libc::iovec>,
    header: Option<Box<libc::msghdr>>,
}

struct Server {
    uring: IoUring,
    options: Options,
    fd: RawFd,
    flags: u32,
    listener: RawFd,
    buffers: Buffers,
    conns: Vec<Conn>,
    /// Connections that may have something to start.
    dirty: Vec<u32>,
    starved: Vec<u32>,
    /// The last wait returned no completion, so the next one does not wait for more than one.
    quiet: bool,
}

pub fn serve(addr: &Addr, options: &Options) -> io::Result<()> {
    if options.direct && options.send == Send::Call {
        return Err(io::Error::other(
            "--send call needs descriptors of the process: leave --direct out",
        ));
    }
    let listener = sys::listen(addr, false)?;
    let mut server = Server::new(listener.as_raw_fd(), options.clone())?;
    sys::announce(&listener, "bare ring")?;
    server.arm_accept();
    let mut batch = Vec::with_capacity(4096);
    loop {
        server.flush();
        server.wait()?;
        batch.clear();
        batch.extend(server.uring.completion());
        server.quiet = batch.is_empty();
        for entry in &batch {
            server.handle(entry)?;
        }
    }
}

impl Server {
    fn new(listener: RawFd, options: Options) -> io::Result<Server> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(16_384).setup_clamp();
        match options.setup {
            Setup::Defer => drop(builder.setup_single_issuer().setup_defer_taskrun()),
            Setup::Coop => drop(builder.setup_coop_taskrun().setup_taskrun_flag()),
            Setup::Sqpoll => drop(builder.setup_sqpoll(20).setup_single_issuer()),
            Setup::None => {}
        }
        let uring: IoUring = builder.build(4096)?;
        let mut buffers = Buffers::new(options.buffers, options.buffer_size as usize);
        if options.receive != Receive::Own {
            buffers.register(&uring, options.incremental)?;
        }
        if options.direct {
            uring.submitter().register_files_sparse(DIRECT_MAX)?;
        }
        let (mut fd, mut flags) = (uring.as_raw_fd(), ENTER_GETEVENTS);
        if options.registered_fd {
            (fd, flags) = (register_ring_fd(fd)?, flags | ENTER_REGISTERED_RING);
        }
        Ok(Server {
            uring,
            options,
            fd,
            flags,
            listener,
            buffers,
            conns: Vec::new(),
            dirty: Vec::new(),
            starved: Vec::new(),
            quiet: true,
        })
    }

    fn push(&mut self, entry: Entry) {
        // SAFETY: buffers live until the process ends; pieces and headers until the completion.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.enter(0).expect("a full queue can be submitted");
        }
    }

    fn enter(&mut self, wait_for: u32) -> io::Result<()> {
        #[repr(C)]
        struct Argument {
            sigmask: u64,
            sigmask_bytes: u32,
            min_wait_us: u32,
            timespec: u64,
        }
        let (staged, wakeup) = {
            let queue = self.uring.submission();
            let wakeup = self.options.setup == Setup::Sqpoll && queue.need_wakeup();
            (queue.len(), if wakeup { ENTER_SQ_WAKEUP } else { 0 })
        };
        let argument = Argument {
            sigmask: 0,
            sigmask_bytes: 8,
            min_wait_us: self.options.min_wait,
            timespec: 0,
        };
        let min_wait = if self.quiet { 0 } else { self.options.min_wait };
        let (flags, pointer, bytes) = match min_wait {
            0 => (0, std::ptr::null(), 8),
            _ => (ENTER_EXT_ARG, std::ptr::from_ref(&argument), size_of::<Argument>()),
        };
        let wait_for = if wait_for > 0 && min_wait > 0 { 16 } else { wait_for };
        // SAFETY: the argument outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd,
                staged as u32,
                wait_for,
                self.flags | flags | wakeup,
                pointer,
                bytes,
            )
        };
        match sys::check(result as isize) {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EBUSY | libc::ETIME)
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        self.buffers.publish();
        if self.options.spin > 0 {
            let end = std::time::Instant::now()
                + std::time::Duration::from_micros(self.options.spin.into());
            loop {
                self.enter(0)?;
                if !self.uring.completion().is_empty() {
                    return Ok(());
                }
                if std::time::Instant::now() >= end {
                    break;
                }
            }
        }
        // After a send by sendmsg(2) there is more to start, so it does not wait.
        self.enter(u32::from(self.dirty.is_empty()))
    }

    fn arm_accept(&mut self) {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener))
            .allocate_file_index(self.options.direct);
        // The kernel refuses the flag for direct descriptors, which no exec inherits.
        let flags = if self.options.direct { 0 } else { libc::SOCK_CLOEXEC };
        self.push(entry.flags(flags).build().user_data(ACCEPT));
    }

    /// Pushes an SQE for a connection, by descriptor or by direct descriptor.
    fn push_for(&mut self, index: u32, data: u64, make: impl Fn(types::Fd) -> Entry) {
        let mut entry = make(types::Fd(index as RawFd)).user_data(data | u64::from(index));
        if self.options.direct {
            entry = entry.flags(Flags::FIXED_FILE);
        }
        self.push(entry);
    }

    fn arm_recv(&mut self, index: u32) {
        let options = &self.options;
        let (receive, bundle) = (options.receive, options.bundle);
        let flags = if options.poll_first { POLL_FIRST } else { 0 };
        let conn = &mut self.conns[index as usize];
        conn.receiving = true;
        if receive == Receive::Own {
            conn.own.resize(options.buffer_size as usize, 0);
        }
        let (start, len) = (conn.own.as_mut_ptr(), self.options.buffer_size);
        self.push_for(index, RECV, |fd| match receive {
            Receive::Multishot if bundle => opcode::RecvMultiBundle::new(fd, GROUP).build(),
            Receive::Multishot => opcode::RecvMulti::new(fd, GROUP).build(),
            Receive::Select => opcode::Recv::new(fd, std::ptr::null_mut(), len)
                .buf_group(GROUP)
                .ioprio(flags)
                .build()
                .flags(Flags::BUFFER_SELECT),
            Receive::Own => opcode::Recv::new(fd, start, len).ioprio(flags).build(),
        });
    }

    fn handle(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
        let (kind, index) = (entry.user_data() & !u64::from(u32::MAX), entry.user_data() as u32);
        let (result, more) = (entry.result(), cqueue::more(entry.flags()));
        match kind {
            ACCEPT => {
                if result >= 0 {
                    let index = result as usize;
                    if self.conns.len() <= index {
                        self.conns.resize_with(index + 1, Conn::default);
                    }
                    self.conns[index] = Conn { open: true, ..Conn::default() };
                    self.arm_recv(index as u32);
                }
                if !more {
                    self.arm_accept();
                }
            }
            RECV => self.received(index, entry),
            SEND => self.sent(index, entry),
            _ => self.conns[index as usize].open = false,
        }
        Ok(())
    }

    fn received(&mut self, index: u32, entry: &cqueue::Entry) {
        let result = entry.result();
        let conn = &mut self.conns[index as usize];
        conn.receiving = cqueue::more(entry.flags());
        match (cqueue::buffer_select(entry.flags()), result) {
            (Some(buffer), 1..) => {
                self.buffers.add_pieces(
                    buffer,
                    result as usize,
                    cqueue::buffer_more(entry.flags()),
                    &mut conn.pieces,
                );
            }
            (Some(buffer), _) if !cqueue::buffer_more(entry.flags()) => {
                self.buffers.end_claim(buffer)
            }
            (None, 1..) => conn.pieces.push(Piece {
                start: conn.own.as_ptr(),
                len: result as usize,
                buffer: u16::MAX,
            }),
            (_, _) if result == -libc::ENOBUFS => {
                conn.starved = true;
                self.starved.push(index);
            }
            _ => conn.ended = true,
        }
        self.mark(index);
    }

    fn sent(&mut self, index: u32, entry: &cqueue::Entry) {
        let conn = &mut self.conns[index as usize];
        if cqueue::notif(entry.flags()) {
            conn.notifications -= 1;
            if conn.notifications == 0 {
                for piece in std::mem::take(&mut conn.held) {
                    self.buffers.end_claim(piece.buffer);
                }
            }
            return self.mark(index);
        }
        conn.notifications += u32::from(cqueue::more(entry.flags()));
        self.send_completed(index, entry.result());
    }

    fn send_completed(&mut self, index: u32, result: i32) {
        let conn = &mut self.conns[index as usize];
        (conn.sending, conn.in_flight) = (false, 0);
        conn.ended |= result < 0;
        let mut sent = result.max(0) as usize;
        let mut done = 0;
        while let Some(piece) = conn.pieces.get_mut(done) {
            if piece.len > sent {
                // SAFETY: within the piece.
                piece.start = unsafe { piece.start.add(sent) };
                piece.len -= sent;
                break;
            }
            sent -= piece.len;
            done += 1;
        }
        for piece in conn.pieces.drain(..done) {
            match piece.buffer {
                u16::MAX => {}
                _ if conn.notifications > 0 => conn.held.push(piece),
                buffer => self.buffers.end_claim(buffer),
            }
        }
        self.mark(index);
    }

    fn mark(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        if !std::mem::replace(&mut conn.dirty, true) {
            self.dirty.push(index);
        }
    }

    /// Starts the operations that the last turn made possible.
    fn flush(&mut self) {
        for index in std::mem::take(&mut self.starved) {
            self.conns[index as usize].starved = false;
            self.mark(index);
        }
        for index in std::mem::take(&mut self.dirty) {
            let conn = &mut self.conns[index as usize];
            conn.dirty = false;
            if !conn.sending && !conn.pieces.is_empty() && !conn.ended {
                self.start_send(index);
            }
            let receive = self.options.receive;
            let conn = &mut self.conns[index as usize];
            let own_busy = receive == Receive::Own && !conn.pieces.is_empty();
            if conn.open && !conn.ended && !conn.receiving && !conn.starved && !own_busy {
                self.arm_recv(index);
            } else if conn.open && conn.ended && !conn.sending && conn.notifications == 0 {
                self.close(index);
            }
        }
    }

    fn start_send(&mut self, index: u32) {
        let mode = self.options.send;
        let pieces_max = if mode == Send::Single { 1 } else { GATHER_MAX };
        let conn = &mut self.conns[index as usize];
        conn.sending = true;
        conn.in_flight = conn.pieces.len().min(pieces_max);
        let piece = conn.pieces[0];
        if conn.in_flight == 1 && matches!(mode, Send::Single | Send::Gathered) {
            return self.push_for(index, SEND, |fd| {
                opcode::Send::new(fd, piece.start, piece.len as u32)
                    .flags(libc::MSG_NOSIGNAL)
                    .build()
            });
        }
        conn.iovecs.clear();
        let list = |piece: &Piece| libc::iovec {
            iov_base: piece.start.cast_mut().cast(),
            iov_len: piece.len,
        };
        conn.iovecs.extend(conn.pieces[..conn.in_flight].iter().map(list));
        // SAFETY: zero is a valid msghdr.
        let header = conn.header.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }));
        (header.msg_iov, header.msg_iovlen) = (conn.iovecs.as_mut_ptr(), conn.iovecs.len() as _);
        let header: *const libc::msghdr = &**header;
        let flags = libc::MSG_NOSIGNAL;
        match mode {
            Send::ZeroCopy => self.push_for(index, SEND, |fd| {
                opcode::SendMsgZc::new(fd, header).flags(flags as u32).build()
            }),
            Send::Call => {
                // SAFETY: the header and its iovecs outlive the call.
                let result =
                    unsafe { libc::sendmsg(index as RawFd, header, flags | libc::MSG_DONTWAIT) };
                match sys::check(result) {
                    Ok(sent) => self.send_completed(index, sent as i32),
                    // The socket is full: an SQE waits for it.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.push_for(index, SEND, |fd| {
                            opcode::SendMsg::new(fd, header).flags(flags as u32).build()
                        });
                    }
                    Err(_) => self.send_completed(index, -1),
                }
            }
            _ => self.push_for(index, SEND, |fd| {
                opcode::SendMsg::new(fd, header).flags(flags as u32).build()
            }),
        }
    }

    fn close(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        conn.open = false;
        for piece in std::mem::take(&mut conn.pieces) {
            if piece.buffer != u16::MAX {
                self.buffers.end_claim(piece.buffer);
            }
        }
        let entry = match self.options.direct {
            true => opcode::Close::new(types::Fixed(index)).build(),
            false => opcode::Close::new(types::Fd(index as RawFd)).build(),
        };
        self.push(entry.user_data(CLOSE | u64::from(index)));
    }
}

/// IORING_REGISTER_RING_FDS: returns the index of the registered descriptor.
fn register_ring_fd(fd: RawFd) -> io::Result<RawFd> {
    const REGISTER_RING_FDS: u32 = 20;
    #[repr(C)]
    struct Update {
        offset: u32,
        reserved: u32,
        data: u64,
    }
    let mut update = Update { offset: u32::MAX, reserved: 0, data: fd as u64 };
    let (call, pointer) = (libc::SYS_io_uring_register, std::ptr::from_mut(&mut update));
    // SAFETY: the update outlives the call.
    sys::check(unsafe { libc::syscall(call, fd, REGISTER_RING_FDS, pointer, 1) } as isize)?;
    Ok(update.offset as RawFd)
}
