//! Protocol codecs without a runtime.
