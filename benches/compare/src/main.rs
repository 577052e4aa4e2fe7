//! Proactor against loops written by hand and against other engines, measured in one run.
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
    about = "Proactor against hand-written loops and other engines, measured in one run",
    version
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    choice: Choice,
}

/// What is measured, and how thoroughly.
#[derive(clap::Args, Clone, Debug)]
pub struct Choice {
    /// Fewer rounds and shorter slices: under three minutes. Nothing is written unless --write is
    /// given
    #[arg(long)]
    quick: bool,
    /// Rounds of each workload; more make the medians steadier
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Milliseconds of one slice
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice: Option<u64>,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Only contenders whose name contains one of these, separated by commas (baselines always run)
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Write the files of the repository although not everything was measured
    #[arg(long)]
    write: bool,
    /// Write nothing
    #[arg(long, conflicts_with = "write")]
    no_write: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Measure each technique by itself, on the bare ring and in the engine; writes
    /// docs/techniques.md
    Techniques(Choice),
    /// Run one of the servers
    Serve {
        /// IP:PORT, or unix:PATH for the baselines
        #[arg(long, default_value = "127.0.0.1:0", global = true)]
        addr: sys::Addr,
        #[command(subcommand)]
        server: servers::Server,
    },
    /// Run the client that is written by hand
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

    fn wants(&self, workload: &str) -> bool {
        workload.contains(&self.only)
    }

    /// True if files of the repository are to be written.
    fn writes(&self) -> bool {
        let whole = !self.quick && self.only.is_empty() && self.with.is_empty();
        self.write || whole && !self.no_write
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

/// What every measurement needs: the examples, and two cores that do not share the work.
fn prepare() -> io::Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err(io::Error::other(
            "two cores are needed: one for what is measured, one for the other side",
        ));
    }
    eprintln!("building the examples");
    process::build_examples()?;
    sys::pin(process::LOAD_CORE)
}
