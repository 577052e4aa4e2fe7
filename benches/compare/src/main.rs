//! Proactor compared with hand-written loops and with other engines, measured in one run.
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml
//! cargo run --release --manifest-path benches/compare/Cargo.toml -- --quick
//! cargo run --release --manifest-path benches/compare/Cargo.toml -- techniques
//! ```
//!
//! The first measures everything and writes `docs/benchmarks.md` and its charts. The second takes
//! less than three minutes and only prints. The third writes `docs/techniques.md`.

mod bufring;
mod chart;
mod clients;
mod load;
mod machine;
mod measure;
mod open;
mod plan;
mod process;
mod report;
mod servers;
mod sys;
mod techniques;

use clap::{Parser, Subcommand};
use measure::Pace;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(
    about = "Proactor compared with hand-written loops and other engines, in one run",
    version
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    choice: Choice,
}

/// What is measured, and for how long.
#[derive(clap::Args, Clone, Debug)]
pub struct Choice {
    /// Use fewer rounds and shorter slices: under three minutes. Writes no file without --write
    #[arg(long)]
    quick: bool,
    /// Rounds of each workload; with more, the medians vary less
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Length of one slice, in milliseconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice: Option<u64>,
    /// Measure only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Measure only contenders whose name contains one of these, separated by commas (baselines
    /// always run)
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Write the files of the repository even if not everything was measured
    #[arg(long)]
    write: bool,
    /// Write no files
    #[arg(long, conflicts_with = "write")]
    no_write: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Measure each technique alone, on the bare ring and in the engine; writes docs/techniques.md
    Techniques(Choice),
    /// Run one of the servers
    Serve {
        /// IP:PORT, or unix:PATH for the baselines
        #[arg(long, default_value = "127.0.0.1:0", global = true)]
        addr: sys::Addr,
        #[command(subcommand)]
        server: servers::Server,
    },
    /// Run the hand-written client
    Client {
        /// IP:PORT or unix:PATH
        #[arg(long)]
        addr: sys::Addr,
        #[command(flatten)]
        options: clients::Options,
    },
}

impl Choice {
    fn pace(&self, full: (usize, u64), quick: (usize, u64)) -> Pace {
        let (rounds, slice) = if self.quick { quick } else { full };
        Pace {
            rounds: self.rounds.map_or(rounds, usize::from),
            slice: Duration::from_millis(self.slice.unwrap_or(slice)),
        }
    }

    fn selects(&self, workload: &str) -> bool {
        workload.contains(&self.only)
    }

    fn no_workload(&self) -> io::Error {
        io::Error::other(format!("no workload has {:?} in its name", self.only))
    }

    /// Whether to write the files of the repository.
    fn writes(&self) -> bool {
        let complete = !self.quick && self.only.is_empty() && self.with.is_empty();
        self.write || complete && !self.no_write
    }
}

fn main() -> ExitCode {
    sys::raise_descriptor_limit();
    let args = Args::parse();
    let result = match args.command {
        Some(Command::Serve { addr, server }) => servers::serve(&addr, &server),
        Some(Command::Client { addr, options }) => clients::run(&addr, &options),
        Some(Command::Techniques(choice)) => prepare().and_then(|()| techniques::run(&choice)),
        None => prepare().and_then(|()| plan::run(&args.choice)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prepares a measurement: builds the examples and pins this process to the core of the load.
fn prepare() -> io::Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err(io::Error::other(
            "needs two cores: one for what is measured, one for its peers",
        ));
    }
    eprintln!("building the examples");
    process::build_examples()?;
    sys::pin(process::LOAD_CORE)
}
