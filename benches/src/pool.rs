//! A channel whose segments are there already: filled and drained once, for all loads that need such a one.

use std::path::Path;
use std::time::Duration;

use channel::{Channel as _, DurableChannel};

use crate::channel::{Arguments, Outcome, load, still};

pub(crate) struct Pool<'a> {
    channel: DurableChannel,
    dir: &'a Path,
    /// Events that stay queued behind each load.
    keep: u64,
}

impl<'a> Pool<'a> {
    /// Fills a new channel below `dir` with so many bytes and drains it. `more` are options of the channel, as one would type
    /// them.
    pub(crate) fn filled(dir: &'a Path, bytes: u64, more: &[&str]) -> Result<Pool<'a>, String> {
        Arguments::typed(dir, UNUSED, more)?.clear()?;
        Pool::around(dir, bytes, more)
    }

    /// The same around what is queued in the channel that is there, if one is: afterwards, and behind each load, as many events
    /// are queued as before.
    pub(crate) fn around(dir: &'a Path, bytes: u64, more: &[&str]) -> Result<Pool<'a>, String> {
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let bytes = bytes.to_string();
        let filling = Arguments::typed(dir, UNUSED, &[&["--warm-pool", &bytes], more].concat())?;
        let channel = filling.open()?;
        let pool = Pool { keep: channel.stats().size_events, channel, dir };
        still::warm(&pool.channel, &filling)?;
        Ok(pool)
    }

    /// Measures a load, and takes what it left.
    pub(crate) fn load(&self, seconds: Duration, more: &[&str]) -> Result<Outcome, String> {
        // The channel is warm; only threads and processors are not.
        let outcome = load::measure(
            &self.channel,
            &Arguments::typed(self.dir, seconds, &[&["--warmup", WARM_UP], more].concat())?,
        )?;
        still::drain_to(&self.channel, self.keep)?;
        Ok(outcome)
    }

    pub(crate) fn close(self) -> Result<(), String> {
        self.channel.close().wait()
    }
}

/// The command line wants a time where nothing is measured.
const UNUSED: Duration = Duration::from_secs(1);
/// Seconds before those that are measured.
const WARM_UP: &str = "0.2";

/// What a load that writes `bytes_s` for so long needs of a pool.
pub(crate) fn bytes_for(bytes_s: f64, seconds: Duration) -> u64 {
    (bytes_s * (seconds.as_secs_f64() + 0.2) * 1.1) as u64
}
