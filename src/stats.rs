//! Counters. Owns: their names. Invariant: a counter never decreases. Must not know who counts.
//!
//! The engine and its backend each have a [`Stats`], and `Engine::stats` adds them up: a new
//! counter is a field here, and `self.stats.NAME += 1` where it counts.

macro_rules! counters {
    ($(#[$about:meta])* pub struct Stats { $($(#[$doc:meta])* pub $name:ident: u64,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// The counters of two parts of an engine together.
            pub(crate) fn plus(self, other: Stats) -> Stats {
                Stats { $($name: self.$name + other.$name,)* }
            }
        }
    };
}

counters! {
    /// Counters of one engine since it was made. No counter decreases. See
    /// [`Engine::stats`](crate::Engine::stats).
    ///
    /// ```
    /// use proactor::{Completions, Config, Engine};
    /// use std::time::Duration;
    /// let mut engine = Engine::new(Config::default())?;
    /// let before = engine.stats();
    /// engine.poll(&mut Completions::with_capacity(16), Some(Duration::ZERO))?;
    /// assert!(engine.stats().turns > before.turns);
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub struct Stats {
        /// Turns: rounds of flush, wait and reap. One [`Engine::poll`](crate::Engine::poll) has one
        /// or more.
        pub turns: u64,
        /// Times that the engine spun before it slept ([`Config::spin`](crate::Config::spin)).
        pub spins: u64,
        /// Times that spinning found a completion.
        pub spins_found: u64,
        /// System calls of the backend (`io_uring_enter`, `epoll_wait`, `recv`, `sendmsg`, `close`,
        /// ...).
        pub syscalls: u64,
        /// SQEs that were submitted (io_uring only).
        pub sqes: u64,
        /// CQEs that were reaped (io_uring only).
        pub cqes: u64,
        /// CQEs and events that belong to no known operation. They are ignored.
        pub unknown_completions: u64,
        /// Invalid completions: a buffer that the kernel does not have, more bytes than the buffer
        /// has room for, an operation that is not in flight. The first one fails the engine
        /// ([`Error::EngineFailed`](crate::Error::EngineFailed)).
        pub kernel_violations: u64,
        /// Times that the completion queue overflowed (IORING_SQ_CQ_OVERFLOW, io_uring_setup(2);
        /// io_uring only).
        pub queue_overflows: u64,
        /// Connections that were accepted.
        pub accepted: u64,
        /// Connections from [`Engine::connect`](crate::Engine::connect) that were established.
        pub connected: u64,
        /// Connections that closed. One per [`Event::Closed`](crate::Event::Closed).
        pub closed: u64,
        /// Receives that completed with data.
        pub receives: u64,
        /// Single-shot receives where multishot is available
        /// ([`Tuning::adaptive_receives`](crate::Tuning::adaptive_receives); io_uring only).
        pub single_receives: u64,
        /// First receives that were started after the first send of their connection had completed
        /// ([`Tuning::adaptive_receives`](crate::Tuning::adaptive_receives); io_uring only).
        pub late_receives: u64,
        /// Bytes received.
        pub bytes_received: u64,
        /// Send operations that completed.
        pub sends: u64,
        /// Send operations that were started together with the connect
        /// ([`Tuning::early_sends`](crate::Tuning::early_sends)).
        pub early_sends: u64,
        /// Bytes that the kernel took from send queues.
        pub bytes_sent: u64,
        /// Send operations that took only a part of their batch. The rest was sent by further ones.
        pub partial_sends: u64,
        /// Send operations that used IORING_OP_SEND_ZC.
        pub zero_copy_sends: u64,
        /// Receives whose data was copied to the heap because the pool was below its low watermark.
        pub heap_copies: u64,
        /// Times that a receive found no free buffer and its connection was parked.
        pub pool_exhausted: u64,
        /// Sends that were refused because the send queue was full.
        pub sends_refused: u64,
        /// Times that a listener paused ([`Event::ListenerPaused`](crate::Event::ListenerPaused)).
        pub listener_pauses: u64,
        /// Events with data that were deferred because their connection had used its budget. They
        /// follow the events of other connections, in the same poll if there is room.
        pub budget_deferrals: u64,
        /// Bytes that arrived after the connection was closed locally. They were discarded.
        pub bytes_discarded: u64,
        /// Timers of the caller that fired. The timers of connect, idle and linger timeouts do not
        /// count.
        pub timers_fired: u64,
        /// [`Event::Woken`](crate::Event::Woken) events.
        pub wakes: u64,
    }
}
