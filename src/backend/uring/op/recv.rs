//! Receive into the pool: RECV, multishot where the kernel has it (6.0), into provided buffers that
//! the kernel selects (5.19); on older kernels a POLL_ADD first, so that an idle connection holds
//! no buffer. Owns: its SQEs and the meaning of their CQEs. Invariant: the buffer of a CQE is
//! accounted for before its result is used.

use super::poll_read;
use crate::backend::uring::Uring;
use crate::backend::uring::bufring::GROUP;
use crate::backend::uring::reap::UNEXPECTED_MORE;
use crate::backend::uring::slot::flag;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, Operation, Outcome, Started};
use crate::buf::Lease;
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
        let adaptive = self.features.adaptive_receives;
        let slot = self.slot(key);
        slot.clear_cancel(OpKind::Recv);
        // The peer of a connect usually answers a request. Before the request is sent, a receive
        // finds no data and costs the kernel a poll.
        let delayed = adaptive && slot.has(flag::NOTHING_SENT) && slot.send != Kind::Idle;
        slot.set(flag::RECV_DELAYED, delayed);
        self.stats.late_receives += u64::from(delayed);
        if !delayed {
            self.push_initial_recv(key);
        }
        Started::InFlight
    }

    /// Stages the first SQE of a receive. Call `Ring::make_room` first.
    fn push_initial_recv(&mut self, key: Key) {
        let poll_first = !self.slot(key).has(flag::BUFFER_FILLED) && !self.buffers.has_ring();
        let kind = if poll_first {
            Kind::RecvPoll
        } else if self.features.adaptive_receives && self.slot(key).clear(flag::NO_RECV_STARTED) {
            Kind::RecvFirst
        } else {
            Kind::Recv
        };
        self.push_recv(key, kind);
    }

    /// Call `Ring::make_room` first.
    pub(super) fn push_recv(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        assert_eq!(self.slot(key).recv, Kind::Idle, "one receive at a time");
        if kind == Kind::RecvPoll {
            self.ring.push_plain(poll_read(fd), pack(kind, key));
            self.slot(key).recv = kind;
            return;
        }
        let sqe = if kind == Kind::RecvFirst {
            self.stats.single_receives += 1;
            let (group, size) = self.buffers.first_group();
            let recv = opcode::Recv::new(fd, std::ptr::null_mut(), size).buf_group(group);
            recv.build().flags(Flags::BUFFER_SELECT)
        } else if self.features.multishot_recv {
            opcode::RecvMulti::new(fd, GROUP).build()
        } else if self.buffers.has_ring() {
            let recv = opcode::Recv::new(fd, std::ptr::null_mut(), self.buffers.pool().size())
                .buf_group(GROUP);
            recv.build().flags(Flags::BUFFER_SELECT)
        } else {
            let Some(buffer) = self.buffers.pool().checkout() else {
                return self.complete(key, Outcome::RecvEnded(Err(Errno(libc::ENOBUFS))));
            };
            self.slot(key).buffer = buffer;
            let (start, len) = self.buffers.pool().room(buffer);
            opcode::Recv::new(fd, start.as_ptr(), len).flags(libc::MSG_DONTWAIT).build()
        };
        self.buffers.receive_started();
        // SAFETY: the memory is the pool's: a buffer that is checked out until the completion, or
        // one that the kernel selects from the buffer ring. `Buffers` counts this receive, and
        // keeps or leaks the pool while it is in flight.
        unsafe { self.ring.push(sqe.user_data(pack(kind, key))) };
        self.slot(key).recv = kind;
    }

    #[inline(always)]
    pub(in crate::backend::uring) fn recv_completed(
        &mut self,
        key: Key,
        kind: Kind,
        (result, flags): (i32, u32),
        more: bool,
    ) -> Option<Completed<OwnedFd>> {
        if more && !(kind == Kind::Recv && self.features.multishot_recv) {
            self.fail(UNEXPECTED_MORE);
            return None;
        }
        let mut lease = match self.buffers.take_selected(kind == Kind::RecvFirst, result, flags) {
            Ok(lease) => lease,
            Err(violation) => {
                self.fail(violation);
                return None;
            }
        };
        if !more {
            self.buffers.receive_completed();
            if let Some(buffer) = self.slots[key.slot()].take_buffer() {
                lease = self.take_own_buffer(key, buffer, result)?;
            }
        }
        match lease {
            Some(lease) => Some(Completed { key, more, outcome: Outcome::Received(lease) }),
            None => self.recv_ended(key, kind, result, more),
        }
    }

    /// The data in the buffer that the backend chose, or none at the end of the stream or on an
    /// error. `None`: the receive continues with a poll, or the backend has failed.
    #[inline(never)]
    fn take_own_buffer(&mut self, key: Key, buffer: u16, result: i32) -> Option<Option<Lease>> {
        let pool = self.buffers.pool();
        self.slots[key.slot()].set(flag::BUFFER_FILLED, result == pool.size() as i32);
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
            self.continue_op(key, Kind::RecvPoll);
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
            self.fail(Violation("F_MORE on a receive completion without data"));
            return None;
        }
        if result == -libc::ENOBUFS && kind == Kind::RecvFirst {
            // The group of first receives is empty. The main group has buffers, or completes with
            // ENOBUFS too.
            self.continue_op(key, Kind::Recv);
            return None;
        }
        let ended = match result {
            0 => Ok(()),
            _ => Err(Errno(result.saturating_neg().max(1))),
        };
        Some(Completed::last(key, Outcome::RecvEnded(ended)))
    }

    /// Without buffer selection: the poll completed. The socket is readable.
    pub(in crate::backend::uring) fn recv_polled(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        if result >= 0 {
            self.continue_op(key, Kind::Recv);
            return None;
        }
        Some(Completed::last(key, Outcome::RecvEnded(Err(Errno(result.saturating_neg())))))
    }

    /// The first send completed: the delayed first receive starts.
    pub(super) fn start_delayed_recv(&mut self, key: Key) {
        let is_first = self.slot(key).clear(flag::NO_RECV_STARTED);
        let kind = if is_first { Kind::RecvFirst } else { Kind::Recv };
        self.continue_op(key, kind);
    }
}
