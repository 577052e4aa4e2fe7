//! A network that loses, delays and reorders: two network namespaces of the suite's own, joined by
//! a veth pair with netem at both ends. The engine is in one, the peers of the scenarios in the
//! other; a thread that makes a peer's socket steps over for that.
//!
//! Needs CAP_SYS_ADMIN, `ip` and `tc` (iproute2), and a kernel with veth and sch_netem.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use proactor::*;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Set in a suite whose peers are in another namespace: a descriptor of that.
const FAR: &str = "PROACTOR_TEST_FAR_NETNS";
const NEAR_ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const FAR_ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// At each end: a round trip takes 40 ms, and packets overtake each other.
const NETEM: [&str; 10] =
    ["netem", "limit", "10000", "delay", "20ms", "loss", "1%", "reorder", "5%", "50%"];

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

fn unshare() -> Result<File, String> {
    // SAFETY: a plain value.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(format!("unshare(CLONE_NEWNET): {}", std::io::Error::last_os_error()));
    }
    // It takes 1% of loss for what it is; with others the same bytes take ten times as long. Where
    // it is missing they do.
    let _ = std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "bbr");
    File::open(OWN_NAMESPACE).map_err(|error| format!("{OWN_NAMESPACE}: {error}"))
}

fn step_into(namespace: RawFd) -> std::io::Result<()> {
    // SAFETY: a descriptor and a plain value; only the calling thread moves.
    match unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Runs `ip` or `tc` in a namespace.
fn tool(namespace: &File, program: &str, args: &[&str]) -> Result<(), String> {
    let namespace = namespace.as_raw_fd();
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(move || step_into(namespace)) };
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// Moves this process into one of two joined namespaces, and leaves a descriptor of the other to
/// the program that it becomes.
pub fn enter() -> Result<(), String> {
    let far = unshare()?;
    let near = unshare()?;
    let pid = std::process::id().to_string();
    tool(
        &far,
        "ip",
        &["link", "add", "far", "type", "veth", "peer", "name", "near", "netns", &pid],
    )?;
    for (namespace, device, addr) in [(&near, "near", NEAR_ADDR), (&far, "far", FAR_ADDR)] {
        tool(namespace, "ip", &["link", "set", "lo", "up"])?;
        tool(namespace, "ip", &["addr", "add", &format!("{addr}/24"), "dev", device])?;
        tool(namespace, "ip", &["link", "set", device, "up"])?;
        tool(namespace, "tc", &[&["qdisc", "add", "dev", device, "root"][..], &NETEM].concat())?;
    }
    // SAFETY: the far namespace's descriptor shall outlive the exec. No other thread reads the
    // environment.
    unsafe {
        libc::fcntl(far.as_raw_fd(), libc::F_SETFD, 0);
        std::env::set_var(FAR, far.as_raw_fd().to_string());
    }
    std::mem::forget(far);
    Ok(())
}

/// (near, far), if the peers are abroad.
fn namespaces() -> Option<&'static (File, RawFd)> {
    static FOUND: OnceLock<Option<(File, RawFd)>> = OnceLock::new();
    let find = || {
        let far = std::env::var(FAR).ok()?.parse().expect("a descriptor");
        Some((File::open(OWN_NAMESPACE).expect("procfs"), far))
    };
    FOUND.get_or_init(find).as_ref()
}

/// Opens the namespaces now, so that no scenario seems to leak their descriptors.
pub fn prepare() {
    namespaces();
}

/// Where engines listen, and where peers do.
pub fn addresses() -> (Ipv4Addr, Ipv4Addr) {
    if namespaces().is_some() {
        (NEAR_ADDR, FAR_ADDR)
    } else {
        (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)
    }
}

/// Makes a peer's socket where peers live.
pub fn abroad<T>(make: impl FnOnce() -> T) -> T {
    let Some((near, far)) = namespaces() else { return make() };
    step_into(*far).expect("the far namespace");
    let made = make();
    step_into(near.as_raw_fd()).expect("the near namespace");
    made
}

const TRANSFER: usize = 100 << 20;

pub fn a_hundred_mib_out(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let expected = pattern(TRANSFER);
    let bytes = expected.clone();
    let reader = spawn(move || {
        let (mut piece, mut seen) = (vec![0; 1 << 16], 0);
        loop {
            let len = peer.read(&mut piece).expect("the stream ends in good order");
            if len == 0 {
                return seen;
            }
            assert!(piece[..len] == expected[seen..seen + len], "other bytes near {seen}");
            seen += len;
        }
    });
    for chunk in bytes.chunks(200_000) {
        rig.send_all(conn, chunk.to_vec());
    }
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.end_of(conn).unsent_bytes, 0);
    assert_eq!(reader.join().unwrap(), TRANSFER);
}

pub fn a_hundred_mib_in(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (_, mut peer) = rig.pair();
    let expected = pattern(TRANSFER);
    let bytes = expected.clone();
    let writer = spawn(move || {
        peer.write_all(&bytes).expect("the engine reads");
    });
    let mut seen = 0;
    rig.run("100 MiB", |_, completion| {
        if let Some(Event::Received(data)) = completion.map(|completion| completion.event) {
            assert!(data[..] == expected[seen..seen + data.len()], "other bytes near {seen}");
            seen += data.len();
        }
        seen == TRANSFER
    });
    writer.join().unwrap();
}
