//! A backend that enters no kernel: a connect succeeds, a send is taken whole and comes back as received bytes, a close is done. Owns: what is
//! finished and not yet told. For measuring what the engine itself costs; not one that an engine of a user can have.

use super::{Backend, BackendStats, CloseHow, ConnectRequest, Done, Next, Op, Outcome, QueueFull};
use crate::buf::{Fill, Lease, Pool, SendQueue};
use crate::error::{Errno, Error};
use crate::id::Key;
use crate::net::Addr;
use crate::options::ListenOptions;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Dry {
    pool: Pool,
    gather_max: usize,
    done: VecDeque<Done<()>>,
    data: VecDeque<(Key, Lease)>,
    epoch: Instant,
}

impl Dry {
    pub(crate) fn new(pool: Pool, gather_max: usize, epoch: Instant) -> Dry {
        Dry { pool, gather_max, done: VecDeque::new(), data: VecDeque::new(), epoch }
    }

    fn finish(&mut self, key: Key, op: Op, outcome: Outcome<()>) {
        self.done.push_back(Done { key, op, more: false, outcome });
    }
}

fn nothing<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Backend for Dry {
    type Socket = ();
    const CAN_SPIN: bool = false;

    fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Time stands still: no clock is read, and no deadline comes.
    fn now(&self) -> u64 {
        0
    }

    fn listen(&mut self, _: Key, _: &Addr, _: &ListenOptions) -> Result<(), Error> {
        Err(Error::State("nobody connects to an engine without a kernel"))
    }

    fn attach(&mut self, _: Key, (): ()) -> Result<(), Errno> {
        Ok(())
    }

    fn attach_listener(&mut self, _: Key, _: OwnedFd) -> Result<(), Error> {
        Err(Error::State("nobody connects to an engine without a kernel"))
    }

    fn adopt(&mut self, _: OwnedFd) -> Result<(), Error> {
        Ok(())
    }

    fn release(&mut self, _: Key) -> Result<OwnedFd, Error> {
        Err(Error::State("the connection has no descriptor"))
    }

    fn start_connect(&mut self, key: Key, _: &ConnectRequest, _: Option<&mut SendQueue>) -> Result<bool, QueueFull> {
        self.finish(key, Op::Connect, Outcome::Count(0));
        Ok(false)
    }

    fn start_accept(&mut self, _: Key) -> Result<(), QueueFull> {
        Ok(())
    }

    fn start_recv(&mut self, _: Key) -> Result<(), QueueFull> {
        Ok(())
    }

    fn start_recv_into(&mut self, _: Key, _: &mut Fill) -> Result<(), QueueFull> {
        Ok(())
    }

    fn start_send(&mut self, key: Key, queue: &mut SendQueue, _: bool) -> Result<Option<usize>, QueueFull> {
        let mut given = 0;
        for part in queue.gather(self.gather_max) {
            given += part.len();
            let Some(buffer) = self.pool.checkout() else { continue };
            let len = part.len().min(self.pool.size() as usize);
            self.pool.write(buffer, 0, &part[..len]);
            let lease = self.pool.deliver(buffer, len as u32, false).expect("checked out and written above");
            self.data.push_back((key, lease));
        }
        self.finish(key, Op::Send, Outcome::Count(given));
        Ok(None)
    }

    fn can_zero_copy(&self) -> bool {
        false
    }

    fn cancel(&mut self, key: Key, op: Op) -> Result<(), QueueFull> {
        self.finish(key, op, Outcome::Failed(Errno(libc::ECANCELED)));
        Ok(())
    }

    fn shutdown_write(&mut self, _: Key) {}

    fn start_close(&mut self, key: Key, _: CloseHow) -> Result<(), QueueFull> {
        self.finish(key, Op::Close, Outcome::Count(0));
        Ok(())
    }

    fn start_close_listener(&mut self, listener: Key) -> Result<(), QueueFull> {
        self.finish(listener, Op::CloseListener, Outcome::Count(0));
        Ok(())
    }

    fn wait(&mut self, _: Option<u64>) -> Result<(), Error> {
        Ok(())
    }

    fn next(&mut self, mut data: impl FnMut(Key, bool, Lease)) -> Next<()> {
        if let Some(done) = self.done.pop_front() {
            return Next::Done(done);
        }
        let Some((key, lease)) = self.data.pop_front() else { return Next::Nothing };
        data(key, true, lease);
        Next::Data
    }

    fn has_next(&self) -> bool {
        !self.done.is_empty() || !self.data.is_empty()
    }

    fn free_buffers(&self) -> usize {
        self.pool.free()
    }

    fn peer_addr(&self, _: Key) -> io::Result<Addr> {
        nothing()
    }

    fn local_addr(&self, _: Key) -> io::Result<Addr> {
        nothing()
    }

    fn listener_addr(&self, _: Key) -> io::Result<Addr> {
        nothing()
    }

    fn fd(&self, _: Key) -> Option<BorrowedFd<'_>> {
        None
    }

    fn watch_fd(&mut self) -> Result<OwnedFd, Error> {
        Err(Error::State("there is nothing to wait for without a kernel"))
    }

    fn watch_reset(&mut self) {}

    fn stats(&self) -> BackendStats {
        BackendStats { heap_copies: self.pool.heap_copies(), ..BackendStats::default() }
    }

    fn shut_down(&mut self, _: Duration) -> bool {
        true
    }
}
