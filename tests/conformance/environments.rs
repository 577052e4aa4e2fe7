//! Hostile environments: seccomp filters of container runtimes, sysctls, resource limits, a small
//! memory cgroup, a read-only file system, no /proc, a lossy network. Owns: their list, and what
//! the engine must choose in each. Must not know how a restriction is set up: that is `sandbox.rs`,
//! `filters.rs`, `memory.rs` and `lossy.rs`.
//!
//! `conformance environments/` runs them. Each is a process that restricts itself irrevocably, then
//! runs the suite on the backend that the engine chooses there (`auto`). Checked are the backend,
//! the printed reason and the result of the suite. One row of a table reports them.
//!
//! An environment that needs privileges or a kernel that this machine lacks is skipped with the
//! reason. Sysctls are changed only in a virtual machine of the test (`PROACTOR_TEST_VM=1`, set by
//! `tests/kernels/run`). `PROACTOR_TEST_SCENARIOS=name,name` runs only some scenarios in each.
//!
//! On the machine itself an environment runs the modules that depend on it ([`DEPENDENT`]).
//! `PROACTOR_TEST_ENVIRONMENTS=whole` runs the whole suite in each, as CI and the virtual machines
//! do. Most scenarios wait for timers, so the whole suite takes minutes.

use crate::filters::{Filter, numbers};
use crate::memory::{self, MemoryCgroup};
use crate::report::{self, skip};
use crate::sandbox;
use crate::variants::{AS_5_6, AUTO, EPOLL, Variant};
use crate::{lossy, profile};
use libtest_mimic::{Failed, Trial};
use proactor::{Backend, Config, Engine, Tier};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Set in a process that is inside an environment: its name.
pub const CURRENT: &str = "PROACTOR_TEST_CURRENT_ENVIRONMENT";
/// The modules that run in an environment whose list is empty, unless all are asked for.
const DEPENDENT: &[&str] = &[
    "connecting",
    "accepting",
    "streams",
    "sending",
    "receiving",
    "teardown",
    "hostile",
    "memory",
];
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// The backend that the engine must choose in an environment.
enum Expected {
    Uring,
    /// io_uring, with this text among the notes.
    UringWith(&'static str),
    /// epoll, with this text in the reason.
    Epoll(&'static str),
    /// io_uring, or epoll with this text in the reason.
    EitherWith(&'static str),
}

struct Environment {
    name: &'static str,
    variants: &'static [&'static Variant],
    /// The modules whose scenarios run; if empty, [`DEPENDENT`] or all.
    modules: &'static [&'static str],
    /// Scenarios that do not run, by name.
    excluded: &'static [&'static str],
    expected: Expected,
    /// Restricts the calling process, before it becomes the suite.
    enter: fn() -> Result<(), String>,
}

const ORDINARY: Environment = Environment {
    name: "",
    variants: &[&AUTO],
    modules: &[],
    excluded: &[],
    expected: Expected::Uring,
    enter: || Ok(()),
};

