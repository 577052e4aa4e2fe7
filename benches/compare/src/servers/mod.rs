//! Echo servers: the hand-written baselines, and one on each other engine, as its documentation
//! advises for speed. All run on one thread and print their address.

mod a10;
mod compio;
mod epoll;
mod glommio;
mod mio;
mod monoio;
pub mod ring;
mod ring_options;
mod ringline;
mod tokio;
mod tokio_uring;

use crate::sys::Addr;
use clap::Subcommand;
use std::io;

/// The size of a read, where each connection has a buffer.
const READ_BYTES: usize = 16 << 10;

#[derive(Subcommand, Clone, Debug)]
pub enum Server {
    /// The epoll loop, with 4 KiB reads by default
    Epoll(epoll::Options),
    /// The bare ring
    Ring(ring::Options),
    Mio,
    Tokio,
    TokioUring,
    Monoio,
    Compio,
    Glommio,
    A10,
    Ringline,
}

pub fn serve(addr: &Addr, server: &Server) -> io::Result<()> {
    match server {
        Server::Epoll(options) => epoll::serve(addr, options),
        Server::Ring(options) => ring::serve(addr, options),
        Server::Mio => mio::serve(addr),
        Server::Tokio => tokio::serve(addr),
        Server::TokioUring => tokio_uring::serve(addr),
        Server::Monoio => monoio::serve(addr),
        Server::Compio => compio::serve(addr),
        Server::Glommio => glommio::serve(addr),
        Server::A10 => a10::serve(addr),
        Server::Ringline => ringline::serve(addr),
    }
}
