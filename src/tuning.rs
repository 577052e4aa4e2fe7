//! Tuning. Owns: sizes and techniques of an engine that exist for benchmarks, their defaults and
//! their validation. Invariant: each default is the value that was measured to be best. Must not
//! contain options that an application decides: those are in [`Config`].
//!
//! [`Config`]: crate::Config

use crate::error::Error;

/// Setters that take and return the owner, so that calls chain.
macro_rules! setters {
    ($owner:ident: $($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $($(#[$doc])*
        pub fn $name(mut self, value: $type) -> $owner {
            self.$name = value;
            self
        })*
    };
}
pub(crate) use setters;

/// Which payloads are sent with IORING_OP_SEND_ZC, which does not copy them in the kernel
/// (io_uring, 6.0). See [`Tuning::zero_copy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZeroCopy {
    /// No payload.
    Never,
    /// Payloads of at least this many bytes, except to peers on loopback and on unix sockets. For
    /// those the kernel copies the bytes in any case, and the notification costs more than the
    /// operation saves.
    Remote(usize),
    /// Payloads of at least this many bytes, to all peers.
    Always(usize),
}

impl ZeroCopy {
    /// The size of the smallest payload that is sent without a copy. `None` for no payload.
    pub(crate) fn bytes_min(self) -> Option<usize> {
        match self {
            ZeroCopy::Never => None,
            ZeroCopy::Remote(bytes) | ZeroCopy::Always(bytes) => Some(bytes),
        }
    }

    /// True if peers on loopback and on unix sockets are included.
    pub(crate) fn includes_local(self) -> bool {
        matches!(self, ZeroCopy::Always(_))
    }
}

/// Sizes and techniques that exist for benchmarks. Each default is the value that was measured to
/// be best, so programs do not need to change them. `docs/how-it-got-fast.md` has the measurements.
///
/// ```
/// use proactor::{Backend, Config, Engine, Tuning};
/// let tuning = Tuning::default().gather_max(16).early_sends(false);
/// let engine = Engine::new(Config::default().backend(Backend::Epoll).tuning(tuning))?;
/// # Ok::<(), proactor::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    pub(crate) ring_entries: (u32, u32),
    pub(crate) workers_max: u32,
    pub(crate) buffers_low_watermark: Option<u32>,
    pub(crate) send_entries_max: usize,
    pub(crate) gather_max: usize,
    pub(crate) budget: u32,
    pub(crate) turn_bytes: usize,
    pub(crate) adaptive_receives: bool,
    pub(crate) early_sends: bool,
    pub(crate) zero_copy: ZeroCopy,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            ring_entries: (256, 4096),
            workers_max: 4,
            buffers_low_watermark: None,
            send_entries_max: 16_384,
            gather_max: 64,
            budget: 32,
            turn_bytes: 256 << 10,
            adaptive_receives: true,
            early_sends: true,
            zero_copy: ZeroCopy::Remote(64 << 10),
        }
    }
}

impl Tuning {
    /// Entries of the submission queue (2 to 32,768, rounded up to a power of two) and of the
    /// completion queue (at least as many, at most 65,536). The engine submits early when the
    /// submission queue is full. Completions that do not fit into the completion queue are kept by
    /// the kernel (IORING_FEAT_NODROP, io_uring_setup(2)), which is slower. Default: 256 and 4,096.
    ///
    /// # Backends
    /// io_uring only.
    pub fn ring_entries(mut self, submission: u32, completion: u32) -> Tuning {
        self.ring_entries = (submission, completion);
        self
    }

    /// While fewer than this number of receive buffers are unused, received data is copied to the
    /// heap. Leases that are kept for long then do not starve other connections. At least 1.
    /// Default: an eighth of the buffers.
    pub fn buffers_low_watermark(mut self, count: u32) -> Tuning {
        self.buffers_low_watermark = Some(count);
        self
    }

