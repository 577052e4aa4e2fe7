//! The conformance suite. Owns: the list of scenarios, where each runs, and the check that none
//! leaks a descriptor, a thread or memory. A scenario is written once and runs on every backend and
//! tier of this machine, and in simulated worlds: without faults (`sim`), and with faults that the
//! caller must not see (`sim/faulty`, with the seed `PROACTOR_SIM_SEED`).
//!
//! `cargo test --test conformance` runs everything; a name or a part of one (`uring/polled`,
//! `connect_refused`) runs some. A variant that this machine lacks is skipped with the reason;
//! `PROACTOR_REQUIRE=uring` makes that a failure. Scenarios run one after the other, because
//! descriptors and threads are counted around each. Those that change their process (limits,
//! filters, forks) run in a process of their own: this binary, started again for one scenario.

mod accepting;
mod closing;
mod connecting;
mod environments;
mod filters;
mod hostile;
mod lossy;
mod memory;
mod panics;
mod peers;
mod pools;
mod profile;
mod receiving;
mod report;
mod rig;
mod sandbox;
mod scale;
mod sending;
mod streams;
mod teardown;
mod timing;
mod variants;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use variants::{VARIANTS, Variant};

/// Where the scenarios of a group run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placement {
    /// On every variant.
    Ordinary,
    /// On every variant, in a process of its own.
    Isolated,
    /// Not in simulated worlds: about descriptors, signals or processes.
    Kernel,
    /// Not in simulated worlds, in a process of its own.
    IsolatedKernel,
    /// Once, in a process of its own: about the choice of a backend.
    Once,
}

