//! The comparison. Owns: the contenders, the workloads, and the text of BENCHMARKS.md. Must not
//! know how a workload is measured.

use crate::Choice;
use crate::measure::{self, Echo, Open, Sample, Series};
use crate::process::{Program, library};
use crate::report::{Table, paragraph};
use crate::{chart, machine};
use indicatif::{ProgressBar, ProgressStyle};
use std::io;

pub const EPOLL: &str = "epoll loop, 4 KiB reads";
pub const EPOLL_LARGE: &str = "epoll loop, 64 KiB reads";
pub const RING: &str = "bare ring";
pub const OURS_URING: &str = "proactor, io_uring";
pub const OURS_EPOLL: &str = "proactor, epoll";

/// A workload of clients, and its arguments.
pub const CONNECTS: (&str, &str) =
    ("connect, 64 B, close; 64 at once", "--mode connect --conns 64");

fn baselines() -> Vec<Program> {
    vec![
        Program::own(EPOLL, "serve epoll"),
        Program::own(EPOLL_LARGE, "serve epoll --read 65536"),
        Program::own(RING, "serve ring"),
    ]
}

fn ours() -> Vec<Program> {
    vec![
        Program::example(OURS_URING, "echo_server", "--backend uring"),
        Program::example(OURS_EPOLL, "echo_server", "--backend epoll"),
    ]
}

/// With `Config::spin`.
fn ours_spinning() -> Vec<Program> {
    let spinning = |(name, backend): (&str, &str)| {
        let arguments = format!("--backend {backend} --spin 100");
        Program::example(&format!("{name}, spinning"), "echo_server", &arguments)
    };
    [(OURS_URING, "uring"), (OURS_EPOLL, "epoll")].into_iter().map(spinning).collect()
}

fn peers() -> Vec<Program> {
    let names = ["mio", "tokio", "tokio-uring", "monoio", "compio", "glommio", "a10", "ringline"];
    names.iter().map(|name| Program::own(name, &format!("serve {name}"))).collect()
}

/// The progress line on a terminal.
pub struct Progress {
    bar: ProgressBar,
    workload: String,
}

impl Progress {
    pub fn new() -> Progress {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{elapsed_precise} {msg}").expect("a valid template"),
        );
        Progress { bar, workload: String::new() }
    }

    pub fn begin(&mut self, workload: &str) {
        self.workload = workload.into();
        self.show("");
        if self.bar.is_hidden() {
            eprintln!("{workload}");
        }
    }

    fn show(&self, step: &str) {
        self.bar.set_message(format!("{}: {step}", self.workload));
        self.bar.tick();
    }

    pub fn callback(&self) -> impl FnMut(String) + '_ {
        |step| self.show(&step)
    }

    pub fn print(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }
}

struct Plan<'a> {
    choice: &'a Choice,
    progress: Progress,
}

pub fn run(choice: &Choice) -> io::Result<()> {
    let mut plan = Plan { choice, progress: Progress::new() };
    let servers = plan.servers();
    let clients = plan.clients();
    let round_trip = plan.round_trip();
    let tail = plan.tail();
    let memory = plan.memory();
    plan.progress.bar.finish_and_clear();
    if [&servers, &clients, &round_trip, &tail, &memory].iter().all(|tables| tables.is_empty()) {
        return Err(choice.no_workload());
    }
    if !choice.writes() {
        return Ok(());
    }
    let write = |name: &str, title: &str, tables: &[&Table]| {
        let path = library().join("docs/charts").join(name);
        match tables.is_empty() {
            true => Ok(()),
            false => chart::write(&path, title, tables)
                .map_err(|error| io::Error::other(error.to_string())),
        }
    };
    std::fs::create_dir_all(library().join("docs/charts"))?;
    let shown: Vec<&Table> = servers.iter().filter(|table| !table.title.contains("unix")).collect();
    write("servers.svg", "CPU time of an echo server per request, shorter is better", &shown)?;
    write(
        "clients.svg",
        "CPU time of a client per request, shorter is better",
        &clients.iter().collect::<Vec<_>>(),
    )?;
    let latencies: Vec<&Table> = round_trip.iter().chain(&tail).collect();
    write("latency.svg", "Latency, shorter is better", &latencies)?;
    let all: Vec<(&str, &[Table])> = vec![
        ("Servers", &servers),
        ("Clients", &clients),
        ("Round trip", &round_trip),
        ("Tail latency", &tail),
        ("Memory", &memory),
    ];
    std::fs::write(library().join("docs/benchmarks.md"), page(&all))?;
    println!("written: docs/benchmarks.md and docs/charts");
    Ok(())
}

