//! How the disk below a data directory is written: as its identity says, or as it is measured now.
//!
//! Promises that a start never fails for this, and that directories which a start may refuse are left as they are found.

use std::path::Path;

use wal::chore::slot_of;
use wal::io::real::{Backend, RealDir};
use wal::io::{Dir, durable};
use wal::tuning::{self, Calibration, Tuning};

use super::open::{IDENTITY, OpenError, read_identity};
use super::shell::{lock, wall_ms};

/// How to write to the disk below `dir`, and what is known of it. Measures a disk that is new, or another one than before.
pub(super) fn tuning_of(dir: &RealDir, reserve_bytes: u64) -> (Tuning, Option<Calibration>) {
    let unmeasured = (Tuning::default(), None);
    // Whoever opens the channel says what is wrong with it.
    let (Ok(identity), Ok(names)) = (read_identity(dir), dir.list()) else { return unmeasured };
    if identity.is_none() && names.iter().any(|name| slot_of(name).is_some()) {
        return unmeasured;
    }
    let stored = identity.and_then(|identity| identity.calibration);
    if let (Some(stored), Ok(fingerprint)) = (stored, tuning::fingerprint(dir))
        && stored.fingerprint == fingerprint
    {
        return (stored.tuning, Some(stored));
    }
    match tuning::measure(dir, reserve_bytes, wall_ms()) {
        Ok(Some(measured)) => {
            say(dir, &measured);
            (measured.tuning, Some(measured))
        }
        Ok(None) => unmeasured,
        Err(error) => {
            tracing::warn!(dir = dir.name(), %error, "the disk could not be measured; it is written as most are");
            unmeasured
        }
    }
}

fn say(dir: &RealDir, measured: &Calibration) {
    let Calibration { tuning, per_write_kib_s, shared_flush_kib_s, latency_us, .. } = measured;
    tracing::info!(
        dir = dir.name(),
        sync = tuning.durability.name(),
        depth = tuning.depth,
        per_write_mib_s = per_write_kib_s >> 10,
        shared_flush_mib_s = shared_flush_kib_s >> 10,
        latency_us,
        "the disk was measured"
    );
}

/// Measures the disk below a data directory that no process has open, and keeps what was found for the next start. `None`
/// where there is nothing to measure (in memory, through the page cache) or no room for it.
pub fn calibrate(path: &Path, backend: Option<Backend>) -> Result<Option<Calibration>, OpenError> {
    let name = || path.display().to_string();
    let failed = |action: &str, error| OpenError::Io { dir: name(), action: action.to_owned(), error };
    if read_identity(&RealDir::untouched(path))?.is_none() {
        return Err(OpenError::Option(format!("{} is no data directory of a channel", name())));
    }
    let dir = RealDir::open_or_create(path, backend).map_err(|error| failed("open", error))?;
    let _locked = lock(path, &dir)?;
    durable::remove_leftovers(&dir).map_err(|error| failed("remove leftovers", error))?;
    let measured = tuning::measure(&dir, 0, wall_ms()).map_err(|error| failed("measure", error))?;
    if let (Some(measured), Some(mut identity)) = (measured, read_identity(&dir)?) {
        identity.calibration = Some(measured);
        durable::put(&dir, IDENTITY, &identity.encode()).map_err(|error| failed("write the identity", error))?;
    }
    Ok(measured)
}
