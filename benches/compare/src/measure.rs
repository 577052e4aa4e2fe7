//! Measurements. All contenders run at once, and the load visits them in turn for short slices, so
//! that other load on the machine affects all of them equally. Reported are ratios to the baseline
//! of the same round, and their median. Must not know who the contenders are.

use crate::load::Load;
use crate::open::OpenLoop;
use crate::process::{LOAD_CORE, Program, SUBJECT_CORE, Server};
use crate::sys;
use hdrhistogram::Histogram;
use std::io;
use std::time::{Duration, Instant};

/// Connections that the load keeps open to all servers of a workload together. With more, each
/// slice opens its own.
const KEPT_MAX: usize = 12_000;
const WARM_UP: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub rounds: usize,
    pub slice: Duration,
}

/// The result of one slice.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// CPU time per request in microseconds, or another figure of the workload.
    pub figure: f64,
    pub per_second: f64,
}

/// The samples of one contender.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub samples: Vec<Sample>,
    /// Why there are no more.
    pub failure: Option<String>,
}

impl Series {
    fn new(name: &str) -> Series {
        Series { name: name.into(), samples: Vec::new(), failure: None }
    }
}

/// A workload for servers.
#[derive(Clone, Debug)]
pub struct Echo {
    pub conns: usize,
    pub size: usize,
    pub depth: usize,
    pub unix: bool,
}

pub fn echo(
    echo: &Echo,
    programs: &[Program],
    pace: Pace,
    progress: &mut dyn FnMut(String),
) -> Vec<Series> {
    let mut series = empty_series(programs);
    let mut servers: Vec<Option<Server>> = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        let addr = match echo.unix {
            true => format!(
                "unix:{}/compare-{}-{index}",
                std::env::temp_dir().display(),
                std::process::id()
            ),
            false => "127.0.0.1:0".into(),
        };
        let server = program.start(SUBJECT_CORE, &addr);
        series[index].failure = server.as_ref().err().map(ToString::to_string);
        servers.push(server.ok());
    }
    let keep = echo.conns * programs.len() <= KEPT_MAX;
    let mut kept: Vec<Option<Load>> = programs.iter().map(|_| None).collect();
    for round in 0..pace.rounds {
        for turn in 0..programs.len() {
            let index = (turn + round) % programs.len();
            let Some(server) = &servers[index] else { continue };
            progress(format!("round {} of {}: {}", round + 1, pace.rounds, series[index].name));
            match echo_slice(echo, server, &mut kept[index], pace.slice) {
                Ok(sample) => series[index].samples.push(sample),
                Err(error) => {
                    series[index].failure = Some(error.to_string());
                    (servers[index], kept[index]) = (None, None);
                    continue;
                }
            }
            if !keep {
                kept[index] = None;
            }
        }
    }
    series
}

fn echo_slice(
    echo: &Echo,
    server: &Server,
    kept: &mut Option<Load>,
    slice: Duration,
) -> io::Result<Sample> {
    if kept.is_none() {
        *kept = Some(Load::connect(&server.addr, echo.conns, echo.size, echo.depth)?);
    }
    let load = kept.as_mut().expect("set above");
    // Long enough for a request on each connection.
    load.run(WARM_UP.max(Duration::from_micros(echo.conns as u64 * 10)))?;
    let (cpu, start) = (sys::cpu_ns(server.pid())?, Instant::now());
    let answered = load.run(slice)?;
    let (cpu, elapsed) = (sys::cpu_ns(server.pid())? - cpu, start.elapsed());
    if answered == 0 {
        return Err(io::Error::other("no response came"));
    }
    Ok(Sample {
        figure: cpu as f64 / 1e3 / answered as f64,
        per_second: answered as f64 / elapsed.as_secs_f64(),
    })
}

