//! Listening. Owns: the way from `listen` to `Accepted`, and what happens when descriptors run out:
//! the listener pauses, waits for a descriptor to close or a short while, and tries again. It never
//! spins, and never drops a connection.

use super::conn::{Conn, Phase};
use super::{Core, Engine, Full};
use crate::backend::{Backend, CloseMode, OpKind, Open, Operation, Side, Started, with_backend};
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

/// The state of one listener.
#[derive(Debug)]
pub(super) struct Listener {
    options: Rc<ListenOptions>,
    state: State,
    errno: Option<Errno>,
    timer: Option<Key>,
    /// How long the next hold lasts.
    hold_ns: u64,
}

/// What is under way.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// On the list of listeners that want something started.
    dirty: bool,
    /// An accept is in flight; it was advised to end.
    accepting: bool,
    cancelled: bool,
    /// Suspended, and reported so.
    paused: bool,
    /// Not to be armed before the timer fires or a descriptor closes.
    holding: bool,
    closing: bool,
    close_started: bool,
}

impl Listener {
    /// Marks a listener that wants something started. False if it was marked before.
    pub(super) fn mark_dirty(&mut self) -> bool {
        !std::mem::replace(&mut self.state.dirty, true)
    }

    #[cfg(feature = "sim")]
    pub(super) fn has_timer(&self) -> bool {
        self.timer.is_some()
    }

    #[cfg(feature = "sim")]
    pub(super) fn is_paused(&self) -> bool {
        self.state.paused
    }

    /// Notes the error that ends it.
    pub(super) fn fail(&mut self, errno: Errno) {
        self.errno = Some(errno);
    }
}

impl Engine {
    /// Listens. Connections arrive as [`Event::Accepted`].
    ///
    /// # Errors
    /// What socket(2), bind(2) or listen(2) answer, at once; [`Error::Limit`] at
    /// `Config::listeners_max`; [`Error::Closing`].
    ///
    /// ```
    /// use proactor::{Config, Engine, ListenOptions};
    /// use std::net::Ipv4Addr;
    /// let mut engine = Engine::new(Config::default())?;
    /// let listener = engine.listen((Ipv4Addr::LOCALHOST, 0), ListenOptions::default())?;
    /// let port = engine.listener_addr(listener)?.as_inet().map(|addr| addr.port());
    /// assert!(port.is_some_and(|port| port > 0));
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn listen(
        &mut self,
        addr: impl Into<Addr>,
        options: ListenOptions,
    ) -> Result<ListenerId, Error> {
        let addr = addr.into();
        let core = self.own()?;
        let key = core.new_listener(options)?;
        let options = core
            .endpoints
            .listener(key)
            .map(|listener| Rc::clone(&listener.options))
            .unwrap_or_default();
        let opened = with_backend!(&mut *self.backend, backend => {
            backend.open(key, Open::Listen(&addr, &options))
        });
        self.core.listener_opened(key, opened)
    }

    /// Stops listening. Connections accepted before stay. [`Event::ListenerClosed`] tells when the
    /// port is free.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// ```
    /// use proactor::{Completions, Config, Engine, Event, ListenOptions};
    /// use std::net::Ipv4Addr;
    /// let mut engine = Engine::new(Config::default())?;
    /// let mut completions = Completions::with_capacity(16);
    /// let listener = engine.listen((Ipv4Addr::LOCALHOST, 0), ListenOptions::default())?;
    /// engine.close_listener(listener)?;
    /// engine.poll(&mut completions, None)?;
    /// let event = completions.pop().map(|completion| completion.event);
    /// assert!(matches!(event, Some(Event::ListenerClosed { errno: None, .. })));
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn close_listener(&mut self, id: ListenerId) -> Result<(), Error> {
        let core = self.own()?;
        core.endpoints.listener(id.0).ok_or(Error::Stale)?;
        core.begin_close_listener(id.0);
        Ok(())
    }

    /// The address that a listener is bound to: with port 0 asked for, this is how to learn the
    /// port.
    ///
    /// # Errors
    /// [`Error::Stale`], or what getsockname(2) answers.
    pub fn listener_addr(&self, id: ListenerId) -> Result<Addr, Error> {
        self.check()?;
        self.core.endpoints.listener(id.0).ok_or(Error::Stale)?;
        with_backend!(&*self.backend, backend => backend.addr(id.0, Side::Local))
            .map_err(|error| Error::os("getsockname", &error))
    }
}

impl Core {
    pub(super) fn new_listener(&mut self, options: ListenOptions) -> Result<Key, Error> {
        self.room_for_listener()?;
        Ok(self.endpoints.insert_listener(Box::new(Listener {
            options: Rc::new(options),
            state: State::default(),
            errno: None,
            timer: None,
            hold_ns: HOLD_FIRST_NS,
        })))
    }

    /// The backend has opened a new listener, or could not.
    pub(super) fn listener_opened(
        &mut self,
        key: Key,
        opened: Result<(), Error>,
    ) -> Result<ListenerId, Error> {
        if let Err(error) = opened {
            self.endpoints.remove_listener(key);
            return Err(error);
        }
        self.mark_listener_dirty(key);
        Ok(ListenerId(key))
    }

