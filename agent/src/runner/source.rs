//! Runs one source: binds it, however long that takes, and lets it run until the stop.
//!
//! A start that fails is logged with its reason and tried again every three seconds, as Flume's supervisor does. A
//! source whose run ends with an error stays stopped, and says so.

use super::{RESTART_WAIT, pause};
use crate::component::{Source, SourceContext};

pub async fn run(mut source: Box<dyn Source>, context: SourceContext) {
    let name = context.name.clone();
    loop {
        if context.stop.is_requested() {
            return;
        }
        match source.start(&context).await {
            Ok(()) => break,
            Err(error) => {
                tracing::error!("source {name} did not start, trying again in {} s: {error}", RESTART_WAIT.as_secs());
            }
        }
        if !pause(&context.stop, RESTART_WAIT).await {
            return;
        }
    }
    let counters = std::sync::Arc::clone(&context.counters);
    counters.start_time.set_to_now();
    tracing::info!("source {name} started");
    match source.run(context).await {
        Ok(()) => tracing::info!("source {name} stopped"),
        Err(error) => tracing::error!("source {name} stopped and stays stopped: {error}"),
    }
    counters.stop_time.set_to_now();
}
