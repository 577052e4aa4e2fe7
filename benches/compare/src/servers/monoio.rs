//! monoio: its io_uring driver, a task per connection, buffers passed by value. COOP_TASKRUN is set
//! through its builder: without it, it is ten percent slower.

use super::READ_BYTES;
use crate::sys::{self, Addr};
use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::{IoUringDriver, RuntimeBuilder};
use std::io;

pub fn serve(addr: &Addr) -> io::Result<()> {
    addr.tcp()?;
    let listener = sys::listen(addr, false)?;
    let mut ring = io_uring_06::IoUring::builder();
    ring.setup_coop_taskrun();
    let mut runtime =
        RuntimeBuilder::<IoUringDriver>::new().with_entries(4096).uring_builder(ring).build()?;
    runtime.block_on(async {
        sys::announce(&listener, "monoio")?;
        let listener = monoio::net::TcpListener::from_std(listener.into())?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            monoio::spawn(async move {
                let mut buffer = Vec::with_capacity(READ_BYTES);
                loop {
                    let (result, full) = stream.read(buffer).await;
                    let Ok(len @ 1..) = result else { return };
                    let (result, sent) = stream.write_all(full.slice(..len)).await;
                    if result.is_err() {
                        return;
                    }
                    buffer = sent.into_inner();
                    buffer.clear();
                }
            });
        }
    })
}
