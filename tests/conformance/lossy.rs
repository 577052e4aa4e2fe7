//! A network that loses, delays and reorders packets: two network namespaces, joined by a veth pair
//! with netem at both ends (tc-netem(8)). The engine is in one, the peers are in the other: a
//! thread enters the other namespace to create the socket of a peer. Owns: the namespaces. Must not
//! know the scenarios that run in them, except its own two transfers.
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

/// Set in a suite whose peers are in another namespace: the descriptor of that namespace.
const PEER_NETNS: &str = "PROACTOR_TEST_PEER_NETNS";
const ENGINE_ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PEER_ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// At each end, so a round trip takes 40 ms.
const NETEM: [&str; 10] =
    ["netem", "limit", "10000", "delay", "20ms", "loss", "1%", "reorder", "5%", "50%"];

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

fn unshare() -> Result<File, String> {
    // SAFETY: takes no pointer.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(format!("unshare(CLONE_NEWNET): {}", std::io::Error::last_os_error()));
    }
    // BBR does not slow down at 1% of loss. With other algorithms the transfers take ten times as
    // long, which is accepted where the kernel has no BBR.
    let _ = std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "bbr");
    File::open(OWN_NAMESPACE).map_err(|error| format!("{OWN_NAMESPACE}: {error}"))
}

fn enter_namespace(namespace: RawFd) -> std::io::Result<()> {
    // SAFETY: takes no pointer. Only the calling thread changes its namespace.
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
    // SAFETY: the closure makes one system call and does not allocate.
    unsafe { command.pre_exec(move || enter_namespace(namespace)) };
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

/// Moves this process into one of two joined namespaces. The descriptor of the other stays open
/// across exec(2).
pub fn enter() -> Result<(), String> {
    let peer = unshare()?;
    let engine = unshare()?;
    let pid = std::process::id().to_string();
    tool(
        &peer,
        "ip",
        &["link", "add", "peer0", "type", "veth", "peer", "name", "engine0", "netns", &pid],
    )?;
    for (namespace, device, addr) in
        [(&engine, "engine0", ENGINE_ADDR), (&peer, "peer0", PEER_ADDR)]
    {
        tool(namespace, "ip", &["link", "set", "lo", "up"])?;
        tool(namespace, "ip", &["addr", "add", &format!("{addr}/24"), "dev", device])?;
        tool(namespace, "ip", &["link", "set", device, "up"])?;
        tool(namespace, "tc", &[&["qdisc", "add", "dev", device, "root"][..], &NETEM].concat())?;
    }
    // SAFETY: the descriptor is open, and F_SETFD takes no pointer. This process has one thread, so
    // no other reads the environment.
    unsafe {
        libc::fcntl(peer.as_raw_fd(), libc::F_SETFD, 0);
        std::env::set_var(PEER_NETNS, peer.as_raw_fd().to_string());
    }
    std::mem::forget(peer);
    Ok(())
}

/// The namespaces of the engine and of the peers, if the network is lossy.
fn namespaces() -> Option<&'static (File, RawFd)> {
    static FOUND: OnceLock<Option<(File, RawFd)>> = OnceLock::new();
    let find = || {
        let peer = std::env::var(PEER_NETNS).ok()?.parse().expect("a descriptor");
        Some((File::open(OWN_NAMESPACE).expect("procfs"), peer))
    };
    FOUND.get_or_init(find).as_ref()
}

/// Opens the namespaces before the first scenario, so that their descriptors do not count as
/// leaked.
pub fn prepare() {
    namespaces();
}

/// The addresses that engines and peers listen on.
pub fn addresses() -> (Ipv4Addr, Ipv4Addr) {
    if namespaces().is_some() {
        (ENGINE_ADDR, PEER_ADDR)
    } else {
        (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)
    }
}

/// Calls `make`, which creates a peer's socket, in the namespace of the peers.
pub fn in_peer_namespace<T>(make: impl FnOnce() -> T) -> T {
    let Some((engine, peer)) = namespaces() else { return make() };
    enter_namespace(*peer).expect("the namespace of the peers");
    let made = make();
    enter_namespace(engine.as_raw_fd()).expect("the namespace of the engine");
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
            let len = peer.read(&mut piece).expect("the stream ends without an error");
            if len == 0 {
                return seen;
            }
            assert!(piece[..len] == expected[seen..seen + len], "wrong bytes near {seen}");
            seen += len;
        }
    });
    for chunk in bytes.chunks(200_000) {
        rig.send_all(conn, chunk.to_vec());
    }
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).unsent_bytes, 0);
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
            assert!(data[..] == expected[seen..seen + data.len()], "wrong bytes near {seen}");
            seen += data.len();
        }
        seen == TRANSFER
    });
    writer.join().unwrap();
}
