//! Listening. Owns: the way from `listen` to `Accepted`, and what happens when descriptors run out: the listener pauses, waits
//! for a descriptor to close or a short while, and tries again. It never spins, and never drops a connection.

use super::Engine;
use super::conn::{Conn, Listener, Phase, flag};
use super::core::Core;
use crate::backend::{Backend, Op, Outcome, QueueFull, with_backend};
use crate::completion::{Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{Key, ListenerId};
use crate::net::Addr;
use crate::options::ListenOptions;
use crate::timer::Owner;
use std::rc::Rc;

/// The first hold after running out of descriptors; it doubles up to the longest.
const HOLD_FIRST_NS: u64 = 10_000_000;
const HOLD_LONGEST_NS: u64 = 100_000_000;

impl Engine {
    /// Listens. Connections arrive as [`Event::Accepted`].
    ///
    /// # Errors
    /// What socket(2), bind(2) or listen(2) answer, at once; [`Error::Limit`] at `Config::listeners_max`; [`Error::Draining`].
    pub fn listen(&mut self, addr: impl Into<Addr>, options: ListenOptions) -> Result<ListenerId, Error> {
        let addr = addr.into();
        let key = self.own()?.room_for_listener(Rc::new(options))?;
        let options = Rc::clone(&self.core.listeners.get_mut(key).expect("just made").options);
        if let Err(error) = with_backend!(&mut *self.backend, backend => backend.listen(key, &addr, &options)) {
            self.core.listeners.remove(key);
            return Err(error);
        }
        self.core.mark_listener_dirty(key);
        Ok(ListenerId(key))
    }

    /// Stops listening. Connections accepted before stay. [`Event::ListenerClosed`] tells when the port is free.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn close_listener(&mut self, id: ListenerId) -> Result<(), Error> {
        let core = self.own()?;
        core.listeners.get_mut(id.0).ok_or(Error::Stale)?.closing = true;
        core.mark_listener_dirty(id.0);
        Ok(())
    }

    /// The address that a listener is bound to: with port 0 asked for, this is how to learn the port.
    ///
    /// # Errors
    /// [`Error::Stale`], or what getsockname(2) answers.
    pub fn listener_addr(&self, id: ListenerId) -> Result<Addr, Error> {
        self.check()?;
        self.core.listeners.get(id.0).ok_or(Error::Stale)?;
        with_backend!(&*self.backend, backend => backend.listener_addr(id.0))
            .map_err(|error| Error::os("getsockname", &error))
    }
}

impl Core {
    pub(super) fn room_for_listener(&mut self, options: Rc<ListenOptions>) -> Result<Key, Error> {
        if self.draining {
            return Err(Error::Draining);
        }
        if self.listeners.is_full() {
            return Err(Error::Limit { limit: "listeners_max", value: self.listeners.limit() });
        }
        Ok(self.listeners.insert(Listener {
            options,
            accepting: false,
            cancelled: false,
            dirty: false,
            paused: false,
            holding: false,
            closing: false,
            close_started: false,
            errno: None,
            timer: None,
            hold_ns: HOLD_FIRST_NS,
        }))
    }

    /// Starts what a listener wants.
    pub(super) fn service_listener<B: Backend>(&mut self, backend: &mut B, key: Key) -> Result<(), QueueFull> {
        let full = self.conns.is_full();
        let Some(listener) = self.listeners.get_mut(key) else { return Ok(()) };
        let unwanted = listener.closing || full;
        if listener.accepting {
            if unwanted && !listener.cancelled {
                backend.cancel(key, Op::Accept)?;
                listener.cancelled = true;
            }
        } else if listener.closing {
            if !listener.close_started {
                backend.start_close_listener(key)?;
                listener.close_started = true;
            }
        } else if !unwanted && !listener.holding {
            backend.start_accept(key)?;
            (listener.accepting, listener.cancelled) = (true, false);
        }
        Ok(())
    }

