//! Where the apps of all sources become one catalog: the only place that publishes.
//!
//! Each source has a [`Feed`] with what it holds. An app that two sources have is served from the one that is
//! configured first, and the others are told so; a source that is away keeps what it holds, so its outage touches
//! nobody else's apps. Nothing here reads from a source, and no lock is held across an await.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::catalog::{AppId, Apps, Catalog, Generation, Holding, Leaders, Problem, ProblemsChanged};
use crate::publish::{Freshness, Publisher};
use crate::reconcile::{Cause, State};

/// How long the first snapshot waits for sources that have not answered once another one has.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);
/// Held apps that are named; the rest is a number.
const MAX_NAMED: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Marathon,
    Static,
}

/// One source at one moment, for people and metrics.
#[derive(Clone, Debug, Serialize)]
pub struct SourceView {
    pub name: Arc<str>,
    pub kind: Kind,
    /// Where it is read from now: a member's address, or a file.
    pub from: String,
    pub freshness: Freshness,
    /// Why it is not live.
    pub cause: Option<Cause>,
    /// The last snapshot that it changed.
    pub generation: Generation,
    pub n_apps: usize,
    pub n_instances: usize,
    pub seconds_since_event: Option<f64>,
    pub seconds_since_answer: Option<f64>,
    /// Answers that were refused as a whole, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Streams that had to be opened again, by reason.
    pub reconnects: BTreeMap<&'static str, u64>,
    /// Instances that are held although they are no longer listed, by app.
    pub held: BTreeMap<AppId, usize>,
}

#[derive(Debug)]
struct Slot {
    name: Arc<str>,
    kind: Kind,
    from: String,
    apps: Apps,
    n_instances: usize,
    problems: BTreeMap<AppId, Vec<Problem>>,
    source_problems: Vec<Problem>,
    framework: Option<Arc<str>>,
    leaders: Leaders,
    added: Instant,
    freshness: Freshness,
    cause: Option<Cause>,
    generation: Generation,
    last_event: Option<Instant>,
    last_answer: Option<Instant>,
    rejected: BTreeMap<&'static str, u64>,
    reconnects: BTreeMap<&'static str, u64>,
    held: BTreeMap<AppId, usize>,
}

#[derive(Debug)]
struct Inner {
    catalog: Catalog,
    publisher: Publisher,
    slots: Vec<Slot>,
    /// Whether snapshots go out yet.
    gate: Gate,
    n_published: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Closed,
    Open,
}

/// Whether what a source holds differs from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    No,
    Yes,
}

/// Shared by all sources, on one thread.
#[derive(Clone, Debug)]
pub(crate) struct Hub(Arc<Mutex<Inner>>);

impl Hub {
    pub(crate) fn new(catalog: Catalog, publisher: Publisher) -> Self {
        let gate = Gate::Closed;
        Self(Arc::new(Mutex::new(Inner { catalog, publisher, slots: Vec::new(), gate, n_published: 0 })))
    }

    /// Adds a source behind those that are there. All are added before any of them runs.
    pub(crate) fn feed(&self, name: Arc<str>, kind: Kind, from: String) -> Feed {
        let mut inner = self.lock();
        inner.slots.push(Slot {
            name: Arc::clone(&name),
            kind,
            from,
            apps: Apps::new(),
            n_instances: 0,
            problems: BTreeMap::new(),
            source_problems: Vec::new(),
            framework: None,
            leaders: Leaders::default(),
            added: crate::watcher::now(),
            freshness: State::new().freshness(),
            cause: Some(Cause::Start),
            generation: Generation::UNSYNCED,
            last_event: None,
            last_answer: None,
            rejected: BTreeMap::new(),
            reconnects: BTreeMap::new(),
            held: BTreeMap::new(),
        });
        Feed { hub: self.clone(), index: inner.slots.len() - 1, name, held: Holding::default() }
    }