type Scenario = (&'static str, fn(&Variant));
type Group = (Placement, &'static str, &'static [Scenario]);

macro_rules! scenarios {
    ($($placement:ident $module:ident: $($name:ident)*;)*) => {
        const SCENARIOS: &[Group] = &[$((
            Placement::$placement,
            stringify!($module),
            &[$((stringify!($name), $module::$name),)*],
        ),)*];
    };
}

scenarios! {
    Ordinary connecting: connect_ipv4 connect_ipv6 connect_unix_path connect_unix_abstract
        connect_refused connect_unix_missing connect_unreachable connect_hangs_until_its_timeout
        connect_timeout_leaves_others_alone sends_wait_behind_the_connect
        requests_leave_with_the_connect close_while_connecting_flushes abort_while_connecting
        local_address impossible_addresses connect_limit unix_backlog_full;
    Ordinary streams: echo_one_byte_at_a_time echo_64_mib peer_half_closes_first we_half_close_first
        proxy_by_lease tags_and_addresses;
    Ordinary sending: many_small_writes_in_order tagged_sends zero_length_sends
        gathered_payloads_of_every_kind watermarks_bound_memory entry_limit_is_full zero_copy_sends;
    Ordinary receiving: reads_pause_and_resume pause_holds_the_end_back
        paused_connections_report_hangups recv_into_takes_over recv_into_short
        recv_into_while_paused pipelined_requests_in_one_read turn_bytes_limit_a_turn;
    Ordinary closing: close_flushes_everything close_with_unread_input_loses_nothing
        close_gives_up_at_the_linger_deadline abort_resets peer_resets_while_we_send
        peer_resets_after_data idle_timeout idle_timeout_is_put_off_by_traffic stale_ids_are_errors
        races_of_close_abort_and_data close_all_closes_everything close_all_gives_up_in_time
        close_with_peer_option closed_reason_names_the_side;
    Ordinary accepting: accept_many close_listener_stops_accepting listener_errors
        connections_max_pauses_listeners accepted_inherit_options ipv6_listener;
    Kernel accepting: adopt_a_socketpair adopt_a_listener release_gives_the_descriptor_back;
    Isolated accepting: descriptors_run_out connect_without_descriptors;
    Ordinary pools: fifty_connections_on_one_buffer fifty_connections_on_two_buffers
        leaked_leases_only_shrink_the_pool leases_kept_for_long leases_outlive_the_engine
        hot_connections_leave_room floods_stay_bounded;
    Ordinary scale: tiny_queues completions_with_room_for_one nine_thousand_connections;
    Ordinary timing: poll_times_out long_waits_leave_nothing_behind endless_durations
        timers_fire_in_order timers_move_and_cancel an_overdue_timer_does_not_block
        a_hundred_thousand_timers spinning_finds_completions_and_stops_when_idle
        wake_from_another_thread wake_storm wakes_are_coalesced;
    Kernel timing: foreign_loop;
    IsolatedKernel timing: signal_storm;
    Ordinary teardown: drop_idle drop_while_connecting drop_with_receives_armed drop_half_sent
        drop_with_leases drop_while_accepting drop_while_filling drop_zero_copy_in_flight
        drop_with_timers engines_in_a_row many_engines_on_one_thread;
    IsolatedKernel teardown: fork_in_the_middle fork_refuses_every_call fork_drops_nothing
        fork_makes_its_own_engine fork_does_not_wake_the_parent;
    Ordinary panics: panic_in_poll panic_in_partial_sends panic_before_the_wait
        panic_after_close_and_abort panic_in_drop;
    Kernel panics: panic_in_a_foreign_loop;
    Isolated panics: panic_in_drop_while_panicking;
    Kernel hostile: urgent_data_stays_on_its_connection;
    IsolatedKernel hostile: hardened_ring little_memlock_unprivileged worker_threads_stay_few
        slow_readers_hold_no_workers;
    Once hostile: seccomp_eperm seccomp_enosys seccomp_enter_only forced_backend_says_why
        environment_decides capabilities_are_reported refused_tiers_say_why
        no_descriptors_is_an_error;
    IsolatedKernel memory: five_thousand_clients;
    Once profile: is_well_formed;
    Kernel lossy: a_hundred_mib_out a_hundred_mib_in;
}

/// Set in a process that runs one isolated scenario.
const ISOLATED: &str = "PROACTOR_TEST_ISOLATED";

fn main() -> ExitCode {
    if let Some(status) = sandbox::run_as_child() {
        return status;
    }
    lossy::prepare();
    let mut arguments = Arguments::from_args();
    // Descriptors are counted around a scenario, so it must run alone.
    arguments.test_threads = Some(1);
    let isolated = std::env::var_os(ISOLATED).is_some();
    let mut trials = Vec::new();
    if let Some(variants) = environments::current_variants() {
        if !isolated {
            environments::print_engine();
        }
        variants.iter().for_each(|variant| trials.extend(trials_of(variant, arguments.list)));
    } else {
        VARIANTS.iter().for_each(|variant| trials.extend(trials_of(variant, arguments.list)));
        trials.extend(environments::trials());
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        report::summary(&conclusion);
    }
    conclusion.exit_code()
}

/// The scenarios of a variant. They are ignored, with the reason, if this machine lacks it.
fn trials_of(variant: &'static Variant, only_list: bool) -> Vec<Trial> {
    let simulated = variant.simulated().is_some();
    let mut unavailable = None;
    peers::run_on(variant, || {
        unavailable = peers::engine(variant.config()).err().map(|error| error.to_string())
    });
    let required = std::env::var("PROACTOR_REQUIRE").unwrap_or_default();
    let required =
        required.split(',').any(|name| !name.is_empty() && variant.name.starts_with(name));
    if let Some(why) = unavailable
        .as_ref()
        .filter(|_| !required && !only_list && std::env::var_os(ISOLATED).is_none())
    {
        println!("skipping {}: {why}", variant.name);
    }
    let groups = SCENARIOS.iter().filter(|(placement, ..)| match placement {
        Placement::Ordinary | Placement::Isolated => true,
        Placement::Kernel | Placement::IsolatedKernel => !simulated,
        Placement::Once => variant.name == "epoll",
    });
    let scenarios = groups.flat_map(|(placement, module, group)| {
        let here = group.iter().filter(|(name, _)| environments::has_scenario(module, name));
        here.map(move |entry| (*placement, *entry))
    });
    let trial = |(placement, (scenario, run)): (Placement, Scenario)| {
        let name = format!("{}/{scenario}", variant.name);
        let (why, inner) = (unavailable.clone(), name.clone());
        let trial = Trial::test(name, move || {
            if let Some(why) = why {
                return Err(why.into());
            }
            report::begin(&inner);
            if !simulated && !environments::has_descriptors(scenario) {
                return Ok(());
            }
            let isolated =
                !matches!(placement, Placement::Ordinary | Placement::Kernel) && !simulated;
            if isolated && std::env::var_os(ISOLATED).is_none() {
                return run_isolated(&inner);
            }
            check_leaks(|| peers::run_on(variant, || run(variant)));
            Ok(())
        });
        trial.with_ignored_flag(unavailable.is_some() && !required)
    };
    scenarios.map(trial).collect()
}

fn run_isolated(name: &str) -> Result<(), libtest_mimic::Failed> {
    let mut child = sandbox::this_binary();
    let output = child
        .args(["--exact", name])
        .env(ISOLATED, "1")
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => {
            report::merge_child_output(&text(&output.stdout));
            Ok(())
        }
        false => {
            Err(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr))
                .into())
        }
    }
}

/// Runs a scenario and checks that it leaked no descriptor, no thread and no memory of an engine.
fn check_leaks(run: impl FnOnce()) {
    let (before, leaked) = (descriptors_and_threads(), proactor::leaked_engines());
    run();
    assert_eq!(proactor::leaked_engines(), leaked, "an engine's memory was leaked");
    // The kernel ends the workers of a ring, and unlinks ended threads from /proc, with a delay.
    let deadline = Instant::now() + rig::patience();
    let grew = |now: (usize, usize)| now.0 > before.0 || now.1 > before.1;
    while grew(descriptors_and_threads()) {
        assert!(
            Instant::now() < deadline,
            "descriptors and threads: {before:?} before, {:?} after",
            descriptors_and_threads()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many descriptors and threads this process has. Without /proc, descriptors are probed one by
/// one, and threads are not counted.
fn descriptors_and_threads() -> (usize, usize) {
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else {
        // SAFETY: F_GETFD takes no pointer, and fails on a number that is no descriptor.
        let is_open = |fd: &i32| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0;
        return ((0..sandbox::descriptors_max() as i32).filter(is_open).count(), 0);
    };
    // An idle worker of io_uring stays with the thread that caused it, on some kernels until that
    // thread ends.
    let is_worker = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm"))
            .is_ok_and(|name| name.starts_with("iou-wrk"))
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    (descriptors.count(), tasks.filter(|task| !is_worker(task)).count())
}
