//! compio: its io_uring driver with COOP_TASKRUN, a task per connection, buffers passed by value.

use super::READ_BYTES;
use crate::sys::{self, Addr};
use compio::buf::{IntoInner, IoBuf};
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::runtime::RuntimeBuilder;
use std::io;

pub fn serve(addr: &Addr) -> io::Result<()> {
    addr.tcp()?;
    let listener = sys::listen(addr, true)?;
    let mut driver = ProactorBuilder::new();
    driver.capacity(4096).coop_taskrun(true).taskrun_flag(true);
    let runtime = RuntimeBuilder::new().with_proactor(driver).build()?;
    runtime.block_on(async {
        sys::announce(&listener, "compio")?;
        let listener = compio::net::TcpListener::from_std(listener.into())?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let echo = async move {
                let mut buffer = Vec::with_capacity(READ_BYTES);
                loop {
                    let compio::BufResult(result, full) = stream.read(buffer).await;
                    let Ok(len @ 1..) = result else { return };
                    let compio::BufResult(result, sent) = stream.write_all(full.slice(..len)).await;
                    if result.is_err() {
                        return;
                    }
                    buffer = sent.into_inner();
                    buffer.clear();
                }
            };
            compio::runtime::spawn(echo).detach();
        }
    })
}
