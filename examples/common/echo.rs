//! The echo server without its loop: handle each completion with `Echo::handle`. It sends received
//! leases back without a copy. When the send queue of a connection is full, it pauses reads, so
//! that memory stays bounded.

use proactor::{Completion, ConnId, Engine, Event, Payload, SendError};
use std::collections::{HashMap, VecDeque};

#[derive(Default)]
struct Refused {
    payloads: VecDeque<Payload>,
    /// The peer has sent its FIN.
    read_closed: bool,
}

#[derive(Default)]
pub struct Echo {
    /// Payloads that a full send queue has refused.
    refused: HashMap<ConnId, Refused>,
}

impl Echo {
    pub fn handle(&mut self, engine: &mut Engine, completion: Completion) {
        let conn = completion.conn;
        match completion.event {
            Event::Received(data) => self.send(engine, conn, data.into()),
            Event::Drained => self.send_refused(engine, conn),
            Event::ReadClosed => match self.refused.get_mut(&conn) {
                Some(refused) => refused.read_closed = true,
                // Sends the queue, then the FIN. The connection ends when both directions are shut
                // down.
                None => drop(engine.shutdown_write(conn)),
            },
            Event::Closed(_) => drop(self.refused.remove(&conn)),
            Event::ListenerPaused { errno: Some(errno), .. } => {
                eprintln!("accepting paused: {errno}")
            }
            Event::ListenerResumed { .. } => eprintln!("accepting resumed"),
            _ => {}
        }
    }

    fn send(&mut self, engine: &mut Engine, conn: ConnId, payload: Payload) {
        // Earlier payloads of this connection wait: keep the order. The map is empty most of the
        // time, and is looked up only if it is not.
        if let Some(refused) =
            (!self.refused.is_empty()).then(|| self.refused.get_mut(&conn)).flatten()
        {
            refused.payloads.push_back(payload);
            return;
        }
        if let Err(SendError::Full(payload)) = engine.send(conn, payload) {
            let _ = engine.pause_reads(conn);
            self.refused.entry(conn).or_default().payloads.push_back(payload);
        }
    }

    fn send_refused(&mut self, engine: &mut Engine, conn: ConnId) {
        let Some(refused) = self.refused.get_mut(&conn) else { return };
        while let Some(payload) = refused.payloads.pop_front() {
            if let Err(SendError::Full(payload)) = engine.send(conn, payload) {
                refused.payloads.push_front(payload);
                return;
            }
        }
        if refused.read_closed {
            let _ = engine.shutdown_write(conn);
        }
        self.refused.remove(&conn);
        let _ = engine.resume_reads(conn);
    }
}
