//! Where sinks write.
