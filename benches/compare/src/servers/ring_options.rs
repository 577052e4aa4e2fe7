//! The options of the bare ring: each is a technique, to be measured alone.

use clap::{Args, ValueEnum};

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// SINGLE_ISSUER and DEFER_TASKRUN
    Defer,
    /// COOP_TASKRUN and TASKRUN_FLAG
    Coop,
    /// No setup flags
    None,
    /// SQPOLL, with the kernel thread on the core of the server
    Sqpoll,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// Multishot receives
    Multishot,
    /// Oneshot receives, with a provided buffer
    Select,
    /// Oneshot receives, into a buffer of the connection
    Own,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// One SENDMSG for all that a turn has received on a connection
    Gathered,
    /// One SEND for each received piece, one after the other
    Single,
    /// As `gathered`, with SENDMSG_ZC
    ZeroCopy,
    /// As `gathered`, with sendmsg(2) instead of an SQE
    Call,
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long, value_enum, default_value = "defer")]
    pub setup: Setup,
    #[arg(long, value_enum, default_value = "multishot")]
    pub receive: Receive,
    #[arg(long, value_enum, default_value = "gathered")]
    pub send: Send,
    /// Number of provided buffers, a power of two
    #[arg(long, default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u16).range(2..=32_768))]
    pub buffers: u16,
    /// Bytes of each provided buffer, or of the buffer of a connection
    #[arg(long, default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(64..=16 << 20))]
    pub buffer_size: u32,
    /// Consume provided buffers incrementally: IOU_PBUF_RING_INC (6.12)
    #[arg(long)]
    pub incremental: bool,
    /// Receive into several buffers at once: IORING_RECVSEND_BUNDLE (6.10)
    #[arg(long)]
    pub bundle: bool,
    /// Use direct descriptors
    #[arg(long)]
    pub direct: bool,
    /// Register the descriptor of the ring
    #[arg(long)]
    pub registered_fd: bool,
    /// Set IORING_RECVSEND_POLL_FIRST on oneshot receives
    #[arg(long)]
    pub poll_first: bool,
    /// Wait up to this many microseconds for 16 completions: min_wait_usec (6.12)
    #[arg(long, default_value_t = 0)]
    pub min_wait: u32,
    /// Look for completions for this many microseconds before a sleep
    #[arg(long, default_value_t = 0)]
    pub spin: u32,
}
