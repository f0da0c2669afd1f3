//! Opening a durable channel: whose directories these are, what is in them, and what that means.
//!
//! Reads everything before it writes anything. Promises that a channel starts only when every acknowledged event is
//! accounted for: queued, settled, or named in an error. The order is: locks, identities, logs, judgement, verdict.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use wal::chore::slot_of;
use wal::device::Device;
use wal::format::frame::Mark as Place;
use wal::format::identity::{Identity, Member};
use wal::format::{Classified, Damage};
use wal::io::buffer::Buffer;
use wal::io::{Access, Dir, durable};
use wal::limits::{MEMBERS_MAX, PAGE};
use wal::log::{Log, LogOptions};
use wal::planted::{self, Bug};
use wal::recover::cases::{Case, Content};
use wal::recover::known::Known;
use wal::recover::{Finding, LogScan, Purpose, RecoverError, read_log};
use wal::seal::{ChannelKey, Random};
use wal::tuning::Calibration;

use super::checkpoint::Checkpoint;
use super::core::Start;
use super::found::{Found, witnessed};
use super::queue::Queue;
use super::sections::is_transaction;
use crate::settlement::SeqRange;

pub(crate) const IDENTITY: &str = "identity";
/// The generation of identities while some directories of a new channel may have none yet.
const BEING_CREATED: u64 = 1;

/// A directory to open, and what it fails together with.
#[derive(Debug, Clone)]
pub(crate) struct OpenDir {
    pub(crate) dir: Arc<dyn Dir>,
    pub(crate) device: Arc<Device>,
    /// What is known of its disk, to be kept in its identity.
    pub(crate) calibration: Option<Calibration>,
}

#[derive(Debug, Clone)]
pub(crate) struct OpenSettings {
    pub(crate) segment_len: u64,
    pub(crate) pool_bytes: u64,
    pub(crate) reserve_bytes: u64,
    /// The key for new frames.
    pub(crate) key: Option<ChannelKey>,
    /// All keys that old frames may need.
    pub(crate) keys: Vec<ChannelKey>,
    pub(crate) on_damage: OnDamage,
    /// Whether a start may believe footers instead of reading segments.
    pub(crate) footers: bool,
}

/// What to do when acknowledged events are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// Do not start; nothing is changed.
    #[default]
    Refuse,
    /// Start without them, and count them as lost.
    Continue,
}

/// Why a durable channel does not open. Nothing that was accepted is touched.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{dir} is in use by another process; stop it, or give this channel directories of its own")]
    Locked { dir: String },
    #[error("{dir}: {action}: {error}")]
    Io { dir: String, action: String, error: io::Error },
    #[error("{dir}: identity: {damage}; restore the file `identity` from a copy, or name the right directory")]
    Identity { dir: String, damage: Damage },
    #[error(
        "{dir} holds segments but no identity; if its disk was replaced or not mounted, bring the old one back, otherwise set the directory aside"
    )]
    NoIdentity { dir: String },
    #[error("{dir} belongs to another channel than {other}; give each channel directories of its own")]
    Foreign { dir: String, other: String },
    #[error("{dir} and {other} are the same directory under two names; name it once")]
    SameDirectory { dir: String, other: String },
    #[error(
        "directory …{hint} of this channel is missing and may hold pending events; mount it, or name it again in dataDirs"
    )]
    MissingDirectory { hint: String },
    #[error("{given} directories; a channel has at most {MEMBERS_MAX}")]
    TooManyDirectories { given: usize },
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error("{0}")]
    Damaged(Box<DamageReport>),
    #[error("{dir}: a section of kind {kind} is unknown and not optional; a newer version wrote it, so use that one")]
    UnknownSection { dir: String, kind: u16 },
    #[error("{dir}: {what}, although its checksum is right; keep a copy and report this")]
    Malformed { dir: String, what: String },
    #[error("{0}")]
    Option(String),
}

