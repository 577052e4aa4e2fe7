//! Little memory: a cgroup of 64 MiB, and five thousand connections in it.

use crate::peers::spawn;
use crate::report;
use crate::rig::{Rig, serve_echo};
use crate::sandbox::{CrowdProcess, put};
use crate::variants::Variant;
use proactor::Event;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In a process in a memory cgroup: where it is, and where its crowd belongs.
const CGROUP: &str = "PROACTOR_TEST_CGROUP";
const CGROUP_BEFORE: &str = "PROACTOR_TEST_CGROUP_BEFORE";
const MIB: u64 = 1 << 20;

/// A memory cgroup of a size, of version 2 or 1, whichever is mounted. Removed when it is dropped,
/// by the process that made it.
pub struct MemoryCgroup(PathBuf);

const CGROUPS: [(&str, &str); 2] =
    [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];

impl MemoryCgroup {
    /// One of 64 MiB, for a process to come and those that it starts.
    pub fn for_child(command: &mut Command) -> Result<MemoryCgroup, String> {
        let cgroup = MemoryCgroup::new(64 * MIB)?;
        let root = cgroup.0.parent().expect("made in it");
        let known = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        // `4:memory:/path` of version 1, `0::/path` of version 2.
        let before = known.lines().find_map(|line| {
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
            // Version 2 hands a controller to children only when it is told to.
            let _ = put(&Path::new(root).join("cgroup.subtree_control"), "+memory");
            let made = std::fs::create_dir(&path)
                .and_then(|()| put(&path.join(limit), &bytes.to_string()));
            match made {
                Ok(()) => return Ok(MemoryCgroup(path)),
                Err(error) => why = format!("{}: {error}", path.join(limit).display()),
            }
            let _ = std::fs::remove_dir(&path);
        }
        Err(format!("no memory cgroup can be made: {why}"))
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Its last process is only just gone.
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

/// Moves this process into the cgroup that it was started for.
pub fn enter() -> Result<(), String> {
    join(Path::new(&std::env::var(CGROUP).map_err(|error| error.to_string())?))
}

/// In a process of a crowd: memory of clients is not the server's.
pub fn leave() {
    if let Ok(before) = std::env::var(CGROUP_BEFORE) {
        join(Path::new(&before)).expect("a cgroup that was left is still there");
    }
}

/// Five thousand connections with an echo each way, three times, and then all of them idle at once.
/// In a small memory cgroup this is what it is for; elsewhere it runs as well.
pub fn five_thousand_clients(variant: &Variant) {
    const CLIENTS: usize = 5_000;
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    let mut crowd = CrowdProcess::arrive(addr, CLIENTS, 3);
    let mut bytes = 0;
    rig.run("the crowd", |engine, completion| {
        if let Some(completion) = completion {
            if let Event::Received(data) = &completion.event {
                bytes += data.len();
            }
            serve_echo(engine, completion);
        }
        assert!(bytes > 0 || !crowd.is_gone(), "the crowd died");
        bytes == CLIENTS * 3 * 1024
    });
    // The echoes of the last round are on their way.
    let there = spawn(move || {
        crowd.is_there();
        crowd
    });
    rig.run("the last echoes", |_, _| there.is_finished());
    assert_eq!(rig.engine.connections(), CLIENTS);
    report::note(format!(
        "measured {}: {} in use with {CLIENTS} connections",
        variant.name,
        memory_in_use()
    ));
    let crowd = there.join().expect("up");
    let leaving = spawn(move || crowd.leave());
    rig.run("the end", |engine, completion| {
        if let Some(completion) = completion {
            serve_echo(engine, completion);
        }
        engine.connections() == 0 && leaving.is_finished()
    });
    leaving.join().expect("the crowd leaves in peace");
    assert!(rig.ended.len() == CLIENTS && rig.engine.stats().accepted == CLIENTS as u64);
}

/// Of the memory cgroup, or of the process.
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
