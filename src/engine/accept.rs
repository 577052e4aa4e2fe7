//! Listening and accepting. Owns: the steps from `listen` to `Accepted`. Invariant: a listener has
//! at most one accept in flight; after an error such as EMFILE it pauses, and retries when a
//! descriptor is closed or its backoff has elapsed, so that it neither spins nor drops a
//! connection. Must not know descriptors.

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

/// The first backoff after an accept failed; each further one is twice as long.
const BACKOFF_MIN_NS: u64 = 10_000_000;
const BACKOFF_MAX_NS: u64 = 100_000_000;

/// The state of one listener.
#[derive(Debug)]
pub(super) struct Listener {
    options: Rc<ListenOptions>,
    state: State,
    errno: Option<Errno>,
    timer: Option<Key>,
    /// The length of the next backoff.
    backoff_ns: u64,
}

/// The flags of a listener.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// On the list of listeners that have something to submit.
    staged: bool,
    /// An accept is in flight.
    accepting: bool,
    /// A cancel of the accept in flight was requested.
    cancelled: bool,
    /// `ListenerPaused` was emitted, and no `ListenerResumed` after it.
    paused: bool,
    /// No accept is started before the timer fires or a descriptor is closed.
    backing_off: bool,
    closing: bool,
    close_started: bool,
}

impl Listener {
    /// Marks the listener as staged. False if it was staged already.
    pub(super) fn set_staged(&mut self) -> bool {
        !std::mem::replace(&mut self.state.staged, true)
    }

    #[cfg(feature = "sim")]
    pub(super) fn has_timer(&self) -> bool {
        self.timer.is_some()
    }

    #[cfg(feature = "sim")]
    pub(super) fn is_paused(&self) -> bool {
        self.state.paused
    }

    /// Sets the error of its `ListenerClosed`.
    pub(super) fn fail(&mut self, errno: Errno) {
        self.errno = Some(errno);
    }
}

impl Engine {
    /// Binds a socket and listens. Each accepted connection is an [`Event::Accepted`].
    ///
    /// # Errors
    /// An error of socket(2), bind(2) or listen(2); [`Error::Limit`] at `Config::listeners_max`;
    /// [`Error::Closing`].
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
        let core = self.core_mut()?;
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

    /// Closes a listener. Accepted connections stay open. The port is free when
    /// [`Event::ListenerClosed`] follows.
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
        let core = self.core_mut()?;
        core.endpoints.listener(id.0).ok_or(Error::Stale)?;
        core.begin_close_listener(id.0);
        Ok(())
    }

    /// The address that a listener is bound to. If the requested port was 0, it has the port that
    /// the kernel chose.
    ///
    /// # Errors
    /// [`Error::Stale`], or an error of getsockname(2).
    pub fn listener_addr(&self, id: ListenerId) -> Result<Addr, Error> {
        self.check_usable()?;
        self.core.endpoints.listener(id.0).ok_or(Error::Stale)?;
        with_backend!(&*self.backend, backend => backend.addr(id.0, Side::Local))
            .map_err(|error| Error::os("getsockname", &error))
    }
}

impl Core {
    pub(super) fn new_listener(&mut self, options: ListenOptions) -> Result<Key, Error> {
        self.check_room_for_listener()?;
        Ok(self.endpoints.insert_listener(Box::new(Listener {
            options: Rc::new(options),
            state: State::default(),
            errno: None,
            timer: None,
            backoff_ns: BACKOFF_MIN_NS,
        })))
    }

    /// Stages a new listener, or removes it if the backend failed to open it.
    pub(super) fn listener_opened(
        &mut self,
        key: Key,
        opened: Result<(), Error>,
    ) -> Result<ListenerId, Error> {
        if let Err(error) = opened {
            self.endpoints.remove_listener(key);
            return Err(error);
        }
        self.stage_listener(key);
        Ok(ListenerId(key))
    }

