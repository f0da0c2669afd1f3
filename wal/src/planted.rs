//! Bugs on purpose, for tests that must notice them. Without the feature `sim` every question is answered `false`.

/// Bugs that the proof must catch, each with the sentence that says what is wrong, and where others had it.
macro_rules! bugs {
    ($($(#[doc = $story:literal])+ $bug:ident $(seen in $others:literal)?,)+) => {
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

            /// Which other log had it, and said so in public.
            pub fn seen_in(self) -> Option<&'static str> {
                let others: &[&'static str] = match self {
                    $(Bug::$bug => &[$($others)?],)+
                };
                others.first().copied()
            }
        }
    };
}

bugs! {
    // Durability.
    /// Frames are written but not synced.
    SkipDataSync seen in "nats-server 7564",
    /// Files are created and renamed, but their directory is not synced.
    SkipDirectorySync,
    /// A file gets its name before its bytes are durable: a crash leaves an identity that no start accepts.
    PublishUnsyncedFile seen in "vector 25768",
    /// A segment gets its name before its zeros and its length are durable.
    PublishUnsyncedSegment,
    /// Frames follow an incarnation header that is not durable yet.
    SkipHeaderSync,
    /// A sync that failed is asked again, and its success is believed.
    RetryFailedSync seen in "PostgreSQL, fsync in 2018",
    /// A flush counts for writes that returned while it was under way.
    FlushCoversLater,
    /// After a flush has failed, writes that returned meanwhile are flushed again, and the answer is believed.
    FlushAgain,
    /// Recovery counts what the page cache has, whether or not the disk has it.
    TrustPageCache,

    // Answers.
    /// Producers hear `Ok` before the write was even submitted.
    AcknowledgeBeforeSync,
    /// Consumers hear `Ok` before the frame with their settlement was even submitted.
    AcknowledgeSettlementBeforeSync,
    /// A write that returns after its device failed is acknowledged, although its frame no longer counts.
    AcknowledgeLateWrite,
    /// A settlement whose frame failed is acknowledged as if it were durable.
    AcknowledgeFailedSettlement,
    /// A put of unknown outcome is answered as one that was refused.
    CallUnknownRefused,
    /// A frame that overtook an earlier one counts as durable at once.
    DurableOutOfOrder,

    // Evidence in frames.
    /// A frame testifies that its log is durable up to itself, although writes before it are in flight.
    MarkAheadOfDurable,
    /// With several directories, frames say that every event given out so far is durable.
    DurableSeqAhead seen in "pebble 6031",
    /// Frames that nothing follows never get a witness.
    NeverWitness,
    /// Recovery takes no notice of witnesses: damage below a durable mark is a torn tail.
    IgnoreWitness,
    /// New incarnation headers come without fences.
    ForgetFences,
    /// Recovery judges a place as if no fence had decided about it.
    IgnoreFences,

    // Recovery.
    /// Acknowledged events that are missing do not end the start: replay goes on past the hole.
    ReplayPastHole seen in "pebble 864, rocksdb 12403",
    /// The first bytes that are no frame end the segment, whatever stands behind them.
    DamageEndsLog seen in "pebble 453, kafka LogSegment.recover",
    /// Frames that an earlier use of the file left behind are taken for frames of this one.
    AcceptRecycledFrames seen in "pebble 580, rocksdb 6351",
    /// Garbage behind the last frame, as every crash may leave it, ends the start.
    RefuseTornTail seen in "etcd 5230, 11488, 14098",
    /// A new incarnation begins in the last page of the one before.
    OverwriteLastPage seen in "tikv 13488",
    /// The checksum of a frame's body is not compared.
    SkipBodyChecksum,
    /// Numbers go on behind the last queued event, so that those of settled ones are given out again.
    ReuseSequenceNumbers,
    /// Numbers that were given out and never became durable are not declared void.
    ForgetVoids,
    /// A channel starts although one of its directories is not there.
    AcceptMissingDirectory,

    // Checkpoints.
    /// What an older checkpoint says replaces what newer frames say.
    CheckpointMovesBack seen in "bookkeeper 4105",
    /// A checkpoint vouches for the segment that is still written.
    CheckpointVouchesForOpen,
    /// A checkpoint spares the frames that say which segments were given back, and does not say it itself.
    ForgetOldest,
    /// A segment gets its footer while frames of it are on their way.
    FooterAheadOfFrames,
    /// A footer does not say what the frames of its segment settled.
    FooterForgetsSettlements,
    /// A footer spares the frames that say which segments were given back, and does not say it itself.
    FooterForgetsOldest,
    /// A checkpoint leaves out events that are with consumers.
    CheckpointForgetsLeases,

    // Segments.
    /// A drained segment is given back before the snapshot of what it knew is durable.
    ReleaseBeforeSnapshot,
    /// Only the first run of settled events above the floor outlives its segment.
    ForgetSettledRuns seen in "pulsar 25540",
    /// Notes do not outlive their segment.
    ForgetNotes,
    /// A segment is given back while a failed write into it has not returned.
    ReuseUnderLateWrite,
    /// A place that was prepared behind an earlier run is given back together with that run's segment.
    DiscardLiveSegment,
    /// Events take the last spare segment, and nothing is left for the settlements that would free one.
    SpendLastSpare seen in "Flume's file channel",

    // Encryption.
    /// The nonce counter of an incarnation stands still.
    ReuseNonce seen in "NATS block stream",
    /// Every incarnation has the same salt, so that all of them share a key and count their nonces from 0.
    RepeatSalt,
    /// Frames are decrypted without a look at their tag.
    SkipTag seen in "Flume's AES/CTR",
    /// The tag covers the body and not the header.
    LeaveHeaderOut,
    /// After a restart in the middle of a segment, frames are written in the clear.
    PlainAfterRestart,
    /// After the key was rotated, new segments are still begun under the old one.
    PrepareWithOldKey,
    /// A place that was being prepared when the key was rotated is sealed with a key that its header does not name.
    RotateUnderHeader,
    /// Once a channel is encrypted, its drained segments with plaintext are kept for reuse.
    KeepPlainSegment,

    // Failed disks.
    /// A transaction that moves to another disk does not void its old numbers.
    MoveWithoutVoid,
    /// A transaction that moves to another disk goes behind younger ones.
    MoveBehindYounger,
    /// A producer's transactions go to any disk, though earlier ones are in flight on another.
    IgnoreAffinity,
    /// Events of a failed frame take room in the channel for ever.
    LeakCapacity,
    /// A segment waits for every number between its first and its last event, although some are in flight to other disks.
    WaitForStrangers,
    /// Settlements in a frame on its way to a disk that stalls wait for that disk.
    SettleWithTheStalled,
    /// What was given to another log as well is not a fact when the frame that took so long is durable after all.
    SayOnlyElsewhere,
    /// A disk that stalls counts as one that takes puts, so that they wait without end.
    TrustTheStalled,

    // Compression.
    /// A compressed transaction is written as if it were a plain one.
    HideCompression,

    // Queue, settlements and notes.
    /// The transactions of a frame are written last first.
    ReversePuts,
    /// Events that a consumer returned are not queued again.
    ForgetReturned,
    /// A consumer that goes away keeps its events.
    KeepLeasesOfGone,
    /// Events stay in the queue while they are with a consumer.
    LeaseTwice,
    /// A settlement on disk covers one event too many.
    SettleOneMore,
    /// The floor passes events that are with consumers.
    FloorPassesLeases,
    /// Of several notes with one key the one that was read last counts, and not the latest version.
    OlderNoteWins,
    /// A snapshot makes notes that are still in flight on another log look removed.
    HideOpenNotes,

    // Reading back.
    /// A lease of the rest of a transaction begins at its first event again.
    LeaseFromStart,
    /// Frames that are read back are not compared with their checksum.
    ReadUnchecked,
    /// Events that cannot be read back are passed by in silence.
    SkipUnreadable,
    /// An event that cannot be read stops the takes of those behind it, also of other disks.
    StopAtUnreadable,
    /// Events that could not be read are not tried again before the next start.
    ForgetHeld,
    /// A scrub reads and does not look, so that rot is found by the drain.
    ScrubBlindly,
    /// Reading back ends at a hole that recovery had found.
    StopAtHole,
}

impl Bug {
    /// The name that [`Bug::named`] knows.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Whether it is a known bug of another log.
    pub fn is_public(self) -> bool {
        self.seen_in().is_some()
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
#[inline]
pub fn is(bug: Bug) -> bool {
    #[cfg(any(test, feature = "sim"))]
    return switch::is_planted(bug);
    #[cfg(not(any(test, feature = "sim")))]
    {
        let _nothing_is_planted_here = bug;
        false
    }
}
