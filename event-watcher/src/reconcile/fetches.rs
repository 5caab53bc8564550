//! Which fetches are due, when the next ones are, and how long to wait after one that failed.
//!
//! It judges no answer.

use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::{
    APP_BURST, AUTH_BACKOFF, Action, BACKOFF_FIRST, BACKOFF_MAX, FETCH_BACKOFF_FLOOR, FailureKind,
    LIST_INTERVAL, MAX_CONCURRENT_FETCHES, MAX_SINGLE_FETCHES, Reconcile, Stream, Ticket,
};
use crate::catalog::AppId;

impl Reconcile {
    pub(super) fn begin_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Stream::Down { due } = self.stream
            && due <= now
        {
            self.stream = Stream::Connecting;
            actions.push(Action::Connect);
        }
        let n_due = self.dirty.iter().filter(|id| self.tracks[*id].due.is_some_and(|due| due <= now)).count();
        if n_due > MAX_SINGLE_FETCHES {
            for id in std::mem::take(&mut self.dirty) {
                if let Some(track) = self.tracks.get_mut(&id) {
                    track.due = None;
                }
            }
            self.want_list(now);
        }
        if self.next_list().is_some_and(|due| due <= now) {
            self.counter += 1;
            let ticket = Ticket(self.counter);
            self.list = Some(ticket);
            self.list_due = None;
            self.list_begun = Some(now);
            actions.push(Action::FetchList(ticket));
        }
        while self.may_fetch_apps() {
            let Some((_, id)) = self.next_app().filter(|(due, _)| *due <= now) else { break };
            let id = id.clone();
            self.counter += 1;
            let ticket = Ticket(self.counter);
            let interval = self.timing.coalesce;
            let Some(track) = self.tracks.get_mut(&id) else { break };
            let tolerated = now + interval * (APP_BURST - 1);
            if track.paid_at > tolerated {
                track.due = Some(now + (track.paid_at - tolerated));
                continue;
            }
            track.paid_at = track.paid_at.max(now) + interval;
            track.due = None;
            track.in_flight = Some(ticket);
            self.dirty.remove(&id);
            self.n_in_flight += 1;
            actions.push(Action::FetchApp(ticket, id));
        }
    }

    /// Before the first list there is nothing that a single app could be put into.
    pub(super) fn may_fetch_apps(&self) -> bool {
        self.state.is_synced() && self.n_in_flight < MAX_CONCURRENT_FETCHES
    }

    pub(super) fn next_app(&self) -> Option<(Instant, &AppId)> {
        self.dirty
            .iter()
            .filter_map(|id| {
                let track = &self.tracks[id];
                Some((track.due.filter(|_| track.in_flight.is_none())?, id))
            })
            .min()
    }

    pub(super) fn next_list(&self) -> Option<Instant> {
        // A stream that is just being attached brings its own reason for a list.
        if self.list.is_some() || matches!(self.stream, Stream::Attaching { .. }) {
            return None;
        }
        let due = self.list_due?;
        Some(self.list_begun.map_or(due, |begun| due.max(begun + LIST_INTERVAL)))
    }

    pub(super) fn want_list(&mut self, at: Instant) {
        self.list_due = Some(self.list_due.map_or(at, |due| due.min(at)));
    }

    /// Short of the resync interval by a tenth, so that the answer is there when the interval is over.
    pub(super) fn interval(&self) -> Duration {
        if self.polling { self.timing.poll } else { self.timing.resync - self.timing.resync / 10 }
    }

    /// A stream that lived longer than this has brought a heartbeat.
    pub(super) fn proven_after(&self) -> Duration {
        2 * self.timing.stream_deadline
    }

    pub(super) fn fetch_backoff(&mut self, kind: FailureKind) -> Duration {
        let delay = self.backoff(self.n_list_failures);
        self.n_list_failures = self.n_list_failures.saturating_add(1);
        match kind {
            FailureKind::Auth => delay.max(AUTH_BACKOFF),
            _ => delay.max(FETCH_BACKOFF_FLOOR),
        }
    }

    /// Full jitter: anything between nothing and a doubling bound, so that many watchers never come at once.
    pub(super) fn backoff(&mut self, n_failures: u32) -> Duration {
        let bound = BACKOFF_FIRST.saturating_mul(1 << n_failures.min(10)).min(BACKOFF_MAX);
        self.rng.random_range(Duration::ZERO..=bound)
    }
}
