//! The bare ring: an echo server that speaks to io_uring alone, as fast as the interface allows,
//! without what a library owes its users (limits, flow control, deadlines, reports). By default
//! what pays: SINGLE_ISSUER and DEFER_TASKRUN, multishot accept and receive, a ring of provided
//! buffers, one gathered send per connection and turn. Each technique can be switched, to measure
//! it.

use crate::bufring::{Buffers, GROUP, Piece};
use crate::sys::{self, Addr};
use clap::{Args, ValueEnum};
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// SINGLE_ISSUER and DEFER_TASKRUN
    Defer,
    /// COOP_TASKRUN and TASKRUN_FLAG
    Coop,
    /// No setup flags
    None,
    /// SQPOLL, the kernel's thread on the server's core
    Sqpoll,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// One entry for many receives
    Multishot,
    /// One entry a receive, the kernel picks a provided buffer
    Select,
    /// One entry a receive, into a buffer of the connection's own
    Own,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// All that a turn received on a connection in one SENDMSG
    Gathered,
    /// A SEND for each received piece, one after the other
    Single,
    /// As `gathered`, by SENDMSG_ZC
    ZeroCopy,
    /// As `gathered`, by sendmsg(2) instead of an entry
    Call,
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long, value_enum, default_value = "defer")]
    pub setup: Setup,
    #[arg(long, value_enum, default_value = "multishot")]
    pub receive: Receive,
    #[arg(long, value_enum, default_value = "gathered")]
    pub send: Send,
    /// Provided buffers, a power of two
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(2..=32_768))]
    pub buffers: u16,
    /// Bytes of each provided buffer, or of a connection's own
    #[arg(
        long, default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(64..=16 << 20)
    )]
    pub buffer_size: u32,
    /// Buffers are consumed piece by piece (6.12)
    #[arg(long)]
    pub incremental: bool,
    /// A receive may take several buffers (6.10)
    #[arg(long)]
    pub bundle: bool,
    /// Direct descriptors
    #[arg(long)]
    pub direct: bool,
    /// The ring's own descriptor is registered
    #[arg(long)]
    pub registered_fd: bool,
    /// IORING_RECVSEND_POLL_FIRST, on single receives
    #[arg(long)]
    pub poll_first: bool,
    /// Waits go on for so many microseconds while fewer than 16 completions are there (6.12)
    #[arg(long, default_value_t = 0)]
    pub min_wait: u32,
    /// Looks for completions so many microseconds before it sleeps
    #[arg(long, default_value_t = 0)]
    pub spin: u32,
}

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
    starved: bool,
    dirty: bool,
    /// Notifications of zero-copy sends that are still to come.
    notices: u32,
    pieces: Vec<Piece>,
    in_flight: usize,
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
    dirty: Vec<u32>,
    starved: Vec<u32>,
    /// The last wait brought nothing: then no more time is spent on waiting for company.
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
            server.finish(entry)?;
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
        // SAFETY: buffers are kept until the process ends; pieces and headers until the completion.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.enter(0).expect("a full queue can be submitted");
        }
    }

    fn enter(&mut self, want: u32) -> io::Result<()> {
        #[repr(C)]
        struct Argument {
            sigmask: u64,
            sigmask_bytes: u32,
            min_wait_us: u32,
            timespec: u64,
        }
        let staged = {
            let queue = self.uring.submission();
            let wakes = self.options.setup == Setup::Sqpoll && queue.need_wakeup();
            (queue.len(), if wakes { ENTER_SQ_WAKEUP } else { 0 })
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
        let want = if want > 0 && min_wait > 0 { 16 } else { want };
        // SAFETY: the argument lives through the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd,
                staged.0 as u32,
                want,
                self.flags | flags | staged.1,
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
        // What a call took at once leaves more to do at once.
        self.enter(u32::from(self.dirty.is_empty()))
    }

    fn arm_accept(&mut self) {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener))
            .allocate_file_index(self.options.direct);
        // The kernel refuses the flag for direct descriptors, which no exec inherits.
        let flags = if self.options.direct { 0 } else { libc::SOCK_CLOEXEC };
        self.push(entry.flags(flags).build().user_data(ACCEPT));
    }

    /// An entry that names a connection, by descriptor or by index.
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

    fn finish(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
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
                self.buffers.take(
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
            conn.notices -= 1;
            if conn.notices == 0 {
                for piece in std::mem::take(&mut conn.held) {
                    self.buffers.end_claim(piece.buffer);
                }
            }
            return self.mark(index);
        }
        conn.notices += u32::from(cqueue::more(entry.flags()));
        self.took(index, entry.result());
    }

    fn took(&mut self, index: u32, result: i32) {
        let conn = &mut self.conns[index as usize];
        (conn.sending, conn.in_flight) = (false, 0);
        conn.ended |= result < 0;
        let mut taken = result.max(0) as usize;
        let mut done = 0;
        while let Some(piece) = conn.pieces.get_mut(done) {
            if piece.len > taken {
                // SAFETY: within the piece.
                piece.start = unsafe { piece.start.add(taken) };
                piece.len -= taken;
                break;
            }
            taken -= piece.len;
            done += 1;
        }
        for piece in conn.pieces.drain(..done) {
            match piece.buffer {
                u16::MAX => {}
                _ if conn.notices > 0 => conn.held.push(piece),
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

    /// Starts what the last turn made possible.
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
            } else if conn.open && conn.ended && !conn.sending && conn.notices == 0 {
                self.close(index);
            }
        }
    }

    fn start_send(&mut self, index: u32) {
        let mode = self.options.send;
        let most = if mode == Send::Single { 1 } else { GATHER_MAX };
        let conn = &mut self.conns[index as usize];
        conn.sending = true;
        conn.in_flight = conn.pieces.len().min(most);
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
                // SAFETY: the header and what it names live through the call.
                let result =
                    unsafe { libc::sendmsg(index as RawFd, header, flags | libc::MSG_DONTWAIT) };
                match sys::check(result) {
                    Ok(sent) => self.took(index, sent as i32),
                    // The socket is full: an entry waits for it.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.push_for(index, SEND, |fd| {
                            opcode::SendMsg::new(fd, header).flags(flags as u32).build()
                        });
                    }
                    Err(_) => self.took(index, -1),
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

/// IORING_REGISTER_RING_FDS: returns the index that stands for the descriptor.
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
    // SAFETY: the update lives through the call.
    sys::check(unsafe { libc::syscall(call, fd, REGISTER_RING_FDS, pointer, 1) } as isize)?;
    Ok(update.offset as RawFd)
}
