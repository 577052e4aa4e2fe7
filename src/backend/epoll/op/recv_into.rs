//! Receiving into the caller's buffer. Owns: the buffers of armed receives, by slot. Invariant: a
//! slot has a buffer here exactly while its [`bit::RECV_INTO`] is set. Must not know: how many
//! bytes the caller still wants.
#![allow(unsafe_code)]

use super::super::{Completed, EpollBackend, Outcome, bit};
use super::canceled;
use crate::backend::{OpResult, Started};
use crate::buf::RecvBuf;
use crate::error::Errno;
use crate::id::Key;
use std::os::fd::OwnedFd;

/// Buffers by slot. Kept outside of the slots, because most connections never use one.
#[derive(Debug, Default)]
pub(in super::super) struct RecvBufs(Vec<Option<Box<RecvBuf>>>);

impl RecvBufs {
    fn put(&mut self, key: Key, recv_buf: Box<RecvBuf>) {
        if self.0.len() <= key.slot() {
            self.0.resize_with(key.slot() + 1, || None);
        }
        let before = self.0[key.slot()].replace(recv_buf);
        assert!(before.is_none(), "a receive is in flight");
    }

    fn take(&mut self, key: Key) -> Box<RecvBuf> {
        self.0[key.slot()].take().expect("an armed receive has its buffer")
    }
}

impl EpollBackend {
    pub(in super::super) fn start_recv_into(
        &mut self,
        key: Key,
        recv_buf: Box<RecvBuf>,
    ) -> Started {
        self.arm(key, bit::RECV_INTO, bit::RECV | bit::RECV_INTO);
        self.recv_bufs.put(key, recv_buf);
        Started::InFlight
    }

    /// One read into the caller's buffer. `None`: the socket is empty.
    pub(in super::super) fn recv_into(&mut self, key: Key) -> Option<Completed<OwnedFd>> {
        let mut recv_buf = self.recv_bufs.take(key);
        let result = self.recv_at(key, recv_buf.room());
        if result == Err(Errno(libc::EAGAIN)) || self.failed.is_some() {
            self.recv_bufs.put(key, recv_buf);
            return None;
        }
        self.slot(key).state &= !bit::RECV_INTO;
        let result = match result {
            Ok(len) => {
                // SAFETY: `recv_at` wrote `len` bytes at the start of the room, and checked that
                // `len` is at most its length.
                unsafe { recv_buf.advance(len) };
                OpResult::bytes(len)
            }
            Err(errno) => OpResult::failed(errno),
        };
        Some(Completed::last(key, Outcome::Filled(recv_buf, result)))
    }

    pub(super) fn cancel_recv_into(&mut self, key: Key) {
        if self.disarm(key, bit::RECV_INTO) {
            let recv_buf = self.recv_bufs.take(key);
            self.complete(key, Outcome::Filled(recv_buf, canceled()));
        }
    }
}