fn page(sections: &[(&str, &[Table])]) -> String {
    let command = paragraph(
        "Written by `cargo run --release --manifest-path benches/compare/Cargo.toml`. Run it to \
         measure your own machine, with options after `--`: `--quick` takes less than three \
         minutes, `--only` and `--with` select parts, `--help` has the rest.",
    );
    let method = paragraph(
        "Each program has one thread: the measured one runs on core 0, the other side on core 1. \
         All contenders of a table run at once, and the load goes round them in short slices, so \
         that a busy neighbour slows all of them down alike. The ratio is taken within each round. \
         The tables show medians over the rounds, and the least and the most ratio. Less is \
         better. CPU time is user and system time of the process; most of it is the kernel's TCP. \
         The peers run as their documentation advises; their servers are in \
         `benches/compare/src/servers/`.",
    );
    let charts = ["servers", "clients", "latency"]
        .map(|name| format!("![{name}](charts/{name}.svg)\n\n"))
        .concat();
    let machine = machine::describe();
    let mut text = format!("# Benchmarks\n\n{command}\n\n{machine}\n{method}\n\n{charts}");
    for (section, tables) in sections.iter().filter(|(_, tables)| !tables.is_empty()) {
        text += &format!("## {section}\n\n");
        tables.iter().for_each(|table| text += &table.markdown());
    }
    text.trim_end().to_owned() + "\n"
}

