//! Bugs on purpose, for tests that must notice them. Without the feature `sim` every question is answered `false`.

/// Bugs that the proof must catch, each with the sentence that says what is wrong.
macro_rules! bugs {
    ($($(#[doc = $story:literal])+ $bug:ident,)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $story])+ $bug,)+
        }

        impl Bug {
            pub const ALL: &[Bug] = &[$(Bug::$bug,)+];

            /// What is wrong, in a sentence.
            pub fn story(self) -> &'static str {
                match self {
                    $(Bug::$bug => concat!($($story),+).trim_ascii(),)+
                }
            }
        }
    };
}

bugs! {
    /// Frames are written but not synced.
    SkipDataSync,
    /// Files are created and renamed, but their directory is not synced.
    SkipDirectorySync,
    /// Producers hear `Ok` before the write was even submitted.
    AcknowledgeBeforeSync,
    /// The nonce counter of an incarnation stands still.
    ReuseNonce,
}

impl Bug {
    /// The name that [`Bug::named`] knows.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL.iter().copied().find(|bug| bug.name() == name)
    }
}

#[cfg(any(test, feature = "sim"))]
mod switch {
    use super::Bug;
    use std::cell::Cell;
    use std::sync::OnceLock;

    thread_local! {
        // Per thread, so that tests running side by side do not infect each other: the simulator is one thread.
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }
    static IN_PROCESS: OnceLock<Bug> = OnceLock::new();

    /// Plants `bug` in this thread, or removes it.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Plants `bug` in every thread of the process, once and for all: for a process of its own that must fail.
    pub fn plant_in_process(bug: Bug) {
        assert_eq!(*IN_PROCESS.get_or_init(|| bug), bug, "a process has one planted bug");
    }

    pub(crate) fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug) || IN_PROCESS.get() == Some(&bug)
    }
}

#[cfg(any(test, feature = "sim"))]
pub use switch::{plant, plant_in_process};

/// Whether `bug` is planted here.
pub fn is(bug: Bug) -> bool {
    #[cfg(any(test, feature = "sim"))]
    return switch::is_planted(bug);
    #[cfg(not(any(test, feature = "sim")))]
    {
        let _nothing_is_planted_here = bug;
        false
    }
}
