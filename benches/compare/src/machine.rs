//! The description of the machine and the versions, for the generated documents.

use crate::process::library;
use std::process::Command;

const PEERS: [&str; 8] =
    ["mio", "tokio", "tokio-uring", "monoio", "compio", "glommio", "a10", "ringline"];

/// The description as a Markdown list.
pub fn describe() -> String {
    let cpu =
        first_after("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let kernel = read("/proc/sys/kernel/osrelease");
    let congestion = read("/proc/sys/net/ipv4/tcp_congestion_control");
    let cpuinfo = read("/proc/cpuinfo");
    // `available_parallelism` does not count the others: this process is pinned.
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kind = if cpuinfo.contains(" hypervisor ") { "virtual machine" } else { "machine" };
    let memory = first_after("/proc/meminfo", "MemTotal").unwrap_or_default();
    format!(
        "- {}\n- {kind} with {cores} cores ({cpu}), {memory} of memory\n\
         - Linux {kernel}, loopback, TCP congestion control {congestion}\n- {}, release profile\n\
         - proactor {}\n- {}\n- {}\n",
        output("date", &["-u", "+%Y-%m-%d"]),
        output("rustc", &["--version"]),
        output("git", &["rev-parse", "--short", "HEAD"]),
        versions()[..4].join(", "),
        versions()[4..].join(", "),
    )
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn first_after(path: &str, key: &str) -> Option<String> {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(library()).output();
    output.map_or_else(
        |_| "unknown".into(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// The versions of the peers that this program was built with.
fn versions() -> Vec<String> {
    let lock = read(&format!("{}/Cargo.lock", env!("CARGO_MANIFEST_DIR")));
    let version = |name: &str| {
        let entry = lock
            .split("[[package]]")
            .find(|entry| entry.contains(&format!("name = \"{name}\"\n")))?;
        Some(entry.split("version = \"").nth(1)?.split('"').next()?.to_owned())
    };
    PEERS
        .iter()
        .map(|name| format!("{name} {}", version(name).unwrap_or_else(|| "?".into())))
        .collect()
}