const ENVIRONMENTS: &[Environment] = &[
    Environment {
        name: "seccomp_like_docker",
        expected: Expected::Epoll("EPERM: seccomp: a filter forbids io_uring_setup"),
        enter: || forbid(&IO_URING, libc::EPERM),
        ..ORDINARY
    },
    Environment {
        name: "seccomp_like_podman",
        expected: Expected::Epoll("ENOSYS: "),
        enter: || forbid(&IO_URING, libc::ENOSYS),
        ..ORDINARY
    },
    Environment {
        name: "seccomp_without_enter",
        expected: Expected::Epoll(
            "EPERM: seccomp: io_uring_setup is allowed, io_uring_enter is not",
        ),
        enter: || forbid(&["io_uring_enter"], libc::EPERM),
        ..ORDINARY
    },
    Environment {
        name: "seccomp_without_register",
        expected: Expected::UringWith("io_uring_register is refused: EPERM"),
        enter: || forbid(&["io_uring_register"], libc::EPERM),
        ..ORDINARY
    },
    Environment {
        name: "seccomp_proactor_profile",
        variants: &[&AUTO, &EPOLL],
        enter: profile::enter,
        ..ORDINARY
    },
    Environment {
        name: "sysctl_2",
        expected: Expected::Epoll("EPERM: io_uring_disabled=2"),
        enter: || sysctl("2", None),
        ..ORDINARY
    },
    Environment {
        name: "sysctl_1_without_the_group",
        expected: Expected::Epoll("EPERM: io_uring_disabled=1"),
        enter: || sysctl("1", None).and_then(|()| sandbox::drop_privileges(None)),
        ..ORDINARY
    },
    Environment {
        name: "sysctl_1_in_the_group",
        enter: || sysctl("1", Some(4_242)).and_then(|()| sandbox::drop_privileges(Some(4_242))),
        ..ORDINARY
    },
    Environment {
        name: "memlock_0",
        expected: Expected::EitherWith("RLIMIT_MEMLOCK is 0 bytes"),
        enter: || locked_memory(0),
        ..ORDINARY
    },
    Environment {
        name: "memlock_64_kib",
        expected: Expected::EitherWith("RLIMIT_MEMLOCK is 65536 bytes"),
        enter: || locked_memory(64 << 10),
        ..ORDINARY
    },
    Environment {
        name: "nofile_32",
        enter: || {
            sandbox::limit(libc::RLIMIT_NOFILE, 32)
                .map_err(|error| format!("RLIMIT_NOFILE: {error}"))
        },
        ..ORDINARY
    },
    Environment {
        name: "memory_cgroup_64_mib",
        // Scenarios of the other modules use more than 64 MiB themselves.
        modules: &["memory", "connecting", "accepting", "scale", "timing"],
        enter: memory::enter,
        ..ORDINARY
    },
    Environment { name: "read_only_file_system", enter: sandbox::make_read_only, ..ORDINARY },
    Environment { name: "no_proc", enter: sandbox::unmount_proc, ..ORDINARY },
    Environment {
        name: "masked_as_5_6",
        variants: &[&AS_5_6],
        // It lets the engine choose its capabilities, so the mask would not apply.
        excluded: &["little_memlock_unprivileged"],
        enter: mask_as_5_6,
        ..ORDINARY
    },
    Environment {
        name: "lossy_network",
        variants: &[&AUTO, &EPOLL],
        modules: &["streams", "sending", "receiving", "lossy"],
        enter: lossy::enter,
        ..ORDINARY
    },
];

pub const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// Other calls that the default profiles of Docker and Podman refuse to an unprivileged container.
pub const CONTAINER_REFUSED: [&str; 11] = [
    "add_key",
    "bpf",
    "keyctl",
    "mount",
    "perf_event_open",
    "ptrace",
    "request_key",
    "setns",
    "umount2",
    "unshare",
    "userfaultfd",
];

fn forbid(calls: &[&str], errno: i32) -> Result<(), String> {
    // clone3 is refused with ENOSYS, as the profiles do, because a filter cannot read its flags.
    // The C library then uses clone.
    let filter = Filter::open()
        .refusing(&numbers(&["clone3"]), libc::ENOSYS)
        .refusing(&numbers(&CONTAINER_REFUSED), libc::EPERM);
    filter.refusing(&numbers(calls), errno).install()
}

fn sysctl(value: &str, group: Option<u32>) -> Result<(), String> {
    if !is_virtual_machine() {
        return Err(
            "changes a sysctl of the machine: only in a virtual machine (tests/kernels/run)"
                .to_owned(),
        );
    }
    sandbox::put(Path::new(SYSCTL), value)
        .map_err(|error| format!("{SYSCTL}: {error} (6.6 has it)"))?;
    let group = group.map_or(String::from("-1"), |group| group.to_string());
    sandbox::put(Path::new("/proc/sys/kernel/io_uring_group"), &group)
        .map_err(|error| format!("io_uring_group: {error}"))
}

fn locked_memory(bytes: u64) -> Result<(), String> {
    sandbox::limit(libc::RLIMIT_MEMLOCK, bytes)
        .map_err(|error| format!("RLIMIT_MEMLOCK: {error}"))?;
    sandbox::drop_privileges(None)
}

