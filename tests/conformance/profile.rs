//! The seccomp profile for container runtimes, `docs/seccomp-proactor.json`. Owns: its parser, and
//! the calls that only the suite needs.

use crate::Variant;
use crate::environments::{CONTAINER_REFUSED, IO_URING};
use crate::filters::{Filter, number, numbers};

const PROFILE: &str = include_str!("../../docs/seccomp-proactor.json");

/// Calls that the suite needs and a server does not: processes, pipes, timers, filters.
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
        assert!(group["comment"].is_string(), "each group has a comment");
        group["names"].as_array().expect("a list").iter()
    });
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

/// Restricts this process to the calls of the profile and of the suite.
pub fn enter() -> Result<(), String> {
    let allowed = allowed();
    let names: Vec<&str> = allowed.iter().map(String::as_str).chain(HARNESS).collect();
    Filter::closed(libc::EPERM).allowing(&numbers(&names)).install()
}

/// Each name is a system call, none occurs twice, and none is one that the runtimes refuse by
/// default.
pub fn is_well_formed(_: &Variant) {
    let mut names = allowed();
    assert!(IO_URING.iter().all(|call| names.iter().any(|name| name == call)));
    assert!(CONTAINER_REFUSED.iter().all(|call| names.iter().all(|name| name != call)));
    assert!(names.iter().filter_map(|name| number(name)).count() > 80);
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "a name occurs twice");
}
