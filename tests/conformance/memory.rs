//! A memory cgroup of 64 MiB, and five thousand connections in it. Owns: the cgroup.

use crate::peers::spawn;
use crate::report;
use crate::rig::{Rig, serve_echo};
use crate::sandbox::{ClientProcess, put};
use crate::variants::Variant;
use proactor::Event;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in a process in a memory cgroup: the paths of this cgroup and of the one for its clients.
const CGROUP: &str = "PROACTOR_TEST_CGROUP";
const CGROUP_BEFORE: &str = "PROACTOR_TEST_CGROUP_BEFORE";
const MIB: u64 = 1 << 20;

/// A memory cgroup, of version 2 or 1. Removed on drop by the process that made it.
pub struct MemoryCgroup(PathBuf);

const CGROUPS: [(&str, &str); 2] =
    [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];

impl MemoryCgroup {
    /// Makes one of 64 MiB, for the process of `command` and those that it starts.
    pub fn for_child(command: &mut Command) -> Result<MemoryCgroup, String> {
        let cgroup = MemoryCgroup::new(64 * MIB)?;
        let root = cgroup.0.parent().expect("it is below the root");
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        // `4:memory:/path` of version 1, `0::/path` of version 2.
        let before = cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.strip_prefix(if root == Path::new(CGROUPS[0].0) { ":" } else { "memory:" })
        });
        let before = root.join(before.unwrap_or_default().trim_start_matches('/'));
        command.env(CGROUP, &cgroup.0).env(CGROUP_BEFORE, before);
        Ok(cgroup)
    }

    fn new(bytes: u64) -> Result<MemoryCgroup, String> {
        let mut why = String::new();
        for (root, limit) in CGROUPS {
            let path = Path::new(root).join(format!("proactor-{}", std::process::id()));
            // Version 2: the parent must enable the controller for its children (cgroups(7)).
            let _ = put(&Path::new(root).join("cgroup.subtree_control"), "+memory");
            let made = std::fs::create_dir(&path)
                .and_then(|()| put(&path.join(limit), &bytes.to_string()));
            match made {
                Ok(()) => return Ok(MemoryCgroup(path)),
                Err(error) => why = format!("{}: {error}", path.join(limit).display()),
            }
            let _ = std::fs::remove_dir(&path);
        }
        Err(format!("cannot make a memory cgroup: {why}"))
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // It is busy until the kernel has removed its last process.
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

fn join(path: &Path) -> Result<(), String> {
    let procs = path.join("cgroup.procs");
    put(&procs, "0").map_err(|error| format!("{}: {error}", procs.display()))
}

/// Moves this process into the cgroup that its parent made.
pub fn enter() -> Result<(), String> {
    join(Path::new(&std::env::var(CGROUP).map_err(|error| error.to_string())?))
}

/// In a process of clients: leaves the cgroup, so that it holds the memory of the server only.
pub fn leave() {
    if let Ok(before) = std::env::var(CGROUP_BEFORE) {
        join(Path::new(&before)).expect("the cgroup of the parent exists");
    }
}

/// Five thousand connections echo three messages each, then all are idle. Meant for a small memory
/// cgroup; also runs without one.
pub fn five_thousand_clients(variant: &Variant) {
    const CLIENTS: usize = 5_000;
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    let mut clients = ClientProcess::start(addr, CLIENTS, 3);
    let mut bytes = 0;
    rig.run("the clients", |engine, completion| {
        if let Some(completion) = completion {
            if let Event::Received(data) = &completion.event {
                bytes += data.len();
            }
            serve_echo(engine, completion);
        }
        assert!(bytes > 0 || !clients.has_exited(), "the clients have exited");
        bytes == CLIENTS * 3 * 1024
    });
    // The clients have not read the echoes of the last round.
    let connected = spawn(move || {
        clients.wait_connected();
        clients
    });
    rig.run("the last echoes", |_, _| connected.is_finished());
    assert_eq!(rig.engine.connections(), CLIENTS);
    report::add_line(format!(
        "measured {}: {} in use with {CLIENTS} connections",
        variant.name,
        memory_in_use()
    ));
    let clients = connected.join().expect("all are connected");
    let leaving = spawn(move || clients.stop());
    rig.run("the end", |engine, completion| {
        if let Some(completion) = completion {
            serve_echo(engine, completion);
        }
        engine.connections() == 0 && leaving.is_finished()
    });
    leaving.join().expect("the clients exit without an error");
    assert!(rig.ended.len() == CLIENTS && rig.engine.stats().accepted == CLIENTS as u64);
}

/// The memory in use, of the cgroup or of the process.
fn memory_in_use() -> String {
    let read = |path: &Path| {
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    if let Some(cgroup) = std::env::var_os(CGROUP) {
        let files =
            ["memory.current", "memory.usage_in_bytes"].map(|file| Path::new(&cgroup).join(file));
        if let Some(bytes) = files.iter().find_map(|file| read(file)) {
            return format!("{} MiB of the cgroup", bytes / MIB);
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    resident.map_or("an unknown amount".to_owned(), |text| format!("{} resident", text.trim()))
}
