//! The trace of a world. Owns: the last entries and notes as text, and a hash over all entries
//! since the start. Invariant: it contains no address, wall-clock time or random hash seed, so that
//! one seed has one trace. Must not know: why something happened.

use super::faults::Fault;
use crate::error::Errno;
use std::collections::VecDeque;
use std::fmt;

/// What happened. `a` and `b` of [`Entry`] depend on it.
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
    id: u32,
    /// The slot of a connection or listener, or the other host.
    a: u64,
    /// A number of bytes, an error number or an operation.
    b: u64,
}

#[derive(Debug)]
enum Record {
    Entry(Entry),
    Note(u64, String),
}

#[derive(Debug)]
pub(crate) struct Trace {
    records: VecDeque<Record>,
    keep: usize,
    hash: u64,
    count: u64,
}

impl Trace {
    pub(crate) fn new(keep: usize) -> Trace {
        Trace { records: VecDeque::new(), keep, hash: 0xcbf2_9ce4_8422_2325, count: 0 }
    }

    pub(crate) fn keep(&mut self, records: usize) {
        self.keep = records;
        let excess = self.records.len().saturating_sub(records);
        self.records.drain(..excess);
    }

    #[inline]
    pub(crate) fn add(&mut self, at_ns: u64, kind: Kind, id: u32, a: u64, b: u64) {
        for word in [at_ns, (kind as u64) << 32 | u64::from(id), a, b] {
            self.mix(word);
        }
        self.count += 1;
        if self.keep > 0 {
            self.push(Record::Entry(Entry { at_ns, kind, id, a, b }));
        }
    }

    pub(crate) fn note(&mut self, at_ns: u64, text: &str) {
        if self.keep > 0 {
            self.count += 1;
            self.push(Record::Note(at_ns, text.to_owned()));
        }
    }

    fn push(&mut self, record: Record) {
        if self.records.len() == self.keep {
            self.records.pop_front();
        }
        self.records.push_back(record);
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
        let left_out = self.count - self.records.len() as u64;
        if left_out > 0 {
            writeln!(f, "... {left_out} earlier entries left out")?;
        }
        for record in &self.records {
            match record {
                Record::Entry(entry) => writeln!(f, "{entry}")?,
                Record::Note(at_ns, text) => writeln!(f, "{} note: {text}", Seconds(*at_ns))?,
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
        let Entry { at_ns, kind, id, a, b } = *self;
        write!(f, "{} ", Seconds(at_ns))?;
        let errno = || Errno(b as i32);
        match kind {
            Kind::Engine => write!(f, "engine {id} starts on host {a}"),
            Kind::Listen => write!(f, "engine {id} listens as {a}"),
            Kind::Connect => write!(f, "engine {id} conn {a} connects"),
            Kind::Established => write!(f, "engine {id} conn {a} connected"),
            Kind::ConnectFailed => write!(f, "engine {id} conn {a} cannot connect: {:?}", errno()),
            Kind::Accepted => write!(f, "engine {id} listener {a} accepts"),
            Kind::Sent => write!(f, "engine {id} conn {a} sent {b} bytes"),
            Kind::Received => write!(f, "engine {id} conn {a} received {b} bytes"),
            Kind::EndOfStream => write!(f, "engine {id} conn {a} received the end of the stream"),
            Kind::RecvFailed => write!(f, "engine {id} conn {a} cannot receive: {:?}", errno()),
            Kind::SendFailed => write!(f, "engine {id} conn {a} cannot send: {:?}", errno()),
            Kind::Cancel => write!(f, "engine {id} slot {a} cancels {}", op_name(b)),
            Kind::Cancelled => write!(f, "engine {id} slot {a} cancelled {}", op_name(b)),
            Kind::ShutdownWrite => write!(f, "engine {id} conn {a} shuts its write side"),
            Kind::Close => write!(f, "engine {id} conn {a} closes"),
            Kind::Abort => write!(f, "engine {id} conn {a} resets"),
            Kind::CloseListener => write!(f, "engine {id} listener {a} closes"),
            Kind::AcceptFailed => {
                write!(f, "engine {id} listener {a} cannot accept: {:?}", errno())
            }
            Kind::Fault => write!(f, "host {id} FAULT {}", Fault::ALL[a as usize]),
            Kind::Cut => write!(f, "host {id} and host {a} CUT from each other"),
            Kind::Heal => write!(f, "host {id} and host {a} HEALED"),
            Kind::Crash => write!(f, "host {id} CRASHED"),
            Kind::Restart => write!(f, "host {id} RESTARTED"),
            Kind::Run => write!(f, "program {id} runs"),
        }
    }
}

/// The name of an [`OpKind`](crate::backend::OpKind) that is stored as a number.
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
