//! Why the kernel did not take what a plane gave it, and why a kernel plane cannot be used at all.
//!
//! It holds no retry policy: whoever drives the plane decides when to try again.

use std::io;

use super::Frontend;

/// A change that was not made. What was in force before is in force still.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// These frontends cannot be taken, now or later, as long as everything else stays; the rest of the same call
    /// can, without them.
    #[error("{} VIP addresses refused: {reason}", frontends.len())]
    Refused { frontends: Vec<Frontend>, reason: String },
    /// A call to the kernel failed.
    #[error("cannot {what}")]
    Kernel { what: String, source: io::Error },
}

impl ApplyError {
    pub fn kernel(what: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel { what: what.into(), source }
    }
}

/// A kernel plane cannot be used on this host, or not by this process.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct OpenError {
    pub what: String,
    pub source: io::Error,
    /// What to do about it, in one line.
    pub hint: String,
}

impl OpenError {
    pub fn new(what: impl Into<String>, source: io::Error, hint: impl Into<String>) -> Self {
        Self { what: what.into(), source, hint: hint.into() }
    }
}
