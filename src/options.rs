//! Options of single connections and listeners. Owns: their fields and defaults; no behaviour.

use std::net::SocketAddr;
use std::time::Duration;

/// How a connection reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// Data comes as [`Event::Received`](crate::Event::Received) as it arrives.
    #[default]
    Streaming,
    /// As if [`Engine::pause_reads`](crate::Engine::pause_reads) had been called at once: nothing
    /// is read until [`Engine::resume_reads`](crate::Engine::resume_reads) or
    /// [`Engine::recv_into`](crate::Engine::recv_into).
    Paused,
}

/// Options of a stream socket. What does not apply to a unix socket is skipped there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// TCP_NODELAY. Default: true; the engine gathers by itself, so Nagle's algorithm only adds
    /// delay.
    pub nodelay: bool,
    /// SO_KEEPALIVE: idle time before the first probe and interval between them, in whole seconds.
    /// Default: off.
    pub keepalive: Option<(Duration, Duration)>,
    /// SO_SNDBUF in bytes (the kernel doubles it). Default: the system's.
    pub send_buffer_bytes: Option<usize>,
    /// SO_RCVBUF in bytes (the kernel doubles it). Default: the system's.
    pub recv_buffer_bytes: Option<usize>,
    /// Closes a connection after this long without a byte in either direction. Default:
    /// `Config::idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// How it starts to read. Default: streaming.
    pub read_mode: ReadMode,
    /// Keeps the write side open after the peer's FIN, until it is closed here. If false, the
    /// engine calls `close` itself after [`Event::ReadClosed`](crate::Event::ReadClosed). Default:
    /// true.
    pub half_open: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions {
            nodelay: true,
            keepalive: None,
            send_buffer_bytes: None,
            recv_buffer_bytes: None,
            idle_timeout: None,
            read_mode: ReadMode::Streaming,
            half_open: true,
        }
    }
}

/// Options of [`Engine::connect`](crate::Engine::connect).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// How long the connect may take. Default: `Config::connect_timeout`.
    pub timeout: Option<Duration>,
    /// The local address to bind to. Default: the kernel chooses.
    pub local: Option<SocketAddr>,
    /// The tag of the connection. Default: 0.
    pub tag: u64,
    /// Options of the socket.
    pub socket: SocketOptions,
}

/// Options of [`Engine::listen`](crate::Engine::listen).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// The length of the queue of connections not yet accepted (the kernel caps it at
    /// net.core.somaxconn). Default: 4096.
    pub backlog: u32,
    /// SO_REUSEPORT: several listeners, one per thread, share the port. Default: false.
    pub reuse_port: bool,
    /// IPV6_V6ONLY. Default: false; a listener on `[::]` takes IPv4 too.
    pub v6_only: bool,
    /// Removes a socket file that nobody listens on before binding a unix path. Default: true.
    pub remove_stale_path: bool,
    /// The tag of the listener, which accepted connections inherit. Default: 0.
    pub tag: u64,
    /// What accepted connections inherit.
    pub socket: SocketOptions,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            backlog: 4096,
            reuse_port: false,
            v6_only: false,
            remove_stale_path: true,
            tag: 0,
            socket: SocketOptions::default(),
        }
    }
}
