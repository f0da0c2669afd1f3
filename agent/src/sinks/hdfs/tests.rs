//! Stories about the sink.
