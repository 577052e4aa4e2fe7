//! tokio-uring: a task per connection, buffers passed by value.

use super::READ_BYTES;
use crate::sys::{self, Addr};
use std::io;
use tokio_uring::buf::BoundedBuf;

pub fn serve(addr: &Addr) -> io::Result<()> {
    addr.tcp()?;
    let listener = sys::listen(addr, false)?;
    sys::announce(&listener, "tokio-uring")?;
    tokio_uring::builder().entries(4096).start(async {
        let listener = tokio_uring::net::TcpListener::from_std(listener.into());
        loop {
            let (stream, _) = listener.accept().await?;
            tokio_uring::spawn(async move {
                let mut buffer = vec![0; READ_BYTES];
                loop {
                    let (result, full) = stream.read(buffer).await;
                    let Ok(len @ 1..) = result else { return };
                    let (result, sent) = stream.write_all(full.slice(..len)).await;
                    if result.is_err() {
                        return;
                    }
                    buffer = sent.into_inner();
                }
            });
        }
    })
}
