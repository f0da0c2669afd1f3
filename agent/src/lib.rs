//! The agent as a library: configuration, components, supervision. The binary `penstock` is a thin shell around it.

pub mod channels;
pub mod cli;
pub mod component;
pub mod config;
pub mod dead_letters;
pub mod intake;
pub mod interceptors;
pub mod key_watch;
pub mod launch;
pub mod own_host;
pub mod reload;
pub mod runner;
pub mod selectors;
pub mod sinks;
pub mod sources;
pub mod supervisor;
pub mod telemetry;
