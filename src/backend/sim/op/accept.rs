//! Accepting. Owns: the way from a listener's queue to the engine. Invariant: an accept that goes
//! on is armed.

use super::{Net, Notice, Told};
use crate::backend::OpKind;
use crate::backend::sim::faults::Fault;
use crate::backend::sim::sock::{ListenId, Owner, SockId};
use crate::backend::sim::trace::Kind;
use crate::backend::sim::view::What;
use crate::error::Errno;
use crate::id::Key;

impl Net {
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
        self.engines[engine as usize].put(key, Some(What::Listener(id)));
        self.trace.add(self.now, Kind::Listen, engine, key.slot() as u64, 0);
        Ok(())
    }

    pub(crate) fn start_accept(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].listener(key) else {
            return self
                .notify(engine, Notice::Done(key, OpKind::Accept, Err(Errno(libc::ECANCELED))));
        };
        let listen = self.listener_mut(id).expect("listed while it is there");
        assert!(!std::mem::replace(&mut listen.armed, true), "one accept per listener");
        self.listener_touched(id);
    }

    /// True if an accept was armed.
    pub(super) fn disarm_accept(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].listener(key) else { return false };
        self.listener_mut(id).is_some_and(|listen| std::mem::take(&mut listen.armed))
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

    /// Gives an accepted socket its key. False if it is gone.
    pub(crate) fn attach(&mut self, engine: u32, key: Key, id: SockId) -> bool {
        let there = match self.sock_mut(id) {
            Some(sock) => {
                sock.owner = Owner::Engine(engine, key);
                true
            }
            None => false,
        };
        if there {
            self.engines[engine as usize].put(key, Some(What::Conn(id)));
        }
        there
    }

    pub(super) fn next_accept(&mut self, id: ListenId) -> Option<Told> {
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
                let sock = self
                    .listener_mut(id)
                    .and_then(|listen| listen.queue.pop_front())
                    .expect("not empty");
                self.close(sock, true);
                Some(Errno(libc::ECONNABORTED))
            }
            Ok(()) => None,
        };
        if let Some(errno) = failed {
            self.trace.add(self.now, Kind::AcceptFailed, engine, key.slot() as u64, errno.0 as u64);
            self.listener_mut(id).expect("still there").armed = false;
            return Some(Told::Done(key, OpKind::Accept, Err(errno)));
        }
        let sock =
            self.listener_mut(id).and_then(|listen| listen.queue.pop_front()).expect("not empty");
        self.sock_mut(sock).expect("in the queue").owner = Owner::Fresh(engine);
        self.trace.add(self.now, Kind::Accepted, engine, key.slot() as u64, 0);
        let more = !self.chance(host, Fault::MultishotEnd);
        self.listener_mut(id).expect("still there").armed = more;
        self.listener_touched(id);
        Some(Told::Accepted { listener: key, sock, more })
    }
}
