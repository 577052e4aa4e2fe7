//! tokio: the current-thread runtime, which its documentation advises for one core, a task per
//! connection.

use super::READ_BYTES;
use crate::sys::{self, Addr};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub fn serve(addr: &Addr) -> io::Result<()> {
    addr.tcp()?;
    let listener = sys::listen(addr, true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        sys::announce(&listener, "tokio")?;
        let listener = tokio::net::TcpListener::from_std(listener.into())?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut buffer = vec![0; READ_BYTES];
                while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..len]).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}
