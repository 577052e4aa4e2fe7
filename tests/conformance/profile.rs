//! The seccomp profile that this project ships for container runtimes
//! (`docs/seccomp-proactor.json`), read as they read it.

use crate::Variant;
use crate::environments::{CONTAINED, IO_URING};
use crate::filters::{Filter, number, numbers};

const PROFILE: &str = include_str!("../../docs/seccomp-proactor.json");

/// What the suite does itself and no server needs: starting processes, pipes to them, timers,
/// filters.
const HARNESS: [&str; 7] = ["dup2", "kill", "pipe2", "setitimer", "seccomp", "wait4", "waitid"];

/// The names of all calls that the profile allows.
fn allowed() -> Vec<String> {
    let profile: serde_json::Value = serde_json::from_str(PROFILE).expect("a profile is JSON");
    assert_eq!(
        (&profile["defaultAction"], &profile["defaultErrnoRet"]),
        (&"SCMP_ACT_ERRNO".into(), &1.into())
    );
    let groups = profile["syscalls"].as_array().expect("a list").iter();
    let names = groups.flat_map(|group| {
        assert_eq!(group["action"], "SCMP_ACT_ALLOW");
        assert!(group["comment"].is_string(), "each group says what it is for");
        group["names"].as_array().expect("a list").iter()
    });
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

/// Puts this process under the profile, and what the suite needs beside it.
pub fn enter() -> Result<(), String> {
    let allowed = allowed();
    let names: Vec<&str> = allowed.iter().map(String::as_str).chain(HARNESS).collect();
    Filter::closed(libc::EPERM).allowing(&numbers(&names)).install()
}

/// Each name is a call, none stands twice, and none is one that the runtimes refuse on purpose.
pub fn is_well_formed(_: &Variant) {
    let mut names = allowed();
    assert!(IO_URING.iter().all(|call| names.iter().any(|name| name == call)));
    assert!(CONTAINED.iter().all(|call| names.iter().all(|name| name != call)));
    assert!(names.iter().filter_map(|name| number(name)).count() > 80);
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "a name stands twice");
}
