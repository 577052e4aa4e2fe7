//! Prints the capability report: the backend and tier that the engine chooses on this machine, each
//! capability with its state, and why the missing ones are missing.
//!
//! ```text
//! cargo run --release --example probe
//! cargo run --release --example probe -- --json
//! ```

mod common;

use clap::Parser;
use common::{BackendArgs, Failure};
use proactor::Info;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "The capability report of this machine", version)]
struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    common::main(|| run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Failure> {
    let engine = args.backend.engine()?;
    match args.json {
        true => println!("{}", json(engine.info())),
        false => print!("{}", engine.info()),
    }
    Ok(())
}

fn json(info: &Info) -> serde_json::Value {
    let capabilities: Vec<_> = info
        .capabilities()
        .iter()
        .map(|report| {
            serde_json::json!({
                "name": report.capability.name(), "state": report.state.name(), "why": report.why,
                "kernel": report.capability.kernel(),
            })
        })
        .collect();
    let fallback = info.fallback.as_ref().map(|fallback| {
        let errno = fallback.errno.map(|errno| errno.name());
        serde_json::json!({ "errno": errno, "cause": fallback.cause })
    });
    serde_json::json!({
        "backend": info.backend.name(), "tier": info.tier_name(), "fallback": fallback,
        "notes": info.notes, "kernel": info.kernel,
        "rings": {
            "submission_entries": info.ring_entries.0, "completion_entries": info.ring_entries.1,
        },
        "buffers": { "count": info.buffers.0, "bytes": info.buffers.1 },
        "limits": { "nofile": info.limits.nofile, "memlock_bytes": info.limits.memlock_bytes },
        "capabilities": capabilities,
    })
}