/// Clients, each run as a process for one slice against the same server. They print their CPU time
/// per request.
pub fn client(
    arguments: &str,
    programs: &[Program],
    pace: Pace,
    progress: &mut dyn FnMut(String),
) -> Vec<Series> {
    let server = Program::own("server", "serve epoll --read 65536").start(LOAD_CORE, "127.0.0.1:0");
    let arguments = timed(arguments, pace);
    run_rounds(programs, pace, progress, |index| {
        let output = programs[index].run(SUBJECT_CORE, &started(&server)?.addr, &arguments)?;
        Ok(sample(&output, "cpu_us_per_request"))
    })
}

/// Servers measured by the example `load`: the value of `key` in its output, for one slice each.
pub fn latency(
    arguments: &str,
    key: &str,
    programs: &[Program],
    pace: Pace,
    progress: &mut dyn FnMut(String),
) -> Vec<Series> {
    let load = Program::example("load", "load", "--backend epoll");
    let servers = start_all(programs);
    let arguments = timed(arguments, pace);
    run_rounds(programs, pace, progress, |index| {
        Ok(sample(&load.run(LOAD_CORE, &started(&servers[index])?.addr, &arguments)?, key))
    })
}

fn start_all(programs: &[Program]) -> Vec<io::Result<Server>> {
    programs.iter().map(|program| program.start(SUBJECT_CORE, "127.0.0.1:0")).collect()
}

/// The server, or the error of its start.
fn started(server: &io::Result<Server>) -> io::Result<&Server> {
    server.as_ref().map_err(|error| io::Error::other(error.to_string()))
}

fn empty_series(programs: &[Program]) -> Vec<Series> {
    programs.iter().map(|program| Series::new(&program.name)).collect()
}

/// An open loop against servers, at a part of the rate that the first of them reaches in a closed
/// loop.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub conns: usize,
    pub size: usize,
    pub part_of_peak: f64,
}

/// How many slices each contender gets in a round of [`tails`].
const LAPS: usize = 40;
/// A response that is later than this was delayed by the machine: in these workloads a server needs
/// about 5 us per request and is idle for half of the time.
pub const STALL: Duration = Duration::from_micros(500);
const TAIL_WARM_UP: Duration = Duration::from_millis(2);
/// How long the peak rate is measured in each round, because the speed of the machine varies.
const PEAK: Duration = Duration::from_millis(150);

/// The result of [`tails`].
pub struct Tails {
    /// For each quantile the latency in microseconds, one sample per round.
    pub quantiles: Vec<Vec<Series>>,
    /// For each contender the part of its slices that was discarded because the machine stalled.
    pub stalled: Vec<f64>,
    /// Requests per second.
    pub rate: Spread,
    /// The length of one slice.
    pub slice: Duration,
}

/// Latencies under an open loop. The slices are short, and those with a stall of the machine
/// ([`STALL`]) are discarded: stalls affect all contenders equally, several times per second, and
/// would decide everything beyond the 99th percentile. The other slices of a round make one sample.
pub fn tails(
    open: Open,
    quantiles: &[f64],
    programs: &[Program],
    pace: Pace,
    progress: &mut dyn FnMut(String),
) -> io::Result<Tails> {
    let servers = start_all(programs);
    let mut closed = Load::connect(&started(&servers[0])?.addr, open.conns, open.size, 1)?;
    let mut loops: Vec<Option<OpenLoop>> = programs.iter().map(|_| None).collect();
    let mut stalled = vec![0; programs.len()];
    let mut all = vec![empty_series(programs); quantiles.len()];
    let mut rates = Vec::new();
    let slice = pace.slice / LAPS as u32;
    for round in 0..pace.rounds {
        closed.run(WARM_UP)?;
        let rate = closed.run(PEAK)? as f64 / PEAK.as_secs_f64() * open.part_of_peak;
        rates.push(rate);
        let mut quiet: Vec<Option<Histogram<u64>>> = vec![None; programs.len()];
        for turn in 0..programs.len() * LAPS {
            let index = (turn + turn / programs.len() + round) % programs.len();
            if all[0][index].failure.is_some() {
                continue;
            }
            progress(format!("round {} of {}: {}", round + 1, pace.rounds, programs[index].name));
            match tail_slice(open, rate, &servers[index], &mut loops[index], slice) {
                Ok(latencies) if latencies.max() > STALL.as_nanos() as u64 => stalled[index] += 1,
                Ok(latencies) => match &mut quiet[index] {
                    Some(quiet) => quiet.add(latencies).expect("histograms with the same bounds"),
                    none => *none = Some(latencies),
                },
                Err(error) => {
                    all.iter_mut().for_each(|list| list[index].failure = Some(error.to_string()))
                }
            }
        }
        for (list, &quantile) in all.iter_mut().zip(quantiles) {
            for (series, quiet) in list.iter_mut().zip(&quiet) {
                // A round without a quiet slice has no figure, but counts as a sample, so that the
                // samples of all contenders are of the same rounds.
                let figure =
                    quiet.as_ref().map(|quiet| quiet.value_at_quantile(quantile) as f64 / 1e3);
                series
                    .samples
                    .push(Sample { figure: figure.unwrap_or(f64::NAN), per_second: rate });
            }
        }
    }
    let stalled =
        stalled.iter().map(|&count| f64::from(count) / (pace.rounds * LAPS) as f64).collect();
    let rate = Spread::of(rates).ok_or_else(|| io::Error::other("no round was measured"))?;
    Ok(Tails { quantiles: all, stalled, rate, slice })
}