    /// For those who only look: the hub goes away with its sources.
    pub(crate) fn onlooker(&self) -> Onlooker {
        Onlooker(Arc::downgrade(&self.0))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Onlooker(Weak<Mutex<Inner>>);

impl Onlooker {
    pub(crate) fn sources(&self) -> Vec<SourceView> {
        let now = crate::watcher::now();
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        let view = |slot: &Slot| SourceView {
            name: Arc::clone(&slot.name),
            kind: slot.kind,
            from: slot.from.clone(),
            freshness: slot.freshness.clone(),
            cause: slot.cause,
            generation: slot.generation,
            n_apps: slot.apps.len(),
            n_instances: slot.n_instances,
            seconds_since_event: since(slot.last_event),
            seconds_since_answer: since(slot.last_answer),
            rejected: slot.rejected.clone(),
            reconnects: slot.reconnects.clone(),
            held: slot.held.iter().take(MAX_NAMED).map(|(app, n)| (app.clone(), *n)).collect(),
        };
        let Some(inner) = self.0.upgrade() else { return Vec::new() };
        let inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.slots.iter().map(view).collect()
    }

    pub(crate) fn n_published(&self) -> u64 {
        let Some(inner) = self.0.upgrade() else { return 0 };
        inner.lock().unwrap_or_else(PoisonError::into_inner).n_published
    }
}

/// One source's end: what it holds, and what it tells about itself.
#[derive(Debug)]
pub(crate) struct Feed {
    hub: Hub,
    index: usize,
    name: Arc<str>,
    pub(crate) held: Holding,
}

impl Feed {
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Publishes what changed in what is held, together with how far it can be trusted. Until the source is synced,
    /// what it holds is its own business.
    pub(crate) fn commit(
        &mut self,
        state: &State,
        framework: Option<&Arc<str>>,
        leaders: Leaders,
    ) -> Changed {
        let hub = self.hub.clone();
        let mut inner = hub.lock();
        let was_synced = inner.slots[self.index].is_synced();
        let slot = &mut inner.slots[self.index];
        slot.freshness = state.freshness();
        slot.cause = state.cause();
        let mut changed = Changed::No;
        if state.is_synced() {
            let was_renamed = slot.framework.as_ref() != framework;
            slot.framework = framework.cloned();
            slot.leaders = leaders;
            slot.apps = self.held.apps().clone();
            slot.n_instances = self.held.n_instances();
            let changes = self.held.take_changes();
            if changes.problems == ProblemsChanged::Yes {
                slot.source_problems = self.held.source_problems().to_vec();
            }
            if !changes.apps.is_empty() {
                changed = Changed::Yes;
            }
            for id in &changes.apps {
                let problems = self.held.problems_of(id);
                let slot = &mut inner.slots[self.index];
                match problems.is_empty() {
                    true => slot.problems.remove(id),
                    false => slot.problems.insert(id.clone(), problems.to_vec()),
                };
                inner.settle(id);
            }
            if changes.problems == ProblemsChanged::Yes {
                inner.take_source_problems();
            }
            if was_renamed && inner.slots.len() > 1 {
                for id in self.held.apps().keys() {
                    inner.settle(id);
                }
            }
            inner.take_framework();
            inner.publish((changed == Changed::Yes).then_some(self.index));
        }
        inner.tell_freshness();
        if !was_synced && state.is_synced() && inner.gate == Gate::Closed {
            let hub = Arc::downgrade(&hub.0);
            tokio::spawn(async move {
                tokio::time::sleep(SETTLE).await;
                if let Some(hub) = hub.upgrade().map(Hub) {
                    let mut inner = hub.lock();
                    inner.gate = Gate::Open;
                    inner.publish(None);
                }
            });
        }
        changed
    }

    pub(crate) fn reads_from(&self, from: String) {
        self.slot(|slot| slot.from = from);
    }

    pub(crate) fn saw_event(&self) {
        let now = crate::watcher::now();
        self.slot(|slot| slot.last_event = Some(now));
    }

    pub(crate) fn saw_answer(&self) {
        let now = crate::watcher::now();
        self.slot(|slot| slot.last_answer = Some(now));
    }

    pub(crate) fn rejected(&self, reason: &'static str) {
        self.slot(|slot| *slot.rejected.entry(reason).or_default() += 1);
    }

    pub(crate) fn reconnects(&self, reason: &'static str) {
        self.slot(|slot| *slot.reconnects.entry(reason).or_default() += 1);
    }

    pub(crate) fn holds_back(&self, held: Option<&BTreeMap<AppId, usize>>) {
        self.slot(|slot| {
            if held.map_or(!slot.held.is_empty(), |held| *held != slot.held) {
                slot.held = held.cloned().unwrap_or_default();
            }
        });
    }

    fn slot(&self, change: impl FnOnce(&mut Slot)) {
        change(&mut self.hub.lock().slots[self.index]);
    }
}

impl Slot {
    fn is_synced(&self) -> bool {
        !matches!(self.freshness, Freshness::Unsynced { .. })
    }
}

impl Inner {
    /// Decides from which source an app is served.
    fn settle(&mut self, id: &AppId) {
        let mut owners = self.slots.iter().filter(|slot| slot.apps.contains_key(id));
        let Some(winner) = owners.next() else {
            self.catalog.remove(id);
            self.catalog.set_framework_of(id, None);
            let problems = self.slots.iter().filter_map(|slot| slot.problems.get(id)).flatten().cloned();
            self.catalog.set_problems(id, problems.collect());
            return;
        };
        let mut problems = winner.problems.get(id).cloned().unwrap_or_default();
        for loser in owners {
            problems.push(Problem {
                app: Some(id.clone()),
                at: format!("source {}", loser.name),
                what: format!("{} has an app of the same id", winner.name),
                hint: format!("it is served from {}, which is configured first; rename one", winner.name),
            });
        }
        if self.slots.len() > 1 {
            self.catalog.set_framework_of(id, winner.framework.as_ref());
        }
        let app = Arc::clone(&winner.apps[id]);
        self.catalog.put(app, problems);
    }

    fn take_source_problems(&mut self) {
        let named = self.slots.len() > 1;
        let problems = self.slots.iter().flat_map(|slot| {
            slot.source_problems.iter().map(move |problem| match named {
                true => Problem { at: format!("{}: {}", slot.name, problem.at), ..problem.clone() },
                false => problem.clone(),
            })
        });
        self.catalog.set_source_problems(problems.collect());
    }

    /// The cluster's own names, and those of apps without a scheduler, use the first scheduler's.
    fn take_framework(&mut self) {
        if let Some(first) = self.slots.iter().find(|slot| slot.framework.is_some()) {
            self.catalog.set_framework(first.framework.as_deref().unwrap_or_default());
            self.catalog.set_leaders(first.leaders);
        }
    }

    fn publish(&mut self, changed_by: Option<usize>) {
        if self.slots.iter().all(Slot::is_synced) {
            self.gate = Gate::Open;
        }
        if self.gate == Gate::Closed {
            return;
        }
        if let Some(snapshot) = self.catalog.snapshot() {
            for (index, slot) in self.slots.iter_mut().enumerate() {
                if changed_by == Some(index) || (slot.generation == Generation::UNSYNCED && slot.is_synced())
                {
                    slot.generation = snapshot.generation;
                }
            }
            self.n_published += 1;
            self.publisher.publish(snapshot);
        }
    }

    /// All live is live; otherwise the oldest of what is served says how old.
    fn tell_freshness(&mut self) {
        let named = self.slots.len() > 1;
        let say = |slot: &Slot, reason: &Arc<str>| match named {
            true => format!("{}: {reason}", slot.name).into(),
            false => Arc::clone(reason),
        };
        let is_synced = self.slots.iter().any(Slot::is_synced);
        let mut all = Freshness::Live;
        for slot in &self.slots {
            let of_slot = match &slot.freshness {
                Freshness::Live => continue,
                Freshness::Unsynced { reason } if !is_synced => {
                    Freshness::Unsynced { reason: say(slot, reason) }
                }
                Freshness::Unsynced { reason } => {
                    Freshness::Stale { since: slot.added, reason: say(slot, reason) }
                }
                Freshness::Stale { since, reason } => {
                    Freshness::Stale { since: *since, reason: say(slot, reason) }
                }
            };
            let is_older = match (&all, &of_slot) {
                (Freshness::Live, _) => true,
                (Freshness::Stale { since: known, .. }, Freshness::Stale { since, .. }) => since < known,
                _ => false,
            };
            if is_older {
                all = of_slot;
            }
        }
        self.publisher.set_freshness(all);
    }
}