impl Plan<'_> {
    fn finish(&self, table: Table) -> Table {
        self.progress.print(&table.markdown());
        table
    }

    /// The programs that `--with` chooses; all by default.
    fn chosen(&self, programs: Vec<Program>) -> Vec<Program> {
        let with = &self.choice.with;
        let wanted = |program: &Program| with.is_empty() || with.contains(&program.name);
        programs.into_iter().filter(wanted).collect()
    }

    fn servers(&mut self) -> Vec<Table> {
        let tcp = |conns, size, depth| Echo { conns, size, depth, unix: false };
        let workloads = [
            ("64 B, 50 connections", tcp(50, 64, 1), 0, ""),
            ("64 B, 500 connections", tcp(500, 64, 1), 0, ""),
            ("64 B, 5,000 connections", tcp(5000, 64, 1), 0, ""),
            ("1 KiB, 50 connections, 16 in flight", tcp(50, 1024, 16), 1, ""),
            ("16 KiB, 50 connections", tcp(50, 16 << 10, 1), 1, ""),
            (
                "64 B, 64 unix connections",
                Echo { unix: true, ..tcp(64, 64, 1) },
                0,
                "On unix sockets the kernel takes less time, so differences in user space show.",
            ),
        ];
        let mut tables = Vec::new();
        for (name, echo, base, note) in workloads {
            if !self.choice.selects(name) {
                continue;
            }
            self.progress.begin(name);
            let mut programs = baselines();
            programs.extend(ours());
            if !echo.unix {
                programs.extend(self.chosen(peers()));
            }
            let pace = self.choice.pace((15, 200), (3, 60));
            let series = measure::echo(&echo, &programs, pace, &mut self.progress.callback());
            tables.push(self.finish(Table::of_cpu(name, base, &series, note)));
        }
        tables
    }

    fn clients(&mut self) -> Vec<Table> {
        let workloads = [
            CONNECTS,
            ("client of 64 connections, 64 B", "--conns 64"),
            ("client of 1,024 connections, 64 B", "--conns 1024"),
            ("stream of 64 B messages, 4 connections", "--mode stream --conns 4"),
        ];
        let mut tables = Vec::new();
        for (name, arguments) in workloads {
            if !self.choice.selects(name) {
                continue;
            }
            self.progress.begin(name);
            let mut programs = vec![Program::own("epoll client", "client")];
            if arguments.contains("connect") {
                programs.push(Program::own("epoll client, edge-triggered", "client --edge"));
            }
            if !arguments.contains("stream") {
                programs.push(Program::own("bare ring client", "client --ring"));
            }
            if arguments.contains("connect") {
                let variants = [
                    ("send not linked", "--unlinked"),
                    ("receive with the send", "--early-receive"),
                ];
                let variant = |(name, flag)| {
                    Program::own(
                        &format!("bare ring client, {name}"),
                        &format!("client --ring {flag}"),
                    )
                };
                programs.extend(variants.map(variant));
            }
            programs.push(Program::example(OURS_URING, "load", "--backend uring"));
            programs.push(Program::example(OURS_EPOLL, "load", "--backend epoll"));
            let pace = self.choice.pace((11, 500), (3, 200));
            let series = measure::client(arguments, &programs, pace, &mut self.progress.callback());
            let note = match arguments.contains("stream") {
                true => paragraph(
                    "The epoll client writes each message by itself. The engine's client gathers \
                     what a turn queued.",
                ),
                false => String::new(),
            };
            tables.push(self.finish(Table::of_cpu(name, 0, &series, &note)));
        }
        tables
    }

    fn round_trip(&mut self) -> Vec<Table> {
        let name = "round trip on one connection, 64 B, p50";
        if !self.choice.selects(name) {
            return Vec::new();
        }
        self.progress.begin(name);
        let mut programs = baselines();
        programs.remove(1);
        programs.extend(ours());
        programs.extend(ours_spinning());
        let pace = self.choice.pace((11, 500), (3, 200));
        let series =
            measure::latency("--conns 1", "p50_us", &programs, pace, &mut self.progress.callback());
        let note = paragraph(
            "The client sleeps between its requests in all rows. With `Config::spin` the server \
             does not sleep.",
        );
        vec![self.finish(Table::of(name, "p50, us", 0, &series, &note))]
    }

    /// At half of the rate that the epoll loop reaches.
    fn tail(&mut self) -> Vec<Table> {
        let name = "tail latency at half of the peak rate";
        if !self.choice.selects(name) {
            return Vec::new();
        }
        self.progress.begin(name);
        let spinning = format!("{RING}, spinning");
        let mut programs =
            vec![Program::own(EPOLL, "serve epoll"), Program::own(RING, "serve ring")];
        programs.extend(ours());
        let few = format!("{OURS_EPOLL}, 8 completions a poll");
        programs.push(Program::example(&few, "echo_server", "--backend epoll --completions 8"));
        programs.push(Program::own("tokio", "serve tokio"));
        programs.push(Program::own(&spinning, "serve ring --spin 100"));
        programs.extend(ours_spinning());
        let open = Open { conns: 50, size: 64, part_of_peak: 0.5 };
        let pace = self.choice.pace((40, 800), (5, 400));
        let quantiles = [(0.5, "p50, us"), (0.99, "p99, us"), (0.999, "p99.9, us")];
        let seen = match measure::tails(
            open,
            &quantiles.map(|(quantile, _)| quantile),
            &programs,
            pace,
            &mut self.progress.callback(),
        ) {
            Ok(seen) => seen,
            Err(error) => {
                self.progress.print(&format!("{name}: {error}\n"));
                return Vec::new();
            }
        };
        let each = programs
            .iter()
            .zip(&seen.stalled)
            .map(|(program, part)| format!("{} {:.0}%", program.name, part * 100.0));
        let method = paragraph(&format!(
            "64 B on 50 connections, at half of the rate that the epoll loop reaches in the same \
             round ({:.0} requests/s, {:.0} to {:.0}). An open loop: requests are sent when they \
             are due, and their time counts from then (for a server of your own: `load --rate`). \
             It goes round the contenders in slices of {} ms. Left out are slices in which an \
             answer took longer than {} us, a hundred times what a server needs: the machine stood \
             still in them. Left out were:",
            seen.rate.median,
            seen.rate.least,
            seen.rate.most,
            seen.slice.as_secs_f64() * 1e3,
            measure::STALL.as_micros(),
        ));
        let note = format!("{method}\n\n- {}", each.collect::<Vec<_>>().join("\n- "));
        let notes = [note.as_str(), "As above.", "As above."];
        let tables = quantiles.iter().zip(&seen.quantiles).zip(notes);
        tables
            .map(|(((_, unit), series), note)| {
                let quantile = unit.trim_end_matches(", us");
                self.finish(Table::of(
                    &format!("{quantile} at half of the peak rate"),
                    unit,
                    0,
                    series,
                    note,
                ))
            })
            .collect()
    }

    fn memory(&mut self) -> Vec<Table> {
        let name = "memory of idle connections";
        if !self.choice.selects(name) {
            return Vec::new();
        }
        self.progress.begin(name);
        let (few, many) = if self.choice.quick { (1000, 5000) } else { (2000, 18_000) };
        let mut programs = baselines();
        programs.extend(ours());
        programs.extend(self.chosen(peers()));
        let (mut start, mut growth) = (Vec::new(), Vec::new());
        for program in &programs {
            self.progress.show(&program.name);
            let measured = measure::memory(program, few, many);
            let series = |value: f64| {
                let samples = vec![Sample { figure: value, per_second: 0.0 }];
                Series { name: program.name.clone(), samples, failure: None }
            };
            match measured {
                Ok((bytes, each)) => {
                    start.push(series(bytes / f64::from(1 << 20)));
                    growth.push(series(each));
                }
                Err(error) => {
                    let failed = Series {
                        samples: Vec::new(),
                        failure: Some(error.to_string()),
                        ..series(0.0)
                    };
                    start.push(failed.clone());
                    growth.push(failed);
                }
            }
        }
        let note = paragraph(&format!(
            "Growth of the resident memory from {few} to {many} idle connections, without the \
             kernel's sockets."
        ));
        vec![
            self.finish(Table::of("user memory of an idle connection", "bytes", 0, &growth, &note)),
            self.finish(Table::of(
                "resident memory at the start",
                "MiB",
                0,
                &start,
                "All servers but proactor's are in one program, this comparison.",
            )),
        ]
    }
}
