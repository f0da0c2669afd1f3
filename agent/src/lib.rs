//! The agent as a library: configuration, components, supervision. The binary `penstock` is a thin shell around it.

pub mod channels;
pub mod component;
pub mod config;
pub mod intake;
pub mod interceptors;
pub mod keys;
pub mod own_host;
pub mod selectors;
pub mod sinks;
pub mod sources;
pub mod telemetry;