    pub(super) fn begin_close_listener(&mut self, key: Key) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.state.closing = true;
        self.staging.mark_listener(listener, key);
    }

    /// Starts what a listener wants.
    pub(super) fn service_listener<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
    ) -> Result<(), Full> {
        let full = self.is_full();
        let Some(listener) = self.endpoints.listener_mut(key) else { return Ok(()) };
        let state = &mut listener.state;
        state.dirty = false;
        let unwanted = state.closing || full;
        let start = |backend: &mut B, operation| match backend.start(key, operation) {
            Started::NoRoom(_) => Err(Full),
            Started::InFlight | Started::Done | Started::Sent(..) => Ok(()),
        };
        if state.accepting {
            if unwanted && !state.cancelled {
                backend.cancel(key, OpKind::Accept);
                state.cancelled = true;
            }
        } else if state.closing {
            if !state.close_started {
                start(backend, Operation::Close(CloseMode::Orderly))?;
                state.close_started = true;
            }
        } else if !unwanted && !state.holding {
            start(backend, Operation::Accept)?;
            (state.accepting, state.cancelled) = (true, false);
        }
        Ok(())
    }

    /// An accept ended, or with `more` goes on.
    fn accept_told(&mut self, key: Key, more: bool) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        if !more {
            listener.state.accepting = false;
            self.staging.mark_listener(listener, key);
        }
    }

    pub(super) fn accepted<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        more: bool,
        socket: B::Socket,
        out: &mut Completions,
    ) {
        self.accept_told(key, more);
        let Some(listener) =
            self.endpoints.listener(key).filter(|listener| !listener.state.closing)
        else {
            // Accepted by the kernel after the close was asked for: dropping the socket closes it.
            return;
        };
        let options = Rc::clone(&listener.options);
        let conn = Conn::new(Phase::Open, options.tag, &options.socket, self.config.idle_timeout);
        let conn_key = self.endpoints.insert_conn(conn);
        if backend.open(conn_key, Open::Accepted(socket)).is_err() {
            self.endpoints.remove_conn(conn_key);
            return;
        }
        self.mark_dirty(conn_key);
        self.resumed(key, out);
        self.admission.came();
        self.stats.accepted += 1;
        self.start_idle_timer(conn_key);
        self.emit(conn_key, Event::Accepted { listener: ListenerId(key) }, out);
        if self.is_full() {
            self.pause(key, None, out);
        }
    }

    pub(super) fn accept_failed(&mut self, key: Key, errno: Errno, out: &mut Completions) {
        self.accept_told(key, false);
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        match errno.0 {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN | libc::ECONNABORTED => {}
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                self.pause(key, Some(errno), out);
                self.hold(key);
            }
            libc::EBADF
            | libc::EINVAL
            | libc::ENOTSOCK
            | libc::EOPNOTSUPP
            | libc::EFAULT
            | libc::EACCES => {
                listener.state.closing = true;
                listener.errno = Some(errno);
            }
            // accept(2) passes on errors of the network: try again, but not in a tight loop.
            _ => self.hold(key),
        }
    }

    /// Keeps a listener from being armed for a while.
    fn hold(&mut self, key: Key) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.state.holding = true;
        let delay_ns = listener.hold_ns;
        listener.hold_ns = (delay_ns * 2).min(HOLD_LONGEST_NS);
        self.set_listener_timer(key, delay_ns);
    }

    fn set_listener_timer(&mut self, key: Key, delay_ns: u64) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        self.timers.set(
            &mut listener.timer,
            Some(self.now.saturating_add(delay_ns)),
            Owner::Endpoint(key),
        );
    }

    fn pause(&mut self, key: Key, errno: Option<Errno>, out: &mut Completions) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        self.staging.mark_listener(listener, key);
        if !std::mem::replace(&mut listener.state.paused, true) {
            let tag = listener.options.tag;
            self.admission.listener_paused();
            self.stats.listener_pauses += 1;
            self.emit_of_listener(
                tag,
                Event::ListenerPaused { listener: ListenerId(key), errno },
                out,
            );
        }
    }

    fn resumed(&mut self, key: Key, out: &mut Completions) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.hold_ns = HOLD_FIRST_NS;
        if std::mem::take(&mut listener.state.paused) {
            let tag = listener.options.tag;
            self.admission.listener_resumed();
            self.emit_of_listener(tag, Event::ListenerResumed { listener: ListenerId(key) }, out);
        }
    }

    /// The hold is over. An accept that was armed meanwhile and did not fail proves that accepting
    /// goes on; else arm one, and look again.
    pub(super) fn listener_timer_fired(&mut self, key: Key, out: &mut Completions) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.timer = None;
        listener.state.holding = false;
        if listener.state.accepting {
            return self.resumed(key, out);
        }
        if listener.state.paused {
            self.set_listener_timer(key, HOLD_FIRST_NS);
        }
        self.mark_listener_dirty(key);
    }

    /// A descriptor was closed, or a connection ended: listeners that pause may try again.
    pub(super) fn retry_paused_listeners(&mut self) {
        if self.admission.paused_listeners() == 0 {
            return;
        }
        for key in self.endpoints.listener_keys() {
            let Some(listener) =
                self.endpoints.listener_mut(key).filter(|listener| listener.state.paused)
            else {
                continue;
            };
            listener.state.holding = false;
            self.set_listener_timer(key, HOLD_FIRST_NS);
            self.mark_listener_dirty(key);
        }
    }

    pub(super) fn listener_closed(&mut self, key: Key, out: &mut Completions) {
        self.end_listener(key, out);
        self.retry_paused_listeners();
    }

    /// Reports the end of a listener, and frees its slot.
    pub(super) fn end_listener(&mut self, key: Key, out: &mut Completions) {
        let Some(mut listener) = self.endpoints.remove_listener(key) else { return };
        self.timers.set(&mut listener.timer, None, Owner::Endpoint(key));
        if listener.state.paused {
            self.admission.listener_resumed();
        }
        let event = Event::ListenerClosed { listener: ListenerId(key), errno: listener.errno };
        self.emit_of_listener(listener.options.tag, event, out);
    }
}