    setters! { Tuning:
        /// The maximum number of kernel workers, for bounded and for unbounded work each
        /// (io_uring_register_iowq_max_workers(3), 5.15). At least 1. Normal operation uses no
        /// workers. Default: 4.
        ///
        /// # Backends
        /// io_uring only.
        workers_max: u32;
        /// The maximum number of payloads in the send queue of a connection, 1 to 1,048,575. At the
        /// maximum sends are refused, as at the high watermark, until half of the payloads were
        /// sent. Default: 16,384.
        send_entries_max: usize;
        /// The maximum number of payloads that one send operation takes, 1 to 1,024 (IOV_MAX,
        /// sendmsg(2)). Default: 64.
        gather_max: usize;
        /// The maximum number of completions with data per connection and poll while other
        /// connections wait, 1 to 65,535. Default: 32.
        budget: u32;
        /// A poll returns after it has received this many bytes and leaves further data to the next
        /// poll. The received data is then still in the cache of the processor when the caller
        /// handles it. At least 1; `usize::MAX` for no limit. Default: 256 KiB.
        ///
        /// # Backends
        /// epoll only. On io_uring the kernel has received the bytes before the engine sees them.
        turn_bytes: usize;
        /// Adapts receives to short connections. The first receive of a connection is single-shot,
        /// later ones are multishot. A connection of one request and one response then has no
        /// receive to cancel when it is closed. A connection from `connect` with queued payloads
        /// starts to receive after its first send has completed.
        /// [`Stats::single_receives`](crate::Stats::single_receives) and
        /// [`Stats::late_receives`](crate::Stats::late_receives) count. Default: true.
        ///
        /// # Backends
        /// io_uring in the tiers `deferred` and `multishot`. Where buffers are consumed
        /// incrementally (6.12), single-shot receives use a separate group of 64 buffers of 4 KiB.
        adaptive_receives: bool;
        /// Starts the send of payloads that are queued before the first poll after `connect`
        /// together with the connect, instead of a turn after its completion.
        /// [`Stats::early_sends`](crate::Stats::early_sends) counts. Default: true.
        ///
        /// # Backends
        /// On io_uring (5.19) a single payload is sent by an SQE that is linked to the connect
        /// (IOSQE_IO_LINK). On epoll the send is tried immediately after connect(2) if the peer is
        /// on loopback or a unix socket.
        early_sends: bool;
        /// Which payloads are sent with IORING_OP_SEND_ZC. Default: [`ZeroCopy::Remote`] with
        /// 64 KiB.
        ///
        /// # Backends
        /// io_uring only (6.0).
        zero_copy: ZeroCopy;
    }

    /// `buffers` is the number of receive buffers, if the configuration sets it.
    pub(crate) fn validate(&self, buffers: Option<u32>) -> Result<(), Error> {
        let (submission, completion) = self.ring_entries;
        range("ring_entries (submission)", submission as usize, 2, 32_768)?;
        let least = submission.next_power_of_two() as usize;
        range("ring_entries (completion)", completion as usize, least, 65_536)?;
        range("workers_max", self.workers_max as usize, 1, 1 << 16)?;
        if let Some(low) = self.buffers_low_watermark {
            range("buffers_low_watermark", low as usize, 1, buffers.unwrap_or(32_768) as usize)?;
        }
        range("send_entries_max", self.send_entries_max, 1, (1 << 20) - 1)?;
        range("gather_max", self.gather_max, 1, 1024)?;
        range("budget", self.budget as usize, 1, u16::MAX as usize)?;
        range("turn_bytes", self.turn_bytes, 1, usize::MAX)?;
        range("zero_copy", self.zero_copy.bytes_min().unwrap_or(1), 1, usize::MAX)
    }
}

/// Checks that a value is in `min..=max`.
pub(crate) fn range(
    field: &'static str,
    value: usize,
    min: usize,
    max: usize,
) -> Result<(), Error> {
    match (min..=max).contains(&value) {
        true => Ok(()),
        false => Err(Error::Config { field, why: format!("{value} is outside {min} to {max}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_range_is_refused_by_name() {
        let field = |tuning: Tuning| match tuning.validate(Some(8)) {
            Err(Error::Config { field, .. }) => field,
            other => panic!("expected an error, got {other:?}"),
        };
        assert!(Tuning::default().validate(None).is_ok());
        let tuning = Tuning::default;
        assert_eq!(field(tuning().ring_entries(1, 4096)), "ring_entries (submission)");
        assert_eq!(field(tuning().ring_entries(256, 255)), "ring_entries (completion)");
        assert_eq!(field(tuning().workers_max(0)), "workers_max");
        assert_eq!(field(tuning().buffers_low_watermark(9)), "buffers_low_watermark");
        assert_eq!(field(tuning().send_entries_max(0)), "send_entries_max");
        assert_eq!(field(tuning().gather_max(1025)), "gather_max");
        assert_eq!(field(tuning().budget(0)), "budget");
        assert_eq!(field(tuning().turn_bytes(0)), "turn_bytes");
        assert_eq!(field(tuning().zero_copy(ZeroCopy::Always(0))), "zero_copy");
    }
}
