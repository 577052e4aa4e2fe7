//! What engines want of the world. Owns: how an operation is started, tried again when its socket moves, cancelled, and finished. Checks the
//! engine's side of the contract as it goes.

use super::events::Event;
use super::faults::Fault;
use super::net::Net;
use super::sock::{ListenId, Owner, Read, Recv, SockId};
use super::trace::Kind;
use super::view::{View, put, take};
use crate::backend::{CloseHow, ConnectRequest, Op, QueueFull};
use crate::error::Errno;
use crate::id::Key;
use crate::waker::Inbox;
use std::sync::Arc;

/// What waits to be told to an engine. Data stays with its socket until the engine takes it.
#[derive(Debug)]
pub(crate) enum Notice {
    Done(Key, Op, Result<usize, Errno>),
    Recv(SockId),
    Accept(ListenId),
}

/// What an engine is told.
#[derive(Debug)]
pub(crate) enum Told {
    Done(Key, Op, Result<usize, Errno>),
    /// Bytes have landed; with `more`, others may follow without a new start.
    Data {
        key: Key,
        more: bool,
    },
    Accepted {
        listener: Key,
        sock: SockId,
        more: bool,
    },
}

/// Where received bytes go.
pub(crate) trait Landing {
    /// How much could land now; `None` without a buffer.
    fn room(&mut self, how: Recv) -> Option<usize>;
    fn put(&mut self, bytes: &[u8]);
}

impl Net {
    pub(crate) fn add_engine(&mut self, host: u32, inbox: Arc<Inbox>) -> u32 {
        let id = self.engines.len() as u32;
        self.engines.push(View::new(host, inbox));
        self.trace.add(self.now, Kind::Engine, id, u64::from(host), 0);
        id
    }

    fn host_of_engine(&self, engine: u32) -> u32 {
        self.engines[engine as usize].host
    }

    /// Whether an operation cannot be started now.
    pub(crate) fn queue_full(&mut self, engine: u32) -> Result<(), QueueFull> {
        let host = self.host_of_engine(engine);
        if self.chance(host, Fault::QueueFull) { Err(QueueFull) } else { Ok(()) }
    }

    /// The program of an engine is gone: its kernel closes what it had open.
    pub(crate) fn exit(&mut self, engine: u32) {
        let state = &mut self.engines[engine as usize];
        let (conns, listeners) = state.all();
        state.die();
        conns.into_iter().for_each(|sock| self.close(sock, false));
        listeners.into_iter().for_each(|listener| self.close_listener(listener));
    }

    /// An engine is about to wait. True if a fault ends the wait before it began.
    pub(crate) fn engine_waits(&mut self, engine: u32) -> bool {
        let host = self.host_of_engine(engine);
        if !self.engines[engine as usize].is_dead() && self.chance(host, Fault::Crash) {
            self.crash(host);
            let at = self.now + self.some_outage();
            self.events.push(at, Event::Restart(host));
        }
        self.chance(host, Fault::EarlyWait)
    }

    fn take_descriptor(&mut self, host: u32) -> Result<(), Errno> {
        let state = &self.hosts[host as usize];
        if state.descriptors >= state.descriptors_max || self.chance(host, Fault::Descriptors) {
            return Err(Errno(libc::EMFILE));
        }
        self.hosts[host as usize].descriptors += 1;
        Ok(())
    }

    pub(crate) fn engine_listens(
        &mut self,
        engine: u32,
        key: Key,
        addr: &crate::Addr,
        options: &crate::ListenOptions,
    ) -> Result<(), Errno> {
        let host = self.host_of_engine(engine);
        let state = &self.hosts[host as usize];
        if state.descriptors >= state.descriptors_max {
            return Err(Errno(libc::EMFILE));
        }
        let id = self.listen(host, Owner::Engine(engine, key), addr, options)?;
        self.hosts[host as usize].descriptors += 1;
        put(&mut self.engines[engine as usize].listeners, key, Some(id));
        self.trace.add(self.now, Kind::Listen, engine, u64::from(key.slot), 0);
        Ok(())
    }

    /// False if it failed at once.
    pub(crate) fn start_connect(&mut self, engine: u32, key: Key, request: &ConnectRequest) -> bool {
        let host = self.host_of_engine(engine);
        self.trace.add(self.now, Kind::Connect, engine, u64::from(key.slot), 0);
        let made = self.take_descriptor(host).and_then(|()| {
            let owner = Owner::Engine(engine, key);
            self.connect(host, owner, request.options.local, &request.addr)
                .inspect_err(|_| self.hosts[host as usize].descriptors -= 1)
        });
        put(&mut self.engines[engine as usize].conns, key, made.ok());
        match made {
            Ok(sock) => self.sock_mut(sock).expect("just made").connect_armed = true,
            Err(errno) => self.connect_told(engine, key, Err(errno)),
        }
        made.is_ok()
    }

