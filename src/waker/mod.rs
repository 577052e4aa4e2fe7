//! Wake-ups from other threads. Owns: the [`Waker`] and the eventfd behind it. The only part of an engine that other
//! threads can touch.

mod signal;

mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU8, Ordering};
}

use crate::sys;
use signal::Signal;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes an engine from any thread: its poll returns with [`Event::Woken`](crate::Event::Woken). Calls between two polls are
/// one event, and at most one system call.
///
/// A call is an atomic swap and perhaps a write(2), so it is safe in a signal handler too. Waking an engine that is gone does
/// nothing.
#[derive(Clone, Debug)]
pub struct Waker(pub(crate) Arc<Inbox>);

impl Waker {
    /// Wakes the engine.
    pub fn wake(&self) {
        if self.0.signal.call() {
            match &self.0.line {
                Line::Eventfd(fd) => sys::eventfd_signal(fd),
                Line::Flag(flag) => flag.store(true, Ordering::Release),
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) signal: Signal,
    line: Line,
}

/// What reaches a sleeping engine.
#[derive(Debug)]
enum Line {
    Eventfd(OwnedFd),
    /// In a simulated world, which looks at it.
    Flag(AtomicBool),
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Arc<Inbox>> {
        Ok(Arc::new(Inbox { signal: Signal::new(), line: Line::Eventfd(sys::eventfd()?) }))
    }

    pub(crate) fn simulated() -> Arc<Inbox> {
        Arc::new(Inbox { signal: Signal::new(), line: Line::Flag(AtomicBool::new(false)) })
    }

    /// # Panics
    /// In a simulated world: only backends that wait in the kernel ask.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.line {
            Line::Eventfd(fd) => fd.as_fd(),
            Line::Flag(_) => panic!("an inbox without a descriptor"),
        }
    }

    /// In a simulated world: whether somebody called.
    pub(crate) fn is_rung(&self) -> bool {
        matches!(&self.line, Line::Flag(flag) if flag.load(Ordering::Acquire))
    }

    /// Makes the descriptor unreadable again.
    pub(crate) fn reset(&self) {
        match &self.line {
            Line::Eventfd(fd) => drop(sys::counter_reset(fd)),
            Line::Flag(flag) => flag.store(false, Ordering::Release),
        }
    }
}

/// A descriptor that is readable from `ring` to `reset`.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        sys::eventfd().map(Bell)
    }

    pub(crate) fn ring(&self) {
        sys::eventfd_signal(&self.0);
    }

    pub(crate) fn reset(&self) {
        let _ = sys::counter_reset(&self.0);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
