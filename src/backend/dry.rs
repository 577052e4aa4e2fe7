//! A backend that enters no kernel: a connect succeeds, a send is taken whole and comes back as
//! received bytes, a close is done. Owns: what is finished and not yet told. For measuring what the
//! engine itself costs; not one that an engine of a user can have.

use super::{
    Backend, BackendStats, Completed, OpKind, OpResult, Open, Operation, Outcome, Side, Started,
};
use crate::buf::{Lease, Pool};
use crate::error::{Errno, Error};
use crate::id::Key;
use crate::net::Addr;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Dry {
    pool: Pool,
    gather_max: usize,
    done: VecDeque<Completed<()>>,
    data: VecDeque<(Key, Lease)>,
    epoch: Instant,
}

impl Dry {
    pub(crate) fn new(pool: Pool, gather_max: usize, epoch: Instant) -> Dry {
        Dry { pool, gather_max, done: VecDeque::new(), data: VecDeque::new(), epoch }
    }

    fn finish(&mut self, key: Key, outcome: Outcome<()>) -> Started {
        self.done.push_back(Completed::last(key, outcome));
        Started::InFlight
    }

    /// What is sent comes back as received bytes.
    fn send(&mut self, key: Key, mut batch: super::SendBatch) -> Started {
        let mut given = 0;
        for part in batch.parts(self.gather_max) {
            given += part.len();
            let Some(buffer) = self.pool.checkout() else { continue };
            let len = part.len().min(self.pool.size() as usize);
            self.pool.write(buffer, 0, &part[..len]);
            let lease = self.pool.deliver(buffer, len as u32, false);
            self.data.push_back((key, lease.expect("checked out, and written within its room")));
        }
        batch.set_given(given);
        self.finish(key, Outcome::Sent(batch, OpResult::bytes(given)))
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

    fn open(&mut self, _: Key, what: Open<'_, ()>) -> Result<(), Error> {
        match what {
            Open::Accepted(()) | Open::Stream(_) => Ok(()),
            Open::Listen(..) | Open::Listener(_) => {
                Err(Error::State("nobody connects to an engine without a kernel"))
            }
        }
    }

    #[inline]
    fn start(&mut self, key: Key, operation: Operation) -> Started {
        match operation {
            Operation::Send(batch) => self.send(key, batch),
            Operation::Recv | Operation::Accept | Operation::WatchHangup => Started::InFlight,
            Operation::RecvInto(recv_buf) => {
                self.finish(key, Outcome::Filled(recv_buf, OpResult::bytes(0)))
            }
            Operation::Connect(connect) => {
                self.finish(key, Outcome::Connected(Ok(())));
                match connect.first {
                    Some(batch) => self.finish(key, Outcome::Sent(batch, OpResult::bytes(0))),
                    None => Started::InFlight,
                }
            }
            Operation::Shutdown => Started::Done,
            Operation::Close(_) => self.finish(key, Outcome::Closed),
        }
    }

    fn cancel(&mut self, key: Key, kind: OpKind) {
        let canceled = Err(Errno(libc::ECANCELED));
        match kind {
            OpKind::Recv => self.finish(key, Outcome::RecvEnded(canceled)),
            OpKind::Hangup => self.finish(key, Outcome::HungUp(canceled)),
            OpKind::Connect | OpKind::Accept | OpKind::Send | OpKind::Close => return,
        };
    }

    fn wait(&mut self, _: Option<u64>) -> Result<(), Error> {
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Completed<()>> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        let (key, lease) = self.data.pop_front()?;
        Some(Completed { key, more: true, outcome: Outcome::Received(lease) })
    }

    fn has_next(&self) -> bool {
        !self.done.is_empty() || !self.data.is_empty()
    }

    fn free_buffers(&self) -> usize {
        self.pool.free()
    }

    fn addr(&self, _: Key, _: Side) -> io::Result<Addr> {
        nothing()
    }

    fn fd(&self, _: Key) -> Option<BorrowedFd<'_>> {
        None
    }

    fn release(&mut self, _: Key) -> Result<OwnedFd, Error> {
        Err(Error::State("the connection has no descriptor"))
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
