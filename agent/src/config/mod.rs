//! Configuration: from the bytes of a `.properties` file to typed settings with positions.
//!
//! Promises that everything found wrong carries its file and line and that findings are collected, never reported one
//! at a time. It builds nothing: components read their [`settings::Settings`].

pub mod finding;
pub mod lookup;
pub mod model;
pub mod plan;
pub mod properties;
pub mod refused;
pub mod report;
pub mod settings;
