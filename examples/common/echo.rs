//! An echo server in parts: feed it completions. Received leases go back as they are; when a peer
//! does not read, reading from it pauses, so that memory stays bounded.

use proactor::{Completion, ConnId, Engine, Event, Payload, SendError};
use std::collections::{HashMap, VecDeque};

#[derive(Default)]
pub struct Echo {
    /// What did not fit into a connection's send queue, and whether the peer has sent its FIN
    /// meanwhile.
    waiting: HashMap<ConnId, (VecDeque<Payload>, bool)>,
}

impl Echo {
    pub fn handle(&mut self, engine: &mut Engine, completion: Completion) {
        let conn = completion.conn;
        match completion.event {
            Event::Received(data) => self.send(engine, conn, data.into()),
            Event::Drained => self.go_on(engine, conn),
            Event::ReadClosed => match self.waiting.get_mut(&conn) {
                Some((_, finished)) => *finished = true,
                // Sends what is left, then the FIN; the connection ends by itself when both sides
                // are shut.
                None => drop(engine.shutdown_write(conn)),
            },
            Event::Closed(_) => drop(self.waiting.remove(&conn)),
            Event::ListenerPaused { errno: Some(errno), .. } => {
                eprintln!("accepting paused: {errno}")
            }
            Event::ListenerResumed { .. } => eprintln!("accepting again"),
            _ => {}
        }
    }

    fn send(&mut self, engine: &mut Engine, conn: ConnId, payload: Payload) {
        // Behind what waits already, in order.
        if let Some((queue, _)) =
            (!self.waiting.is_empty()).then(|| self.waiting.get_mut(&conn)).flatten()
        {
            queue.push_back(payload);
            return;
        }
        if let Err(SendError::Full(payload)) = engine.send(conn, payload) {
            let _ = engine.pause_reads(conn);
            self.waiting.insert(conn, (VecDeque::from([payload]), false));
        }
    }

    fn go_on(&mut self, engine: &mut Engine, conn: ConnId) {
        let Some((queue, finished)) = self.waiting.get_mut(&conn) else { return };
        while let Some(payload) = queue.pop_front() {
            if let Err(SendError::Full(payload)) = engine.send(conn, payload) {
                queue.push_front(payload);
                return;
            }
        }
        if *finished {
            let _ = engine.shutdown_write(conn);
        }
        self.waiting.remove(&conn);
        let _ = engine.resume_reads(conn);
    }
}
