//! `io_uring_enter` and the registration of ring descriptors, as system calls. The `io-uring` crate
//! keeps a registered ring descriptor only in one borrowed value, and its wait arguments cannot be
//! combined with flags chosen at run time. Owns: the layouts and constants of these calls. Must not
//! know what is submitted.

use crate::error::Errno;
use std::os::fd::RawFd;
use std::time::Duration;

pub(super) const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
pub(super) const ENTER_REGISTERED_RING: u32 = 1 << 4;
/// 6.15: the time of a wait is not counted as iowait.
pub(super) const ENTER_NO_IOWAIT: u32 = 1 << 7;
const REGISTER_RING_FDS: u32 = 20;
pub(super) const UNREGISTER_RING_FDS: u32 = 21;

/// The longest timeout that is passed to the kernel: 34 years. The kernel adds the timeout to its
/// clock in signed 64-bit nanoseconds without an overflow check (`io_cqring_wait`, read in the
/// kernel source).
const WAIT_MAX: Duration = Duration::from_secs(1 << 30);

/// `struct io_uring_getevents_arg`.
#[repr(C)]
#[derive(Default)]
struct WaitArg {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    timespec: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RsrcUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// io_uring_enter(2) without a timeout. Returns the number of SQEs submitted.
///
/// # Safety
/// The memory that the staged SQEs reference must stay valid until their final completions.
pub(super) unsafe fn enter(
    fd: RawFd,
    to_submit: u32,
    min_complete: u32,
    flags: u32,
) -> Result<u32, Errno> {
    let no_arg: *const libc::c_void = std::ptr::null();
    // SAFETY: no argument; the rest as promised by the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_enter, fd, to_submit, min_complete, flags, no_arg, 0usize)
    };
    u32::try_from(result).map_err(|_| Errno::last())
}

/// io_uring_enter(2) with a timeout (IORING_FEAT_EXT_ARG, 5.11).
///
/// # Safety
/// As [`enter`].
pub(super) unsafe fn enter_timeout(
    fd: RawFd,
    to_submit: u32,
    min_complete: u32,
    flags: u32,
    timeout: Duration,
) -> Result<u32, Errno> {
    let timeout = timeout.min(WAIT_MAX);
    let timespec = KernelTimespec {
        seconds: timeout.as_secs() as i64,
        nanoseconds: i64::from(timeout.subsec_nanos()),
    };
    let arg = WaitArg { timespec: &raw const timespec as u64, ..WaitArg::default() };
    let flags = flags | ENTER_EXT_ARG;
    // SAFETY: argument and timespec live through the call, and the size is the argument's; the rest
    // as promised by the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            fd,
            to_submit,
            min_complete,
            flags,
            &raw const arg,
            size_of::<WaitArg>(),
        )
    };
    u32::try_from(result).map_err(|_| Errno::last())
}

/// Registers a ring's descriptor with the calling thread (5.18), which saves a descriptor look-up
/// per enter. Returns the index to pass as `fd`.
pub(super) fn register_ring_fd(fd: RawFd) -> Result<RawFd, Errno> {
    let mut update = RsrcUpdate { offset: u32::MAX, reserved: 0, data: fd as u64 };
    // SAFETY: one update, writable through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_RING_FDS, &raw mut update, 1u32)
    };
    match result {
        1 => Ok(update.offset as RawFd),
        _ => Err(Errno::last()),
    }
}

/// Undoes [`register_ring_fd`]. A registration keeps the ring open, and a thread has at most
/// sixteen of them.
pub(super) fn unregister_ring_fd(fd: RawFd, index: RawFd) {
    let mut update = RsrcUpdate { offset: index as u32, reserved: 0, data: 0 };
    // SAFETY: one update, alive through the call.
    unsafe {
        libc::syscall(libc::SYS_io_uring_register, fd, UNREGISTER_RING_FDS, &raw mut update, 1u32)
    };
}
