//! What answers become: the list with what it lacks, single apps, and endings that events tell.
//!
//! Whether an answer counts is decided by [`crate::reconcile`].

use std::collections::{BTreeSet, HashMap};

use super::{Answer, Entry, Kind, ListAnswer, Patience, Waiting, Watch};
use crate::catalog::{App, AppId, InstanceId, InstanceState};
use crate::error::{FetchError, chain};
use crate::reconcile::{Contents, Input, Survey, Ticket};
use crate::sources::{InstanceRef, Verdict};
use crate::watcher::now;

/// With fewer instances, that nobody has a result yet is nothing special.
const MANY_WITHOUT_RESULTS: usize = 3;

impl Watch {
    pub(super) fn take_list_answer(&mut self, ticket: Ticket, mut answer: ListAnswer, patience: Patience) {
        if patience == Patience::Left && !answer.answer.unasked_hosts.is_empty() {
            let hosts = std::mem::take(&mut answer.answer.unasked_hosts);
            return self.look_up(hosts, Waiting::List { ticket, answer });
        }
        if self.listed_leader.as_ref().is_some_and(|known| *known != answer.leader) {
            self.about_known = false;
        }
        self.listed_leader = Some(answer.leader.clone());
        let ids = answer.answer.entries.iter().map(|entry| entry.id().clone()).collect();
        let survey = self.survey(&answer);
        self.step(Input::ListFetched { ticket, ids, survey }, Some(answer.answer));
        let held = self.reconcile.held();
        if held.is_some() {
            self.feed.rejected("held_drop");
        }
        self.feed.holds_back(held);
    }

    /// What of the instances held the list lacks.
    pub(super) fn survey(&self, answer: &ListAnswer) -> Survey {
        let mut survey = Survey {
            leader: Some(answer.leader.clone()),
            contents: if answer.answer.entries.is_empty() { Contents::Nothing } else { Contents::Apps },
            ..Survey::default()
        };
        let mut listed: HashMap<&AppId, Option<usize>> = answer
            .answer
            .entries
            .iter()
            .map(|entry| match entry {
                Entry::Read { update, .. } => (&update.app.id, Some(n_alive(&update.app))),
                // What is held stays.
                Entry::Same(id) | Entry::Rejected(id, _) => (id, None),
            })
            .collect();
        for (id, app) in self.feed.held.apps() {
            let n_before = n_alive(app);
            survey.n_before += n_before;
            let n_now = match listed.remove(id) {
                None => 0,
                Some(Some(n_now)) => n_now,
                Some(None) => continue,
            };
            if n_now < n_before {
                survey.lost.insert(id.clone(), n_before - n_now);
            }
        }
        survey
    }

    pub(super) fn list_failed(&mut self, error: &FetchError) {
        self.stats.n_fetch_failures.add_one();
        self.feed.rejected(error.word());
        let reason = chain(error);
        tracing::warn!(source = %self.feed.name(), reason, "cannot read the list of apps; the last known state keeps serving");
        self.step(Input::ListFailed { kind: error.kind(), reason }, None);
    }

    pub(super) fn app_failed(&mut self, id: AppId, error: &FetchError) {
        self.stats.n_fetch_failures.add_one();
        tracing::warn!(source = %self.feed.name(), app = %id, reason = chain(error), "cannot read an app");
        self.step(Input::AppFailed { id }, None);
    }

    pub(super) fn read_app(
        &mut self,
        ticket: Ticket,
        id: AppId,
        kind: Kind,
        body: &[u8],
        patience: Patience,
    ) {
        let malformed = |this: &Self, error: serde_json::Error| FetchError::Malformed {
            host: this.base.host(),
            source: error.into(),
        };
        let answer = self.surroundings().single(kind, body);
        match answer {
            Ok(mut answer) if patience == Patience::Left && !answer.unasked_hosts.is_empty() => {
                let hosts = std::mem::take(&mut answer.unasked_hosts);
                self.look_up(hosts, Waiting::App { ticket, id, kind, body: body.to_vec() });
            }
            Ok(answer) if answer.entries.iter().all(|entry| *entry.id() == id) => {
                self.feed.saw_answer();
                self.step(Input::AppFetched { ticket, id }, Some(answer));
            }
            Ok(_) => {
                let error = malformed(self, serde::de::Error::custom("asked for an app and got another one"));
                self.app_failed(id, &error);
            }
            Err(error) => {
                let error = malformed(self, error);
                self.app_failed(id, &error);
            }
        }
    }

    pub(super) fn take_list(&mut self, answer: Answer, keep: &BTreeSet<AppId>) {
        let mut known: BTreeSet<AppId> = keep.clone();
        known.extend(answer.entries.iter().map(|entry| entry.id().clone()));
        for gone in self.feed.held.retain(&known) {
            // Should it come back just as it was, it is to be read.
            self.texts.forget(&gone);
        }
        for entry in answer.entries {
            if !keep.contains(entry.id()) {
                self.take_entry(entry);
            }
        }
        self.feed.held.set_source_problems(answer.problems);
        // An election: it runs many instances, and has forgotten what it knew of the health of each.
        let forgotten = answer.n_checked >= MANY_WITHOUT_RESULTS && answer.n_with_results == 0;
        if forgotten {
            let all = self.grace.take_all();
            self.presume(all);
        }
    }

    /// Serves instances that nobody has a verdict about.
    pub(super) fn presume(&mut self, instances: Vec<(AppId, InstanceId)>) {
        for (app, instance) in instances {
            self.feed.held.presume_healthy(&app, &instance);
        }
    }

    pub(super) fn take_entry(&mut self, entry: Entry) {
        match entry {
            Entry::Same(_) => self.stats.n_apps_unchanged.add_one(),
            Entry::Read { update, text } => {
                self.texts.remember(&update.app.id, text);
                self.grace.note(&update.app, now());
                self.feed.held.replace(update);
            }
            Entry::Rejected(id, problem) => {
                self.stats.n_apps_rejected.add_one();
                self.texts.forget(&id);
                self.feed.held.set_problems(&id, vec![problem]);
            }
        }
    }

    pub(super) fn retire(&mut self, app: &AppId, instance: &InstanceRef, verdict: Verdict) {
        let Some(known) = self.feed.held.app(app) else { return };
        let named = known.instances.iter().map(|i| &i.id).filter(|id| instance.names(id)).cloned();
        for id in named.collect::<Vec<_>>() {
            self.texts.forget(app);
            match verdict {
                Verdict::State(state) => self.feed.held.retire(app, &id, state),
                Verdict::Unhealthy => self.feed.held.mark_unhealthy(app, &id),
            }
        }
    }
}

/// Instances that have not ended and are not being ended.
fn n_alive(app: &App) -> usize {
    let ends = |state| matches!(state, InstanceState::Killing | InstanceState::Terminal);
    app.instances.iter().filter(|instance| !ends(instance.state)).count()
}
