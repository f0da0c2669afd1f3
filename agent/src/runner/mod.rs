//! One task per source and per sink: start, retry, back-off, stop.

pub mod sink;
pub mod source;

use std::time::Duration;

use crate::component::Stop;

/// How long Flume's supervisor waits before it starts a component again.
const RESTART_WAIT: Duration = Duration::from_secs(3);

/// Waits, but not beyond a requested stop. Says whether to go on.
async fn pause(stop: &Stop, wait: Duration) -> bool {
    tokio::select! {
        () = stop.requested() => false,
        () = tokio::time::sleep(wait) => true,
    }
}
