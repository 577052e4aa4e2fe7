//! Measuring. All contenders are up at once, and the load goes round them in short slices, so that
//! whatever the machine does besides hits all of them alike; what is reported are ratios to the
//! baseline of the same round, and their median.

use crate::load::Load;
use crate::open::OpenLoop;
use crate::process::{LOAD_CORE, Program, SUBJECT_CORE, Server};
use crate::sys;
use hdrhistogram::Histogram;
use std::io;
use std::time::{Duration, Instant};

/// Connections that the load keeps to all servers of a workload together; beyond it each slice
/// connects anew.
const KEPT_MAX: usize = 12_000;
const WARM_UP: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub rounds: usize,
    pub slice: Duration,
}

/// What one slice showed.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Most often CPU time of what is measured per request, in microseconds.
    pub figure: f64,
    pub per_second: f64,
}

/// What was seen of one contender.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub samples: Vec<Sample>,
    /// Why there are none.
    pub failure: Option<String>,
}

impl Series {
    fn of(name: &str) -> Series {
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
    tell: &mut dyn FnMut(String),
) -> Vec<Series> {
    let mut series = blank(programs);
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
        for place in 0..programs.len() {
            let index = (place + round) % programs.len();
            let Some(server) = &servers[index] else { continue };
            tell(format!("round {} of {}: {}", round + 1, pace.rounds, series[index].name));
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
    let load = kept.as_mut().expect("just made");
    // Each connection has had its turn when this is over.
    load.run(WARM_UP.max(Duration::from_micros(echo.conns as u64 * 10)))?;
    let (cpu, start) = (sys::cpu_ns(server.pid())?, Instant::now());
    let answered = load.run(slice)?;
    let (cpu, elapsed) = (sys::cpu_ns(server.pid())? - cpu, start.elapsed());
    if answered == 0 {
        return Err(io::Error::other("no request was answered"));
    }
    Ok(Sample {
        figure: cpu as f64 / 1e3 / answered as f64,
        per_second: answered as f64 / elapsed.as_secs_f64(),
    })
}

/// Clients, each run as a process for one slice against one and the same server. They print their
/// own CPU time per request.
pub fn client(
    arguments: &str,
    programs: &[Program],
    pace: Pace,
    tell: &mut dyn FnMut(String),
) -> Vec<Series> {
    let server = Program::own("server", "serve epoll --read 65536").start(LOAD_CORE, "127.0.0.1:0");
    let arguments = timed(arguments, pace);
    go_round(programs, pace, tell, |index| {
        let said = programs[index].run(SUBJECT_CORE, &up(&server)?.addr, &arguments)?;
        Ok(sample(&said, "cpu_us_per_request"))
    })
}

/// What `load` says of servers: the value of `key`, for one slice each in turn.
pub fn latency(
    arguments: &str,
    key: &str,
    programs: &[Program],
    pace: Pace,
    tell: &mut dyn FnMut(String),
) -> Vec<Series> {
    let load = Program::example("load", "load", "--backend epoll");
    let servers = start_all(programs);
    let arguments = timed(arguments, pace);
    go_round(programs, pace, tell, |index| {
        Ok(sample(&load.run(LOAD_CORE, &up(&servers[index])?.addr, &arguments)?, key))
    })
}

fn start_all(programs: &[Program]) -> Vec<io::Result<Server>> {
    programs.iter().map(|program| program.start(SUBJECT_CORE, "127.0.0.1:0")).collect()
}

/// A server that started, or the reason why it did not.
fn up(server: &io::Result<Server>) -> io::Result<&Server> {
    server.as_ref().map_err(|error| io::Error::other(error.to_string()))
}

fn blank(programs: &[Program]) -> Vec<Series> {
    programs.iter().map(|program| Series::of(&program.name)).collect()
}

/// An open loop against servers, at a part of the rate that the first of them reaches in a closed
/// loop.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub conns: usize,
    pub size: usize,
    pub part_of_peak: f64,
}

/// A round of [`tails`] goes round the contenders so often; a slice of one is a part of the
/// round's.
const LAPS: usize = 40;
/// In these workloads a server needs some 5 us a request and has half of its time left: an answer
/// that is so late was kept by the machine.
pub const STALL: Duration = Duration::from_micros(500);
const TAIL_WARM_UP: Duration = Duration::from_millis(2);
/// How long the peak is looked for, each round: the machine is not equally fast all the time.
const PEAK: Duration = Duration::from_millis(150);

/// What [`tails`] found.
pub struct Tails {
    /// For each quantile the latency in microseconds, one sample a round.
    pub quantiles: Vec<Vec<Series>>,
    /// For each contender the part of its slices that was left out, since the machine stalled in
    /// them.
    pub stalled: Vec<f64>,
    /// Requests per second.
    pub rate: Spread,
    /// How long one contender had its turn.
    pub slice: Duration,
}

/// Latencies under an open loop. The slices are short, and those with a stall of the machine
/// ([`STALL`]) are left out: such stalls come to each contender alike, some of them a second, and
/// would decide all that is beyond the 99th percentile. What is left of a round makes one sample.
pub fn tails(
    open: Open,
    quantiles: &[f64],
    programs: &[Program],
    pace: Pace,
    tell: &mut dyn FnMut(String),
) -> io::Result<Tails> {
    let servers = start_all(programs);
    let mut closed = Load::connect(&up(&servers[0])?.addr, open.conns, open.size, 1)?;
    let mut loops: Vec<Option<OpenLoop>> = programs.iter().map(|_| None).collect();
    let mut stalled = vec![0; programs.len()];
    let mut all = vec![blank(programs); quantiles.len()];
    let mut rates = Vec::new();
    let slice = pace.slice / LAPS as u32;
    for round in 0..pace.rounds {
        closed.run(WARM_UP)?;
        let rate = closed.run(PEAK)? as f64 / PEAK.as_secs_f64() * open.part_of_peak;
        rates.push(rate);
        let mut quiet: Vec<Option<Histogram<u64>>> = vec![None; programs.len()];
        for place in 0..programs.len() * LAPS {
            let index = (place + place / programs.len() + round) % programs.len();
            if all[0][index].failure.is_some() {
                continue;
            }
            tell(format!("round {} of {}: {}", round + 1, pace.rounds, programs[index].name));
            match tail_slice(open, rate, &servers[index], &mut loops[index], slice) {
                Ok(seen) if seen.max() > STALL.as_nanos() as u64 => stalled[index] += 1,
                Ok(seen) => match &mut quiet[index] {
                    Some(quiet) => quiet.add(seen).expect("histograms of one kind"),
                    none => *none = Some(seen),
                },
                Err(error) => {
                    all.iter_mut().for_each(|list| list[index].failure = Some(error.to_string()))
                }
            }
        }
        for (list, &quantile) in all.iter_mut().zip(quantiles) {
            for (series, quiet) in list.iter_mut().zip(&quiet) {
                // A round without a quiet slice has no figure, but keeps its place beside those of
                // the others.
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
        *kept = Some(OpenLoop::connect(&up(server)?.addr, open.conns, open.size)?);
    }
    kept.as_mut().expect("just made").run(rate, TAIL_WARM_UP, slice)
}

fn timed(arguments: &str, pace: Pace) -> Vec<String> {
    let seconds = pace.slice.as_secs_f64().to_string();
    crate::process::words(arguments)
        .into_iter()
        .chain(["--seconds".into(), seconds, "--json".into()])
        .collect()
}

fn sample(said: &serde_json::Value, key: &str) -> Sample {
    let number = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
    Sample { figure: number(key), per_second: number("requests_per_s") }
}

/// Runs all programs once a round, each round beginning with another one.
fn go_round(
    programs: &[Program],
    pace: Pace,
    tell: &mut dyn FnMut(String),
    mut run: impl FnMut(usize) -> io::Result<Sample>,
) -> Vec<Series> {
    let mut all = blank(programs);
    for round in 0..pace.rounds {
        for place in 0..programs.len() {
            let series = &mut all[(place + round) % programs.len()];
            if series.failure.is_some() {
                continue;
            }
            tell(format!("round {} of {}: {}", round + 1, pace.rounds, series.name));
            match run((place + round) % programs.len()) {
                Ok(sample) => series.samples.push(sample),
                Err(error) => series.failure = Some(error.to_string()),
            }
        }
    }
    all
}

/// A server's resident memory: at its start, and for each of the connections beyond `few`, up to
/// `many`, that do nothing. In bytes.
pub fn memory(program: &Program, few: usize, many: usize) -> io::Result<(f64, f64)> {
    let server = program.start(SUBJECT_CORE, "127.0.0.1:0")?;
    // It may be about to get its buffers.
    std::thread::sleep(Duration::from_millis(200));
    let start = server.resident()?;
    let mut idle = Load::connect(&server.addr, few, 1, 0)?;
    let before = server.settled()?;
    idle.open(&server.addr, many - few)?;
    let after = server.settled()?;
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

/// The ratio of one figure to that of the baseline, round by round.
pub fn ratio(series: &Series, base: &Series, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
    Spread::of(
        series
            .samples
            .iter()
            .zip(&base.samples)
            .map(|(sample, base)| figure(sample) / figure(base)),
    )
}
