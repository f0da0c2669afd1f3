//! The table of sinks: one line per kind, one folder or file each.
//!
//! To add a sink: write its module here, with an `ENTRY` const, and add one line to [`TABLE`].

pub mod avro;
pub mod file_roll;
pub mod hdfs;
pub mod logger;
pub mod null;
mod settling;

use crate::component::SinkEntry;

/// Every sink that this build has.
pub static TABLE: &[&SinkEntry] = &[&avro::ENTRY, &file_roll::ENTRY, &hdfs::ENTRY, &logger::ENTRY, &null::ENTRY];
