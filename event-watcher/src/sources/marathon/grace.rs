//! Instances whose app has health checks and that have no verdict yet: until when each may do without one.
//!
//! It decides nothing about health and knows no clock; an app that is gone is forgotten when its time is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::catalog::{App, AppId, Health, InstanceId, InstanceState};

/// Marathon's default for `gracePeriodSeconds`.
const DEFAULT: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(crate) struct Grace {
    until: BTreeMap<AppId, BTreeMap<InstanceId, Instant>>,
    /// Nobody's time is over before; it may be nobody's at all.
    next: Option<Instant>,
}

impl Grace {
    /// Notes who of the app runs without a verdict. Its time began when it was first seen so.
    pub(crate) fn note(&mut self, app: &App, now: Instant) {
        let known = self.until.remove(&app.id).unwrap_or_default();
        let deadline = now + of_app(app);
        let waits = app
            .instances
            .iter()
            .filter(|i| i.health == Health::Unknown && i.state == InstanceState::Running)
            .map(|i| (i.id.clone(), known.get(&i.id).copied().unwrap_or(deadline)));
        let waits: BTreeMap<InstanceId, Instant> = waits.collect();
        if !waits.is_empty() {
            self.next = waits.values().copied().chain(self.next).min();
            self.until.insert(app.id.clone(), waits);
        }
    }

    /// When to look for those whose time is over.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Those who have waited for long enough.
    pub(crate) fn take_over(&mut self, now: Instant) -> Vec<(AppId, InstanceId)> {
        if self.next.is_none_or(|next| next > now) {
            return Vec::new();
        }
        let mut over = Vec::new();
        self.until.retain(|app, waits| {
            waits.retain(|instance, until| {
                let is_over = *until <= now;
                if is_over {
                    over.push((app.clone(), instance.clone()));
                }
                !is_over
            });
            !waits.is_empty()
        });
        self.next = self.until.values().flat_map(BTreeMap::values).min().copied();
        over
    }

    /// All of them, however short they have waited.
    pub(crate) fn take_all(&mut self) -> Vec<(AppId, InstanceId)> {
        self.next = None;
        let each = |(app, waits): (AppId, BTreeMap<InstanceId, Instant>)| {
            waits.into_keys().map(move |instance| (app.clone(), instance))
        };
        std::mem::take(&mut self.until).into_iter().flat_map(each).collect()
    }
}

/// The longest of its checks.
fn of_app(app: &App) -> Duration {
    let of_checks = app.health_checks.iter().filter_map(|check| check.grace_period_seconds);
    of_checks.max().map_or(DEFAULT, |seconds| Duration::from_secs(seconds.into()))
}
