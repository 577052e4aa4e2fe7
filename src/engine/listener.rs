//! The state of one listener. Owns: the data; what it does is in `accept.rs`.

use crate::error::Errno;
use crate::id::Key;
use crate::options::ListenOptions;
use std::rc::Rc;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) options: Rc<ListenOptions>,
    pub(super) state: State,
    pub(super) errno: Option<Errno>,
    pub(super) timer: Option<Key>,
    /// How long the next hold lasts.
    pub(super) hold_ns: u64,
}

/// What is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// On the list of listeners that want something started.
    pub(super) dirty: bool,
    /// An accept is in flight; it was advised to end.
    pub(super) accepting: bool,
    pub(super) cancelled: bool,
    /// Suspended, and reported so.
    pub(super) paused: bool,
    /// Not to be armed before the timer fires or a descriptor closes.
    pub(super) holding: bool,
    pub(super) closing: bool,
    pub(super) close_started: bool,
}
