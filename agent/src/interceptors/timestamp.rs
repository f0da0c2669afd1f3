//! `timestamp`: gives events the time at which they arrived, in milliseconds since 1970.
//!
//! One clock read per batch, as a header of the whole batch.

use std::time::{SystemTime, UNIX_EPOCH};

use channel::{EventBatch, Existing};

use crate::component::{Interceptor, InterceptorEntry, Key, KeyDefault, Refused, Settings};

pub(super) static ENTRY: InterceptorEntry = InterceptorEntry {
    alias: "timestamp",
    class: "org.apache.flume.interceptor.TimestampInterceptor$Builder",
    doc: "Gives every event the time of its arrival as a header, in milliseconds since 1970.",
    keys: &[
        Key::text("headerName", KeyDefault::Is("timestamp"), "Name of the header."),
        Key::flag("preserveExisting", "false", "Keep a header that the event brings."),
    ],
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Interceptor>, Refused> {
    Ok(Box::new(Timestamp { header: settings.text("headerName"), existing: super::existing(settings) }))
}

struct Timestamp {
    header: String,
    existing: Existing,
}

impl Interceptor for Timestamp {
    fn intercept(&self, batch: &mut EventBatch) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        batch.set_common(&self.header, &now.to_string(), self.existing);
    }
}
