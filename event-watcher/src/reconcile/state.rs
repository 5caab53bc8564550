//! How far what is held can be trusted to be the present: `Unsynced → Live → Degraded → Live`.
//!
//! Sans-io. Once something good is held, it never becomes unsynced again: losing a scheduler loses no route.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::publish::Freshness;

/// Why a source is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// No answer yet.
    Start,
    /// What an earlier run kept on disk is served.
    Restored,
    /// The event stream is lost.
    Stream,
    /// The state could not be read.
    Fetch,
    /// The credentials are refused.
    Auth,
    /// A large loss is held back until it is confirmed.
    HeldDrop,
    /// Two members claim to lead.
    SplitBrain,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restored => "restored",
            Self::Stream => "stream",
            Self::Fetch => "fetch",
            Self::Auth => "auth",
            Self::HeldDrop => "held_drop",
            Self::SplitBrain => "split_brain",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    Unsynced { cause: Cause, reason: Arc<str> },
    Live,
    Degraded { since: Instant, cause: Cause, reason: Arc<str> },
}

impl State {
    pub(crate) fn new() -> Self {
        Self::Unsynced { cause: Cause::Start, reason: "no answer from the scheduler yet".into() }
    }

    pub(crate) fn is_synced(&self) -> bool {
        !matches!(self, Self::Unsynced { .. })
    }

    /// What is held may be old from now on; if it may be already, since when stays.
    pub(crate) fn lost(&mut self, now: Instant, cause: Cause, reason: &str) {
        let reason: Arc<str> = reason.into();
        *self = match self {
            Self::Unsynced { .. } => Self::Unsynced { cause, reason },
            Self::Live => Self::Degraded { since: now, cause, reason },
            Self::Degraded { since, .. } => Self::Degraded { since: *since, cause, reason },
        };
    }

    /// What is held was the present at `since`, and is not known to be it now.
    pub(crate) fn known_as_of(&mut self, since: Instant, cause: Cause, reason: &str) {
        *self = Self::Degraded { since, cause, reason: reason.into() };
    }

    pub(crate) fn confirmed(&mut self) {
        *self = Self::Live;
    }

    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            Self::Live => None,
            Self::Unsynced { cause, .. } | Self::Degraded { cause, .. } => Some(*cause),
        }
    }

    pub(crate) fn reason(&self) -> Option<&Arc<str>> {
        match self {
            Self::Live => None,
            Self::Unsynced { reason, .. } | Self::Degraded { reason, .. } => Some(reason),
        }
    }

    pub(crate) fn freshness(&self) -> Freshness {
        match self {
            Self::Unsynced { reason, .. } => Freshness::Unsynced { reason: Arc::clone(reason) },
            Self::Live => Freshness::Live,
            Self::Degraded { since, reason, .. } => {
                Freshness::Stale { since: *since, reason: Arc::clone(reason) }
            }
        }
    }

    /// Whether this may follow `before` in one step at `now`.
    pub(crate) fn may_follow(&self, before: &Self, now: Instant) -> bool {
        match (before, self) {
            (Self::Live | Self::Degraded { .. }, Self::Unsynced { .. }) => false,
            // What is held does not become older by a step, only by time.
            (Self::Degraded { since: old, .. }, Self::Degraded { since, .. }) => {
                since >= old && *since <= now
            }
            (_, Self::Degraded { since, .. }) => *since <= now,
            _ => true,
        }
    }
}
