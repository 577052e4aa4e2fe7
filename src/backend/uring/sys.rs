//! The system calls that the `io-uring` crate has no fitting form for. It remembers a registered
//! ring descriptor only in one borrowed value, and its wait arguments do not compose with flags
//! chosen at run time.

use crate::error::Errno;
use std::os::fd::RawFd;
use std::time::Duration;

pub(super) const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
pub(super) const ENTER_REGISTERED_RING: u32 = 1 << 4;
/// 6.15: a sleeping waiter does not count as waiting for storage.
pub(super) const ENTER_NO_IOWAIT: u32 = 1 << 7;
const REGISTER_RING_FDS: u32 = 20;
pub(super) const UNREGISTER_RING_FDS: u32 = 21;

/// The longest wait that the kernel is asked for, 34 years. It adds the time to its clock, in
/// signed nanoseconds of 64 bits, and does not look for an overflow (`io_cqring_wait`, read in
/// source).
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

/// io_uring_enter(2) without a deadline. Returns the number of entries submitted.
///
/// # Safety
/// The ring's submission queue must describe operations whose memory outlives them.
pub(super) unsafe fn enter(fd: RawFd, submit: u32, want: u32, flags: u32) -> Result<u32, Errno> {
    let nothing: *const libc::c_void = std::ptr::null();
    // SAFETY: no argument; the rest as promised by the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_enter, fd, submit, want, flags, nothing, 0usize)
    };
    u32::try_from(result).map_err(|_| Errno::last())
}

/// io_uring_enter(2) with a deadline (IORING_FEAT_EXT_ARG, 5.11).
///
/// # Safety
/// As [`enter`].
pub(super) unsafe fn enter_until(
    fd: RawFd,
    submit: u32,
    want: u32,
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
    // SAFETY: argument and timespec live through the call, of the size that is passed; the rest as
    // promised by the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            fd,
            submit,
            want,
            flags,
            &raw const arg,
            size_of::<WaitArg>(),
        )
    };
    u32::try_from(result).map_err(|_| Errno::last())
}

/// Registers a ring's descriptor with the calling thread (5.18), which saves a look-up per enter.
/// Returns the index to use.
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

/// Undoes [`register_ring_fd`]. A registration keeps the ring alive, and a thread has only sixteen
/// places for them.
pub(super) fn unregister_ring_fd(fd: RawFd, index: RawFd) {
    let mut update = RsrcUpdate { offset: index as u32, reserved: 0, data: 0 };
    // SAFETY: one update, alive through the call.
    unsafe {
        libc::syscall(libc::SYS_io_uring_register, fd, UNREGISTER_RING_FDS, &raw mut update, 1u32)
    };
}
