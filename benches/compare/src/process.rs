//! Processes of a measurement. Owns: where the programs are, and how a server or a client is
//! started on a core of its own. Must not know what is measured.

use crate::sys::{self, Addr};
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The core of what is measured.
pub const SUBJECT_CORE: usize = 0;
/// The core of its peers.
pub const LOAD_CORE: usize = 1;

/// How to start a program: an example of the library (`echo_server`, `load`), or a subcommand of
/// this program.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub example: Option<&'static str>,
    pub arguments: Vec<String>,
}

impl Program {
    pub fn own(name: &str, arguments: &str) -> Program {
        Program { name: name.into(), example: None, arguments: words(arguments) }
    }

    pub fn example(name: &str, example: &'static str, arguments: &str) -> Program {
        Program { name: name.into(), example: Some(example), arguments: words(arguments) }
    }

    fn command(&self, core: usize) -> io::Result<Command> {
        let path = match self.example {
            Some(example) => target().join("release/examples").join(example),
            None => std::env::current_exe()?,
        };
        let mut command = Command::new(path);
        command.args(&self.arguments);
        // SAFETY: sched_setaffinity and prctl are async-signal-safe, and no memory is allocated.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                sys::pin(core)
            })
        };
        Ok(command)
    }

    /// Starts a server on a core, and waits until it prints its address.
    pub fn start(&self, core: usize, addr: &str) -> io::Result<Server> {
        let mut command = self.command(core)?;
        command
            .args(["--addr", addr])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        let mut server = Server { child, addr: Addr::Unix(String::new()), bound: addr.to_owned() };
        let printed = line.split_whitespace().nth(2).and_then(|addr| addr.parse().ok());
        server.addr = printed.ok_or_else(|| {
            io::Error::other(format!(
                "{} did not start; run it to see why: {:?}",
                self.name,
                self.command(core).ok()
            ))
        })?;
        Ok(server)
    }

    /// Runs a client to its end and returns the line of JSON that it prints.
    pub fn run(
        &self,
        core: usize,
        addr: &Addr,
        arguments: &[String],
    ) -> io::Result<serde_json::Value> {
        let mut command = self.command(core)?;
        let addr = addr.to_string();
        let output =
            command.args(["--addr", &addr]).args(arguments).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(format!("{}: {}: {stderr}", self.name, output.status)));
        }
        serde_json::from_slice(&output.stdout).map_err(io::Error::other)
    }
}

/// A running server. The drop ends it.
pub struct Server {
    child: Child,
    pub addr: Addr,
    /// The address argument.
    bound: String,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmRSS"))
    }
}

impl Server {
    /// Resident memory once it has stopped growing: the server may accept connections later than
    /// the kernel completes them.
    pub fn resident_settled(&self) -> io::Result<u64> {
        let mut last = 0;
        for _ in 0..50 {
            std::thread::sleep(std::time::Duration::from_millis(300));
            let now = self.resident()?;
            if now <= last {
                return Ok(now);
            }
            last = now;
        }
        Ok(last)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(path) = self.bound.strip_prefix("unix:") {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The root of the repository.
pub fn library() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Builds the examples of the library.
/// Where cargo puts what it builds for the library.
fn target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    chosen.unwrap_or_else(|| library().join("target"))
}

pub fn build_examples() -> io::Result<()> {
    let manifest = library().join("Cargo.toml");
    let arguments = ["build", "--release", "--examples", "--quiet", "--manifest-path"];
    match Command::new("cargo").args(arguments).arg(manifest).status()?.success() {
        true => Ok(()),
        false => Err(io::Error::other("building the examples failed")),
    }
}

pub fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
