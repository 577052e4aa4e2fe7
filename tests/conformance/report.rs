//! The summary of a run. Owns: the skipped scenarios with their reasons, and lines of measurements.
//! A scenario that cannot run on this machine calls [`skip`] and returns; the summary counts it as
//! skipped.

use std::sync::{Mutex, MutexGuard};

struct Report {
    /// The scenario that runs now.
    current: String,
    /// Scenarios and reasons.
    skipped: Vec<(String, String)>,
    lines: Vec<String>,
}

static REPORT: Mutex<Report> =
    Mutex::new(Report { current: String::new(), skipped: Vec::new(), lines: Vec::new() });

/// Sets the scenario that runs from now on.
pub fn begin(scenario: &str) {
    scenario.clone_into(&mut lock().current);
}

/// Reports that the current scenario, or the rest of it, cannot run on this machine.
pub fn skip(why: impl std::fmt::Display) {
    let mut report = lock();
    let current = report.current.clone();
    // A scenario may call this more than once; the first reason counts.
    if report.skipped.iter().all(|(scenario, _)| *scenario != current) {
        report.skipped.push((current, why.to_string()));
    }
}

/// Adds a line to the summary: a row of a table, or a measurement.
pub fn add_line(line: String) {
    lock().lines.push(line);
}

/// Adds what a child process of this binary printed about its one scenario.
pub fn merge_child_output(output: &str) {
    if let Some((_, why)) =
        output.lines().find_map(|line| line.strip_prefix("skipped ")?.split_once(": "))
    {
        skip(why);
    }
    output
        .lines()
        .filter(|line| line.starts_with("measured "))
        .for_each(|line| add_line(line.to_owned()));
}

/// Prints the summary, also for `tests/kernels/run`, which parses it.
pub fn summary(conclusion: &libtest_mimic::Conclusion) {
    let report = lock();
    report.lines.iter().for_each(|line| println!("{line}"));
    report.skipped.iter().for_each(|(scenario, why)| println!("skipped {scenario}: {why}"));
    let skipped = report.skipped.len() as u64;
    let passed = conclusion.num_passed.saturating_sub(skipped);
    let skipped = conclusion.num_ignored + skipped;
    println!("conformance: {passed} passed, {} failed, {skipped} skipped", conclusion.num_failed);
}

fn lock() -> MutexGuard<'static, Report> {
    REPORT.lock().expect("no holder of the lock panics")
}
