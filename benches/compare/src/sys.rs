//! The system calls of the hand-written loops and of the load, as thin wrappers. Sockets are plain
//! descriptors, so that the loops cost no more than their system calls.

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

    /// The TCP address. Most other engines listen on TCP only.
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
        // Accepted sockets inherit it.
        socket.set_tcp_nodelay(true)?;
    }
    socket.bind(&addr)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(nonblocking)?;
    Ok(socket)
}

/// Prints the address of a server, as `echo_server` does.
pub fn announce(socket: &socket2::Socket, name: &str) -> io::Result<()> {
    let addr = socket.local_addr()?;
    match (addr.as_socket(), addr.as_pathname()) {
        (Some(addr), _) => announce_as(&addr, name),
        (None, Some(path)) => announce_as(&format_args!("unix:{}", path.display()), name),
        (None, None) => announce_as(&"an unknown address", name),
    }
    Ok(())
}

pub fn announce_as(addr: &dyn std::fmt::Display, name: &str) {
    println!("listening on {addr} {name}");
}

/// recv(2); zero bytes are the end of the stream.
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
    // SAFETY: null pointers: the address of the peer is not requested.
    let fd =
        check(unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags) }
            as isize)?;
    // SAFETY: accept4 returned a new descriptor, which nothing else owns.
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
        // SAFETY: takes no pointer.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } as isize)?;
        // SAFETY: epoll_create1 returned a new descriptor, which nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        Ok(Epoll { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 1024] })
    }

    pub fn control(&self, operation: i32, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event outlives the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &mut event) } as isize)
            .map(drop)
    }

    pub fn add(&self, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    /// epoll_wait(2); `None` waits without a limit.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[libc::epoll_event]> {
        use std::os::fd::AsRawFd;
        let timeout = timeout.map_or(-1, |timeout| timeout.as_millis() as i32);
        let (fd, events, len) =
            (self.fd.as_raw_fd(), self.events.as_mut_ptr(), self.events.len() as i32);
        // SAFETY: the list has `len` elements.
        match check(unsafe { libc::epoll_wait(fd, events, len, timeout) } as isize) {
            Ok(count) => Ok(&self.events[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
            Err(error) => Err(error),
        }
    }
}

/// Pins the calling process to a core.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t of zeros is the empty set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        check(libc::sched_setaffinity(0, size_of_val(&set), &set) as isize).map(drop)
    }
}

/// The CPU time of a process, user and system, in nanoseconds.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    // SAFETY: both calls write to variables that outlive them.
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

/// Raises the limit of descriptors to the hard limit and returns it.
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
