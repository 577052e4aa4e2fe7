//! Echo servers: the baselines, written by hand, and one on each peer, as its own documentation
//! advises for speed. All run on one thread, echo what comes, and print where they listen.

mod a10;
mod compio;
mod epoll;
mod glommio;
mod mio;
mod monoio;
pub mod ring;
mod ringline;
mod tokio;
mod tokio_uring;

use crate::sys::Addr;
use clap::Subcommand;
use std::io;

/// What peers read at most at once, where each connection has a buffer of its own.
const READ_BYTES: usize = 16 << 10;

#[derive(Subcommand, Clone, Debug)]
pub enum Server {
    /// The epoll loop, with 4 KiB reads unless told otherwise
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
