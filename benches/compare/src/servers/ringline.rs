//! ringline: one worker, its default configuration except for the number of connections, as in its
//! `echo_bench`.

use crate::sys::{self, Addr};
use ringline::{AsyncEventHandler, ConfigBuilder, ConnCtx, ParseResult, RinglineBuilder};
use std::future::Future;
use std::io;

struct Echo;

impl AsyncEventHandler for Echo {
    #[allow(clippy::manual_async_fn, reason = "the signature of the trait")]
    fn on_accept(&self, conn: ConnCtx) -> impl Future<Output = ()> + 'static {
        async move {
            let echo = |data: &[u8]| {
                let _ = conn.send_nowait(data);
                ParseResult::Consumed(data.len())
            };
            while conn.with_data(echo).await > 0 {}
        }
    }

    fn create_for_worker(_: usize) -> Echo {
        Echo
    }
}

pub fn serve(addr: &Addr) -> io::Result<()> {
    let mut addr = addr.tcp()?;
    if addr.port() == 0 {
        // It does not report the port that it bound, so find a free one first.
        addr = std::net::TcpListener::bind(addr)?.local_addr()?;
    }
    let config = ConfigBuilder::new()
        .workers(1)
        .pin_to_core(false)
        .tcp_nodelay(true)
        .max_connections(19_000)
        .build()
        .map_err(io::Error::other)?;
    let (_shutdown, workers) =
        RinglineBuilder::new(config).bind(addr).launch::<Echo>().map_err(io::Error::other)?;
    sys::announce_as(&addr, "ringline");
    for worker in workers {
        worker.join().expect("the worker does not panic").map_err(io::Error::other)?;
    }
    Ok(())
}
