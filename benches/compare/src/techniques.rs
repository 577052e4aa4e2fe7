//! Each technique alone: variants of the hand-written loops, which show what the interfaces can do,
//! and of the engine, which show what its settings do. The first rows are the references of both.

use crate::Choice;
use crate::machine;
use crate::measure::{self, Echo, Series};
use crate::plan::{CONNECTS, EPOLL, EPOLL_LARGE, OURS_EPOLL, OURS_URING, Progress, RING};
use crate::process::{Program, library};
use crate::report::{Table, paragraph};
use std::io;

/// Arguments added to the epoll loop with 64 KiB reads.
const LOOP_VARIANTS: &[&str] = &["--edge", "--watch-output", "--pool 4194304"];

/// Arguments added to the bare ring.
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
    "--receive own --buffer-size 262144",
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

/// Arguments added to the engine on io_uring.
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
    "--completions 8",
    "--zero-copy 1024",
    "--spin 50",
];

/// Arguments added to the engine on epoll.
const EPOLL_VARIANTS: &[&str] = &[
    "--turn-bytes 1",
    "--turn-bytes 65536",
    "--turn-bytes 1073741824",
    "--completions 8",
    "--gather 1",
    "--spin 50",
];

/// A program and its variants: the beginning of the names of its rows, the example (`None` for this
/// program), its arguments, and the arguments that are added.
type Family = (&'static str, Option<&'static str>, &'static str, &'static [&'static str]);

const SERVERS: &[Family] = &[
    ("epoll loop, 64 KiB reads", None, "serve epoll --read 65536", LOOP_VARIANTS),
    ("bare ring", None, "serve ring", RING_VARIANTS),
    ("engine", Some("echo_server"), "--backend uring", ENGINE_VARIANTS),
    ("engine on epoll", Some("echo_server"), "--backend epoll", EPOLL_VARIANTS),
];

/// Clients that connect, send one request and close.
const CLIENTS: &[Family] = &[
    ("epoll client", None, "client", &["--no-so-error", "--edge", "--delete"]),
    ("bare ring client", None, "client --ring", &["--unlinked", "--early-receive"]),
    (
        "engine",
        Some("load"),
        "--backend uring",
        &["--fixed-receives", "--no-early-sends", "--disable socket_op", "--fin-wait 250"],
    ),
    ("engine on epoll", Some("load"), "--backend epoll", &["--no-early-sends", "--fin-wait 250"]),
];

pub fn run(choice: &Choice) -> io::Result<()> {
    let mut progress = Progress::new();
    let servers = servers(choice, &mut progress);
    let clients = clients(choice, &mut progress);
    if servers.is_empty() && clients.is_none() {
        return Err(choice.no_workload());
    }
    if choice.writes() {
        std::fs::write(library().join("docs/techniques.md"), page(&servers, clients.as_ref()))?;
        println!("written: docs/techniques.md");
    }
    Ok(())
}

/// The variants that were chosen; all by default.
fn variants<'a>(choice: &'a Choice, families: &'a [Family]) -> impl Iterator<Item = Program> + 'a {
    let wanted = |name: &str| {
        choice.with.is_empty() || choice.with.iter().any(|part| name.contains(part.as_str()))
    };
    families.iter().flat_map(move |&(family, example, arguments, variants)| {
        let program = move |variant: &&str| {
            let (name, arguments) =
                (format!("{family} {variant}"), format!("{arguments} {variant}"));
            let program = match example {
                Some(example) => Program::example(&name, example, &arguments),
                None => Program::own(&name, &arguments),
            };
            wanted(&name).then_some(program)
        };
        variants.iter().filter_map(program)
    })
}

fn servers<'a>(choice: &Choice, progress: &mut Progress) -> Vec<(&'a str, Vec<Series>)> {
    let mut programs = vec![
        Program::own(EPOLL, "serve epoll"),
        Program::own(RING, "serve ring"),
        Program::example(OURS_URING, "echo_server", "--backend uring"),
        Program::own(EPOLL_LARGE, "serve epoll --read 65536"),
        Program::example(OURS_EPOLL, "echo_server", "--backend epoll"),
    ];
    programs.extend(variants(choice, SERVERS));
    let workloads = [
        ("50 x 64 B", 50, 64, 1, false),
        ("500 x 64 B", 500, 64, 1, false),
        ("5,000 x 64 B", 5000, 64, 1, false),
        ("64 x 64 B, unix", 64, 64, 1, true),
        ("50 x 1 KiB, 16 in flight", 50, 1024, 16, false),
        ("50 x 16 KiB", 50, 16 << 10, 1, false),
        ("4 x 256 KiB", 4, 256 << 10, 1, false),
    ];
    let mut columns = Vec::new();
    for (name, conns, size, depth, unix) in workloads {
        if !choice.selects(name) {
            continue;
        }
        progress.begin(name);
        let echo = Echo { conns, size, depth, unix };
        let pace = choice.pace((7, 120), (3, 50));
        let series = measure::echo(&echo, &programs, pace, &mut progress.callback());
        progress.print(&Table::of_cpu(name, 1, &series, "").markdown());
        columns.push((name, series));
    }
    columns
}

fn clients(choice: &Choice, progress: &mut Progress) -> Option<Table> {
    let (title, arguments) = CONNECTS;
    if !choice.selects(title) {
        return None;
    }
    let mut programs = vec![
        Program::own("bare ring client", "client --ring"),
        Program::own("epoll client", "client"),
        Program::example(OURS_URING, "load", "--backend uring"),
        Program::example(OURS_EPOLL, "load", "--backend epoll"),
    ];
    programs.extend(variants(choice, CLIENTS));
    progress.begin(title);
    let pace = choice.pace((15, 300), (3, 200));
    let series = measure::client(arguments, &programs, pace, &mut progress.callback());
    let table = Table::of_cpu(title, 0, &series, "");
    progress.print(&table.markdown());
    Some(table)
}

fn page(columns: &[(&str, Vec<Series>)], clients: Option<&Table>) -> String {
    let command = paragraph(
        "Written by `cargo run --release --manifest-path benches/compare/Cargo.toml -- \
         techniques`. [How it got fast](how-it-got-fast.md) explains the techniques and says which \
         are used.",
    );
    let servers = paragraph(
        "CPU time of the server per request, as a ratio to the unchanged bare ring (the second \
         row) in the same round: medians over the rounds, in brackets the least and the most. A \
         row names a server and the arguments that were added to its command: `proactor-compare \
         serve ring` (bare ring), `proactor-compare serve epoll` (epoll loop), `echo_server \
         --backend uring` (engine), `echo_server --backend epoll` (engine on epoll).",
    );
    let machine = machine::describe();
    let mut text =
        format!("# Techniques, measured\n\n{command}\n\n{machine}\n## Servers\n\n{servers}\n\n");
    text += &format!(
        "| |{}\n",
        columns.iter().map(|(name, _)| format!(" {name} |")).collect::<String>()
    );
    text += &format!("|---|{}\n", "---|".repeat(columns.len()));
    let rows = columns.first().map_or(0, |(_, series)| series.len());
    for row in 0..rows {
        text += &format!("| {} |", columns[0].1[row].name);
        for (_, series) in columns {
            let cell = match measure::ratio(&series[row], &series[1], |sample| sample.figure) {
                Some(ratio) => {
                    format!(" {:.2} ({:.2}-{:.2}) |", ratio.median, ratio.least, ratio.most)
                }
                None => format!(" {} |", series[row].failure.as_deref().unwrap_or("not measured")),
            };
            text += &cell;
        }
        text += "\n";
    }
    if let Some(clients) = clients {
        let about = paragraph(
            "CPU time of a client per connection: connect, one request, close. The commands are \
             `proactor-compare client` (epoll client), `proactor-compare client --ring` (bare ring \
             client), `load --mode connect --backend uring` (engine) and `load --mode connect \
             --backend epoll` (engine on epoll).",
        );
        text += &format!("\n## Clients\n\n{about}\n\n");
        text += &clients.markdown();
    }
    text.trim_end().to_owned() + "\n"
}
