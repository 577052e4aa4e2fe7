//! What happened in a world. Owns: the last entries and notes, readable, and a hash over all
//! entries there ever were. No address, no wall-clock time and no hash seed is in it, so one seed
//! has one trace.

use super::faults::Fault;
use crate::error::Errno;
use std::collections::VecDeque;
use std::fmt;

/// What an entry is about; `a` and `b` of [`Entry`] say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Engine,
    Listen,
    Connect,
    Established,
    ConnectFailed,
    Accepted,
    Sent,
    Received,
    EndOfStream,
    RecvFailed,
    SendFailed,
    Cancel,
    Cancelled,
    ShutdownWrite,
    Close,
    Abort,
    CloseListener,
    AcceptFailed,
    Fault,
    Cut,
    Heal,
    Crash,
    Restart,
    Run,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at_ns: u64,
    kind: Kind,
    /// The engine, host or program.
    who: u32,
    /// The connection's or listener's slot, the other host.
    a: u64,
    /// Bytes, an error number, a fault.
    b: u64,
}

#[derive(Debug)]
enum Line {
    Entry(Entry),
    Note(u64, String),
}

#[derive(Debug)]
pub(crate) struct Trace {
    lines: VecDeque<Line>,
    keep: usize,
    hash: u64,
    count: u64,
}

impl Trace {
    pub(crate) fn new(keep: usize) -> Trace {
        Trace { lines: VecDeque::new(), keep, hash: 0xcbf2_9ce4_8422_2325, count: 0 }
    }

    pub(crate) fn keep(&mut self, lines: usize) {
        self.keep = lines;
        let excess = self.lines.len().saturating_sub(lines);
        self.lines.drain(..excess);
    }

    #[inline]
    pub(crate) fn add(&mut self, at_ns: u64, kind: Kind, who: u32, a: u64, b: u64) {
        for word in [at_ns, (kind as u64) << 32 | u64::from(who), a, b] {
            self.mix(word);
        }
        self.count += 1;
        if self.keep > 0 {
            self.push(Line::Entry(Entry { at_ns, kind, who, a, b }));
        }
    }

    pub(crate) fn note(&mut self, at_ns: u64, text: &str) {
        if self.keep > 0 {
            self.count += 1;
            self.push(Line::Note(at_ns, text.to_owned()));
        }
    }

    fn push(&mut self, line: Line) {
        if self.lines.len() == self.keep {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    #[inline]
    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left_out = self.count - self.lines.len() as u64;
        if left_out > 0 {
            writeln!(f, "... {left_out} earlier entries left out")?;
        }
        for line in &self.lines {
            match line {
                Line::Entry(entry) => writeln!(f, "{entry}")?,
                Line::Note(at_ns, text) => writeln!(f, "{} note: {text}", Seconds(*at_ns))?,
            }
        }
        Ok(())
    }
}

struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { at_ns, kind, who, a, b } = *self;
        write!(f, "{} ", Seconds(at_ns))?;
        let errno = || Errno(b as i32);
        match kind {
            Kind::Engine => write!(f, "engine {who} starts on host {a}"),
            Kind::Listen => write!(f, "engine {who} listens as {a}"),
            Kind::Connect => write!(f, "engine {who} conn {a} connects"),
            Kind::Established => write!(f, "engine {who} conn {a} connected"),
            Kind::ConnectFailed => write!(f, "engine {who} conn {a} cannot connect: {:?}", errno()),
            Kind::Accepted => write!(f, "engine {who} listener {a} accepts"),
            Kind::Sent => write!(f, "engine {who} conn {a} sent {b} bytes"),
            Kind::Received => write!(f, "engine {who} conn {a} received {b} bytes"),
            Kind::EndOfStream => write!(f, "engine {who} conn {a} received the end of the stream"),
            Kind::RecvFailed => write!(f, "engine {who} conn {a} cannot receive: {:?}", errno()),
            Kind::SendFailed => write!(f, "engine {who} conn {a} cannot send: {:?}", errno()),
            Kind::Cancel => write!(f, "engine {who} slot {a} cancels {}", op_name(b)),
            Kind::Cancelled => write!(f, "engine {who} slot {a} cancelled {}", op_name(b)),
            Kind::ShutdownWrite => write!(f, "engine {who} conn {a} shuts its write side"),
            Kind::Close => write!(f, "engine {who} conn {a} closes"),
            Kind::Abort => write!(f, "engine {who} conn {a} resets"),
            Kind::CloseListener => write!(f, "engine {who} listener {a} closes"),
            Kind::AcceptFailed => {
                write!(f, "engine {who} listener {a} cannot accept: {:?}", errno())
            }
            Kind::Fault => write!(f, "host {who} FAULT {}", Fault::ALL[a as usize]),
            Kind::Cut => write!(f, "host {who} and host {a} CUT from each other"),
            Kind::Heal => write!(f, "host {who} and host {a} HEALED"),
            Kind::Crash => write!(f, "host {who} CRASHED"),
            Kind::Restart => write!(f, "host {who} RESTARTED"),
            Kind::Run => write!(f, "program {who} runs"),
        }
    }
}

/// The name of an [`OpKind`](crate::backend::OpKind), which an entry has as a number.
fn op_name(op: u64) -> &'static str {
    use crate::backend::OpKind;
    let kinds = [
        OpKind::Connect,
        OpKind::Accept,
        OpKind::Recv,
        OpKind::Send,
        OpKind::Hangup,
        OpKind::Close,
    ];
    match kinds.into_iter().find(|kind| *kind as u64 == op) {
        Some(OpKind::Connect) => "connect",
        Some(OpKind::Accept) => "accept",
        Some(OpKind::Recv) => "recv",
        Some(OpKind::Send) => "send",
        Some(OpKind::Hangup) => "hang-up",
        Some(OpKind::Close) => "close",
        None => "nothing",
    }
}