fn mask_as_5_6() -> Result<(), String> {
    let all =
        Engine::new(Config::default().ignore_environment(true).tier(Tier::Polled).hardened(true));
    drop(all.map_err(|error| error.to_string())?);
    // Allowed are registrations up to IORING_UNREGISTER_PERSONALITY and the two that the ring's
    // restrictions need, and io_uring_enter with GETEVENTS and SQ_WAKEUP.
    let (enter, register) = (numbers(&["io_uring_enter"])[0], numbers(&["io_uring_register"])[0]);
    Filter::open()
        .refusing_bits(enter, 3, !3, libc::EINVAL)
        .refusing_from(register, 1, 13, libc::EINVAL)
        .refusing(
            &numbers(&["epoll_pwait2", "close_range", "faccessat2", "openat2", "clone3"]),
            libc::ENOSYS,
        )
        .install()
}

/// Restricts this process to an environment.
pub fn enter(name: &str) -> Result<(), String> {
    (by_name(name).ok_or_else(|| format!("no environment {name}"))?.enter)()
}

fn by_name(name: &str) -> Option<&'static Environment> {
    ENVIRONMENTS.iter().find(|environment| environment.name == name)
}

/// The environment of this process.
fn current() -> Option<&'static Environment> {
    std::env::var(CURRENT).ok().and_then(|name| by_name(&name))
}

/// How many descriptors a scenario needs. Those that are not listed need fewer than 32.
const DESCRIPTORS: &[(&str, u64)] = &[
    ("accept_many", 440),
    ("completions_with_room_for_one", 70),
    ("close_all_closes_everything", 70),
    ("drop_while_accepting", 130),
    ("drop_with_receives_armed", 70),
    ("fifty_connections_on_one_buffer", 180),
    ("fifty_connections_on_two_buffers", 180),
    ("five_thousand_clients", 5_040),
    ("leases_kept_for_long", 180),
    ("many_engines_on_one_thread", 200),
    ("nine_thousand_connections", 1_300),
    ("tiny_queues", 110),
    ("worker_threads_stay_few", 240),
];

/// Whether this process can open the descriptors that a scenario needs. If not, the scenario is
/// reported as skipped.
pub fn has_descriptors(scenario: &str) -> bool {
    let needed =
        DESCRIPTORS.iter().find(|(name, _)| *name == scenario).map_or(0, |(_, needed)| *needed);
    let max = sandbox::descriptors_max();
    if max < needed {
        skip(format_args!("needs {needed} descriptors; the limit is {max}"));
    }
    max >= needed
}

/// The variants that run in the environment of this process; `None` outside of one.
pub fn current_variants() -> Option<&'static [&'static Variant]> {
    current().map(|environment| environment.variants)
}

/// Whether a scenario runs in the environment of this process.
pub fn has_scenario(module: &str, name: &str) -> bool {
    let Some(environment) = current() else { return !["memory", "lossy"].contains(&module) };
    let has_module = match environment.modules {
        [] if !runs_whole_suites() => DEPENDENT.contains(&module),
        [] => module != "lossy",
        modules => modules.contains(&module),
    };
    has_module && !environment.excluded.contains(&name)
}

fn runs_whole_suites() -> bool {
    std::env::var("PROACTOR_TEST_ENVIRONMENTS").is_ok_and(|which| which == "whole")
}

/// Prints the backend and the reason, for the process that started this one.
pub fn print_engine() {
    let variant = current_variants().map_or(&AUTO, |variants| variants[0]);
    match Engine::new(variant.config()) {
        Ok(engine) => {
            let info = engine.info();
            let reason =
                info.fallback.as_ref().map_or(String::new(), |fallback| fallback.to_string());
            let reason = [vec![reason], info.notes.clone()].concat().join("; ");
            println!(
                "engine: {}/{}: {}",
                info.backend,
                info.tier_name(),
                reason.trim_start_matches("; ")
            );
        }
        Err(error) => println!("no engine: {error}"),
    }
}

