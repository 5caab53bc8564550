//! Where apps come from: [`marathon`], a scheduler, and [`fixed`], a file.
//!
//! A source reads, translates and tells its [`crate::hub::Feed`] what it holds and how far that can be trusted. It
//! publishes nothing, and knows of no other source.

pub(crate) mod fixed;
pub(crate) mod marathon;
mod signal;

pub(crate) use signal::{InstanceRef, News, Signal, Urgency, Verdict};
