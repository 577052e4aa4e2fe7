//! An engine inside somebody else's loop. Owns: the one descriptor that says when `poll` has
//! something to do: when an operation finished, a timer is due, somebody called, or something was
//! staged.

use super::Engine;
use crate::backend::{Backend as _, with_backend};
use crate::error::Error;
use crate::sys::{self, Epoll};
use crate::waker::EventFd;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct PollFd {
    outer: Epoll,
    timer: OwnedFd,
    /// The backend's own descriptor; registered in `outer`, so it lives as long.
    _inner: OwnedFd,
    /// Rung when something is staged or left over.
    event_fd: Arc<EventFd>,
    armed_ns: Option<u64>,
}

impl PollFd {
    fn new(inner: OwnedFd, inbox: BorrowedFd<'_>) -> io::Result<PollFd> {
        let (outer, timer, event_fd) = (Epoll::new()?, sys::timerfd()?, Arc::new(EventFd::new()?));
        for (token, fd) in [(0, inner.as_fd()), (1, timer.as_fd()), (2, event_fd.fd()), (3, inbox)]
        {
            outer.add(fd, libc::EPOLLIN, token)?;
        }
        Ok(PollFd { outer, timer, _inner: inner, event_fd, armed_ns: None })
    }
}

impl Engine {
    /// A descriptor that is readable (level-triggered) when [`Engine::poll`] has something to do,
    /// for use in a foreign epoll, poll or select loop: when it is, call `poll` with a timeout of
    /// zero until that returns 0. After calls made outside of that (sends, timers), the descriptor
    /// becomes readable by itself, so that nothing staged is forgotten.
    ///
    /// From the first call on each poll costs a few more system calls.
    ///
    /// # Errors
    /// What epoll_create1(2), timerfd_create(2) or IORING_REGISTER_EVENTFD answer;
    /// [`Error::Unsupported`] on the simulated backend.
    ///
    /// ```
    /// use proactor::{Completions, Config, Engine};
    /// use std::os::fd::AsRawFd;
    /// use std::time::Duration;
    /// let mut engine = Engine::new(Config::default())?;
    /// let mut completions = Completions::with_capacity(16);
    /// engine.waker().wake();
    /// let mut poll_fd =
    ///     libc::pollfd { fd: engine.as_fd()?.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    /// // SAFETY: one valid pollfd.
    /// unsafe { libc::poll(&mut poll_fd, 1, -1) }; // the foreign event loop
    /// while engine.poll(&mut completions, Some(Duration::ZERO))? > 0 {
    ///     completions.drain();
    /// }
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn as_fd(&mut self) -> Result<BorrowedFd<'_>, Error> {
        // A failed engine still has events to hand out.
        if self.is_child() || self.core.delivery.is_empty() {
            self.check_usable()?;
        }
        if self.poll_fd.is_none() {
            let inner = with_backend!(&mut *self.backend, backend => backend.watch_fd())?;
            // The waker's descriptor too, although the backend waits for it: a ring's registered
            // eventfd that another eventfd's write has to signal may be signalled late, or not at
            // all.
            let watch = PollFd::new(inner, self.core.inbox.fd())
                .map_err(|error| Error::os("as_fd", &error))?;
            self.core.staging.set_event_fd(Arc::clone(&watch.event_fd));
            self.poll_fd = Some(watch);
            // From here on calls of the waker write the descriptor, whether the engine sleeps or
            // not.
            if self.core.inbox.signal.take(true) {
                self.waker().wake();
            }
            self.core.staging.signal();
        }
        Ok(self.poll_fd.as_ref().expect("just made").outer.fd().as_fd())
    }

    pub(super) fn reset_poll_fd(&mut self) {
        if let Some(watch) = &self.poll_fd {
            self.core.staging.clear_signalled();
            watch.event_fd.reset();
        }
    }

    /// Sets the descriptor to what is left to do.
    pub(super) fn update_poll_fd(&mut self) {
        let Some(watch) = &mut self.poll_fd else { return };
        let core = &mut *self.core;
        let left_over = with_backend!(&mut *self.backend, backend => {
            backend.watch_reset();
            backend.has_next()
        });
        if left_over || core.has_work() || core.failed.is_some() {
            core.staging.signal();
        }
        let deadline = core.timers.next_deadline_ns();
        if deadline != watch.armed_ns {
            watch.armed_ns = deadline;
            sys::timerfd_set(
                &watch.timer,
                deadline.map(|deadline| Duration::from_nanos(deadline.saturating_sub(core.now))),
            );
        }
    }
}
