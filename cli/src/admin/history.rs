//! What changed lately, in words: told by comparing each snapshot with the one before.
//!
//! It keeps the last few changes for whoever looks later; who listens gets each as it happens.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use event_watcher::catalog::{App, Delta, Generation, Instance, Problem, Snapshot, VipsChanged};
use event_watcher::publish::Freshness;
use serde::Serialize;

use super::Admin;

/// What a page shows without scrolling far.
const N_KEPT: usize = 50;

/// When more apps change at once, their number says more than a line for each; listeners could not take so many.
const MOST_TOLD: usize = 50;

/// One line of the event tail.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// UTC, RFC 3339.
    pub at: String,
    /// The snapshot that brought it.
    pub generation: Generation,
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    App,
    Instance,
    Vip,
    Problem,
    Freshness,
    Applied,
}

/// The last changes, newest first.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Change>>);

impl History {
    pub fn newest_first(&self) -> Vec<Change> {
        self.lock().iter().cloned().collect()
    }

    fn keep(&self, change: Change) {
        let mut kept = self.lock();
        kept.push_front(change);
        kept.truncate(N_KEPT);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Change>> {
        // Nothing panics while it holds the lock, and a list of texts cannot be half true.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Follows snapshots and freshness until the process stops.
pub async fn follow_changes(admin: Arc<Admin>) {
    let mut subscriber = admin.sources.subscriber.clone();
    let mut freshness = subscriber.clone();
    let mut known: Arc<Snapshot> = Arc::default();
    loop {
        tokio::select! {
            snapshot = subscriber.changed() => {
                let Ok(snapshot) = snapshot else { return };
                for (kind, app, text) in between(&known, &snapshot) {
                    tell(&admin, snapshot.generation, kind, app, text);
                }
                known = snapshot;
            }
            now = freshness.freshness_changed() => {
                let Ok(now) = now else { return };
                let text = match now {
                    Freshness::Live => "the scheduler's stream is live".to_owned(),
                    Freshness::Stale { reason, .. } => format!("the scheduler is out of reach: {reason}"),
                    Freshness::Unsynced { reason } => format!("not synced yet: {reason}"),
                };
                tell(&admin, known.generation, Kind::Freshness, None, text);
            }
            () = admin.sources.closing.cancelled() => return,
        }
    }
}

/// Tells listeners when every plane has applied a generation. Not kept: it follows every change.
pub async fn follow_applied(admin: Arc<Admin>) {
    let mut applied = admin.sources.applied.clone();
    loop {
        tokio::select! {
            generation = applied.changed() => {
                let Ok(generation) = generation else { return };
                let text = format!("every plane has applied generation {generation}");
                admin.feed.change(&change(generation, Kind::Applied, None, text));
                super::events::publish_page(&admin);
            }
            () = admin.sources.closing.cancelled() => return,
        }
    }
}

fn tell(admin: &Admin, generation: Generation, kind: Kind, app: Option<&str>, text: String) {
    let change = change(generation, kind, app, text);
    admin.feed.change(&change);
    admin.history.keep(change);
}

fn change(generation: Generation, kind: Kind, app: Option<&str>, text: String) -> Change {
    let at = jiff::Timestamp::now().round(jiff::Unit::Millisecond).unwrap_or_else(|_| jiff::Timestamp::now());
    Change { at: format!("{at:.3}"), generation, kind, app: app.map(str::to_owned), text }
}

fn between<'a>(old: &'a Snapshot, new: &'a Snapshot) -> Vec<(Kind, Option<&'a str>, String)> {
    let delta = Delta::between(old, new);
    let mut changes = Vec::new();
    if delta.changed.len() + delta.removed.len() > MOST_TOLD {
        let n_new = delta.changed.iter().filter(|app| old.app(&app.id).is_none()).count();
        let (n_changed, n_removed) = (delta.changed.len() - n_new, delta.removed.len());
        let text = format!("{n_new} apps are new, {n_changed} changed, {n_removed} were removed");
        return vec![(Kind::App, None, text)];
    }
    for id in &delta.removed {
        // The old snapshot knows it; its key lives as long as the old snapshot.
        let app = old.apps.get_key_value(id).map(|(id, _)| id.as_str());
        changes.push((Kind::App, app, format!("{id} was removed")));
    }
    for app in delta.changed.iter().filter_map(|app| new.app(&app.id)) {
        of_app(old.app(&app.id).map(|app| &**app), app, &mut changes);
    }
    if delta.vips_changed == VipsChanged::Yes {
        for vip in new.vips.iter().filter(|vip| old.vips.get(&vip.key).is_none()) {
            let addresses: Vec<String> = vip.addresses.iter().map(ToString::to_string).collect();
            let text = format!("VIP {}:{} is at {}", vip.key.target, vip.key.port, addresses.join(", "));
            changes.push((Kind::Vip, None, text));
        }
    }
    if !Arc::ptr_eq(&old.problems, &new.problems) {
        let known: BTreeSet<&Problem> = old.problems.iter().collect();
        for problem in new.problems.iter().filter(|problem| !known.contains(problem)) {
            changes.push((Kind::Problem, None, problem.to_string()));
        }
    }
    changes
}

fn of_app<'a>(old: Option<&App>, new: &'a App, changes: &mut Vec<(Kind, Option<&'a str>, String)>) {
    let id = Some(new.id.as_str());
    match old {
        None => changes.push((Kind::App, id, format!("{} is new", new.id))),
        Some(old) if old.n_instances_wanted != new.n_instances_wanted => changes.push((
            Kind::App,
            id,
            format!("{} wants {} instances, not {}", new.id, new.n_instances_wanted, old.n_instances_wanted),
        )),
        Some(_) => {}
    }
    let before = |instance: &Instance| old?.instances.iter().find(|i| i.id == instance.id);
    for instance in &new.instances {
        let now = condition(instance);
        if before(instance).map(|i| condition(i)).as_ref() != Some(&now) {
            let address =
                instance.endpoints.first().map(|e| format!(" at {}", e.address)).unwrap_or_default();
            changes.push((Kind::Instance, id, format!("{}{address} is {now}", instance.id)));
        }
    }
    for gone in old.iter().flat_map(|old| &old.instances) {
        if !new.instances.iter().any(|i| i.id == gone.id) {
            changes.push((Kind::Instance, id, format!("{} is gone", gone.id)));
        }
    }
}

fn condition(instance: &Instance) -> String {
    use event_watcher::catalog::{Health, Rotation};
    let state = format!("{:?}", instance.state).to_lowercase();
    let health = match instance.health {
        Health::Healthy => ", healthy",
        Health::Unhealthy => ", unhealthy",
        Health::Unknown => ", health unknown",
        Health::Presumed => ", health presumed",
        Health::Unchecked => "",
    };
    let rotation = match instance.rotation() {
        Rotation::In => "in rotation",
        Rotation::Draining => "draining",
        Rotation::Out => "out of rotation",
    };
    format!("{state}{health}: {rotation}")
}
