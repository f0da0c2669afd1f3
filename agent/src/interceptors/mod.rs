//! The table of interceptors: one line per kind, one folder or file each.
//!
//! To add a interceptor: write its module here, with an `ENTRY` const, and add one line to [`TABLE`].

use crate::component::InterceptorEntry;

/// Every interceptor that this build has.
pub static TABLE: &[&InterceptorEntry] = &[];
