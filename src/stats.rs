//! Plain counters. Owns: nothing but numbers; anyone may add to them.

/// Counters of one engine since it was made. All of them only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Rounds of [`Engine::poll`](crate::Engine::poll): flush, wait, reap.
    pub turns: u64,
    /// Times the engine looked for completions before it slept
    /// ([`Config::spin`](crate::Config::spin)), and times that found some.
    pub spins: u64,
    /// See [`Stats::spins`].
    pub spins_found: u64,
    /// System calls made by the backend (`io_uring_enter`, `epoll_wait`, `recv`, `sendmsg`,
    /// `close`, ...).
    pub syscalls: u64,
    /// Submission queue entries handed to the kernel (io_uring only).
    pub sqes: u64,
    /// Completion queue entries taken from the kernel (io_uring only).
    pub cqes: u64,
    /// Completions that belonged to no live operation; counted and dropped.
    pub unknown_completions: u64,
    /// Completions that cannot be true: a buffer that the kernel does not have, more bytes than
    /// there are, an operation that is not in flight. The first one fails the engine
    /// ([`Error::EngineFailed`](crate::Error::EngineFailed)).
    pub kernel_violations: u64,
    /// Times the kernel's completion queue overflowed into its backlog (io_uring only).
    pub queue_overflows: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections that this engine opened with success.
    pub connected: u64,
    /// Connections that ended: one per [`Event::Closed`](crate::Event::Closed).
    pub closed: u64,
    /// Receive completions with data.
    pub receives: u64,
    /// Receives started as single-shot where multishot is there
    /// ([`Tuning::adaptive_receives`](crate::Tuning::adaptive_receives); io_uring only).
    pub single_receives: u64,
    /// First receives that waited until the first send of their connection had left
    /// ([`Tuning::adaptive_receives`](crate::Tuning::adaptive_receives); io_uring only).
    pub late_receives: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Send operations completed.
    pub sends: u64,
    /// Send operations that were started with the connect
    /// ([`Tuning::early_sends`](crate::Tuning::early_sends)).
    pub early_sends: u64,
    /// Bytes that the kernel took from send queues.
    pub bytes_sent: u64,
    /// Send operations that took only a part of what they were given, and were continued.
    pub partial_sends: u64,
    /// Send operations made with SEND_ZC.
    pub zero_copy_sends: u64,
    /// Receives copied to the heap because the pool was below its low watermark.
    pub heap_copies: u64,
    /// Times a receive found no buffer and the connection was parked.
    pub pool_exhausted: u64,
    /// Times a send was refused because the queue was full.
    pub sends_refused: u64,
    /// Times a listener paused because descriptors or memory ran out.
    pub listener_pauses: u64,
    /// Completions put off to the next poll because their connection had used up its budget.
    pub budget_deferrals: u64,
    /// Bytes that arrived after the connection was closed on this side, and were discarded.
    pub bytes_discarded: u64,
    /// Timers that fired (the caller's own; not those behind connect, idle and linger timeouts).
    pub timers_fired: u64,
    /// Wake-ups delivered as [`Event::Woken`](crate::Event::Woken).
    pub wakes: u64,
}
