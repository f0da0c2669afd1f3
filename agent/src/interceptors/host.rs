//! `host`: gives events the name or address of this machine.
//!
//! Looked up once, when the agent starts. Where the machine's name has no address the header is left out, as in Flume.

use channel::{EventBatch, Existing};

use crate::component::{Interceptor, InterceptorEntry, Key, KeyDefault, Refused, Settings};
use crate::own_host::OwnHost;

pub(super) static ENTRY: InterceptorEntry = InterceptorEntry {
    alias: "host",
    class: "org.apache.flume.interceptor.HostInterceptor$Builder",
    doc: "Gives every event the address or the name of this machine as a header.",
    keys: &[
        Key::text("hostHeader", KeyDefault::Is("host"), "Name of the header."),
        Key::flag("useIP", "true", "Use the address; otherwise the full name."),
        Key::flag("preserveExisting", "false", "Keep a header that the event brings."),
    ],
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Interceptor>, Refused> {
    let own = OwnHost::find();
    let use_ip = settings.flag("useIP");
    let value = own.address.map(|address| if use_ip { address.to_string() } else { own.full_name });
    if value.is_none() {
        settings.warn("type", "this machine's own name has no address, so events get no host header; see /etc/hosts");
    }
    Ok(Box::new(Host { header: settings.text("hostHeader"), value, existing: super::existing(settings) }))
}

struct Host {
    header: String,
    value: Option<String>,
    existing: Existing,
}

impl Interceptor for Host {
    fn intercept(&self, batch: &mut EventBatch) {
        if let Some(value) = &self.value {
            batch.set_common(&self.header, value, self.existing);
        }
    }
}
