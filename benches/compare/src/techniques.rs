//! Each technique by itself: variants of the bare ring, which show what the interface can do, and of the engine, which show what its
//! settings do. The reference of both is in the first rows.

use crate::Choice;
use crate::measure::{self, Echo};
use crate::plan::{EPOLL, OURS_URING, Progress, RING};
use crate::process::{Program, library};
use crate::report::Table;
use crate::{machine, measure::Series};
use std::io;

/// What differs from the bare ring as it is.
const RING_VARIANTS: &[&str] = &[
    "--setup none",
    "--setup coop",
    "--setup sqpoll",
    "--registered-fd",
    "--direct",
    "--direct --registered-fd",
    "--receive select",
    "--receive select --poll-first",
    "--receive own --buffer-size 16384",
    "--bundle",
    "--incremental --buffers 64 --buffer-size 65536",
    "--incremental --buffers 128 --buffer-size 16384",
    "--buffers 64",
    "--buffers 16384",
    "--send single",
    "--send call",
    "--send zero-copy",
    "--min-wait 50",
    "--spin 50",
];

/// What differs from the engine as it is.
const ENGINE_VARIANTS: &[&str] = &[
    "--disable registered_ring_fd",
    "--disable incremental",
    "--tier multishot",
    "--tier oneshot",
    "--tier polled",
    "--buffers 16x65536",
    "--buffers 128x16384",
    "--buffers 16x262144",
    "--budget 1",
    "--budget 1000",
    "--gather 1",
    "--zero-copy 1024",
    "--spin 50",
];

pub fn run(choice: &Choice) -> io::Result<()> {
    let mut programs = vec![
        Program::own(EPOLL, "serve epoll"),
        Program::own(RING, "serve ring"),
        Program::example(OURS_URING, "echo_server", "--backend uring"),
    ];
    let wanted = |name: &str| choice.with.is_empty() || choice.with.iter().any(|part| name.contains(part.as_str()));
    for variant in RING_VARIANTS.iter().filter(|variant| wanted(variant)) {
        programs.push(Program::own(&format!("bare ring {variant}"), &format!("serve ring {variant}")));
    }
    for variant in ENGINE_VARIANTS.iter().filter(|variant| wanted(variant)) {
        programs.push(Program::example(
            &format!("engine {variant}"),
            "echo_server",
            &format!("--backend uring {variant}"),
        ));
    }
    let workloads = [
        ("50 x 64 B", 50, 64, 1),
        ("500 x 64 B", 500, 64, 1),
        ("5,000 x 64 B", 5000, 64, 1),
        ("50 x 1 KiB, 16 in flight", 50, 1024, 16),
        ("50 x 16 KiB", 50, 16 << 10, 1),
        ("4 x 256 KiB", 4, 256 << 10, 1),
    ];
    let mut progress = Progress::new();
    let mut columns: Vec<(&str, Vec<Series>)> = Vec::new();
    for (name, conns, size, depth) in workloads {
        if !choice.wants(name) {
            continue;
        }
        progress.begin(name);
        let echo = Echo { conns, size, depth, unix: false };
        let pace = choice.pace((7, 120), (3, 50));
        let series = measure::echo(&echo, &programs, pace, &mut progress.teller());
        progress.print(&Table::of_cpu(name, 1, &series, "").markdown());
        columns.push((name, series));
    }
    if choice.writes() {
        std::fs::write(library().join("docs/techniques.md"), page(&columns))?;
        println!("written: docs/techniques.md");
    }
    Ok(())
}

fn page(columns: &[(&str, Vec<Series>)]) -> String {
    let mut text = String::from(
        "# Techniques, measured\n\n\
         Written by `cargo run --release --manifest-path benches/compare/Cargo.toml -- techniques`. What they are and which are used:\n\
         [How it got fast](how-it-got-fast.md).\n\n",
    );
    text += &machine::describe();
    text += "\nCPU time of the server per request, as a ratio to the bare ring as it is (the second row) in the same round: medians over the rounds, in\n\
             brackets the least and the most. The rows show what was added to the command of the first column's beginning: `proactor-compare serve ring`, or\n\
             `echo_server --backend uring`.\n\n";
    text += &format!("| |{}\n", columns.iter().map(|(name, _)| format!(" {name} |")).collect::<String>());
    text += &format!("|---|{}\n", "---|".repeat(columns.len()));
    let rows = columns.first().map_or(0, |(_, series)| series.len());
    for row in 0..rows {
        text += &format!("| {} |", columns[0].1[row].name);
        for (_, series) in columns {
            let cell = match measure::ratio(&series[row], &series[1], |sample| sample.figure) {
                Some(ratio) => format!(" {:.2} ({:.2}-{:.2}) |", ratio.median, ratio.least, ratio.most),
                None => format!(" {} |", series[row].failure.as_deref().unwrap_or("not measured")),
            };
            text += &cell;
        }
        text += "\n";
    }
    text
}
