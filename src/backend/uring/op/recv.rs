//! Receiving into the pool: RECV, multishot where the kernel has it (6.0), with buffers that the
//! kernel picks (5.19); on older kernels POLL_ADD first, so that no buffer is bound to an idle
//! connection. Owns: its entries and what their completions mean. Invariant: a buffer that came
//! with a completion is accounted for before anything else is looked at.

use super::poll_read;
use crate::backend::uring::Uring;
use crate::backend::uring::bufring::GROUP;
use crate::backend::uring::reap::GOES_ON;
use crate::backend::uring::slot::mark;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, Operation, Outcome, Started};
use crate::error::{Errno, Violation};
use crate::id::Key;
use io_uring::opcode;
use io_uring::squeue::Flags;
use std::os::fd::OwnedFd;

impl Uring {
    pub(in crate::backend::uring) fn start_recv(&mut self, key: Key) -> Started {
        if self.ring.make_room().is_err() {
            return Started::NoRoom(Operation::Recv);
        }
        let adaptive = self.style.adaptive_receives;
        let slot = self.slot(key);
        slot.unstop(OpKind::Recv);
        // An answer needs a request: until that has left, a receive would only find nothing, and be
        // polled for.
        let held = adaptive && slot.has(mark::UNUSED) && slot.send != Kind::Idle;
        slot.set(mark::HELD, held);
        self.stats.late_receives += u64::from(held);
        if !held {
            self.push_first_recv(key);
        }
        Started::InFlight
    }

    /// The entry that a receive begins with. Room must have been made.
    fn push_first_recv(&mut self, key: Key) {
        let poll_first = !self.slot(key).has(mark::HOT) && !self.buffers.has_ring();
        let kind = if poll_first {
            Kind::RecvPoll
        } else if self.style.adaptive_receives && self.slot(key).take(mark::FRESH) {
            Kind::RecvFirst
        } else {
            Kind::Recv
        };
        self.push_recv(key, kind);
    }

    /// Room must have been made.
    pub(super) fn push_recv(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        assert_eq!(self.slot(key).recv, Kind::Idle, "one receive at a time");
        if kind == Kind::RecvPoll {
            self.ring.push_plain(poll_read(fd), pack(kind, key));
            self.slot(key).recv = kind;
            return;
        }
        let entry = if kind == Kind::RecvFirst {
            self.stats.single_receives += 1;
            let (group, size) = self.buffers.first_group();
            let recv = opcode::Recv::new(fd, std::ptr::null_mut(), size).buf_group(group);
            recv.build().flags(Flags::BUFFER_SELECT)
        } else if self.style.multishot_recv {
            opcode::RecvMulti::new(fd, GROUP).build()
        } else if self.buffers.has_ring() {
            let recv = opcode::Recv::new(fd, std::ptr::null_mut(), self.buffers.pool().size())
                .buf_group(GROUP);
            recv.build().flags(Flags::BUFFER_SELECT)
        } else {
            let Some(buffer) = self.buffers.pool().checkout() else {
                return self.finish(key, Outcome::RecvEnded(Err(Errno(libc::ENOBUFS))));
            };
            self.slot(key).buffer = buffer;
            let (start, len) = self.buffers.pool().room(buffer);
            opcode::Recv::new(fd, start.as_ptr(), len).flags(libc::MSG_DONTWAIT).build()
        };
        self.buffers.receive_started();
        // SAFETY: the memory is the pool's: a buffer checked out until the completion, or one that
        // the kernel picks from its ring. `Buffers` counts this receive, and keeps or leaks the
        // pool as long as it is in flight.
        unsafe { self.ring.push(entry.user_data(pack(kind, key))) };
        self.slot(key).recv = kind;
    }

    #[inline(always)]
    pub(in crate::backend::uring) fn received(
        &mut self,
        key: Key,
        kind: Kind,
        (result, flags): (i32, u32),
        more: bool,
    ) -> Option<Completed<OwnedFd>> {
        if more && !(kind == Kind::Recv && self.style.multishot_recv) {
            self.fail(GOES_ON);
            return None;
        }
        let mut lease = match self.buffers.picked(kind == Kind::RecvFirst, result, flags) {
            Ok(lease) => lease,
            Err(violation) => {
                self.fail(violation);
                return None;
            }
        };
        if !more {
            self.buffers.receive_ended();
            if let Some(buffer) = self.slots[key.slot()].take_buffer() {
                lease = self.received_in_own_buffer(key, buffer, result)?;
            }
        }
        match lease {
            Some(lease) => Some(Completed { key, more, outcome: Outcome::Received(lease) }),
            None => self.recv_ended(key, kind, result, more),
        }
    }

    /// `None`: the connection goes on with another step, or the backend has failed.
    #[inline(never)]
    fn received_in_own_buffer(
        &mut self,
        key: Key,
        buffer: u16,
        result: i32,
    ) -> Option<Option<crate::Lease>> {
        let pool = self.buffers.pool();
        self.slots[key.slot()].set(mark::HOT, result == pool.size() as i32);
        if result > 0 {
            match pool.deliver(buffer, result as u32, false) {
                Ok(lease) => return Some(Some(lease)),
                Err(violation) => {
                    self.fail(violation);
                    return None;
                }
            }
        }
        pool.put_back(buffer);
        if result == -libc::EAGAIN {
            self.step(key, Kind::RecvPoll);
            return None;
        }
        Some(None)
    }

    #[inline(never)]
    fn recv_ended(
        &mut self,
        key: Key,
        kind: Kind,
        result: i32,
        more: bool,
    ) -> Option<Completed<OwnedFd>> {
        if more {
            // A multishot receive that goes on has data.
            self.fail(Violation("a receive goes on without data"));
            return None;
        }
        if result == -libc::ENOBUFS && kind == Kind::RecvFirst {
            // The small group is used up: the main one has buffers, or will say so itself.
            self.step(key, Kind::Recv);
            return None;
        }
        let ended = match result {
            0 => Ok(()),
            _ => Err(Errno(result.saturating_neg().max(1))),
        };
        Some(Completed::last(key, Outcome::RecvEnded(ended)))
    }

    /// Without buffer selection: data arrived.
    pub(in crate::backend::uring) fn readable(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        if result >= 0 {
            self.step(key, Kind::Recv);
            return None;
        }
        Some(Completed::last(key, Outcome::RecvEnded(Err(Errno(result.saturating_neg())))))
    }

    /// A receive that waited for the end of the first send begins.
    pub(super) fn begin_held_recv(&mut self, key: Key) {
        let kind = if self.slot(key).take(mark::FRESH) { Kind::RecvFirst } else { Kind::Recv };
        self.step(key, kind);
    }
}
