//! Protocol codecs without a runtime.

pub mod avro;
pub mod charset;
pub mod java;
pub mod json;
