//! What the agent says about itself: counters with Flume's names.

pub mod counters;
pub mod http;
pub mod registry;
