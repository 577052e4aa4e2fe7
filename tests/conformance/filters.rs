//! Seccomp filters, as container runtimes install them: irrevocable, for the calling process and
//! its children (seccomp(2)). Owns: the program of a filter, and the numbers of system calls by
//! name. Must not know which calls are refused where.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter,
};

/// Offsets in `struct seccomp_data`: the number of the call, and the low half of an argument.
const CALL: u32 = 0;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Builds a filter. The first rule that matches decides; without one, the default.
pub struct Filter {
    program: Vec<sock_filter>,
    default: u32,
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | code | BPF_K) as u16, jt, jf, k }
}

fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

impl Filter {
    /// A filter that allows by default.
    pub fn open() -> Filter {
        Filter { program: Vec::new(), default: libc::SECCOMP_RET_ALLOW }
    }

    /// A filter that refuses by default.
    pub fn closed(errno: i32) -> Filter {
        Filter { program: Vec::new(), default: refuse(errno) }
    }

    fn load(&mut self, offset: u32) {
        self.program.push(statement(BPF_LD | BPF_W | BPF_ABS, offset));
    }

    fn decide(&mut self, calls: &[u32], action: u32) {
        self.load(CALL);
        for call in calls {
            self.program.push(jump(BPF_JEQ, *call, 0, 1));
            self.program.push(statement(BPF_RET | BPF_K, action));
        }
    }

    pub fn refusing(mut self, calls: &[u32], errno: i32) -> Filter {
        self.decide(calls, refuse(errno));
        self
    }

    pub fn allowing(mut self, calls: &[u32]) -> Filter {
        self.decide(calls, libc::SECCOMP_RET_ALLOW);
        self
    }

    /// Refuses a call if its argument has one of these bits.
    pub fn refusing_bits(self, call: u32, index: u32, bits: u32, errno: i32) -> Filter {
        self.refusing_if(call, index, BPF_JSET, bits, errno)
    }

    /// Refuses a call if its argument is at least `first`.
    pub fn refusing_from(self, call: u32, index: u32, first: u32, errno: i32) -> Filter {
        self.refusing_if(call, index, BPF_JGE, first, errno)
    }

    fn refusing_if(mut self, call: u32, index: u32, test: u32, operand: u32, errno: i32) -> Filter {
        self.load(CALL);
        self.program.push(jump(BPF_JEQ, call, 0, 3));
        self.load(argument(index));
        self.program.push(jump(test, operand, 0, 1));
        self.program.push(statement(BPF_RET | BPF_K, refuse(errno)));
        self
    }

    pub fn install(mut self) -> Result<(), String> {
        self.program.push(statement(BPF_RET | BPF_K, self.default));
        let filter =
            libc::sock_fprog { len: self.program.len() as u16, filter: self.program.as_mut_ptr() };
        // SAFETY: the program is valid and outlives the call, which copies it.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter)
        };
        if result == 0 {
            Ok(())
        } else {
            Err(format!("seccomp: {}", std::io::Error::last_os_error()))
        }
    }
}

macro_rules! numbers {
    ($($call:ident)*) => { &[$((stringify!($call), libc::$call),)*] };
}

type Numbers = &'static [(&'static str, libc::c_long)];

/// The calls that a profile may name.
#[rustfmt::skip]
const CALLS: Numbers = numbers! {
    SYS_accept4 SYS_add_key SYS_bind SYS_bpf SYS_brk SYS_capget SYS_capset SYS_chdir
    SYS_clock_gettime SYS_clock_nanosleep SYS_clone SYS_clone3 SYS_close SYS_close_range SYS_connect
    SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat2 SYS_fchdir SYS_fcntl SYS_fstat
    SYS_fstatfs SYS_futex SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid
    SYS_getpeername SYS_getpid SYS_getppid SYS_getrandom SYS_getrusage SYS_getsockname
    SYS_getsockopt SYS_gettid SYS_getuid SYS_io_uring_enter SYS_io_uring_register SYS_io_uring_setup
    SYS_ioctl SYS_keyctl SYS_kill SYS_listen SYS_lseek SYS_madvise SYS_mkdirat SYS_mmap SYS_mount
    SYS_mprotect SYS_mremap SYS_munmap SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2
    SYS_perf_event_open SYS_pipe2 SYS_ppoll SYS_prctl SYS_pread64 SYS_prlimit64 SYS_ptrace SYS_read
    SYS_readlinkat SYS_recvfrom SYS_recvmsg SYS_request_key SYS_restart_syscall SYS_rseq
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sched_getaffinity SYS_sched_yield
    SYS_seccomp SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_set_tid_address SYS_setgid
    SYS_setgroups SYS_setitimer SYS_setns SYS_setsockopt SYS_setuid SYS_shutdown SYS_sigaltstack
    SYS_socket SYS_socketpair SYS_statx SYS_tgkill SYS_timerfd_create SYS_timerfd_settime SYS_umask
    SYS_umount2 SYS_uname SYS_unlinkat SYS_unshare SYS_userfaultfd SYS_wait4 SYS_waitid SYS_write
    SYS_writev
};

/// Calls that newer architectures do not have.
const OLD_CALLS: [&str; 13] = [
    "access",
    "arch_prctl",
    "dup2",
    "epoll_wait",
    "fork",
    "open",
    "poll",
    "readlink",
    "unlink",
    "vfork",
    "getrlimit",
    "stat",
    "lstat",
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD_NUMBERS: Numbers = numbers! {
    SYS_access SYS_arch_prctl SYS_dup2 SYS_epoll_wait SYS_fork SYS_open SYS_poll SYS_readlink
    SYS_unlink SYS_vfork SYS_getrlimit SYS_stat SYS_lstat
};
#[cfg(not(target_arch = "x86_64"))]
const OLD_NUMBERS: Numbers = &[];

/// The number of a system call on this architecture; `None` if only others have it.
///
/// # Panics
/// If the name is not listed here.
pub fn number(name: &str) -> Option<u32> {
    let known =
        CALLS.iter().chain(OLD_NUMBERS).find(|(call, _)| call.strip_prefix("SYS_") == Some(name));
    assert!(known.is_some() || OLD_CALLS.contains(&name), "{name} is not a known system call");
    known.map(|(_, number)| *number as u32)
}

/// The numbers of system calls, without those that this architecture lacks.
pub fn numbers(names: &[&str]) -> Vec<u32> {
    names.iter().filter_map(|name| number(name)).collect()
}
