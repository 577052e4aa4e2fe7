//! a10: SINGLE_ISSUER and DEFER_TASKRUN, multishot accept and receive with its buffer pool,
//! received buffers sent without a copy. It has no executor: tasks run on that of the `futures`
//! project, between two polls of the ring.

use crate::sys::{self, Addr};
use a10::io::ReadBufPool;
use a10::{AsyncFd, Ring, SubmissionQueue};
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::task::LocalSpawnExt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;

pub fn serve(addr: &Addr) -> io::Result<()> {
    addr.tcp()?;
    let listener = sys::listen(addr, false)?;
    let config = Ring::config().single_issuer().defer_task_run().with_submission_queue_size(4096);
    let mut ring = config.with_completion_queue_size(16_384).build()?;
    let (mut tasks, sq) = (LocalPool::new(), ring.sq());
    sys::announce(&listener, "a10")?;
    let pool = ReadBufPool::new(sq.clone(), 1024, 4096)?;
    let accepting = accept(sq, OwnedFd::from(listener), pool, tasks.spawner());
    tasks.spawner().spawn_local(accepting).map_err(io::Error::other)?;
    loop {
        tasks.run_until_stalled();
        ring.poll(None)?;
    }
}

async fn accept(sq: SubmissionQueue, listener: OwnedFd, pool: ReadBufPool, spawner: LocalSpawner) {
    let listener = AsyncFd::new(listener, sq);
    let mut incoming = pin!(listener.multishot_accept());
    while let Some(accepted) = poll_fn(|context| incoming.as_mut().poll_next(context)).await {
        match accepted {
            Ok(stream) => {
                spawner.spawn_local(echo(stream, pool.clone())).expect("the pool of tasks exists")
            }
            Err(error) => return eprintln!("accept: {error}"),
        }
    }
}

async fn echo(stream: AsyncFd, pool: ReadBufPool) {
    loop {
        let mut receiving = pin!(stream.multishot_recv(pool.clone()));
        loop {
            match poll_fn(|context| receiving.as_mut().poll_next(context)).await {
                Some(Ok(data)) if data.is_empty() => return,
                Some(Ok(data)) => {
                    if stream.send_all(data).await.is_err() {
                        return;
                    }
                }
                // The pool is empty: arm the receive again.
                Some(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => break,
                Some(Err(_)) => return,
                None => break,
            }
        }
    }
}
