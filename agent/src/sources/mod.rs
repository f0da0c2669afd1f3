//! The table of sources: one line per kind, one folder or file each.
//!
//! To add a source: write its module here, with an `ENTRY` const, and add one line to [`TABLE`].

pub mod avro;
pub(crate) mod common;
pub mod http;
pub mod netcat;
pub mod seq;

use crate::component::SourceEntry;

/// Every source that this build has.
pub static TABLE: &[&SourceEntry] = &[&avro::ENTRY, &http::ENTRY, &netcat::ENTRY, &seq::ENTRY];