/// What is lost if the channel starts without it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DamageReport {
    /// (directory, finding)
    pub findings: Vec<(String, Finding)>,
    /// Acknowledged events that no directory holds.
    pub lost: Vec<SeqRange>,
}

impl std::fmt::Display for DamageReport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::from("acknowledged events are damaged:");
        for (dir, finding) in &self.findings {
            let Finding { slot, start, end, case, .. } = finding;
            let _infallible = write!(text, " {dir} segment {slot} bytes {start}..{end} ({case});");
        }
        if !self.lost.is_empty() {
            let count: u64 = self.lost.iter().map(|range| range.count()).sum();
            let _infallible = write!(text, " {count} events missing, numbers");
            for range in self.lost.iter().take(8) {
                let _infallible = write!(text, " {range}");
            }
            text.push(';');
        }
        text.push_str(
            " nothing was changed. Look with `wal-inspect verify`, bring back a lost disk, or start without them with penstock.onDamage = continue",
        );
        formatter.write_str(&text)
    }
}

/// What recovery met, for the log line and for tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    pub queued_events: u64,
    pub frames: u64,
    pub bytes_read: u64,
    /// Segments that a checkpoint vouched for, so that they were not read.
    pub vouched_segments: u64,
    /// Segments of which nothing but the footer was read.
    pub footed_segments: u64,
    /// Places where unacknowledged writes were torn.
    pub torn: u64,
    /// Whole frames that nothing proves to have been acknowledged; their transactions are kept.
    pub unproven_frames: u64,
    /// Events given up because of damage.
    pub lost_events: u64,
    pub findings: Vec<(String, Finding)>,
}

/// Opens the channel in these directories.
pub(crate) fn open(
    dirs: &[OpenDir],
    settings: &OpenSettings,
    random: &dyn Random,
    now_ms: u64,
    checkpoint_dir: Option<&dyn Dir>,
) -> Result<(Start, Recovery), OpenError> {
    let mut plan = identify(dirs, random, now_ms)?;
    let identities = &plan.identities;
    let known = known_of(checkpoint_dir, identities, &settings.keys);
    let (scans, found, ends, witnessed, vouched) = match read_all(dirs, identities, settings, known.as_ref())? {
        Some(read) => read,
        // The checkpoint does not fit the files: it never counts more than they do.
        None => read_all(dirs, identities, settings, None)?.expect("without a checkpoint there is nothing to fit"),
    };
    let mut recovery = Recovery { vouched_segments: vouched, ..Recovery::default() };
    for (scan, ends) in scans.iter().zip(ends) {
        recovery.frames += scan.frames;
        recovery.bytes_read += scan.bytes_read;
        recovery.footed_segments += scan.footed;
        let mark = witnessed[&scan.log];
        recovery.unproven_frames += ends.iter().filter(|end| **end > mark).count() as u64;
        // Segments are allocated whole, so whatever cut one may have cut the evidence off with it.
        let cut = scan.short.iter().map(|short| Finding {
            slot: short.slot,
            ordinal: scan.segments().find(|segment| segment.slot == short.slot).map_or(0, |segment| segment.ordinal),
            start: short.len,
            end: short.wanted,
            content: Content::Damaged,
            case: Case::Corrupt,
        });
        for finding in scan.judge(mark).into_iter().chain(cut) {
            recovery.torn += u64::from(matches!(finding.case, Case::TornHole | Case::TornTail));
            if finding.case != Case::CleanEnd && finding.case != Case::Fenced {
                recovery.findings.push((scan.dir.clone(), finding));
            }
        }
    }
    let next_seq = found.next_seq();
    let lost = found.missing(found.floor, found.durable_seq);
    // Numbers that were given out and never became durable: nobody was told, and nobody will be.
    let mut voids = found.missing(found.durable_seq.max(found.floor), next_seq);
    if planted::is(Bug::ForgetVoids) {
        voids.clear();
    }
    recovery.lost_events = lost.iter().map(|range| range.count()).sum();
    let damaged: Vec<_> = recovery.findings.iter().filter(|(_, finding)| finding.case.is_loss()).cloned().collect();
    let whole = lost.is_empty() && damaged.is_empty();
    if settings.on_damage == OnDamage::Refuse && !whole && !planted::is(Bug::ReplayPastHole) {
        return Err(OpenError::Damaged(Box::new(DamageReport { findings: damaged, lost })));
    }
    plan.write(dirs)?;
    plan.finish_creation(dirs)?;
    let identities = &plan.identities;
    let queued = found.queued();
    recovery.queued_events = queued.count();
    let mut settled = found.settled.clone();
    settled.insert_all(&lost.iter().copied().collect());
    let unresolved = voids.iter().copied().collect();
    let queue = Queue::recovered(queued, settled, unresolved, next_seq);
    let mut logs = Vec::new();
    for ((OpenDir { dir, device, .. }, identity), scan) in dirs.iter().zip(identities).zip(scans) {
        let options = LogOptions {
            channel: identity.channel,
            log: identity.log,
            segment_len: settings.segment_len,
            pool_bytes: settings.pool_bytes,
            key: settings.key.clone(),
            reserve_bytes: settings.reserve_bytes,
        };
        let recovered = scan.recovered(witnessed[&identity.log], settings.segment_len, settings.key.is_some());
        let mut log = Log::new(options, Arc::clone(device), recovered);
        write_verdict(&mut log, &**dir, random, now_ms)?;
        logs.push(log);
    }
    let notes = found.live_notes();
    let channel = identities[0].channel;
    Ok((Start { channel, logs, queue, notes, version: found.version, voids, lost }, recovery))
}

