//! Wake-ups from other threads. Owns: the [`Waker`], the eventfd behind it, and the mark that tells
//! a forked child from the process that made the engine. The only part of an engine that other
//! threads can touch.

mod signal;

mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU8, Ordering};
}

use crate::error::Error;
use crate::sys::{self, ForkMark};
use signal::Signal;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes an engine from any thread: its poll returns with [`Event::Woken`](crate::Event::Woken).
/// Calls between two polls are one event, and at most one system call.
///
/// A call is an atomic swap and perhaps a write(2), so it is safe in a signal handler too. Waking
/// an engine that is gone does nothing, and so does a call in a forked child: only the process that
/// made an engine wakes it.
#[derive(Clone, Debug)]
pub struct Waker(pub(crate) Arc<Inbox>);

impl Waker {
    /// Wakes the engine.
    pub fn wake(&self) {
        // The descriptor is shared with the parent, the word is not: a child would wake a process
        // that was not called.
        if !self.0.is_child() && self.0.signal.call() {
            match &self.0.line {
                Line::Eventfd(fd) => sys::eventfd_signal(fd),
                #[cfg(feature = "sim")]
                Line::Flag(flag) => flag.store(true, Ordering::Release),
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) signal: Signal,
    line: Line,
    /// In a simulated world there is none: nothing there could be harmed by a forked child.
    mark: Option<ForkMark>,
}

/// What reaches a sleeping engine.
#[derive(Debug)]
enum Line {
    Eventfd(OwnedFd),
    /// In a simulated world, which looks at it.
    #[cfg(feature = "sim")]
    Flag(AtomicBool),
}

impl Inbox {
    pub(crate) fn new() -> Result<Arc<Inbox>, Error> {
        let line = Line::Eventfd(sys::eventfd().map_err(|error| Error::os("eventfd", &error))?);
        let mark = Some(ForkMark::new().map_err(|error| Error::os("mmap", &error))?);
        Ok(Arc::new(Inbox { signal: Signal::new(), line, mark }))
    }

    #[cfg(feature = "sim")]
    pub(crate) fn simulated() -> Arc<Inbox> {
        Arc::new(Inbox {
            signal: Signal::new(),
            line: Line::Flag(AtomicBool::new(false)),
            mark: None,
        })
    }

    /// True in a process that was forked from the one that made the engine. No system call.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        self.mark.as_ref().is_some_and(ForkMark::is_child)
    }

    /// # Panics
    /// In a simulated world: only backends that wait in the kernel ask.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.line {
            Line::Eventfd(fd) => fd.as_fd(),
            #[cfg(feature = "sim")]
            Line::Flag(_) => panic!("an inbox without a descriptor"),
        }
    }

    /// In a simulated world: whether somebody called.
    #[cfg(feature = "sim")]
    pub(crate) fn is_rung(&self) -> bool {
        matches!(&self.line, Line::Flag(flag) if flag.load(Ordering::Acquire))
    }

    /// Makes the descriptor unreadable again.
    pub(crate) fn reset(&self) {
        match &self.line {
            Line::Eventfd(fd) => drop(sys::counter_reset(fd)),
            #[cfg(feature = "sim")]
            Line::Flag(flag) => flag.store(false, Ordering::Release),
        }
    }
}

/// A descriptor that is readable from `signal` to `reset`.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        sys::eventfd().map(EventFd)
    }

    pub(crate) fn signal(&self) {
        sys::eventfd_signal(&self.0);
    }

    pub(crate) fn reset(&self) {
        let _ = sys::counter_reset(&self.0);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
