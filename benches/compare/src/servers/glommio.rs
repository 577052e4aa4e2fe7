//! glommio: one executor, a task per connection.

use super::READ_BYTES;
use crate::sys::{self, Addr};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::{LocalExecutorBuilder, Placement};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

pub fn serve(addr: &Addr) -> io::Result<()> {
    addr.tcp()?;
    let listener = sys::listen(addr, true)?;
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .ring_depth(4096)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))?;
    executor.run(async {
        sys::announce(&listener, "glommio")?;
        // SAFETY: `into_raw_fd` gives up the descriptor, so nothing else owns it.
        let listener = unsafe { glommio::net::TcpListener::from_raw_fd(listener.into_raw_fd()) };
        loop {
            let mut stream =
                listener.accept().await.map_err(|error| io::Error::other(error.to_string()))?;
            let echo = async move {
                let mut buffer = vec![0; READ_BYTES];
                while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..len]).await.is_err() {
                        return;
                    }
                }
            };
            glommio::spawn_local(echo).detach();
        }
    })
}
