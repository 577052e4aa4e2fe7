//! What did not run, and why. A scenario that cannot do its work where it is says so with [`skip`]
//! and returns; the summary counts it as skipped, not as passed.

use std::sync::{Mutex, MutexGuard};

/// The scenario that runs; what was skipped so far, and why; lines for the summary.
struct Notes {
    current: String,
    skipped: Vec<(String, String)>,
    lines: Vec<String>,
}

static NOTES: Mutex<Notes> =
    Mutex::new(Notes { current: String::new(), skipped: Vec::new(), lines: Vec::new() });

/// Names the scenario that runs from now on.
pub fn enter(scenario: &str) {
    scenario.clone_into(&mut lock().current);
}

/// Notes that the scenario, or the rest of it, cannot run here.
pub fn skip(why: impl std::fmt::Display) {
    let mut notes = lock();
    let current = notes.current.clone();
    // Once each: a scenario may find several things missing.
    if notes.skipped.iter().all(|(scenario, _)| *scenario != current) {
        notes.skipped.push((current, why.to_string()));
    }
}

/// Notes a line for the summary: a row of a table, a measurement.
pub fn note(line: String) {
    lock().lines.push(line);
}

/// Takes over what another process of this binary said about the one scenario it ran.
pub fn adopt(output: &str) {
    if let Some((_, why)) =
        output.lines().find_map(|line| line.strip_prefix("skipped ")?.split_once(": "))
    {
        skip(why);
    }
    output
        .lines()
        .filter(|line| line.starts_with("measured "))
        .for_each(|line| note(line.to_owned()));
}

/// Prints what was noted, and the last line; for people and for `tests/kernels/run`.
pub fn summary(conclusion: &libtest_mimic::Conclusion) {
    let notes = lock();
    notes.lines.iter().for_each(|line| println!("{line}"));
    notes.skipped.iter().for_each(|(scenario, why)| println!("skipped {scenario}: {why}"));
    let skipped = notes.skipped.len() as u64;
    let passed = conclusion.num_passed.saturating_sub(skipped);
    let skipped = conclusion.num_ignored + skipped;
    println!("conformance: {passed} passed, {} failed, {skipped} skipped", conclusion.num_failed);
}

fn lock() -> MutexGuard<'static, Notes> {
    NOTES.lock().expect("no panic while it is held")
}
