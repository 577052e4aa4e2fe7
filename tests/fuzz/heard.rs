//! What a random program hears. Owns: polls, and how it takes each event: the model first, then
//! what the program makes of it.

use super::program::{Listening, Program};
use proactor::sim::Fault;
use proactor::*;
use std::time::Duration;

impl Program<'_> {
    /// One poll of a player, and what came of it.
    pub(super) fn poll(&mut self, index: usize) -> Result<(), String> {
        let timeout = match self.stage.is_simulated() {
            true => Duration::ZERO,
            false => Duration::from_micros(if self.ending { 500 } else { 0 }),
        };
        let player = &mut self.players[index];
        let Some(engine) = player.engine.as_mut() else { return self.start(index) };
        match engine.poll(&mut player.out, Some(timeout)) {
            Ok(_) => {}
            Err(Error::Simulation(Halt::Crashed)) => {
                self.crashed(index);
                return Ok(());
            }
            Err(error) => return Err(format!("poll: {error}")),
        }
        for conn in &player.live {
            self.model.conns[*conn].sent_since = false;
        }
        let had_room = player.out.len() < player.out.capacity();
        player.was_complete = std::mem::replace(&mut player.is_complete, had_room);
        let mut list = std::mem::take(&mut self.list);
        list.extend(player.out.drain());
        let woken =
            list.iter().filter(|completion| matches!(completion.event, Event::Woken)).count();
        // Calls between two polls are one event, which may have to wait for room.
        player.wakes_owed += usize::from(std::mem::take(&mut player.called));
        if woken > player.wakes_owed {
            return Err("woken, but nobody called".to_owned());
        }
        player.wakes_owed -= woken;
        if player.wakes_owed > 0 && had_room {
            return Err("a wake-up was missed".to_owned());
        }
        self.told += list.len() as u64;
        for completion in list.drain(..) {
            self.handle(index, completion)?;
        }
        self.list = list;
        Ok(())
    }

    fn crashed(&mut self, index: usize) {
        let player = &mut self.players[index];
        player.engine = None;
        for conn in player.live.drain(..) {
            self.model.conns[conn].lost = true;
        }
        player.ended.clear();
        player.listeners.clear();
        player.timers.clear();
        player.timer_list.clear();
        player.waiting.clear();
        player.out.drain();
        (player.called, player.wakes_owed, player.closing_all) = (false, 0, false);
    }

    pub(super) fn handle(&mut self, index: usize, completion: Completion) -> Result<(), String> {
        let Completion { conn: id, tag, event } = completion;
        let number = self.players[index].number;
        self.stage.note(|| format!("engine {number} conn {id} tells {event:?}"));
        match event {
            Event::Accepted { listener } => return self.accepted(index, id, listener),
            Event::Timer { id } => return self.timer_fired(index, id, tag),
            Event::Woken | Event::ListenerResumed { .. } => return Ok(()),
            Event::ListenerPaused { errno, .. } => {
                let expected = self.plan.faults.probability(Fault::Descriptors) > 0.0
                    && self.stage.is_simulated();
                return match errno {
                    Some(errno) if !expected => Err(format!("a listener paused: {errno:?}")),
                    _ => Ok(()),
                };
            }
            Event::ListenerClosed { listener, errno } => {
                let listeners = &mut self.players[index].listeners;
                let place = listeners
                    .iter()
                    .position(|listening| listening.id == listener && listening.closing);
                listeners.remove(place.ok_or("a listener closed that nobody closed")?);
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
                let player = &mut self.players[index];
                player.live.retain(|live| *live != conn);
                player.waiting.remove(&conn);
                player.ended.push(id);
                self.model.closed(conn, reason)
            }
            other => Err(format!("an event that nobody expects: {other:?}")),
        }
    }

    fn accepted(&mut self, index: usize, id: ConnId, listener: ListenerId) -> Result<(), String> {
        let mirror = self.rng.one_in(3);
        let player = &mut self.players[index];
        let conn = self.model.add(player.number, id, true)?;
        player.live.push(conn);
        let end = &mut self.model.conns[conn];
        let listening = player.listeners.iter().find(|listening| listening.id == listener);
        let Listening { addr, socket, .. } = listening.ok_or("accepted by no listener")?;
        end.unix = addr.as_inet().is_none();
        (end.closes_with_peer, end.has_idle_timeout) =
            (!socket.half_open, socket.idle_timeout.is_some());
        end.paused = socket.read_mode == ReadMode::Paused;
        end.close_all_called = player.closing_all;
        if mirror {
            self.model.make_mirror(conn);
        }
        Ok(())
    }

    fn received(&mut self, index: usize, conn: usize, lease: Lease) -> Result<(), String> {
        self.model.received(conn, &lease)?;
        if self.model.conns[conn].mirror {
            let player = &mut self.players[index];
            player.waiting.entry(conn).or_default().push_back(lease.into());
            return self.send_on(index, conn);
        }
        if self.rng.one_in(6) {
            let copy = lease.to_vec();
            self.players[index].held.push_back((lease, copy));
            if self.players[index].held.len() > 40 {
                self.let_go(index, 5)?;
            }
        }
        Ok(())
    }

    /// A mirror sends what it has received.
    fn send_on(&mut self, index: usize, conn: usize) -> Result<(), String> {
        let id = self.model.conns[conn].id;
        let player = &mut self.players[index];
        let Some(mut queue) = player.waiting.remove(&conn) else { return Ok(()) };
        let engine = player.engine.as_mut().ok_or("no engine")?;
        while let Some(payload) = queue.pop_front() {
            let len = payload.len();
            match engine.send(id, payload) {
                Ok(()) => self.model.sent(conn, len),
                Err(SendError::Full(payload)) => {
                    queue.push_front(payload);
                    player.waiting.insert(conn, queue);
                    self.model.conns[conn].refused = true;
                    return self.pause_for_room(index, conn);
                }
                // The rest has no way to go.
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
        // Told in this poll for sure only if the one before had told everything.
        let untouched = !self.model.conns[conn].sent_since && self.players[index].was_complete;
        self.model.conns[conn].refused = false;
        match self.model.conns[conn].mirror {
            true => {
                self.send_on(index, conn)?;
                if self.players[index].waiting.contains_key(&conn) || self.model.conns[conn].paused
                {
                    return Ok(());
                }
                self.call(index, conn, |engine, id| engine.resume_reads(id))
            }
            false => {
                self.send(index, conn, 1)?;
                match untouched && self.model.conns[conn].refused {
                    true => Err(format!("{}: drained, and full", self.model.conns[conn].id)),
                    false => Ok(()),
                }
            }
        }
    }

    fn timer_fired(&mut self, index: usize, id: TimerId, tag: u64) -> Result<(), String> {
        let player = &mut self.players[index];
        let now = player.engine.as_mut().ok_or("no engine")?.now();
        match player.timers.remove(&id) {
            Some((due, expected)) if due <= now && expected == tag => Ok(()),
            Some((due, _)) => Err(format!(
                "a timer fired {:?} early, or with another tag",
                due.saturating_duration_since(now)
            )),
            None => Err(format!("{id} fired twice, or after it was cancelled")),
        }
    }
}
