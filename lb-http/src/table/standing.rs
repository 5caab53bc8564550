//! Since when a backend or server is up or down, and how long it has been down in all.
//!
//! What makes it so is decided by whoever compiles.

use std::time::{Duration, Instant};

/// Since when something is up or down, and how long it has been down in all.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub is_up: bool,
    pub since: Instant,
    pub n_downs: u64,
    down_before: Duration,
}

impl Standing {
    pub(super) fn new(is_up: bool, now: Instant) -> Self {
        Self { is_up, since: now, n_downs: 0, down_before: Duration::ZERO }
    }

    pub(super) fn next(self, is_up: bool, now: Instant) -> Self {
        match (self.is_up, is_up) {
            (true, false) => Self { is_up, since: now, n_downs: self.n_downs + 1, ..self },
            (false, true) => Self { is_up, since: now, down_before: self.downtime(now), ..self },
            _ => self,
        }
    }

    pub fn downtime(&self, now: Instant) -> Duration {
        let current = if self.is_up { Duration::ZERO } else { now.saturating_duration_since(self.since) };
        self.down_before + current
    }
}
