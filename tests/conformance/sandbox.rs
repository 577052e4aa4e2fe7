//! Child processes of this binary: clients of a scenario, or the suite in a hostile environment.
//! Owns: how they are started, and the restrictions, one system call each, which the calling
//! process cannot undo. Must not know which environment uses which.

use crate::environments;
use crate::memory;
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

/// Set in a process of clients: `ADDR CLIENTS ROUNDS`.
const CLIENTS: &str = "PROACTOR_TEST_CLIENTS";
/// Set in a process that enters an environment and then runs the suite in it: its name.
pub const ENTER: &str = "PROACTOR_TEST_ENVIRONMENT";

/// A command for this binary. It works without /proc, and where the path is not searchable.
pub fn this_binary() -> Command {
    let link = Path::new("/proc/self/exe");
    let name = std::env::args_os().next().unwrap_or_default();
    let mut command = Command::new(if link.exists() { link.as_os_str() } else { &name });
    command.arg0(name);
    command
}

/// Runs as a child process if an environment variable asks for it. `None`: run the suite.
pub fn run_as_child() -> Option<ExitCode> {
    if let Ok(plan) = std::env::var(CLIENTS) {
        run_clients(&plan).expect("the server accepts and echoes");
        return Some(ExitCode::SUCCESS);
    }
    let name = std::env::var(ENTER).ok()?;
    if let Err(why) = environments::enter(&name) {
        println!("cannot enter: {why}");
        return Some(ExitCode::SUCCESS);
    }
    let mut command = this_binary();
    command.args(std::env::args_os().skip(1)).env_remove(ENTER).env(environments::CURRENT, &name);
    eprintln!("exec: {}", command.exec());
    Some(ExitCode::FAILURE)
}

/// Clients in a process of their own, so that they use no descriptors and no memory of the engine's
/// process. Each sends its letter (`A` to `Z`, in turn) `rounds` times. With more than one round it
/// waits for the echo. It stays connected until [`ClientProcess::stop`].
pub struct ClientProcess(Child);

impl ClientProcess {
    pub fn start(addr: SocketAddr, clients: usize, rounds: usize) -> ClientProcess {
        let mut command = this_binary();
        command
            .env(CLIENTS, format!("{addr} {clients} {rounds}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        ClientProcess(command.spawn().expect("this binary runs"))
    }

    /// Waits until all have connected and sent.
    pub fn wait_connected(&mut self) {
        let mut line = [0; 3];
        self.0.stdout.as_mut().expect("piped").read_exact(&mut line).expect("the clients run");
    }

    /// Whether the process has exited, which is an error before `stop`.
    pub fn has_exited(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }

    pub fn stop(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("a child").success(), "the clients failed");
    }
}

fn run_clients(plan: &str) -> io::Result<()> {
    let fields: Vec<&str> = plan.split(' ').collect();
    let [addr, clients, rounds] = fields[..] else { panic!("{CLIENTS}: three fields") };
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
                "client {index} received wrong bytes"
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

/// Sets the soft and the hard limit of a resource.
pub fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: a plain value.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes the user `nobody` (65534), in the given group only.
pub fn drop_privileges(group: Option<u32>) -> Result<(), String> {
    let group = group.unwrap_or(65_534);
    // SAFETY: the pointer is to one group, which outlives the call.
    unsafe {
        check(libc::setgroups(1, &group), "setgroups")?;
        check(libc::setgid(65_534), "setgid")?;
        check(libc::setuid(65_534), "setuid")
    }
}

/// Gives this process a mount namespace of its own (mount_namespaces(7)).
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

/// Makes all mounts read-only.
pub fn make_read_only() -> Result<(), String> {
    own_mounts()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let name = CString::new(target.replace("\\040", " ")).map_err(|error| error.to_string())?;
        let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        // SAFETY: the strings outlive the call.
        let result = unsafe {
            libc::mount(c"none".as_ptr(), name.as_ptr(), std::ptr::null(), flags, std::ptr::null())
        };
        // A mount that is hidden by another one fails here, and cannot be written to.
        if result != 0 && target == "/" {
            check(result, "mount(MS_RDONLY)")?;
        }
    }
    match std::fs::write(std::env::temp_dir().join("proactor-probe"), "") {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        other => Err(format!("still writable: {other:?}")),
    }
}

/// Unmounts /proc.
pub fn unmount_proc() -> Result<(), String> {
    own_mounts()?;
    // SAFETY: a constant string.
    while unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) } == 0 {}
    if Path::new("/proc/self").exists() { Err("/proc is still there".to_owned()) } else { Ok(()) }
}

/// Writes to an existing file. It does not create one: these are files of procfs and cgroupfs.
pub fn put(path: &Path, text: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// The limit of descriptors, after raising the soft limit to at most 20,000.
pub fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives both calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        if limit.rlim_cur < limit.rlim_max.min(20_000) {
            limit.rlim_cur = limit.rlim_max.min(20_000);
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}
