//! Connecting. Owns: a connect from its start to its completion, and its first send. Invariant: the
//! first send starts, or fails, when the engine takes the completion of the connect.

use super::{CANCELED, Net, Ready};
use crate::backend::sim::Sim;
use crate::backend::sim::engine_state::Endpoint;
use crate::backend::sim::events::Event;
use crate::backend::sim::sock::{Owner, SockId};
use crate::backend::sim::trace::Kind;
use crate::backend::{Connect, OpKind, Operation, Started};
use crate::error::Errno;
use crate::id::Key;

impl Sim {
    pub(in crate::backend::sim) fn start_connect(
        &mut self,
        key: Key,
        mut connect: Box<Connect>,
    ) -> Started {
        let first = connect.first.as_ref().map(|batch| Box::from(batch.front()));
        let sends = first.is_some();
        if !self.start_operation(|net, engine| net.start_connect(engine, key, &connect, first)) {
            return Started::NoRoom(Operation::Connect(connect));
        }
        if let Some(mut batch) = connect.first.take() {
            let given = batch.front_len();
            batch.set_given(given);
            self.buffers.slot(key).batch = Some(batch);
        }
        self.stats.early_sends += u64::from(sends);
        Started::InFlight
    }
}

impl Net {
    /// `first` is sent when the connection is established.
    pub(crate) fn start_connect(
        &mut self,
        engine: u32,
        key: Key,
        connect: &Connect,
        first: Option<Box<[u8]>>,
    ) {
        let host = self.host_of_engine(engine);
        self.trace.add(self.now, Kind::Connect, engine, key.slot() as u64, 0);
        let made = self.take_descriptor(host).and_then(|()| {
            let owner = Owner::Engine(engine, key);
            self.connect(host, owner, connect.options.local, &connect.addr)
                .inspect_err(|_| self.hosts[host as usize].descriptors -= 1)
        });
        let state = &mut self.engines[engine as usize];
        state.insert(key, made.ok().map(Endpoint::Conn));
        match made {
            Ok(sock) => {
                let sock = self.sock_mut(sock).expect("created above");
                (sock.connect_armed, sock.first_send) = (true, first);
            }
            Err(errno) => {
                if first.is_some() {
                    state.first_sends_failed.push(key);
                }
                self.complete_connect(engine, key, Err(errno));
            }
        }
    }

    /// The engine takes the completion of a connect: starts or fails the first send.
    pub(super) fn start_first_send(&mut self, engine: u32, key: Key, connected: bool) {
        let state = &mut self.engines[engine as usize];
        if let Some(index) = state.first_sends_failed.iter().position(|failed| *failed == key) {
            state.first_sends_failed.swap_remove(index);
            return self.make_ready(engine, Ready::Completed(key, OpKind::Send, Err(CANCELED)));
        }
        let Some(id) = state.conn(key) else { return };
        let Some(bytes) = self.sock_mut(id).and_then(|sock| sock.first_send.take()) else { return };
        match connected {
            true => self.start_send(engine, key, std::iter::once(&*bytes)),
            false => self.make_ready(engine, Ready::Completed(key, OpKind::Send, Err(CANCELED))),
        }
    }

    fn complete_connect(&mut self, engine: u32, key: Key, result: Result<usize, Errno>) {
        let (kind, errno) = match result {
            Ok(_) => (Kind::Established, 0),
            Err(errno) => (Kind::ConnectFailed, errno.0 as u64),
        };
        self.trace.add(self.now, kind, engine, key.slot() as u64, errno);
        self.make_ready(engine, Ready::Completed(key, OpKind::Connect, result));
    }

    /// A connect ends: the answer to its SYN arrives, or it times out.
    pub(crate) fn end_connect(&mut self, client: SockId, errno: i32) {
        let Some(sock) = self.sock(client).filter(|sock| sock.connecting && sock.error.is_none())
        else {
            return;
        };
        if errno != libc::ETIMEDOUT && self.is_cut(sock.host, sock.peer_host) {
            let at = self.now + 200_000_000;
            return self.events.push(at, Event::ConnectEnd { client, errno });
        }
        let sock = self.sock_mut(client).expect("found above");
        match errno {
            0 => sock.connecting = false,
            _ => sock.error = Some(Errno(errno)),
        }
        if std::mem::take(&mut sock.connect_armed)
            && let Owner::Engine(engine, key) = sock.owner
        {
            self.complete_connect(engine, key, if errno == 0 { Ok(0) } else { Err(Errno(errno)) });
        }
    }

    /// True if a connect was armed.
    pub(super) fn disarm_connect(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].conn(key) else { return false };
        self.sock_mut(id).is_some_and(|sock| std::mem::take(&mut sock.connect_armed))
    }
}
