//! Sends standard input to a peer and writes what the peer sends to standard output. At the end of
//! the input it closes its write side, and receives until the peer closes.
//!
//! ```text
//! printf 'GET / HTTP/1.0\r\n\r\n' | cargo run --release --example netcat -- 127.0.0.1 8080
//! ```
//!
//! Shows `Waker`: a thread reads standard input, puts each piece into a channel and wakes the
//! engine. Prints only what the peer sends. The exit status is 1 if the connection failed.

mod common;

use clap::Parser;
use common::{BackendArgs, Failure};
use proactor::{CloseKind, Completions, ConnectOptions, Event, Payload, SendError, Waker};
use std::io::{Read, Write};
use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

#[derive(Parser)]
#[command(about = "netcat on proactor", version)]
struct Args {
    /// The name or address of the peer
    host: String,
    /// The TCP port of the peer
    port: u16,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    common::main(|| run(&Args::parse()))
}

/// Reads standard input piece by piece. Blocks while the channel is full.
fn read_input(pieces: SyncSender<Vec<u8>>, waker: Waker) {
    let mut buffer = vec![0; 64 << 10];
    let mut input = std::io::stdin().lock();
    loop {
        match input.read(&mut buffer) {
            Ok(len @ 1..) if pieces.send(buffer[..len].to_vec()).is_ok() => waker.wake(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    drop(pieces);
    waker.wake();
}

struct Input {
    pieces: Receiver<Vec<u8>>,
    /// A piece that the full send queue has handed back.
    refused: Option<Payload>,
    ended: bool,
}

impl Input {
    fn forward(
        &mut self,
        engine: &mut proactor::Engine,
        conn: proactor::ConnId,
    ) -> Result<(), Failure> {
        while !self.ended {
            let payload = match self
                .refused
                .take()
                .map(Ok)
                .unwrap_or_else(|| self.pieces.try_recv().map(Payload::from))
            {
                Ok(payload) => payload,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    self.ended = true;
                    // Fails if the connection has ended; `Closed` follows with the reason.
                    let _ = engine.shutdown_write(conn);
                    return Ok(());
                }
            };
            match engine.send(conn, payload) {
                Ok(()) => {}
                Err(SendError::Full(payload)) => {
                    self.refused = Some(payload);
                    return Ok(());
                }
                // The connection is ending; `Closed` follows with the reason.
                Err(_) => self.ended = true,
            }
        }
        Ok(())
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let mut engine = args.backend.engine()?;
    let addr = (args.host.as_str(), args.port)
        .to_socket_addrs()?
        .next()
        .ok_or("the name has no address")?;
    let conn = engine.connect(addr, ConnectOptions::default())?;
    let (sender, pieces) = sync_channel(16);
    let waker = engine.waker();
    std::thread::spawn(move || read_input(sender, waker));

    let mut input = Input { pieces, refused: None, ended: false };
    let mut completions = Completions::with_capacity(256);
    let mut output = std::io::stdout().lock();
    loop {
        engine.poll(&mut completions, None)?;
        for completion in completions.drain() {
            match completion.event {
                Event::Connected | Event::Woken | Event::Drained => {
                    input.forward(&mut engine, conn)?
                }
                Event::Received(data) => {
                    output.write_all(&data)?;
                    output.flush()?;
                }
                // The peer sends no more. Send what has been read, then the FIN.
                Event::ReadClosed => {
                    input.forward(&mut engine, conn)?;
                    let _ = engine.shutdown_write(conn);
                }
                Event::Closed(reason)
                    if reason.kind == CloseKind::PeerClosed && reason.unsent_bytes == 0 =>
                {
                    return Ok(());
                }
                Event::Closed(reason) => return Err(format!("{addr}: {reason}").into()),
                _ => {}
            }
        }
    }
}