/// The checkpoint, if it is there and of use.
fn known_of(dir: Option<&dyn Dir>, identities: &[Identity], keys: &[ChannelKey]) -> Option<Checkpoint> {
    let (dir, identity) = (dir?, identities.first()?);
    match Checkpoint::read(dir, &identity.channel, keys) {
        Ok(checkpoint) => checkpoint,
        Err(why) => {
            tracing::warn!(dir = dir.name(), why, "the checkpoint is set aside; everything is read");
            None
        }
    }
}

type ReadAll = (Vec<LogScan>, Found, Vec<Vec<Place>>, BTreeMap<[u8; 16], Place>, u64);

/// Reads every log; `None` when the checkpoint does not fit them.
fn read_all(
    dirs: &[OpenDir],
    identities: &[Identity],
    settings: &OpenSettings,
    checkpoint: Option<&Checkpoint>,
) -> Result<Option<ReadAll>, OpenError> {
    let (mut scans, mut found, mut ends) = (Vec::new(), Found::default(), Vec::new());
    let (nothing, mut vouched) = (Known::default(), 0);
    for (OpenDir { dir, .. }, identity) in dirs.iter().zip(identities) {
        let mut own = Found::default();
        let known = checkpoint.and_then(|checkpoint| checkpoint.logs.iter().find(|known| known.log == identity.log));
        let known = known.map_or(&nothing, |log| &log.known);
        let scan = read_log(
            &**dir,
            identity.log,
            identity.channel,
            &settings.keys,
            Purpose::Recover { footers: settings.footers },
            known,
            &|kind| !is_transaction(kind),
            &mut |header, kept| own.take(header, kept),
        )?;
        if !scan.has_all(known) {
            tracing::warn!(dir = dir.name(), "the checkpoint does not fit the segments; everything is read");
            return Ok(None);
        }
        if let Some(kind) = own.unknown {
            return Err(OpenError::UnknownSection { dir: dir.name(), kind });
        }
        if let Some(what) = own.malformed.take() {
            return Err(OpenError::Malformed { dir: dir.name(), what });
        }
        vouched += scan.vouched;
        scan.footed_ranges().for_each(|(start, end)| own.coverage.insert(SeqRange::new(start, end)));
        ends.push(std::mem::take(&mut own.ends));
        found.merge(own);
        scans.push(scan);
    }
    let mut witnessed = witnessed(scans.iter());
    if let Some(checkpoint) = checkpoint {
        found.take_checkpoint(checkpoint);
        for known in &checkpoint.logs {
            if let Some(mark) = witnessed.get_mut(&known.log) {
                *mark = (*mark).max(known.durable);
            }
        }
    }
    Ok(Some((scans, found, ends, witnessed, vouched)))
}