    pub(super) fn begin_close_listener(&mut self, key: Key) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.state.closing = true;
        self.staging.add_listener(listener, key);
    }

    /// Starts the operation that the state of a listener asks for.
    pub(super) fn service_listener<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
    ) -> Result<(), Full> {
        let full = self.is_full();
        let Some(listener) = self.endpoints.listener_mut(key) else { return Ok(()) };
        let state = &mut listener.state;
        state.staged = false;
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
        } else if !unwanted && !state.backing_off {
            start(backend, Operation::Accept)?;
            (state.accepting, state.cancelled) = (true, false);
        }
        Ok(())
    }

    /// An accept has a completion: the final one, or with `more` one of several.
    fn accept_completed(&mut self, key: Key, more: bool) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        if !more {
            listener.state.accepting = false;
            self.staging.add_listener(listener, key);
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
        self.accept_completed(key, more);
        let Some(listener) =
            self.endpoints.listener(key).filter(|listener| !listener.state.closing)
        else {
            // Accepted after `close_listener`: dropping the socket closes it.
            return;
        };
        let options = Rc::clone(&listener.options);
        let conn = Conn::new(Phase::Open, options.tag, &options.socket, self.config.idle_timeout);
        let conn_key = self.endpoints.insert_conn(conn);
        if backend.open(conn_key, Open::Accepted(socket)).is_err() {
            self.endpoints.remove_conn(conn_key);
            return;
        }
        self.stage(conn_key);
        self.resume_listener(key, out);
        self.admission.add_conn();
        self.stats.accepted += 1;
        self.start_idle_timer(conn_key);
        self.emit(conn_key, Event::Accepted { listener: ListenerId(key) }, out);
        if self.is_full() {
            self.pause_listener(key, None, out);
        }
    }

    pub(super) fn accept_failed(&mut self, key: Key, errno: Errno, out: &mut Completions) {
        self.accept_completed(key, false);
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        match errno.0 {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN | libc::ECONNABORTED => {}
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                self.pause_listener(key, Some(errno), out);
                self.back_off(key);
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
            // accept(2) returns pending network errors of the new socket. Retry after a backoff.
            _ => self.back_off(key),
        }
    }

    /// Starts a backoff.
    fn back_off(&mut self, key: Key) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.state.backing_off = true;
        let delay_ns = listener.backoff_ns;
        listener.backoff_ns = (delay_ns * 2).min(BACKOFF_MAX_NS);
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

    fn pause_listener(&mut self, key: Key, errno: Option<Errno>, out: &mut Completions) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        self.staging.add_listener(listener, key);
        if !std::mem::replace(&mut listener.state.paused, true) {
            let tag = listener.options.tag;
            self.admission.listener_paused();
            self.stats.listener_pauses += 1;
            self.emit_for_listener(
                tag,
                Event::ListenerPaused { listener: ListenerId(key), errno },
                out,
            );
        }
    }

    fn resume_listener(&mut self, key: Key, out: &mut Completions) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.backoff_ns = BACKOFF_MIN_NS;
        if std::mem::take(&mut listener.state.paused) {
            let tag = listener.options.tag;
            self.admission.listener_resumed();
            self.emit_for_listener(tag, Event::ListenerResumed { listener: ListenerId(key) }, out);
        }
    }

    /// The backoff is over. If an accept is in flight and has not failed, accepting works again:
    /// the listener resumes. Otherwise an accept is started, and the timer checks it.
    pub(super) fn listener_timer_fired(&mut self, key: Key, out: &mut Completions) {
        let Some(listener) = self.endpoints.listener_mut(key) else { return };
        listener.timer = None;
        listener.state.backing_off = false;
        if listener.state.accepting {
            return self.resume_listener(key, out);
        }
        if listener.state.paused {
            self.set_listener_timer(key, BACKOFF_MIN_NS);
        }
        self.stage_listener(key);
    }

    /// A descriptor was closed: ends the backoff of paused listeners.
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
            listener.state.backing_off = false;
            self.set_listener_timer(key, BACKOFF_MIN_NS);
            self.stage_listener(key);
        }
    }

    pub(super) fn listener_closed(&mut self, key: Key, out: &mut Completions) {
        self.end_listener(key, out);
        self.retry_paused_listeners();
    }

    /// Emits `ListenerClosed`, and frees the slot.
    pub(super) fn end_listener(&mut self, key: Key, out: &mut Completions) {
        let Some(mut listener) = self.endpoints.remove_listener(key) else { return };
        self.timers.set(&mut listener.timer, None, Owner::Endpoint(key));
        if listener.state.paused {
            self.admission.listener_resumed();
        }
        let event = Event::ListenerClosed { listener: ListenerId(key), errno: listener.errno };
        self.emit_for_listener(listener.options.tag, event, out);
    }
}
