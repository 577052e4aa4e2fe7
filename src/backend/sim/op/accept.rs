//! Accepting. Owns: an accept from its start to its completion. Invariant: a multishot accept is
//! armed until its final completion.

use super::{CANCELED, Net, NetOutcome, Ready};
use crate::backend::OpKind;
use crate::backend::sim::engine_state::Endpoint;
use crate::backend::sim::faults::Fault;
use crate::backend::sim::sock::{ListenId, Owner, SockId};
use crate::backend::sim::trace::Kind;
use crate::error::Errno;
use crate::id::Key;
use crate::net::Addr;
use crate::options::ListenOptions;

impl Net {
    pub(crate) fn open_listener(
        &mut self,
        engine: u32,
        key: Key,
        addr: &Addr,
        options: &ListenOptions,
    ) -> Result<(), Errno> {
        let host = self.host_of_engine(engine);
        let state = &self.hosts[host as usize];
        if state.descriptors >= state.descriptors_max {
            return Err(Errno(libc::EMFILE));
        }
        let id = self.listen(host, Owner::Engine(engine, key), addr, options)?;
        self.hosts[host as usize].descriptors += 1;
        self.engines[engine as usize].insert(key, Some(Endpoint::Listener(id)));
        self.trace.add(self.now, Kind::Listen, engine, key.slot() as u64, 0);
        Ok(())
    }

    pub(crate) fn start_accept(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].listener(key) else {
            return self.make_ready(engine, Ready::Completed(key, OpKind::Accept, Err(CANCELED)));
        };
        let listen = self.listener_mut(id).expect("a key is removed before its listener");
        assert!(!std::mem::replace(&mut listen.armed, true), "an accept is in flight");
        self.listener_changed(id);
    }

    /// True if an accept was armed.
    pub(super) fn disarm_accept(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].listener(key) else { return false };
        self.listener_mut(id).is_some_and(|listen| std::mem::take(&mut listen.armed))
    }

    /// A connection was queued, or an accept was armed.
    pub(crate) fn listener_changed(&mut self, id: ListenId) {
        let Some(listen) = self.listener_mut(id) else { return };
        if let Owner::Engine(engine, _) = listen.owner
            && listen.armed
            && !listen.accept_queued
            && !listen.queue.is_empty()
        {
            listen.accept_queued = true;
            self.make_ready(engine, Ready::Accept(id));
        }
    }

    /// Opens an accepted socket under a key. False if the socket no longer exists.
    pub(crate) fn attach(&mut self, engine: u32, key: Key, id: SockId) -> bool {
        let exists = match self.sock_mut(id) {
            Some(sock) => {
                sock.owner = Owner::Engine(engine, key);
                true
            }
            None => false,
        };
        if exists {
            self.engines[engine as usize].insert(key, Some(Endpoint::Conn(id)));
        }
        exists
    }

    pub(super) fn next_accept(&mut self, id: ListenId) -> Option<NetOutcome> {
        let listen = self.listener_mut(id)?;
        listen.accept_queued = false;
        let Owner::Engine(engine, key) = listen.owner else { return None };
        if !listen.armed || listen.queue.is_empty() {
            return None;
        }
        let host = listen.host;
        let failed = match self.take_descriptor(host) {
            Err(errno) => Some(errno),
            Ok(()) if self.draw_fault(host, Fault::AbortAccept) => {
                self.hosts[host as usize].descriptors -= 1;
                let sock = self
                    .listener_mut(id)
                    .and_then(|listen| listen.queue.pop_front())
                    .expect("the queue is not empty");
                self.close(sock, true);
                Some(Errno(libc::ECONNABORTED))
            }
            Ok(()) => None,
        };
        if let Some(errno) = failed {
            self.trace.add(self.now, Kind::AcceptFailed, engine, key.slot() as u64, errno.0 as u64);
            self.listener_mut(id).expect("found above").armed = false;
            return Some(NetOutcome::Completed(key, OpKind::Accept, Err(errno)));
        }
        let sock = self
            .listener_mut(id)
            .and_then(|listen| listen.queue.pop_front())
            .expect("the queue is not empty");
        self.sock_mut(sock).expect("a queued socket exists").owner = Owner::Accepted(engine);
        self.trace.add(self.now, Kind::Accepted, engine, key.slot() as u64, 0);
        let more = !self.draw_fault(host, Fault::MultishotEnd);
        self.listener_mut(id).expect("found above").armed = more;
        self.listener_changed(id);
        Some(NetOutcome::Accepted { listener: key, sock, more })
    }
}
