//! The agent as a library: configuration, components, supervision. The binary `penstock` is a thin shell around it.

pub mod channels;
pub mod component;
pub mod config;
pub mod intake;
pub mod interceptors;
pub mod sinks;
pub mod sources;
pub mod telemetry;
