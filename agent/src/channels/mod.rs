//! The table of channels: one line per kind, one folder or file each.
//!
//! To add a channel: write its module here, with an `ENTRY` const, and add one line to [`TABLE`].

use crate::component::ChannelEntry;

/// Every channel that this build has.
pub static TABLE: &[&ChannelEntry] = &[];
