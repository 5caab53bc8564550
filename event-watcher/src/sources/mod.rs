//! Where the catalog's contents come from. Today one kind of scheduler: [`marathon`].
//!
//! A source reads and translates; it never decides when to read ([`crate::reconcile`]) and never publishes.

pub mod marathon;
mod signal;

pub(crate) use signal::{InstanceRef, Signal, Urgency, Verdict};
