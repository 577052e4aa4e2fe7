//! The system calls that the hand-written loops and the load make: thin, without policy. Sockets
//! are plain descriptors here, so that nothing stands between a loop and the kernel.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A TCP address or the path of a unix socket.
#[derive(Clone, Debug)]
pub enum Addr {
    Tcp(SocketAddr),
    Unix(String),
}

impl std::str::FromStr for Addr {
    type Err = String;

    fn from_str(text: &str) -> Result<Addr, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Addr::Unix(path.to_owned())),
            None => text.parse().map(Addr::Tcp).map_err(|error| format!("{text}: {error}")),
        }
    }
}

impl std::fmt::Display for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Addr::Tcp(addr) => addr.fmt(f),
            Addr::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl Addr {
    pub fn to_sockaddr(&self) -> io::Result<socket2::SockAddr> {
        match self {
            Addr::Tcp(addr) => Ok((*addr).into()),
            Addr::Unix(path) => socket2::SockAddr::unix(path),
        }
    }

    /// The address, if it is one of TCP: what most peers can listen on.
    pub fn tcp(&self) -> io::Result<SocketAddr> {
        match self {
            Addr::Tcp(addr) => Ok(*addr),
            Addr::Unix(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this server listens on TCP only"))
            }
        }
    }
}

pub const BACKLOG: i32 = 4096;

pub fn listen(addr: &Addr, nonblocking: bool) -> io::Result<socket2::Socket> {
    let addr = addr.to_sockaddr()?;
    let socket = socket2::Socket::new(addr.domain(), socket2::Type::STREAM, None)?;
    if !addr.is_unix() {
        socket.set_reuse_address(true)?;
        // Inherited by what is accepted.
        socket.set_tcp_nodelay(true)?;
    }
    socket.bind(&addr)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(nonblocking)?;
    Ok(socket)
}

/// Says where a server listens, the way `echo_server` does.
pub fn announce(socket: &socket2::Socket, name: &str) -> io::Result<()> {
    let addr = socket.local_addr()?;
    match (addr.as_socket(), addr.as_pathname()) {
        (Some(addr), _) => announce_as(&addr, name),
        (None, Some(path)) => announce_as(&format_args!("unix:{}", path.display()), name),
        (None, None) => announce_as(&"nowhere", name),
    }
    Ok(())
}

pub fn announce_as(addr: &dyn std::fmt::Display, name: &str) {
    println!("listening on {addr} {name}");
}

/// Zero bytes is the end of the stream.
pub fn recv(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is writable for its length.
    check(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) })
}

pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes are readable for their length.
    check(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

pub fn accept(fd: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no address is asked for.
    let fd =
        check(unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags) }
            as isize)?;
    // SAFETY: accept4 just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is involved.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } as isize)?;
        // SAFETY: epoll_create1 just made it, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        Ok(Epoll { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 1024] })
    }

    pub fn control(&self, operation: i32, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event lives through the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &mut event) } as isize)
            .map(drop)
    }

    pub fn add(&self, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    /// Waits; `None` for ever.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[libc::epoll_event]> {
        use std::os::fd::AsRawFd;
        let timeout = timeout.map_or(-1, |timeout| timeout.as_millis() as i32);
        let fd = self.fd.as_raw_fd();
        let (events, room) = (self.events.as_mut_ptr(), self.events.len() as i32);
        // SAFETY: there is room for so many events.
        match check(unsafe { libc::epoll_wait(fd, events, room, timeout) } as isize) {
            Ok(count) => Ok(&self.events[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
            Err(error) => Err(error),
        }
    }
}

/// Runs the calling process on one core from now on.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t of zeros is the empty set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        check(libc::sched_setaffinity(0, size_of_val(&set), &set) as isize).map(drop)
    }
}

/// CPU time of a process, all its threads, user and system, in nanoseconds.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    // SAFETY: both calls write only to the variables given.
    unsafe {
        let mut clock = 0;
        let errno = libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock);
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut time: libc::timespec = std::mem::zeroed();
        check(libc::clock_gettime(clock, &mut time) as isize)?;
        Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}

/// As many descriptors as the hard limit allows.
pub fn raise_descriptor_limit() -> u64 {
    // SAFETY: both calls get a valid rlimit.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        limit.rlim_cur
    }
}
