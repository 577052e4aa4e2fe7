//! Processes of this binary that are something else than the suite: a crowd of clients, or the
//! suite in another environment. And what such environments are made of, one system call each; all
//! of it changes the calling process for good.

use crate::environments;
use crate::memory;
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

/// Set in a process that is a crowd: `ADDR CLIENTS ROUNDS`.
const CROWD: &str = "PROACTOR_TEST_CROWD";
/// Set in a process that shall enter an environment and then run the suite in it: its name.
pub const ENTER: &str = "PROACTOR_TEST_ENVIRONMENT";

/// This program once more, also where /proc is missing or the path to it may not be searched.
pub fn this_binary() -> Command {
    let link = Path::new("/proc/self/exe");
    let name = std::env::args_os().next().unwrap_or_default();
    let mut command = Command::new(if link.exists() { link.as_os_str() } else { &name });
    command.arg0(name);
    command
}

/// Does what the environment variables ask for, if this process is not to run the suite, or not
/// yet.
pub fn take_part() -> Option<ExitCode> {
    if let Ok(plan) = std::env::var(CROWD) {
        be_a_crowd(&plan).expect("the server serves");
        return Some(ExitCode::SUCCESS);
    }
    let name = std::env::var(ENTER).ok()?;
    if let Err(why) = environments::enter(&name) {
        println!("cannot enter: {why}");
        return Some(ExitCode::SUCCESS);
    }
    let mut command = this_binary();
    command.args(std::env::args_os().skip(1)).env_remove(ENTER).env(environments::WITHIN, &name);
    eprintln!("exec: {}", command.exec());
    Some(ExitCode::FAILURE)
}

/// Clients in a process of their own, so that descriptors and memory of the engine's process are
/// its own. Each sends its letter (`A` to `Z`, in turn) `rounds` times, waiting for the echo if
/// there are several, and stays until the crowd leaves.
pub struct CrowdProcess(Child);

impl CrowdProcess {
    pub fn arrive(addr: SocketAddr, clients: usize, rounds: usize) -> CrowdProcess {
        let mut command = this_binary();
        command
            .env(CROWD, format!("{addr} {clients} {rounds}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        CrowdProcess(command.spawn().expect("this binary runs"))
    }

    /// Waits until all have connected and sent.
    pub fn is_there(&mut self) {
        let mut line = [0; 3];
        self.0.stdout.as_mut().expect("piped").read_exact(&mut line).expect("the crowd lives");
    }

    /// Whether it has ended by itself, which it never should.
    pub fn is_gone(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }

    pub fn leave(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("a child").success(), "the crowd failed");
    }
}

fn be_a_crowd(plan: &str) -> io::Result<()> {
    let words: Vec<&str> = plan.split(' ').collect();
    let [addr, clients, rounds] = words[..] else { panic!("{CROWD}: three words") };
    let addr: SocketAddr = addr.parse().expect("an address");
    let (clients, rounds): (usize, usize) =
        (clients.parse().expect("a number"), rounds.parse().expect("a number"));
    memory::leave();
    descriptors_max();
    let letter = |index: usize| b'A' + (index % 26) as u8;
    let mut streams =
        (0..clients).map(|_| TcpStream::connect(addr)).collect::<io::Result<Vec<_>>>()?;
    for _ in 0..rounds {
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&vec![letter(index); if rounds > 1 { 1024 } else { 1 }])?;
        }
        for (index, stream) in
            streams.iter_mut().enumerate().take(if rounds > 1 { clients } else { 0 })
        {
            let mut echo = [0; 1024];
            stream.read_exact(&mut echo)?;
            assert!(
                echo.iter().all(|byte| *byte == letter(index)),
                "client {index} got another's bytes"
            );
        }
    }
    io::stdout().write_all(b"up\n")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn check(result: libc::c_int, what: &str) -> Result<(), String> {
    if result == 0 { Ok(()) } else { Err(format!("{what}: {}", io::Error::last_os_error())) }
}

/// Sets a limit, soft and hard.
pub fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: a plain value.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes nobody, in one group if it is given.
pub fn drop_privileges(group: Option<u32>) -> Result<(), String> {
    let group = group.unwrap_or(65_534);
    // SAFETY: plain values; one group.
    unsafe {
        check(libc::setgroups(1, &group), "setgroups")?;
        check(libc::setgid(65_534), "setgid")?;
        check(libc::setuid(65_534), "setuid")
    }
}

/// A view of the file system that is this process's own.
fn own_mounts() -> Result<(), String> {
    // SAFETY: plain values and constant strings.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS), "unshare(CLONE_NEWNS)")?;
        let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
        check(
            libc::mount(
                none,
                root,
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ),
            "mount(MS_PRIVATE)",
        )
    }
}

/// Makes everything that is mounted read-only.
pub fn make_read_only() -> Result<(), String> {
    own_mounts()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let name = CString::new(place.replace("\\040", " ")).map_err(|error| error.to_string())?;
        let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        // SAFETY: the strings live through the call.
        let result = unsafe {
            libc::mount(c"none".as_ptr(), name.as_ptr(), std::ptr::null(), flags, std::ptr::null())
        };
        // What is hidden under another mount cannot be reached, nor written to.
        if result != 0 && place == "/" {
            check(result, "mount(MS_RDONLY)")?;
        }
    }
    match std::fs::write(std::env::temp_dir().join("proactor-probe"), "") {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        other => Err(format!("still writable: {other:?}")),
    }
}

/// Takes /proc away.
pub fn unmount_proc() -> Result<(), String> {
    own_mounts()?;
    // SAFETY: a constant string.
    while unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) } == 0 {}
    if Path::new("/proc/self").exists() { Err("/proc is still there".to_owned()) } else { Ok(()) }
}

/// Writes to a file that is there: in a file system of the kernel's, a new one would mean nothing.
pub fn put(path: &Path, text: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// The limit of descriptors, raised as far as this process may.
pub fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is writable through the first call, and a plain value in the second.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        if limit.rlim_cur < limit.rlim_max.min(20_000) {
            limit.rlim_cur = limit.rlim_max.min(20_000);
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}
