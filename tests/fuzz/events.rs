//! The events of a random program. Owns: polls, and the reaction to each event: first the model
//! checks it, then the program acts on it.

use super::panicking::catch_expected;
use super::program::{Listening, Program};
use proactor::sim::Fault;
use proactor::*;
use std::time::Duration;

impl Program<'_> {
    /// Polls a node once and handles the events.
    pub(super) fn poll(&mut self, index: usize) -> Result<(), String> {
        let timeout = match self.network.is_simulated() {
            true => Duration::ZERO,
            false => Duration::from_micros(if self.closing { 500 } else { 0 }),
        };
        let node = &mut self.nodes[index];
        let Some(engine) = node.engine.as_mut() else { return self.start(index) };
        let wakes_before = engine.stats().wakes;
        let polled = catch_expected(|| engine.poll(&mut node.completions, Some(timeout)));
        // A panic may come before the poll looks for calls of the waker.
        let whole = polled.is_some();
        let looked_for_calls = whole || engine.stats().wakes > wakes_before;
        match polled.unwrap_or(Ok(0)) {
            Ok(_) => {}
            Err(Error::Simulation(Halt::Crashed)) => {
                self.crashed(index);
                return Ok(());
            }
            Err(error) => return Err(format!("poll: {error}")),
        }
        for conn in &node.live {
            self.model.conns[*conn].sent_since_poll = false;
        }
        // After a panic the rest of the turn is still to come.
        let had_room = whole && node.completions.len() < node.completions.capacity();
        node.previous_poll_complete = std::mem::replace(&mut node.last_poll_complete, had_room);
        let mut list = std::mem::take(&mut self.list);
        list.extend(node.completions.drain());
        let woken =
            list.iter().filter(|completion| matches!(completion.event, Event::Woken)).count();
        // The calls between two polls cause one `Woken`, which waits if the completions are full.
        if looked_for_calls {
            node.wakes_pending += usize::from(std::mem::take(&mut node.wake_called));
        }
        if woken > node.wakes_pending {
            return Err("`Woken` without a call of the waker".to_owned());
        }
        node.wakes_pending -= woken;
        if node.wakes_pending > 0 && had_room {
            return Err("a wake-up was missed".to_owned());
        }
        self.events += list.len() as u64;
        for completion in list.drain(..) {
            self.handle(index, completion)?;
        }
        self.list = list;
        Ok(())
    }

    fn crashed(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let _ = catch_expected(|| drop(node.engine.take()));
        for conn in node.live.drain(..) {
            self.model.conns[conn].crashed = true;
        }
        node.ended.clear();
        node.listeners.clear();
        node.timers.clear();
        node.timer_list.clear();
        node.echoes_pending.clear();
        node.completions.drain();
        (node.wake_called, node.wakes_pending, node.closing_all) = (false, 0, false);
    }

    pub(super) fn handle(&mut self, index: usize, completion: Completion) -> Result<(), String> {
        let Completion { conn: id, tag, event } = completion;
        let number = self.nodes[index].number;
        self.network.note(|| format!("engine {number} conn {id} event {event:?}"));
        match event {
            Event::Accepted { listener } => return self.accepted(index, id, listener),
            Event::Timer { id } => return self.timer_fired(index, id, tag),
            Event::Woken | Event::ListenerResumed { .. } => return Ok(()),
            Event::ListenerPaused { errno, .. } => {
                let expected = self.plan.faults.probability(Fault::Descriptors) > 0.0
                    && self.network.is_simulated();
                return match errno {
                    Some(errno) if !expected => Err(format!("a listener paused: {errno:?}")),
                    _ => Ok(()),
                };
            }
            Event::ListenerClosed { listener, errno } => {
                let listeners = &mut self.nodes[index].listeners;
                let position = listeners
                    .iter()
                    .position(|listening| listening.id == listener && listening.closing);
                listeners.remove(position.ok_or("a listener closed without a call")?);
                return if errno.is_none() {
                    Ok(())
                } else {
                    Err(format!("a listener failed: {errno:?}"))
                };
            }
            _ => {}
        }
        let conn = self.model.find(number, id)?;
        match event {
            Event::Connected => self.model.connected(conn),
            Event::Received(lease) => self.received(index, conn, lease),
            Event::Filled(buffer) => self.model.filled(conn, &buffer),
            Event::ReadClosed => {
                self.model.read_closed(conn)?;
                if self.rng.one_in(2) {
                    self.model.conns[conn].close_called = true;
                    self.call(index, conn, |engine, id| engine.close(id))?;
                }
                Ok(())
            }
            Event::HungUp => {
                let resets = self.plan.faults.probability(Fault::Reset) > 0.0;
                self.model.hung_up(conn, resets)
            }
            Event::Sent { tag } => self.model.sent_tag(conn, tag),
            Event::Drained => self.drained(index, conn),
            Event::Closed(reason) => {
                let node = &mut self.nodes[index];
                node.live.retain(|live| *live != conn);
                node.echoes_pending.remove(&conn);
                node.ended.push(id);
                self.model.closed(conn, reason)
            }
            other => Err(format!("an unexpected event: {other:?}")),
        }
    }

    fn accepted(&mut self, index: usize, id: ConnId, listener: ListenerId) -> Result<(), String> {
        let echo = self.rng.one_in(3);
        let node = &mut self.nodes[index];
        let conn = self.model.add(node.number, id, true)?;
        node.live.push(conn);
        let end = &mut self.model.conns[conn];
        let listening = node.listeners.iter().find(|listening| listening.id == listener);
        let Listening { addr, socket, .. } = listening.ok_or("accepted by an unknown listener")?;
        end.unix = addr.as_inet().is_none();
        (end.closes_with_peer, end.has_idle_timeout) =
            (!socket.half_open, socket.idle_timeout.is_some());
        end.paused = socket.read_mode == ReadMode::Paused;
        end.close_all_called = node.closing_all;
        if echo {
            self.model.make_echo(conn);
        }
        Ok(())
    }

    fn received(&mut self, index: usize, conn: usize, lease: Lease) -> Result<(), String> {
        self.model.received(conn, &lease)?;
        if self.model.conns[conn].echo {
            let node = &mut self.nodes[index];
            node.echoes_pending.entry(conn).or_default().push_back(lease.into());
            return self.send_echoes(index, conn);
        }
        if self.rng.one_in(6) {
            let copy = lease.to_vec();
            self.nodes[index].leases.push_back((lease, copy));
            if self.nodes[index].leases.len() > 40 {
                self.drop_leases(index, 5)?;
            }
        }
        Ok(())
    }

    /// Sends what an echoing end has received.
    fn send_echoes(&mut self, index: usize, conn: usize) -> Result<(), String> {
        let id = self.model.conns[conn].id;
        let node = &mut self.nodes[index];
        let Some(mut queue) = node.echoes_pending.remove(&conn) else { return Ok(()) };
        let engine = node.engine.as_mut().ok_or("no engine")?;
        while let Some(payload) = queue.pop_front() {
            let len = payload.len();
            match engine.send(id, payload) {
                Ok(()) => self.model.sent(conn, len),
                Err(SendError::Full(payload)) => {
                    queue.push_front(payload);
                    node.echoes_pending.insert(conn, queue);
                    self.model.conns[conn].send_refused = true;
                    return self.pause_for_room(index, conn);
                }
                // The connection accepts no more payloads: the rest is dropped.
                Err(_) if self.model.conns[conn].paused => return Ok(()),
                Err(_) => return self.call(index, conn, |engine, id| engine.resume_reads(id)),
            }
        }
        Ok(())
    }

    fn pause_for_room(&mut self, index: usize, conn: usize) -> Result<(), String> {
        self.call(index, conn, |engine, id| engine.pause_reads(id))
    }

    fn drained(&mut self, index: usize, conn: usize) -> Result<(), String> {
        // If the last poll had no room for all events, this one may have been delayed, and the
        // queue may have filled again.
        let untouched =
            !self.model.conns[conn].sent_since_poll && self.nodes[index].previous_poll_complete;
        self.model.conns[conn].send_refused = false;
        match self.model.conns[conn].echo {
            true => {
                self.send_echoes(index, conn)?;
                if self.nodes[index].echoes_pending.contains_key(&conn)
                    || self.model.conns[conn].paused
                {
                    return Ok(());
                }
                self.call(index, conn, |engine, id| engine.resume_reads(id))
            }
            false => {
                self.send(index, conn, 1)?;
                match untouched && self.model.conns[conn].send_refused {
                    true => Err(format!(
                        "{}: `Drained`, and the send queue is full",
                        self.model.conns[conn].id
                    )),
                    false => Ok(()),
                }
            }
        }
    }

    fn timer_fired(&mut self, index: usize, id: TimerId, tag: u64) -> Result<(), String> {
        let node = &mut self.nodes[index];
        let now = node.engine.as_mut().ok_or("no engine")?.now();
        match node.timers.remove(&id) {
            Some((due, expected)) if due <= now && expected == tag => Ok(()),
            Some((due, _)) => Err(format!(
                "a timer fired {:?} early, or with another tag",
                due.saturating_duration_since(now)
            )),
            None => Err(format!("{id} fired twice, or after it was cancelled")),
        }
    }
}