fn tail_slice(
    open: Open,
    rate: f64,
    server: &io::Result<Server>,
    kept: &mut Option<OpenLoop>,
    slice: Duration,
) -> io::Result<Histogram<u64>> {
    if kept.is_none() {
        *kept = Some(OpenLoop::connect(&started(server)?.addr, open.conns, open.size)?);
    }
    kept.as_mut().expect("set above").run(rate, TAIL_WARM_UP, slice)
}

fn timed(arguments: &str, pace: Pace) -> Vec<String> {
    let seconds = pace.slice.as_secs_f64().to_string();
    crate::process::words(arguments)
        .into_iter()
        .chain(["--seconds".into(), seconds, "--json".into()])
        .collect()
}

fn sample(output: &serde_json::Value, key: &str) -> Sample {
    let number = |key: &str| output[key].as_f64().unwrap_or(f64::NAN);
    Sample { figure: number(key), per_second: number("requests_per_s") }
}

/// Runs all programs once per round. Each round begins with another one.
fn run_rounds(
    programs: &[Program],
    pace: Pace,
    progress: &mut dyn FnMut(String),
    mut run: impl FnMut(usize) -> io::Result<Sample>,
) -> Vec<Series> {
    let mut all = empty_series(programs);
    for round in 0..pace.rounds {
        for turn in 0..programs.len() {
            let index = (turn + round) % programs.len();
            let series = &mut all[index];
            if series.failure.is_some() {
                continue;
            }
            progress(format!("round {} of {}: {}", round + 1, pace.rounds, series.name));
            match run(index) {
                Ok(sample) => series.samples.push(sample),
                Err(error) => series.failure = Some(error.to_string()),
            }
        }
    }
    all
}

/// The resident memory of a server in bytes: at its start, and its growth per idle connection
/// between `few` and `many` connections.
pub fn memory(program: &Program, few: usize, many: usize) -> io::Result<(f64, f64)> {
    let server = program.start(SUBJECT_CORE, "127.0.0.1:0")?;
    // It may still be allocating its buffers.
    std::thread::sleep(Duration::from_millis(200));
    let start = server.resident()?;
    let mut idle = Load::connect(&server.addr, few, 1, 0)?;
    let before = server.resident_settled()?;
    idle.open(&server.addr, many - few)?;
    let after = server.resident_settled()?;
    Ok((start as f64, (after as f64 - before as f64) / (many - few) as f64))
}

/// Median, least and most.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Spread { median, least, most })
    }
}

/// The ratios of a figure to that of the baseline, in each round.
pub fn ratio(series: &Series, base: &Series, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
    Spread::of(
        series
            .samples
            .iter()
            .zip(&base.samples)
            .map(|(sample, base)| figure(sample) / figure(base)),
    )
}
