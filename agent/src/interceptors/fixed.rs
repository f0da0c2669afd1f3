//! `static`: gives events one header with a fixed value.

use channel::{EventBatch, Existing};

use crate::component::{Interceptor, InterceptorEntry, Key, KeyDefault, Refused, Settings};

pub(super) static ENTRY: InterceptorEntry = InterceptorEntry {
    alias: "static",
    class: "org.apache.flume.interceptor.StaticInterceptor$Builder",
    doc: "Gives every event one header with a fixed value.",
    keys: &[
        Key::text("key", KeyDefault::Is("key"), "Name of the header."),
        Key::text("value", KeyDefault::Is("value"), "Its value."),
        Key::flag("preserveExisting", "true", "Keep a header that the event brings."),
    ],
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Interceptor>, Refused> {
    Ok(Box::new(Fixed {
        header: settings.text("key"),
        value: settings.text("value"),
        existing: super::existing(settings),
    }))
}

struct Fixed {
    header: String,
    value: String,
    existing: Existing,
}

impl Interceptor for Fixed {
    fn intercept(&self, batch: &mut EventBatch) {
        batch.set_common(&self.header, &self.value, self.existing);
    }
}