/// What was torn is fenced for good before anything is served.
fn write_verdict(log: &mut Log, dir: &dyn Dir, random: &dyn Random, now_ms: u64) -> Result<(), OpenError> {
    while log.needs_verdict() {
        let Some(chore) = log.next_chore(random, false, false, now_ms) else { break };
        let result = chore.run(dir);
        let failure = result.as_ref().err().map(|error| io::Error::new(error.kind(), error.to_string()));
        log.chore_done(chore, result);
        if let Some(error) = failure {
            let action = "write the verdict of recovery".to_owned();
            return Err(OpenError::Io { dir: dir.name(), action, error });
        }
    }
    Ok(())
}

/// Whether a directory of the channel is missing. Writes nothing: where a disk is not mounted, nothing is left behind.
pub(crate) fn check_members(dirs: &[OpenDir], random: &dyn Random) -> Result<(), OpenError> {
    match identify(dirs, random, 0) {
        Err(missing @ OpenError::MissingDirectory { .. }) => Err(missing),
        // Anything else is for those to find who hold the locks.
        _ => Ok(()),
    }
}

/// Locks are the caller's; here each directory says whose it is, and new ones are told.
fn identify(dirs: &[OpenDir], random: &dyn Random, now_ms: u64) -> Result<Plan, OpenError> {
    if dirs.len() > MEMBERS_MAX {
        return Err(OpenError::TooManyDirectories { given: dirs.len() });
    }
    let mut found: Vec<Option<Identity>> = Vec::new();
    for OpenDir { dir, .. } in dirs {
        found.push(read_identity(&**dir)?);
    }
    for (index, identity) in found.iter().enumerate() {
        let Some(identity) = identity else { continue };
        for (other_index, other) in found.iter().enumerate().take(index) {
            let Some(other) = other else { continue };
            let (dir, other_dir) = (dirs[index].dir.name(), dirs[other_index].dir.name());
            if other.channel != identity.channel {
                return Err(OpenError::Foreign { dir, other: other_dir });
            }
            if other.log == identity.log {
                return Err(OpenError::SameDirectory { dir, other: other_dir });
            }
        }
    }
    let newest = found.iter().flatten().max_by_key(|identity| identity.generation).cloned();
    let empty = |index: usize| -> Result<bool, OpenError> {
        match dirs[index].dir.list() {
            Ok(names) => Ok(!names.iter().any(|name| slot_of(name).is_some())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(OpenError::Io { dir: dirs[index].dir.name(), action: "list".to_owned(), error }),
        }
    };
    let mut fresh: Vec<usize> = Vec::new();
    for (index, identity) in found.iter().enumerate() {
        if identity.is_none() {
            if !empty(index)? {
                return Err(OpenError::NoIdentity { dir: dirs[index].dir.name() });
            }
            fresh.push(index);
        }
    }
    let mut members = newest.as_ref().map(|newest| newest.members.clone()).unwrap_or_default();
    let here = |log: [u8; 16]| found.iter().flatten().any(|identity| identity.log == log);
    let mut ids: BTreeMap<usize, [u8; 16]> = BTreeMap::new();
    for member in members.iter().filter(|member| !here(member.log)) {
        // A creation that was interrupted goes on; anything else is a directory that is not there.
        let place = fresh.iter().find(|index| dirs[**index].dir.name().ends_with(&member.hint)).copied();
        let never_used = newest.as_ref().is_some_and(|newest| newest.generation == BEING_CREATED)
            && (0..dirs.len()).map(&empty).collect::<Result<Vec<_>, _>>()?.into_iter().all(|empty| empty);
        match place {
            Some(index) if never_used => {
                ids.insert(index, member.log);
            }
            _ if planted::is(Bug::AcceptMissingDirectory) => {}
            _ => return Err(OpenError::MissingDirectory { hint: member.hint.clone() }),
        }
    }
    let mut channel = [0; 16];
    random.fill(&mut channel);
    let channel = newest.as_ref().map_or(channel, |newest| newest.channel);
    for index in &fresh {
        if !ids.contains_key(index) {
            let mut log = [0; 16];
            random.fill(&mut log);
            ids.insert(*index, log);
            members.push(Member { log, hint: dirs[*index].dir.name() });
        }
    }
    let grown = newest.as_ref().is_none_or(|newest| newest.members.len() != members.len());
    let generation = newest.as_ref().map_or(0, |newest| newest.generation) + u64::from(grown);
    // New directories first: until the old ones know of them they hold nothing.
    let order = fresh.iter().copied().chain((0..dirs.len()).filter(|index| !fresh.contains(index)));
    let identity = |index: usize| Identity {
        channel,
        log: found[index].as_ref().map_or_else(|| ids[&index], |identity| identity.log),
        generation,
        created_ms: found[index].as_ref().map_or(now_ms, |identity| identity.created_ms),
        calibration: dirs[index].calibration.or_else(|| found[index].as_ref()?.calibration),
        members: members.clone(),
    };
    Ok(Plan {
        identities: (0..dirs.len()).map(identity).collect(),
        writes: order.filter(|index| found[*index].as_ref() != Some(&identity(*index))).collect(),
    })
}

/// Whose each directory is, and which of them are still to be told, in this order.
struct Plan {
    identities: Vec<Identity>,
    writes: Vec<usize>,
}

impl Plan {
    /// Says in every directory that all of them are made, before anything is put. From then on a directory without an
    /// identity is one that is not there, even if all the others are empty.
    fn finish_creation(&mut self, dirs: &[OpenDir]) -> Result<(), OpenError> {
        if dirs.len() > 1 && self.identities.iter().all(|identity| identity.generation == BEING_CREATED) {
            self.identities.iter_mut().for_each(|identity| identity.generation += 1);
            self.writes = (0..dirs.len()).collect();
            self.write(dirs)?;
        }
        Ok(())
    }

    fn write(&self, dirs: &[OpenDir]) -> Result<(), OpenError> {
        for index in &self.writes {
            let dir = &dirs[*index].dir;
            durable::put(&**dir, IDENTITY, &self.identities[*index].encode()).map_err(|error| OpenError::Io {
                dir: dir.name(),
                action: "write the identity".to_owned(),
                error,
            })?;
        }
        Ok(())
    }
}

/// The identity of a directory; `None` when it has none.
pub(crate) fn read_identity(dir: &dyn Dir) -> Result<Option<Identity>, OpenError> {
    let failed = |action: &str, error| OpenError::Io { dir: dir.name(), action: action.to_owned(), error };
    let file = match dir.open(IDENTITY, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open the identity", error)),
    };
    let mut page = Buffer::zeroed(PAGE).map_err(|error| failed("allocate", error))?;
    let read = file.read_at(&mut page, 0).map_err(|error| failed("read the identity", error))?;
    let whole = page.first_chunk().filter(|_| read == PAGE);
    match whole.map(Identity::classify) {
        Some(Classified::Present(identity)) => Ok(Some(identity)),
        Some(Classified::Damaged(damage)) => Err(OpenError::Identity { dir: dir.name(), damage }),
        Some(Classified::Absent) | None => Err(OpenError::Identity { dir: dir.name(), damage: Damage::Magic }),
    }
}
