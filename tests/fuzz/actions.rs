//! The random actions of a program. Owns: each call of the engine, and what the model records of
//! it. Must not know what an event means: that is `events.rs`.

use super::panicking::{catch_expected, panicking_payload};
use super::program::Program;
use bytes::{Bytes, BytesMut};
use proactor::*;
use std::time::Duration;

impl Program<'_> {
    /// Does one random action with a node.
    pub(super) fn act(&mut self, index: usize) -> Result<(), String> {
        if self.nodes[index].engine.is_none() {
            return Ok(());
        }
        let conn = self.rng.pick(&self.nodes[index].live).copied();
        match (self.rng.below(40), conn) {
            (0..5, _) => self.connect(index),
            (5, _) if self.nodes[index].listeners.len() < 4 => self.listen(index),
            (6, _) => self.close_listener(index),
            (7..10, _) => self.set_timer(index),
            (10, _) => self.move_timer(index),
            (11, _) => {
                self.nodes[index].engine.as_ref().expect("checked above").waker().wake();
                self.nodes[index].wake_called = true;
                Ok(())
            }
            (12, _) => self.use_stale_id(index),
            (13, _) => self.drop_leases(index, 3),
            (14..28, Some(conn)) => {
                for _ in 0..1 + self.rng.below(6) {
                    let len = self.some_len();
                    self.send(index, conn, len)?;
                }
                Ok(())
            }
            (28 | 29, Some(conn)) => self.pause(index, conn),
            (30..33, Some(conn)) => self.resume(index, conn),
            (33 | 38, Some(conn)) => self.recv_into(index, conn),
            (34, Some(conn)) => {
                self.note(conn, "shutdown_write");
                self.model.conns[conn].shutdown_write_called = true;
                self.call(index, conn, |engine, id| engine.shutdown_write(id))
            }
            (35 | 36, Some(conn)) => {
                self.note(conn, "close");
                self.model.conns[conn].close_called = true;
                self.call(index, conn, |engine, id| engine.close(id))
            }
            (37, Some(conn)) => {
                self.note(conn, "abort");
                self.model.conns[conn].abort_called = true;
                self.call(index, conn, |engine, id| engine.abort(id))
            }
            _ => Ok(()),
        }
    }

    /// Writes a call into the trace.
    fn note(&self, conn: usize, call: &str) {
        let end = &self.model.conns[conn];
        self.network.note(|| format!("engine {} conn {} calls {call}", end.engine, end.id));
    }

    fn some_len(&mut self) -> usize {
        match self.rng.below(8) {
            0 => 0,
            1..6 => 1 + self.rng.below(300),
            6 => 1 + self.rng.below(5_000),
            _ => 1 + self.rng.below(60_000),
        }
    }

    /// A call on a connection. The id may be stale: the engine may have ended the connection
    /// already, and `Closed` follows with a later poll.
    pub(super) fn call(
        &mut self,
        index: usize,
        conn: usize,
        call: impl FnOnce(&mut Engine, ConnId) -> Result<(), Error>,
    ) -> Result<(), String> {
        let Some(engine) = self.nodes[index].engine.as_mut() else { return Ok(()) };
        match call(engine, self.model.conns[conn].id) {
            Ok(()) | Err(Error::Stale) => Ok(()),
            Err(error) => Err(format!("{}: {error}", self.model.conns[conn].id)),
        }
    }

    fn connect(&mut self, index: usize) -> Result<(), String> {
        let target = self.rng.below(self.nodes.len());
        let addrs: Vec<Addr> =
            self.nodes[target].listeners.iter().map(|listening| listening.addr.clone()).collect();
        let addr = match self.rng.pick(&addrs).cloned() {
            Some(addr) if !self.rng.one_in(12) => addr,
            _ => self.network.unreachable_addr(&mut self.rng),
        };
        let unix = addr.as_inet().is_none();
        if unix && !self.network.same_host(index, target) {
            return Ok(());
        }
        let options = ConnectOptions { socket: self.socket_options(), ..ConnectOptions::default() };
        let (paused, half_open) =
            (options.socket.read_mode == ReadMode::Paused, options.socket.half_open);
        let idle = options.socket.idle_timeout.is_some();
        let node = &mut self.nodes[index];
        let engine = node.engine.as_mut().expect("checked by the caller");
        match engine.connect(addr, options) {
            Ok(id) => {
                let conn = self.model.add(node.number, id, false)?;
                let end = &mut self.model.conns[conn];
                (end.unix, end.paused, end.closes_with_peer, end.has_idle_timeout) =
                    (unix, paused, !half_open, idle);
                node.live.push(conn);
                // Every second connection sends the head of its stream at once.
                if self.rng.one_in(2) {
                    self.send(index, conn, 4)?;
                }
                Ok(())
            }
            Err(Error::Limit { limit: "connections_max", .. } | Error::Closing) => Ok(()),
            Err(error) => Err(format!("cannot connect: {error}")),
        }
    }

    fn close_listener(&mut self, index: usize) -> Result<(), String> {
        let count = self.nodes[index].listeners.len();
        let chosen = self.rng.below(count);
        let node = &mut self.nodes[index];
        if let (Some(listening), Some(engine)) =
            (node.listeners.get_mut(chosen), node.engine.as_mut())
        {
            // After an earlier call the listener may have closed.
            let called_before = std::mem::replace(&mut listening.closing, true);
            match engine.close_listener(listening.id) {
                Err(error) if !called_before => {
                    return Err(format!("an open listener refused to close: {error}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn set_timer(&mut self, index: usize) -> Result<(), String> {
        let delay = Duration::from_micros(self.rng.below(300_000) as u64);
        let tag = self.rng.next();
        let node = &mut self.nodes[index];
        let engine = node.engine.as_mut().expect("checked by the caller");
        let due = engine.now() + delay;
        let id = engine
            .timer_after(delay, tag)
            .map_err(|error| format!("cannot set a timer: {error}"))?;
        node.timers.insert(id, (due, tag));
        node.timer_list.push(id);
        Ok(())
    }

    fn move_timer(&mut self, index: usize) -> Result<(), String> {
        let (delay, cancel) =
            (Duration::from_micros(self.rng.below(300_000) as u64), self.rng.one_in(2));
        let Some(id) = self.rng.pick(&self.nodes[index].timer_list).copied() else {
            return Ok(());
        };
        let node = &mut self.nodes[index];
        let engine = node.engine.as_mut().expect("checked by the caller");
        let now = engine.now();
        match cancel {
            true if engine.timer_cancel(id) => {
                node.timers.remove(&id).ok_or("a timer was cancelled that had fired")?;
            }
            false if engine.timer_reset(id, delay) => {
                node.timers.get_mut(&id).ok_or("a timer was reset that had fired")?.0 = now + delay;
            }
            _ => {}
        }
        Ok(())
    }

    /// Calls with the id of an ended connection must fail with `Stale`.
    fn use_stale_id(&mut self, index: usize) -> Result<(), String> {
        let Some(id) = self.rng.pick(&self.nodes[index].ended).copied() else { return Ok(()) };
        let call = self.rng.below(4);
        let engine = self.nodes[index].engine.as_mut().expect("checked by the caller");
        let refused = match call {
            0 => matches!(engine.abort(id), Err(Error::Stale)),
            1 => matches!(engine.send(id, "stale"), Err(SendError::Stale(_))),
            2 => matches!(engine.pause_reads(id), Err(Error::Stale)),
            _ => !engine.is_live(id),
        };
        if refused { Ok(()) } else { Err(format!("{id} is stale, and was accepted")) }
    }

    /// Drops the oldest leases that were kept. Their bytes must be unchanged.
    pub(super) fn drop_leases(&mut self, index: usize, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let Some((lease, copy)) = self.nodes[index].leases.pop_front() else { return Ok(()) };
            if lease[..] != copy[..] {
                return Err("a lease changed while it was kept".to_owned());
            }
        }
        Ok(())
    }

    /// Sends the next bytes of a connection. If the send queue is full, the payload must come back
    /// unchanged.
    pub(super) fn send(&mut self, index: usize, conn: usize, len: usize) -> Result<(), String> {
        if self.model.conns[conn].echo {
            return Ok(());
        }
        self.note(conn, "send");
        let bytes = self.model.next_bytes(conn, len);
        let (kind, tag) = (self.rng.below(6), self.rng.next());
        let id = self.model.conns[conn].id;
        let engine = self.nodes[index].engine.as_mut().ok_or("no engine")?;
        let result = match kind {
            0 => engine.write(id, &bytes).map_err(|error| match error {
                WriteError::Full => SendError::Full(bytes.clone().into()),
                WriteError::Closed => SendError::Closed(bytes.clone().into()),
                WriteError::Stale => SendError::Stale(bytes.clone().into()),
                WriteError::Forked => SendError::Forked(bytes.clone().into()),
            }),
            1 => engine.send_tagged(id, bytes, tag),
            2 => engine.send(id, Bytes::from(bytes)),
            3 => engine.send(id, panicking_payload(bytes)),
            _ => engine.send(id, bytes),
        };
        match result {
            Ok(()) => {
                self.model.sent(conn, len);
                // The payload that reaches the watermark may exceed it.
                let (queued, high) = (engine.queued_bytes(id).unwrap_or(0), self.nodes[index].high);
                if queued > high + len {
                    return Err(format!("{id}: {queued} bytes queued above a watermark of {high}"));
                }
                if kind == 1 {
                    self.model.conns[conn].tags.push_back(tag);
                }
                Ok(())
            }
            Err(error) => {
                if error.is_full() {
                    self.model.conns[conn].send_refused = true;
                }
                let back = error.into_payload();
                let is_unchanged = back.as_slice() == self.model.next_bytes(conn, len);
                let _ = catch_expected(|| drop(back));
                if is_unchanged {
                    Ok(())
                } else {
                    Err(format!("{id}: a refused payload was changed"))
                }
            }
        }
    }

    pub(super) fn pause(&mut self, index: usize, conn: usize) -> Result<(), String> {
        self.note(conn, "pause");
        let id = self.model.conns[conn].id;
        let Some(engine) = self.nodes[index].engine.as_mut() else { return Ok(()) };
        match engine.pause_reads(id) {
            Ok(()) => self.model.conns[conn].paused = true,
            // The engine has ended it; its remaining events follow.
            Err(Error::Stale) => {}
            Err(error) => return Err(format!("{id}: {error}")),
        }
        Ok(())
    }

    pub(super) fn resume(&mut self, index: usize, conn: usize) -> Result<(), String> {
        let id = self.model.conns[conn].id;
        let live = self.nodes[index].engine.as_ref().is_some_and(|engine| engine.is_live(id));
        if !live || self.nodes[index].echoes_pending.contains_key(&conn) {
            return Ok(());
        }
        self.note(conn, "resume");
        self.call(index, conn, |engine, id| engine.resume_reads(id))?;
        self.model.resumed(conn);
        Ok(())
    }

    fn recv_into(&mut self, index: usize, conn: usize) -> Result<(), String> {
        if self.model.conns[conn].echo {
            return Ok(());
        }
        self.note(conn, "recv_into");
        let most = [100, 1_000, 20_000][self.rng.below(3)];
        let len = 1 + self.rng.below(most);
        let id = self.model.conns[conn].id;
        let Some(engine) = self.nodes[index].engine.as_mut() else { return Ok(()) };
        match engine.recv_into(id, BytesMut::new(), len) {
            Ok(()) => self.model.conns[conn].fills_pending.push_back(len),
            Err(Error::State(_) | Error::Stale) => {}
            Err(error) => return Err(format!("{id} recv_into failed: {error}")),
        }
        Ok(())
    }
}
