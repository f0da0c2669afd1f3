//! What sources that listen on TCP share: the accept loop, memory allowances, rate-limited complaints.

pub(crate) mod allowance;
pub(crate) mod complaints;
pub(crate) mod server;
