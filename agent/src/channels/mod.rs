//! The table of channels: one line per kind, one folder or file each.
//!
//! To add a channel: write its module here, with an `ENTRY`, and add one line to [`TABLE`].

mod file;
mod memory;

pub(crate) use file::OWN_DIR;

use crate::component::ChannelEntry;

/// Every channel that this build has.
pub static TABLE: &[&ChannelEntry] = &[&memory::ENTRY, &file::ENTRY];
