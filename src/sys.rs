//! Thin safe wrappers over what libc has and socket2 has not. Owns: memory mappings, eventfd,
//! timerfd, epoll, limits. Each function is one system call; retrying and interpreting is for the
//! callers.

use crate::error::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: only called with the result of a system call that made a descriptor, which nobody
    // else owns yet.
    check(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Anonymous zeroed memory, page-aligned, touched only as it is used.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    pub(crate) fn new(len: usize) -> io::Result<Mapping> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing
        // memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(address) if start != libc::MAP_FAILED => Ok(Mapping { start: address, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Keeps the memory out of children that are forked later (MADV_DONTFORK). Where a filter
    /// forbids that, children get a copy.
    pub(crate) fn keep_from_children(&self) {
        // SAFETY: the mapping is ours, and only children to come are affected.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTFORK) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, made in `new`; whoever had pointers into it gave them up
        // before dropping us.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Tells a forked child from the process that made it, without a system call: the kernel wipes the
/// page on fork. Fit for signal handlers.
#[derive(Debug)]
pub(crate) struct ForkMark {
    page: Mapping,
    /// Where MADV_WIPEONFORK (4.14) is refused, ask for the process id instead.
    pid: Option<u32>,
}

// SAFETY: after `new` nobody writes the page. (A child has its wiped copy before it runs.)
unsafe impl Send for ForkMark {}
// SAFETY: as above.
unsafe impl Sync for ForkMark {}

impl ForkMark {
    pub(crate) fn new() -> io::Result<ForkMark> {
        let page = Mapping::new(4096)?;
        // SAFETY: the page is ours and mapped, and no reference to it exists.
        let wiped = unsafe {
            page.start.as_ptr().write(1);
            libc::madvise(page.start.as_ptr().cast(), 4096, libc::MADV_WIPEONFORK)
        };
        Ok(ForkMark { page, pid: (wiped != 0).then(std::process::id) })
    }

    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        match self.pid {
            Some(pid) => pid != std::process::id(),
            // SAFETY: the page is mapped as long as we are; volatile, since the kernel changes it
            // behind our back.
            None => unsafe { self.page.start.as_ptr().read_volatile() == 0 },
        }
    }
}

/// A non-blocking eventfd(2).
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// Makes an eventfd readable. Fails only when it is readable already (its counter is full). Fit for
/// signal handlers.
pub(crate) fn eventfd_signal(fd: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight readable bytes, as eventfd(2) wants.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Makes an eventfd or timerfd unreadable. True if it was readable.
pub(crate) fn counter_reset(fd: &OwnedFd) -> bool {
    let mut count = 0u64;
    // SAFETY: eight writable bytes.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
}

/// Sets IP_BIND_ADDRESS_NO_PORT (4.2): a bind to port 0 leaves the choice of the port to connect,
/// so that each source address has the whole range for each destination. Advice only; its failure
/// changes nothing else.
pub(crate) fn choose_port_late(fd: BorrowedFd<'_>) {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: an integer of the size that is passed, alive through the call.
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
    // SAFETY: takes no pointers.
    own(unsafe {
        libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
    })
}

/// Arms a timerfd to fire once after `delay`, or disarms it.
pub(crate) fn timerfd_set(fd: &OwnedFd, delay: Option<Duration>) {
    // A value of zero disarms, so "now" is one nanosecond.
    let value = delay.map_or(Duration::ZERO, |delay| delay.max(Duration::from_nanos(1)));
    let spec =
        libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(value) };
    // SAFETY: `spec` lives through the call; no old value is asked for.
    unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
}

pub(crate) fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos() as libc::c_long,
    }
}

/// The soft limit of a resource; `None` is unlimited.
pub(crate) fn limit_nofile() -> Option<u64> {
    rlimit(libc::RLIMIT_NOFILE)
}

/// See [`limit_nofile`].
pub(crate) fn limit_memlock() -> Option<u64> {
    rlimit(libc::RLIMIT_MEMLOCK)
}

fn rlimit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(resource, &mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// The release of the running kernel, as uname(2) has it.
pub(crate) fn kernel_release() -> String {
    // SAFETY: zero is a valid value of this struct of byte arrays, and uname fills it with C
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
        // SAFETY: takes no pointers.
        own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(|fd| Epoll { fd })
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
        what: libc::c_int,
        fd: BorrowedFd<'_>,
        events: libc::c_int,
        token: u64,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` lives through the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, fd.as_raw_fd(), &mut event) })
            .map(drop)
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let none = std::ptr::null_mut();
        // SAFETY: the event is ignored for EPOLL_CTL_DEL (2.6.9 and later).
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), none)
        })
        .map(drop)
    }

    /// Waits with nanoseconds (5.11); `None` waits for ever.
    pub(crate) fn wait_precise(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let spec = timeout.map(timespec);
        let spec_ptr = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let no_mask: *const libc::sigset_t = std::ptr::null();
        // SAFETY: the buffer and the timespec live through the call; a null mask leaves signals
        // alone. By number, since older C libraries do not know it.
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

    /// Waits with milliseconds, rounded up; `None` waits for ever.
    pub(crate) fn wait(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let ms = timeout.map_or(-1, |timeout| {
            libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000))
                .unwrap_or(libc::c_int::MAX)
        });
        // SAFETY: the buffer lives through the call.
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
    fn an_eventfd_wakes_an_epoll_until_reset() {
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
    fn the_parent_is_no_child() {
        assert!(!ForkMark::new().unwrap().is_child());
    }
}
