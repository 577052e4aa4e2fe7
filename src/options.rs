//! Options of connections and listeners. Owns: their fields and defaults. Has no behaviour. Must
//! not know how they are applied to a socket.

use std::net::SocketAddr;
use std::time::Duration;

/// Whether a connection starts to read when it opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// Data is delivered as [`Event::Received`](crate::Event::Received) when it arrives.
    #[default]
    Streaming,
    /// Reads are paused, as after [`Engine::pause_reads`](crate::Engine::pause_reads), until
    /// [`Engine::resume_reads`](crate::Engine::resume_reads) or
    /// [`Engine::recv_into`](crate::Engine::recv_into) is called.
    Paused,
}

/// Options of a stream socket. Options of TCP have no effect on unix sockets.
///
/// ```
/// use proactor::SocketOptions;
/// use std::time::Duration;
/// let options = SocketOptions {
///     idle_timeout: Some(Duration::from_secs(60)),
///     keepalive: Some((Duration::from_secs(30), Duration::from_secs(5))),
///     ..SocketOptions::default()
/// };
/// assert!(options.nodelay);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// TCP_NODELAY (tcp(7)). Default: true. The engine batches payloads, so Nagle's algorithm would
    /// only add delay.
    pub nodelay: bool,
    /// SO_KEEPALIVE (socket(7)): the idle time before the first probe (TCP_KEEPIDLE) and the
    /// interval between probes (TCP_KEEPINTVL), in whole seconds, at least 1. Default: off.
    pub keepalive: Option<(Duration, Duration)>,
    /// SO_SNDBUF in bytes. The kernel doubles it (socket(7)). Default: that of the system.
    pub send_buffer_bytes: Option<usize>,
    /// SO_RCVBUF in bytes. The kernel doubles it (socket(7)). Default: that of the system.
    pub recv_buffer_bytes: Option<usize>,
    /// Closes the connection when no byte was sent or received for this time. Default:
    /// `Config::idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// Whether the connection starts to read when it opens. Default: streaming.
    pub read_mode: ReadMode,
    /// Keeps the write side open after the FIN of the peer (half-closed). If false, the engine
    /// closes the connection after [`Event::ReadClosed`](crate::Event::ReadClosed). Default: true.
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
///
/// ```
/// use proactor::{Completions, Config, ConnectOptions, Engine, Event, ListenOptions};
/// use std::net::Ipv4Addr;
/// use std::time::Duration;
/// let mut engine = Engine::new(Config::default())?;
/// let mut completions = Completions::with_capacity(16);
/// let listener = engine.listen((Ipv4Addr::LOCALHOST, 0), ListenOptions::default())?;
/// let options = ConnectOptions {
///     timeout: Some(Duration::from_secs(3)),
///     local: Some((Ipv4Addr::LOCALHOST, 0).into()),
///     tag: 7,
///     ..ConnectOptions::default()
/// };
/// let conn = engine.connect(engine.listener_addr(listener)?, options)?;
/// let connected = 'connected: loop {
///     engine.poll(&mut completions, None)?;
///     for completion in completions.drain() {
///         if completion.conn == conn {
///             break 'connected completion;
///         }
///     }
/// };
/// assert!(matches!(connected.event, Event::Connected) && connected.tag == 7);
/// # Ok::<(), proactor::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// The time after which the connect fails. Default: `Config::connect_timeout`.
    pub timeout: Option<Duration>,
    /// The local address to bind to (bind(2)). Default: the kernel chooses it.
    pub local: Option<SocketAddr>,
    /// The tag of the connection. Default: 0.
    pub tag: u64,
    /// Options of the socket.
    pub socket: SocketOptions,
}

/// Options of [`Engine::listen`](crate::Engine::listen).
///
/// ```
/// use proactor::{ListenOptions, SocketOptions};
/// let options = ListenOptions {
///     reuse_port: true,
///     socket: SocketOptions { half_open: false, ..SocketOptions::default() },
///     ..ListenOptions::default()
/// };
/// assert_eq!(options.backlog, 4096);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// The maximum number of connections that wait to be accepted. The kernel limits it to the
    /// sysctl net.core.somaxconn (listen(2)). Default: 4096.
    pub backlog: u32,
    /// SO_REUSEPORT (socket(7)): several listeners, for instance one per thread, share the port.
    /// Default: false.
    pub reuse_port: bool,
    /// IPV6_V6ONLY (ipv6(7)). Default: false, so that a listener on `[::]` accepts IPv4 as well.
    pub v6_only: bool,
    /// Removes an existing socket file at a unix path before bind(2), if a connect to it fails with
    /// ECONNREFUSED. Default: true.
    pub remove_stale_path: bool,
    /// The tag of the listener. Accepted connections inherit it. Default: 0.
    pub tag: u64,
    /// Options that accepted connections inherit.
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
