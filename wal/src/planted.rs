//! Bugs on purpose, for tests that must notice them. Without the feature `sim` every question is answered `false`.

/// A bug that the crash tests must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Frames are written but not synced.
    SkipDataSync,
    /// Files are created and renamed, but their directory is not synced.
    SkipDirectorySync,
    /// Producers hear `Ok` before the write was even submitted.
    AcknowledgeBeforeSync,
    /// The nonce counter of an incarnation stands still.
    ReuseNonce,
}

#[cfg(any(test, feature = "sim"))]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        // Per thread, so that tests running side by side do not infect each other: the simulator is one thread.
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants `bug` in this thread, or removes it.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(any(test, feature = "sim"))]
pub use switch::plant;

/// Whether `bug` is planted in this thread.
pub fn is(bug: Bug) -> bool {
    #[cfg(any(test, feature = "sim"))]
    return switch::is_planted(bug);
    #[cfg(not(any(test, feature = "sim")))]
    {
        let _nothing_is_planted_here = bug;
        false
    }
}
