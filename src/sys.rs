//! Safe wrappers of system calls that socket2 does not have. Owns: memory mappings, eventfd,
//! timerfd, epoll, and the limits of the process. Invariant: each function is one system call. Must
//! not retry or interpret results: callers do.

use crate::error::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned_fd(result: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: called only with the result of a system call that returns a new descriptor, which has
    // no other owner.
    check(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Anonymous zeroed memory, page-aligned (mmap(2)). A page takes memory when it is first used.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    pub(crate) fn new(len: usize) -> io::Result<Mapping> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses the address of the new mapping, so no existing mapping
        // changes.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(address) if start != libc::MAP_FAILED => Ok(Mapping { start: address, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Excludes the memory from children that are forked later (MADV_DONTFORK, madvise(2)). If a
    /// filter denies the call, children get a copy.
    pub(crate) fn exclude_from_fork(&self) {
        // SAFETY: the mapping belongs to `self`, and the call affects only future children.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTFORK) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` and belongs to `self`. Owners of pointers into it
        // drop them before they drop `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Detects whether the current process is a forked child of the one that made this value. Makes no
/// system call: the kernel zeroes the page in the child (MADV_WIPEONFORK). Async-signal-safe.
#[derive(Debug)]
pub(crate) struct ForkDetector {
    page: Mapping,
    /// The process id of the maker, to compare with, if MADV_WIPEONFORK (4.14) is denied.
    pid: Option<u32>,
}

// SAFETY: the page is not written after `new`. (The kernel zeroes a child's copy before the child
// runs.)
unsafe impl Send for ForkDetector {}
// SAFETY: as above.
unsafe impl Sync for ForkDetector {}

impl ForkDetector {
    pub(crate) fn new() -> io::Result<ForkDetector> {
        let page = Mapping::new(4096)?;
        // SAFETY: the page is mapped and belongs to this function. No reference to it exists.
        let wiped = unsafe {
            page.start.as_ptr().write(1);
            libc::madvise(page.start.as_ptr().cast(), 4096, libc::MADV_WIPEONFORK)
        };
        Ok(ForkDetector { page, pid: (wiped != 0).then(std::process::id) })
    }

    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        match self.pid {
            Some(pid) => pid != std::process::id(),
            // SAFETY: the page is mapped as long as `self` exists. The read is volatile because the
            // kernel changes the page.
            None => unsafe { self.page.start.as_ptr().read_volatile() == 0 },
        }
    }
}

/// A non-blocking eventfd(2).
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    owned_fd(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// Makes an eventfd readable. A failure is ignored: the counter is full, so it is readable already.
/// Async-signal-safe.
pub(crate) fn eventfd_signal(fd: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight readable bytes, as eventfd(2) requires.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Makes an eventfd or timerfd unreadable. True if it was readable.
pub(crate) fn counter_reset(fd: &OwnedFd) -> bool {
    let mut count = 0u64;
    // SAFETY: eight writable bytes.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
}

/// Sets IP_BIND_ADDRESS_NO_PORT (4.2, ip(7)): after a bind to port 0, connect(2) chooses the port.
/// Each source address then has the whole port range for each destination. A failure is ignored:
/// the bind chooses the port.
pub(crate) fn set_bind_address_no_port(fd: BorrowedFd<'_>) {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer refers to an integer of size `len` that outlives the call.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            len,
        )
    };
}

/// A non-blocking monotonic timerfd(2).
pub(crate) fn timerfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    owned_fd(unsafe {
        libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
    })
}

/// Arms a timerfd to fire once after `delay`, or disarms it.
pub(crate) fn timerfd_set(fd: &OwnedFd, delay: Option<Duration>) {
    // A value of zero disarms the timer (timerfd_settime(2)), so the shortest delay is 1 ns.
    let value = delay.map_or(Duration::ZERO, |delay| delay.max(Duration::from_nanos(1)));
    let spec =
        libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(value) };
    // SAFETY: `spec` outlives the call. The pointer for the old value may be null.
    unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
}

pub(crate) fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos() as libc::c_long,
    }
}

/// The soft limit of RLIMIT_NOFILE (getrlimit(2)). `None` is unlimited.
pub(crate) fn limit_nofile() -> Option<u64> {
    rlimit(libc::RLIMIT_NOFILE)
}

/// The soft limit of RLIMIT_MEMLOCK in bytes (getrlimit(2)). `None` is unlimited.
pub(crate) fn limit_memlock() -> Option<u64> {
    rlimit(libc::RLIMIT_MEMLOCK)
}

fn rlimit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable and outlives the call.
    unsafe { libc::getrlimit(resource, &mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// The release of the running kernel (uname(2)).
pub(crate) fn kernel_release() -> String {
    // SAFETY: all zeros is a valid value of this struct of byte arrays. uname(2) fills it with C
    // strings.
    let name = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&mut name);
        name
    };
    let bytes: Vec<u8> = name.release.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An epoll(7) instance.
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: the call takes no pointers.
        owned_fd(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(|fd| Epoll { fd })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn add(
        &self,
        fd: BorrowedFd<'_>,
        events: libc::c_int,
        token: u64,
    ) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub(crate) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        events: libc::c_int,
        token: u64,
    ) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: BorrowedFd<'_>,
        events: libc::c_int,
        token: u64,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` outlives the call.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &mut event)
        })
        .map(drop)
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let none = std::ptr::null_mut();
        // SAFETY: EPOLL_CTL_DEL ignores the event, which may be null (2.6.9, epoll_ctl(2)).
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), none)
        })
        .map(drop)
    }

    /// Waits with a resolution of 1 ns (epoll_pwait2(2), 5.11). `None` waits without a timeout.
    pub(crate) fn wait_precise(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let spec = timeout.map(timespec);
        let spec_ptr = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let no_mask: *const libc::sigset_t = std::ptr::null();
        // By number, because older C libraries have no wrapper.
        // SAFETY: the buffer and the timespec outlive the call. A null mask does not change the
        // signal mask.
        let result = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as libc::c_int,
                spec_ptr,
                no_mask,
                8usize,
            )
        };
        usize::try_from(result).map_err(|_| Errno::last())
    }

    /// Waits with a resolution of 1 ms, rounded up (epoll_wait(2)). `None` waits without a timeout.
    pub(crate) fn wait(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let ms = timeout.map_or(-1, |timeout| {
            libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000))
                .unwrap_or(libc::c_int::MAX)
        });
        // SAFETY: the buffer outlives the call.
        let result = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as libc::c_int,
                ms,
            )
        };
        usize::try_from(result).map_err(|_| Errno::last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eventfd_is_readable_until_reset() {
        let (epoll, event) = (Epoll::new().unwrap(), eventfd().unwrap());
        epoll.add(std::os::fd::AsFd::as_fd(&event), libc::EPOLLIN, 7).unwrap();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
        assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)), Ok(0));
        eventfd_signal(&event);
        assert_eq!(epoll.wait_precise(&mut events, Some(Duration::from_nanos(1))), Ok(1));
        assert_eq!({ events[0].u64 }, 7);
        counter_reset(&event);
        assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)), Ok(0));
    }

    #[test]
    fn the_maker_is_not_a_child() {
        assert!(!ForkDetector::new().unwrap().is_child());
    }
}
