//! The decision table of recovery: every combination of evidence has one labelled case.
//!
//! A torn tail and corruption are told apart by evidence, never by position alone: what a surviving frame, fence or
//! witness says was durable must be there. `docs/recovery.md` prints this table; a test compares them.

use std::fmt;

use crate::planted::{self, Bug};

/// Where bytes are that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Whole frames of the same incarnation follow.
    Gap,
    /// None follow.
    Tail,
}

/// What later incarnations say of the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceSays {
    /// There is no fence for the incarnation.
    Nothing,
    /// The place was decided not to count.
    Cut,
    /// The place was decided to count.
    Counts,
}

/// What is there instead of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// As allocated.
    Zero,
    /// Bytes that are no frame of this incarnation: stale, torn or rotten.
    Other,
    /// A frame header that belongs here, whose frame is not whole.
    Damaged,
    /// The disk refuses to read it.
    Unreadable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    pub position: Position,
    pub fence: FenceSays,
    /// A surviving frame says that the place was durable.
    pub witnessed: bool,
    /// The next whole frame is farther away than anything that can have been in flight.
    pub beyond_window: bool,
    pub content: Content,
}

/// What recovery makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// The end of what was written.
    CleanEnd,
    /// Writes that were never acknowledged, torn by the crash.
    TornTail,
    /// Unacknowledged writes are missing between whole ones, which are kept.
    TornHole,
    /// Decided by an earlier recovery.
    Fenced,
    /// Acknowledged bytes are damaged.
    Corrupt,
    /// Damage that no crash can have made.
    CorruptBeyondWindow,
    /// Bytes that an earlier recovery found whole are damaged.
    CorruptAfterVerdict,
    /// Both copies of an incarnation header are damaged, and frames follow.
    HeaderLost,
    /// The disk cannot be read where it matters.
    Unreadable,
}

impl Case {
    /// Whether acknowledged events may be lost: the start is refused unless the operator decides otherwise.
    pub fn is_loss(self) -> bool {
        match self {
            Case::CleanEnd | Case::TornTail | Case::TornHole | Case::Fenced => false,
            Case::Corrupt
            | Case::CorruptBeyondWindow
            | Case::CorruptAfterVerdict
            | Case::HeaderLost
            | Case::Unreadable => true,
        }
    }

    pub const ALL: [Case; 9] = [
        Case::CleanEnd,
        Case::TornTail,
        Case::TornHole,
        Case::Fenced,
        Case::Corrupt,
        Case::CorruptBeyondWindow,
        Case::CorruptAfterVerdict,
        Case::HeaderLost,
        Case::Unreadable,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Case::CleanEnd => "clean end",
            Case::TornTail => "torn tail",
            Case::TornHole => "torn hole",
            Case::Fenced => "fenced",
            Case::Corrupt => "corrupt",
            Case::CorruptBeyondWindow => "corrupt beyond the window",
            Case::CorruptAfterVerdict => "corrupt after the verdict",
            Case::HeaderLost => "header lost",
            Case::Unreadable => "unreadable",
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.label())
    }
}

/// The table, first match wins.
pub fn decide(evidence: &Evidence) -> Case {
    match *evidence {
        Evidence { fence: FenceSays::Cut, .. } => Case::Fenced,
        Evidence { content: Content::Unreadable, .. } => Case::Unreadable,
        Evidence { fence: FenceSays::Counts, .. } => Case::CorruptAfterVerdict,
        Evidence { witnessed: true, .. } if !planted::is(Bug::IgnoreWitness) => Case::Corrupt,
        Evidence { beyond_window: true, .. } => Case::CorruptBeyondWindow,
        Evidence { position: Position::Gap, .. } => Case::TornHole,
        Evidence { content: Content::Zero, .. } => Case::CleanEnd,
        _ if planted::is(Bug::RefuseTornTail) => Case::Corrupt,
        Evidence { content: Content::Other | Content::Damaged, .. } => Case::TornTail,
    }
}

/// All combinations, for the test and for printing.
pub fn all_evidence() -> Vec<Evidence> {
    let mut all = Vec::new();
    for position in [Position::Gap, Position::Tail] {
        for fence in [FenceSays::Nothing, FenceSays::Cut, FenceSays::Counts] {
            for witnessed in [false, true] {
                for beyond_window in [false, true] {
                    for content in [Content::Zero, Content::Other, Content::Damaged, Content::Unreadable] {
                        all.push(Evidence { position, fence, witnessed, beyond_window, content });
                    }
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_witnessed_is_never_called_torn() {
        for evidence in all_evidence() {
            let case = decide(&evidence);
            if evidence.witnessed && evidence.fence != FenceSays::Cut {
                assert!(case.is_loss(), "{evidence:?} is {case}");
            }
        }
    }

    #[test]
    fn nothing_is_called_lost_without_a_reason() {
        for evidence in all_evidence() {
            let reason = evidence.witnessed
                || evidence.beyond_window
                || evidence.fence == FenceSays::Counts
                || evidence.content == Content::Unreadable;
            assert!(reason || !decide(&evidence).is_loss(), "{evidence:?}");
        }
    }

    #[test]
    fn a_fence_settles_the_matter() {
        for evidence in all_evidence().into_iter().filter(|evidence| evidence.fence == FenceSays::Cut) {
            assert_eq!(decide(&evidence), Case::Fenced);
        }
    }
}