    /// The first send of a connection: begun when its engine has heard of the end of the connect.
    pub(crate) fn send_along(&mut self, engine: u32, key: Key, bytes: &[u8]) {
        let id = self.engines[engine as usize].conn(key).expect("a connect was just started");
        self.sock_mut(id).expect("listed while it is there").first_send = Some(bytes.into());
    }

    fn begin_first_send(&mut self, engine: u32, key: Key, connected: bool) {
        let Some(id) = self.engines[engine as usize].conn(key) else { return };
        let Some(bytes) = self.sock_mut(id).and_then(|sock| sock.first_send.take()) else { return };
        match connected {
            true => self.start_send(engine, key, std::iter::once(&*bytes)),
            false => self.notify(engine, Notice::Done(key, Op::Send, Err(Errno(libc::ECANCELED)))),
        }
    }

    fn connect_told(&mut self, engine: u32, key: Key, result: Result<usize, Errno>) {
        let (kind, errno) = match result {
            Ok(_) => (Kind::Established, 0),
            Err(errno) => (Kind::ConnectFailed, errno.0 as u64),
        };
        self.trace.add(self.now, kind, engine, u64::from(key.slot), errno);
        self.notify(engine, Notice::Done(key, Op::Connect, result));
    }

    /// The answer to a SYN arrives.
    pub(crate) fn connect_ends(&mut self, client: SockId, errno: i32) {
        let Some(sock) = self.sock(client).filter(|sock| sock.connecting && sock.error.is_none()) else { return };
        if errno != libc::ETIMEDOUT && self.is_cut(sock.host, sock.peer_host) {
            let at = self.now + 200_000_000;
            return self.events.push(at, Event::ConnectEnd { client, errno });
        }
        let sock = self.sock_mut(client).expect("just seen");
        match errno {
            0 => sock.connecting = false,
            _ => sock.error = Some(Errno(errno)),
        }
        if std::mem::take(&mut sock.connect_armed)
            && let Owner::Engine(engine, key) = sock.owner
        {
            self.connect_told(engine, key, if errno == 0 { Ok(0) } else { Err(Errno(errno)) });
        }
    }

