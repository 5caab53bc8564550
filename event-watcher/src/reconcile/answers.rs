//! What an answer changes: which of it still counts, and what the fetches that it overtakes may still say.
//!
//! It begins no fetch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::guard::{CONFIRM_EVERY, Survey, Verdict as Judgement};
use super::{Action, Cause, Listed, Reconcile, Stream, Ticket};
use crate::catalog::AppId;
use crate::sources::{InstanceRef, Verdict};

impl Reconcile {
    pub(super) fn list_fetched(
        &mut self,
        now: Instant,
        ticket: Ticket,
        ids: Vec<AppId>,
        survey: Survey,
        actions: &mut Vec<Action>,
    ) {
        self.list = None;
        if self.listed == Listed::Never || self.n_list_failures > 0 {
            self.guard.arm(now);
        }
        self.listed = Listed::Once;
        self.n_list_failures = 0;
        let lost: Vec<AppId> = survey.lost.keys().cloned().collect();
        let n_before = survey.n_before;
        let judgement = self.guard.judge(now, survey);
        // From its begin: what it says may be as old. A slow scheduler gets as long a rest as the list took.
        let begun = self.list_begun.unwrap_or(now);
        self.want_list((begun + self.interval()).max(now + now.duration_since(begun)));
        match (&self.stream, self.polling) {
            (Stream::Up { .. }, _) | (_, true) => self.state.confirmed(),
            _ => {
                let (cause, reason) = match (self.state.cause(), self.state.reason()) {
                    (Some(cause), Some(reason)) => (cause, Arc::clone(reason)),
                    _ => (Cause::Stream, "the event stream is being opened".into()),
                };
                self.state.known_as_of(now, cause, &reason);
            }
        }
        let mut keep = BTreeSet::new();
        if judgement == Judgement::Hold {
            let held = self.guard.held().map_or(0, |held| held.values().sum::<usize>());
            let reason = format!(
                "the scheduler no longer lists {held} of {n_before} instances, right after a change of its leader or \
                 connection; they keep serving until that is confirmed (waymark sync --accept)"
            );
            self.state.lost(now, Cause::HeldDrop, &reason);
            self.want_list(now + CONFIRM_EVERY);
            let held = self.guard.held();
            keep.extend(lost.into_iter().filter(|app| held.is_some_and(|held| held.contains_key(app))));
        }
        self.counter += 1;
        let ids: BTreeSet<AppId> = ids.into_iter().collect();
        let mut endings = Vec::new();
        for (id, track) in &mut self.tracks {
            if track.known > ticket.0 {
                keep.insert(id.clone());
                track.due.get_or_insert(now + self.timing.coalesce);
                self.dirty.insert(id.clone());
                continue;
            }
            track.known = self.counter;
            if track.touched <= ticket.0 && track.due.take().is_some() {
                self.dirty.remove(id);
            }
            let told = std::mem::take(&mut track.endings);
            if ids.contains(id) && !keep.contains(id) {
                endings.extend(unknown_endings(id, told, ticket));
            }
        }
        self.tracks
            .retain(|_, track| track.due.is_some() || track.in_flight.is_some() || track.paid_at > now);
        actions.push(Action::TakeList { keep });
        actions.append(&mut endings);
    }

    pub(super) fn app_answered(
        &mut self,
        now: Instant,
        ticket: Ticket,
        id: AppId,
        take: Action,
        actions: &mut Vec<Action>,
    ) {
        self.app_landed(&id);
        self.counter += 1;
        let Some(track) = self.tracks.get_mut(&id) else { return };
        if track.known > ticket.0 {
            track.due.get_or_insert(now + self.timing.coalesce);
            self.dirty.insert(id);
            actions.push(Action::Discard);
            return;
        }
        track.known = self.counter;
        actions.push(take);
        actions.extend(unknown_endings(&id, std::mem::take(&mut track.endings), ticket));
    }

    pub(super) fn app_landed(&mut self, id: &AppId) {
        if let Some(track) = self.tracks.get_mut(id)
            && track.in_flight.take().is_some()
        {
            self.n_in_flight -= 1;
        }
    }
}

/// The endings that an answer of a fetch that began at `ticket` may not know of. Any other fetch under way will be
/// left out, so they need not be remembered beyond it.
fn unknown_endings(
    app: &AppId,
    endings: Vec<(u64, InstanceRef, Verdict)>,
    ticket: Ticket,
) -> impl Iterator<Item = Action> {
    endings
        .into_iter()
        .filter(move |(number, ..)| *number > ticket.0)
        .map(|(_, instance, verdict)| Action::Retire { app: app.clone(), instance, verdict })
}
