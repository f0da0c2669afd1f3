//! Protocol codecs without a runtime.

pub mod java;
