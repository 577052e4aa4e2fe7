//! Wake-ups from other threads. Owns: [`Waker`], its eventfd, and the detection of forked children.
//! Invariant: this is the only part of an engine that other threads access. Must not know what the
//! engine does when it is awake.

mod signal;

mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU8, Ordering};
}

use crate::error::Error;
use crate::sys::{self, ForkDetector};
use signal::Signal;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes an engine from any thread: its poll reports [`Event::Woken`](crate::Event::Woken). Calls
/// between two polls are reported as one event and make at most one system call.
///
/// A call is an atomic swap and at most one write(2), so it is async-signal-safe
/// (signal-safety(7)). It has no effect after the engine was dropped, and none in a forked child.
///
/// ```
/// use proactor::{Completions, Config, Engine, Event};
/// let mut engine = Engine::new(Config::default())?;
/// let waker = engine.waker();
/// let thread = std::thread::spawn(move || waker.wake());
/// let mut completions = Completions::with_capacity(16);
/// engine.poll(&mut completions, None)?; // waits for the wake-up
/// assert!(matches!(completions.pop().unwrap().event, Event::Woken));
/// # thread.join().unwrap();
/// # Ok::<(), proactor::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Waker(pub(crate) Arc<WakerShared>);

impl Waker {
    /// Wakes the engine.
    pub fn wake(&self) {
        // A forked child shares the eventfd with its parent but not the atomic. Without this check
        // it would wake the parent.
        if !self.0.is_child() && self.0.signal.call() {
            match &self.0.notifier {
                Notifier::Eventfd(fd) => sys::eventfd_signal(fd),
                #[cfg(feature = "sim")]
                Notifier::Flag(flag) => flag.store(true, Ordering::Release),
            }
        }
    }
}

/// What an engine shares with its wakers.
#[derive(Debug)]
pub(crate) struct WakerShared {
    pub(crate) signal: Signal,
    notifier: Notifier,
    /// `None` in a simulated world, which has no descriptors that a forked child could share.
    fork_detector: Option<ForkDetector>,
}

/// How a waker interrupts the wait of an engine.
#[derive(Debug)]
enum Notifier {
    Eventfd(OwnedFd),
    /// In a simulated world. The scheduler of the world reads it.
    #[cfg(feature = "sim")]
    Flag(AtomicBool),
}

impl WakerShared {
    pub(crate) fn new() -> Result<Arc<WakerShared>, Error> {
        let eventfd = sys::eventfd().map_err(|error| Error::os("eventfd", &error))?;
        let fork_detector = ForkDetector::new().map_err(|error| Error::os("mmap", &error))?;
        Ok(Arc::new(WakerShared {
            signal: Signal::new(),
            notifier: Notifier::Eventfd(eventfd),
            fork_detector: Some(fork_detector),
        }))
    }

    #[cfg(feature = "sim")]
    pub(crate) fn simulated() -> Arc<WakerShared> {
        Arc::new(WakerShared {
            signal: Signal::new(),
            notifier: Notifier::Flag(AtomicBool::new(false)),
            fork_detector: None,
        })
    }

    /// True in a forked child of the process that made the engine. Makes no system call.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        self.fork_detector.as_ref().is_some_and(ForkDetector::is_child)
    }

    /// The descriptor that is readable after a wake-up.
    ///
    /// # Panics
    /// In a simulated world, which has no descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.notifier {
            Notifier::Eventfd(fd) => fd.as_fd(),
            #[cfg(feature = "sim")]
            Notifier::Flag(_) => panic!("a simulated engine has no descriptor"),
        }
    }

    /// In a simulated world: true from a wake-up until `reset`.
    #[cfg(feature = "sim")]
    pub(crate) fn is_notified(&self) -> bool {
        matches!(&self.notifier, Notifier::Flag(flag) if flag.load(Ordering::Acquire))
    }

    /// Makes the descriptor unreadable again.
    pub(crate) fn reset(&self) {
        match &self.notifier {
            Notifier::Eventfd(fd) => drop(sys::counter_reset(fd)),
            #[cfg(feature = "sim")]
            Notifier::Flag(flag) => flag.store(false, Ordering::Release),
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