    pub(crate) fn start_accept(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].listener(key) else {
            return self.notify(engine, Notice::Done(key, Op::Accept, Err(Errno(libc::ECANCELED))));
        };
        let listen = self.listener_mut(id).expect("listed while it is there");
        assert!(!std::mem::replace(&mut listen.armed, true), "one accept per listener");
        self.listener_touched(id);
    }

    /// A connection came, or an accept was armed.
    pub(crate) fn listener_touched(&mut self, id: ListenId) {
        let Some(listen) = self.listener_mut(id) else { return };
        if let Owner::Engine(engine, _) = listen.owner
            && listen.armed
            && !listen.told
            && !listen.queue.is_empty()
        {
            listen.told = true;
            self.notify(engine, Notice::Accept(id));
        }
    }

    pub(crate) fn start_recv(&mut self, engine: u32, key: Key, how: Recv) {
        let Some(id) = self.engines[engine as usize].conn(key) else {
            return self.notify(engine, Notice::Done(key, Op::Recv, Err(Errno(libc::ECANCELED))));
        };
        let sock = self.sock_mut(id).expect("listed while it is there");
        assert!(sock.recv.replace(how).is_none(), "one receive in flight per connection");
        self.touched(id);
    }

    pub(crate) fn start_send<'a>(&mut self, engine: u32, key: Key, parts: impl ExactSizeIterator<Item = &'a [u8]>) {
        let Some(id) = self.engines[engine as usize].conn(key) else {
            return self.notify(engine, Notice::Done(key, Op::Send, Err(Errno(libc::ECANCELED))));
        };
        assert!(!self.sock(id).expect("listed while it is there").send_waits, "one send in flight per connection");
        let host = self.host_of_engine(engine);
        let result = match self.chance(host, Fault::SpuriousSend) {
            true => Ok(0),
            false => self.write(id, parts),
        };
        match result {
            Ok(0) if !self.is_writable(id) => {
                self.sock_mut(id).expect("still there").send_waits = true;
            }
            result => {
                let (kind, value) = match result {
                    Ok(taken) => (Kind::Sent, taken as u64),
                    Err(errno) => (Kind::SendFailed, errno.0 as u64),
                };
                self.trace.add(self.now, kind, engine, u64::from(key.slot), value);
                if let Some(sock) = self.sock_mut(id).filter(|_| result.is_err()) {
                    sock.failure_untold = true;
                }
                self.notify(engine, Notice::Done(key, Op::Send, result));
            }
        }
    }

    /// Something about a socket changed: what waits for that goes on.
    pub(crate) fn touched(&mut self, id: SockId) {
        let writable = self.sock(id).is_some_and(|sock| sock.send_waits) && self.is_writable(id);
        let Some(sock) = self.sock_mut(id) else { return };
        let Owner::Engine(engine, key) = sock.owner else { return };
        let readable = sock.recv.is_some() && !sock.recv_told && sock.is_readable();
        if readable {
            sock.recv_told = true;
        }
        if writable {
            sock.send_waits = false;
        }
        if readable {
            self.notify(engine, Notice::Recv(id));
        }
        if writable {
            // Nothing was taken: the engine starts it again, with all that was queued meanwhile.
            self.notify(engine, Notice::Done(key, Op::Send, Ok(0)));
        }
    }

    pub(crate) fn cancel(&mut self, engine: u32, key: Key, op: Op) {
        self.trace.add(self.now, Kind::Cancel, engine, u64::from(key.slot), op as u64);
        let host = self.host_of_engine(engine);
        match self.chance(host, Fault::CancelLoses) {
            true => {
                let at = self.now + self.some_delay();
                self.events.push(at, Event::Cancel { engine, key, op });
            }
            false => self.cancel_now(engine, key, op),
        }
    }

    pub(crate) fn cancel_now(&mut self, engine: u32, key: Key, op: Op) {
        let state = &self.engines[engine as usize];
        let armed = match op {
            Op::Accept => {
                let Some(id) = state.listener(key) else { return };
                self.listener_mut(id).is_some_and(|listen| std::mem::take(&mut listen.armed))
            }
            _ => {
                let Some(id) = state.conn(key) else { return };
                let Some(sock) = self.sock_mut(id) else { return };
                match op {
                    Op::Connect => std::mem::take(&mut sock.connect_armed),
                    Op::Recv => sock.recv.take().is_some(),
                    Op::Send => std::mem::take(&mut sock.send_waits) || sock.first_send.take().is_some(),
                    _ => false,
                }
            }
        };
        if !armed {
            // It has finished, and is told or about to be.
            return;
        }
        self.trace.add(self.now, Kind::Cancelled, engine, u64::from(key.slot), op as u64);
        let notice = Notice::Done(key, op, Err(Errno(libc::ECANCELED)));
        let host = self.host_of_engine(engine);
        match self.chance(host, Fault::LateFinal) {
            true => {
                let at = self.now + self.some_delay();
                self.events.tell(at, engine, notice);
            }
            false => self.notify(engine, notice),
        }
    }

    pub(crate) fn shutdown_write(&mut self, engine: u32, key: Key) {
        self.trace.add(self.now, Kind::ShutdownWrite, engine, u64::from(key.slot), 0);
        if let Some(id) = self.engines[engine as usize].conn(key) {
            self.send_fin(id);
        }
    }

    pub(crate) fn start_close(&mut self, engine: u32, key: Key, how: CloseHow) {
        let kind = if how == CloseHow::Reset { Kind::Abort } else { Kind::Close };
        self.trace.add(self.now, kind, engine, u64::from(key.slot), 0);
        if let Some(id) = take(&mut self.engines[engine as usize].conns, key) {
            let sock = self.sock(id).expect("listed while it is there");
            let sends = sock.send_waits || sock.first_send.is_some();
            let busy = sock.recv.is_some() || sends || sock.connect_armed;
            assert!(!busy, "no operation is in flight when a close starts");
            self.close(id, how == CloseHow::Reset);
        }
        self.notify(engine, Notice::Done(key, Op::Close, Ok(0)));
    }

    pub(crate) fn start_close_listener(&mut self, engine: u32, key: Key) {
        self.trace.add(self.now, Kind::CloseListener, engine, u64::from(key.slot), 0);
        if let Some(id) = take(&mut self.engines[engine as usize].listeners, key) {
            assert!(
                !self.listener(id).is_some_and(|listen| listen.armed),
                "no accept is in flight when a close starts"
            );
            self.close_listener(id);
        }
        self.notify(engine, Notice::Done(key, Op::CloseListener, Ok(0)));
    }

    /// Gives an accepted socket its key. False if it is gone.
    pub(crate) fn attach(&mut self, engine: u32, key: Key, id: SockId) -> bool {
        let there = match self.sock_mut(id) {
            Some(sock) => {
                sock.owner = Owner::Engine(engine, key);
                true
            }
            None => false,
        };
        put(&mut self.engines[engine as usize].conns, key, there.then_some(id));
        there
    }

    /// Tells an engine the next thing.
    pub(crate) fn next(&mut self, engine: u32, landing: &mut impl Landing) -> Option<Told> {
        loop {
            let told = match self.engines[engine as usize].take_ready()? {
                Notice::Done(key, op, result) => {
                    match op {
                        Op::Send if result.is_err() => self.failure_told(engine, key),
                        Op::Connect => self.begin_first_send(engine, key, result.is_ok()),
                        _ => {}
                    }
                    Some(Told::Done(key, op, result))
                }
                Notice::Accept(id) => self.next_accept(id),
                Notice::Recv(id) => {
                    let Some(sock) = self.sock_mut(id) else { continue };
                    sock.recv_told = false;
                    let (Owner::Engine(_, key), Some(how), true) = (sock.owner, sock.recv, sock.is_readable()) else {
                        continue;
                    };
                    Some(self.next_recv(engine, id, key, how, landing))
                }
            };
            if told.is_some() {
                self.completions += 1;
                return told;
            }
        }
    }

    /// An engine hears that its send failed: now the end of the stream may be told too.
    fn failure_told(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].conn(key) else { return };
        if let Some(sock) = self.sock_mut(id).filter(|sock| sock.failure_untold) {
            sock.failure_untold = false;
            self.touched(id);
        }
    }

    fn next_recv(&mut self, engine: u32, id: SockId, key: Key, how: Recv, landing: &mut impl Landing) -> Told {
        let host = self.host_of_engine(engine);
        let has_data = self.sock(id).expect("just seen").rx.arrived() > 0;
        let room = match has_data && how == Recv::Stream && self.chance(host, Fault::Buffers) {
            true => None,
            false if has_data => landing.room(how),
            false => Some(0),
        };
        let read = match room {
            Some(max) => self.read(id, max, |bytes| landing.put(bytes)),
            None => Read::Failed(Errno(libc::ENOBUFS)),
        };
        let (kind, value) = match read {
            Read::Bytes(len) => (Kind::Received, len as u64),
            Read::End | Read::Nothing => (Kind::EndOfStream, 0),
            Read::Failed(errno) => (Kind::RecvFailed, errno.0 as u64),
        };
        self.trace.add(self.now, kind, engine, u64::from(key.slot), value);
        let more = matches!(read, Read::Bytes(_)) && how == Recv::Stream && !self.chance(host, Fault::MultishotEnd);
        if !more {
            self.sock_mut(id).expect("just read").recv = None;
        }
        self.touched(id);
        match read {
            Read::Bytes(_) => Told::Data { key, more },
            Read::End | Read::Nothing => Told::Done(key, Op::Recv, Ok(0)),
            Read::Failed(errno) => Told::Done(key, Op::Recv, Err(errno)),
        }
    }

    fn next_accept(&mut self, id: ListenId) -> Option<Told> {
        let listen = self.listener_mut(id)?;
        listen.told = false;
        let Owner::Engine(engine, key) = listen.owner else { return None };
        if !listen.armed || listen.queue.is_empty() {
            return None;
        }
        let host = listen.host;
        let failed = match self.take_descriptor(host) {
            Err(errno) => Some(errno),
            Ok(()) if self.chance(host, Fault::AbortAccept) => {
                self.hosts[host as usize].descriptors -= 1;
                let sock = self.listener_mut(id).and_then(|listen| listen.queue.pop_front()).expect("not empty");
                self.close(sock, true);
                Some(Errno(libc::ECONNABORTED))
            }
            Ok(()) => None,
        };
        if let Some(errno) = failed {
            self.trace.add(self.now, Kind::AcceptFailed, engine, u64::from(key.slot), errno.0 as u64);
            self.listener_mut(id).expect("still there").armed = false;
            return Some(Told::Done(key, Op::Accept, Err(errno)));
        }
        let sock = self.listener_mut(id).and_then(|listen| listen.queue.pop_front()).expect("not empty");
        self.sock_mut(sock).expect("in the queue").owner = Owner::Fresh(engine);
        self.trace.add(self.now, Kind::Accepted, engine, u64::from(key.slot), 0);
        let more = !self.chance(host, Fault::MultishotEnd);
        self.listener_mut(id).expect("still there").armed = more;
        self.listener_touched(id);
        Some(Told::Accepted { listener: key, sock, more })
    }
}