/// One trial for each environment.
pub fn trials() -> Vec<Trial> {
    let trial = |environment: &'static Environment| {
        Trial::test(format!("environments/{}", environment.name), move || {
            report::begin(&format!("environments/{}", environment.name));
            environment.run()
        })
    };
    ENVIRONMENTS.iter().map(trial).collect()
}

/// Restores the sysctls when it is dropped.
struct Sysctls(Option<String>);

impl Drop for Sysctls {
    fn drop(&mut self) {
        if let Some(value) = self.0.take().filter(|_| is_virtual_machine()) {
            let _ = sandbox::put(Path::new(SYSCTL), value.trim());
        }
    }
}

impl Environment {
    fn limits_memory(&self) -> bool {
        self.modules.contains(&"memory")
    }

    fn run(&self) -> Result<(), Failed> {
        let mut command = sandbox::this_binary();
        command.args(["--color", "never"]).env(sandbox::ENTER, self.name);
        if let Ok(scenarios) = std::env::var("PROACTOR_TEST_SCENARIOS") {
            command.args(scenarios.split(','));
        }
        let _sysctls = Sysctls(std::fs::read_to_string(SYSCTL).ok());
        let _cgroup =
            match self.limits_memory().then(|| MemoryCgroup::for_child(&mut command)).transpose() {
                Ok(cgroup) => cgroup,
                Err(why) => {
                    skip(why);
                    return Ok(());
                }
            };
        let (status, text) = run_and_capture(command).map_err(|error| error.to_string())?;
        if let Some(why) = text.lines().find_map(|line| line.strip_prefix("cannot enter: ")) {
            skip(why);
            return Ok(());
        }
        self.check_output(&text).map_err(|why| format!("{why}\n{status}: {text}").into())
    }

    /// Compares what the suite printed with what is expected, and adds the row of the table.
    fn check_output(&self, text: &str) -> Result<(), String> {
        let line = |start: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(start))
                .ok_or(format!("no line {start:?}"))
        };
        let (backend, reason) = line("engine: ")?.split_once(": ").ok_or("no reason")?;
        let counts = line("conformance: ")?;
        report::add_line(format!("environment | {} | {backend} | {reason} | {counts}", self.name));
        for line in text.lines().filter(|line| line.starts_with("measured ")) {
            report::add_line(format!("{line} ({})", self.name));
        }
        let on_epoll = backend.starts_with("epoll");
        let as_expected = match self.expected {
            Expected::Uring => !on_epoll || !io_uring_available(),
            Expected::UringWith(note) => {
                !on_epoll && reason.contains(note) || !io_uring_available()
            }
            Expected::Epoll(cause) => on_epoll && reason.contains(cause),
            Expected::EitherWith(cause) => {
                !on_epoll || reason.contains(cause) || !io_uring_available()
            }
        };
        if !as_expected {
            return Err(format!("unexpected backend: {backend}, {reason:?}"));
        }
        let mut numbers =
            counts.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u32>().ok());
        match (numbers.next(), numbers.next()) {
            (Some(passed), Some(0)) if passed > 0 => Ok(()),
            _ => Err("the suite did not pass".to_owned()),
        }
    }
}

/// Runs a suite and returns what it printed. In a virtual machine, where it takes long, each line
/// is also printed at once.
fn run_and_capture(mut command: Command) -> std::io::Result<(ExitStatus, String)> {
    let (reader, writer) = std::io::pipe()?;
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // The command holds the other end of the pipe.
    drop(command);
    let (print, mut text) = (is_virtual_machine(), String::new());
    for line in BufReader::new(reader).lines() {
        let line = line?;
        if print {
            println!("  {line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    Ok((child.wait()?, text))
}

fn is_virtual_machine() -> bool {
    std::env::var_os("PROACTOR_TEST_VM").is_some()
}

/// Whether the engine chooses io_uring in this process.
fn io_uring_available() -> bool {
    Engine::new(AUTO.config()).is_ok_and(|engine| engine.info().backend == Backend::Uring)
}