    pub(super) fn on_accept<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        more: bool,
        outcome: Outcome<B::Socket>,
        out: &mut Completions,
    ) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if !more {
            listener.accepting = false;
            self.mark_listener_dirty(key);
        }
        match outcome {
            Outcome::Socket(socket) => self.admit(backend, key, socket, out),
            Outcome::Failed(errno) => self.accept_failed(key, errno, out),
            _ => {}
        }
    }

    fn admit<B: Backend>(&mut self, backend: &mut B, key: Key, socket: B::Socket, out: &mut Completions) {
        let listener = self.listeners.get_mut(key).expect("checked by the caller");
        if listener.closing {
            // Accepted by the kernel after the close was asked for: dropping the socket closes it.
            return;
        }
        let options = Rc::clone(&listener.options);
        let conn = Conn::new(Phase::Open, options.tag, &options.socket, self.config.idle_timeout);
        let conn_key = self.conns.insert(conn);
        self.mark_dirty(conn_key);
        if backend.attach(conn_key, socket).is_err() {
            let conn = self.conns.get_mut(conn_key).expect("just made");
            conn.set(flag::SILENT);
            conn.phase = Phase::Terminating;
            return;
        }
        self.resumed(key, out);
        self.live += 1;
        self.stats.accepted += 1;
        self.start_idle_timer(conn_key);
        self.emit(conn_key, Event::Accepted { listener: ListenerId(key) }, out);
        if self.conns.is_full() {
            self.pause(key, None, out);
        }
    }

    fn accept_failed(&mut self, key: Key, errno: Errno, out: &mut Completions) {
        let listener = self.listeners.get_mut(key).expect("checked by the caller");
        match errno.0 {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN | libc::ECONNABORTED => {}
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                self.pause(key, Some(errno), out);
                self.hold(key);
            }
            libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT | libc::EACCES => {
                listener.closing = true;
                listener.errno = Some(errno);
            }
            // accept(2) passes on errors of the network: try again, but not in a tight loop.
            _ => self.hold(key),
        }
    }

    /// Keeps a listener from being armed for a while.
    fn hold(&mut self, key: Key) {
        let listener = self.listeners.get_mut(key).expect("checked by the caller");
        listener.holding = true;
        let delay_ns = listener.hold_ns;
        listener.hold_ns = (delay_ns * 2).min(HOLD_LONGEST_NS);
        self.set_listener_timer(key, delay_ns);
    }

    fn set_listener_timer(&mut self, key: Key, delay_ns: u64) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let deadline = self.now.saturating_add(delay_ns);
        match listener.timer {
            Some(timer) => {
                self.wheel.reset(timer, deadline);
            }
            None => listener.timer = Some(self.wheel.add(deadline, Owner::Listener(key))),
        }
    }

    fn pause(&mut self, key: Key, errno: Option<Errno>, out: &mut Completions) {
        self.mark_listener_dirty(key);
        let listener = self.listeners.get_mut(key).expect("checked by the caller");
        if !std::mem::replace(&mut listener.paused, true) {
            let tag = listener.options.tag;
            self.paused_listeners += 1;
            self.stats.listener_pauses += 1;
            self.emit_of_listener(tag, Event::ListenerPaused { listener: ListenerId(key), errno }, out);
        }
    }

    fn resumed(&mut self, key: Key, out: &mut Completions) {
        let listener = self.listeners.get_mut(key).expect("checked by the caller");
        listener.hold_ns = HOLD_FIRST_NS;
        if std::mem::take(&mut listener.paused) {
            let tag = listener.options.tag;
            self.paused_listeners -= 1;
            self.emit_of_listener(tag, Event::ListenerResumed { listener: ListenerId(key) }, out);
        }
    }

    /// The hold is over. An accept that was armed meanwhile and did not fail proves that accepting goes on; else arm one, and look
    /// again.
    pub(super) fn on_listener_timer(&mut self, key: Key, out: &mut Completions) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        listener.timer = None;
        listener.holding = false;
        if listener.accepting {
            return self.resumed(key, out);
        }
        if listener.paused {
            self.set_listener_timer(key, HOLD_FIRST_NS);
        }
        self.mark_listener_dirty(key);
    }

    /// A descriptor was closed, or a connection ended: listeners that pause may try again.
    pub(super) fn retry_paused_listeners(&mut self) {
        if self.paused_listeners == 0 {
            return;
        }
        let paused: Vec<Key> =
            self.listeners.keys().filter(|key| self.listeners.get(*key).is_some_and(|l| l.paused)).collect();
        for key in paused {
            self.listeners.get_mut(key).expect("just listed").holding = false;
            self.set_listener_timer(key, HOLD_FIRST_NS);
            self.mark_listener_dirty(key);
        }
    }

    pub(super) fn on_listener_closed(&mut self, key: Key, out: &mut Completions) {
        let Some(listener) = self.listeners.remove(key) else { return };
        if let Some(timer) = listener.timer {
            self.wheel.cancel(timer);
        }
        if listener.paused {
            self.paused_listeners -= 1;
        }
        let event = Event::ListenerClosed { listener: ListenerId(key), errno: listener.errno };
        self.emit_of_listener(listener.options.tag, event, out);
        self.retry_paused_listeners();
    }
}
