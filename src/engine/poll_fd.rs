//! The descriptor of an engine, for another event loop. Owns: an epoll instance that is readable
//! when `poll` has something to do: an operation completed, a timer is due, a waker was called, or
//! an operation is staged. Invariant: no work waits while the descriptor is not readable. Must not
//! know the event loop around it.

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
    epoll: Epoll,
    timer: OwnedFd,
    /// The backend's descriptor. Kept open, because it is registered in `epoll`.
    _completions: OwnedFd,
    /// Signalled when an operation is staged, or a poll leaves work for the next one.
    event_fd: Arc<EventFd>,
    /// The expiration of `timer`.
    armed_ns: Option<u64>,
}

impl PollFd {
    fn new(completions: OwnedFd, waker: BorrowedFd<'_>) -> io::Result<PollFd> {
        let (epoll, timer, event_fd) = (Epoll::new()?, sys::timerfd()?, Arc::new(EventFd::new()?));
        for (token, fd) in
            [(0, completions.as_fd()), (1, timer.as_fd()), (2, event_fd.fd()), (3, waker)]
        {
            epoll.add(fd, libc::EPOLLIN, token)?;
        }
        Ok(PollFd { epoll, timer, _completions: completions, event_fd, armed_ns: None })
    }
}

impl Engine {
    /// A descriptor that is readable when [`Engine::poll`] has something to do. Register it in the
    /// epoll, poll or select loop of the program, level-triggered. When it is readable, call `poll`
    /// with a timeout of zero until it returns 0. The descriptor also becomes readable when another
    /// call stages an operation or sets a timer.
    ///
    /// From the first call on each poll makes a few more system calls.
    ///
    /// # Errors
    /// An error of epoll_create1(2), timerfd_create(2) or IORING_REGISTER_EVENTFD;
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
    /// unsafe { libc::poll(&mut poll_fd, 1, -1) }; // the other event loop
    /// while engine.poll(&mut completions, Some(Duration::ZERO))? > 0 {
    ///     completions.drain();
    /// }
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn as_fd(&mut self) -> Result<BorrowedFd<'_>, Error> {
        // A failed engine may have deferred events: its descriptor is needed to deliver them.
        if self.is_child() || self.core.delivery.is_empty() {
            self.check_usable()?;
        }
        if self.poll_fd.is_none() {
            let completions =
                with_backend!(&mut *self.backend, backend => backend.completion_fd())?;
            // The backend polls the waker's eventfd too. But a write to it may signal the eventfd
            // that is registered with the ring late, or never.
            let poll_fd = PollFd::new(completions, self.core.waker_shared.fd())
                .map_err(|error| Error::os("as_fd", &error))?;
            self.core.staging.set_event_fd(Arc::clone(&poll_fd.event_fd));
            self.poll_fd = Some(poll_fd);
            // A wake-up before this may have written nothing to the eventfd, because the engine was
            // not waiting. From here on each wake-up writes it.
            if self.core.waker_shared.signal.take(true) {
                self.waker().wake();
            }
            self.core.staging.signal();
        }
        Ok(self.poll_fd.as_ref().expect("it was set above").epoll.fd().as_fd())
    }

    /// Before a poll: clears the signal of staged operations.
    pub(super) fn reset_poll_fd(&mut self) {
        if let Some(poll_fd) = &self.poll_fd {
            self.core.staging.clear_signalled();
            poll_fd.event_fd.reset();
        }
    }

    /// After a poll: makes the descriptor readable if there is work left, and arms its timer.
    pub(super) fn update_poll_fd(&mut self) {
        let Some(poll_fd) = &mut self.poll_fd else { return };
        let core = &mut *self.core;
        let has_next = with_backend!(&mut *self.backend, backend => {
            backend.reset_completion_fd();
            backend.has_next()
        });
        if has_next || core.has_work() || core.failed.is_some() {
            core.staging.signal();
        }
        let deadline = core.timers.next_deadline_ns();
        if deadline != poll_fd.armed_ns {
            poll_fd.armed_ns = deadline;
            sys::timerfd_set(
                &poll_fd.timer,
                deadline.map(|deadline| Duration::from_nanos(deadline.saturating_sub(core.now))),
            );
        }
    }
}
