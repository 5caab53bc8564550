//! The task that watches: carries out what `reconcile` decides, and is the only writer of the catalog.
//!
//! It never publishes less because something failed: without an answer, the last good state stays and is called stale.

use std::collections::{BTreeSet, hash_map::RandomState};
use std::future::Future;
use std::hash::BuildHasher as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::catalog::{AppId, Catalog, CatalogConfig};
use crate::config::Config;
use crate::error::{ConfigError, FetchError, StreamError, chain};
use crate::keep;
use crate::publish::Publisher;
use crate::reconcile::{Action, FailureKind, Input, Reconcile, Ticket, Timing};
use crate::resolver::{self, Changed, Lookups, Resolver};
use crate::sources::marathon::client::{Base, Client, Found, OpenStream};
use crate::sources::marathon::events;
use crate::sources::marathon::list::{Answer, Entry, Reader, Surroundings};
use crate::sources::marathon::stream::{Report, SeenEvent, StreamReader};
use crate::sources::{InstanceRef, Signal, Verdict};
use crate::stats::{Stats, StatsView};

/// Signals that may wait while the watcher is busy with an answer. Beyond, a full read stands for all of them.
const MAX_WAITING_SIGNALS: usize = 1024;
/// Signals that are taken in before a snapshot is published for all of them.
const SIGNALS_AT_ONCE: usize = 256;
/// Events that a slow onlooker may lag behind.
const SEEN_EVENTS: usize = 256;
/// How long the first list waits for the framework's name, which is part of every DNS name.
const FRAMEWORK_DEADLINE: Duration = Duration::from_secs(3);

/// The watcher as the rest of the process sees it. Dropping it stops nothing: that is the token's work.
#[derive(Clone, Debug)]
pub struct Handle {
    stats: Arc<Stats>,
    seen: broadcast::Sender<Arc<SeenEvent>>,
    wanted: Arc<Notify>,
}

impl Handle {
    /// Asks for everything to be read anew, now. Asking again before that has begun asks for nothing more.
    pub fn resync(&self) {
        self.wanted.notify_one();
    }

    pub fn stats(&self) -> StatsView {
        self.stats.view()
    }

    /// Every event from now on that the scheduler sends. A reader that lags loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Arc<SeenEvent>> {
        self.seen.subscribe()
    }
}

/// Starts to watch, on the runtime that this is called on, until `cancel` is cancelled. The publisher goes away with
/// the task. Unreachable schedulers are no error: they are what [`crate::publish::Freshness`] tells.
pub fn start(config: Config, publisher: Publisher, cancel: CancellationToken) -> Result<Handle, ConfigError> {
    let client = Client::new(&config)?;
    let stats = Arc::new(Stats::default());
    let (seen, _) = broadcast::channel(SEEN_EVENTS);
    let wanted = Arc::new(Notify::new());
    let timing = Timing { resync: config.resync, coalesce: config.coalesce, poll: config.poll };
    let catalog =
        CatalogConfig { framework: Arc::clone(&config.framework), vip_pools: config.vip_pools.clone() };
    let watcher = Watcher {
        base: client.member(0),
        client,
        next_member: 0,
        reconcile: Reconcile::new(timing, rand::random(), now()),
        catalog: Catalog::new(catalog),
        reader: Reader::default(),
        resolver: Resolver::default(),
        publisher,
        stats: Arc::clone(&stats),
        seen: seen.clone(),
        wanted: Arc::clone(&wanted),
        running: FuturesUnordered::new(),
        stream: None,
        framework_known: false,
        has_list: false,
        keeper: Keeper::default(),
        config,
    };
    tokio::spawn(watcher.run(cancel));
    Ok(Handle { stats, seen, wanted })
}

struct Watcher {
    config: Config,
    client: Client,
    /// Where reads go.
    base: Base,
    /// The member at which the next stream is looked for first.
    next_member: usize,
    reconcile: Reconcile,
    catalog: Catalog,
    reader: Reader,
    resolver: Resolver,
    publisher: Publisher,
    stats: Arc<Stats>,
    seen: broadcast::Sender<Arc<SeenEvent>>,
    /// Somebody asks for a full read.
    wanted: Arc<Notify>,
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    stream: Option<LiveStream>,
    framework_known: bool,
    /// The catalog holds a complete list, so it may be published.
    has_list: bool,
    keeper: Keeper,
}

struct LiveStream {
    reports: mpsc::Receiver<Report>,
    _reader: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Keeper {
    hasher: RandomState,
    /// Of the list that was saved last, or is being saved.
    saved: Option<u64>,
    is_busy: bool,
}

enum Done {
    Stream(Result<OpenStream, FetchError>),
    List { ticket: Ticket, framework: Option<String>, result: Result<Vec<u8>, FetchError> },
    App { ticket: Ticket, id: AppId, result: Result<Found, FetchError> },
    LookedUp { lookups: Lookups, then: Waiting },
    Kept(std::io::Result<()>),
}

/// An answer that waits for the addresses of new hosts.
enum Waiting {
    List { ticket: Ticket, body: Vec<u8> },
    App { ticket: Ticket, id: AppId, body: Vec<u8> },
}

/// Whether an answer may still wait for addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Left,
    None,
}

impl Watcher {
    async fn run(mut self, cancel: CancellationToken) {
        self.restore().await;
        self.publish();
        let mut reports = Vec::with_capacity(SIGNALS_AT_ONCE);
        self.step(Input::Tick, None);
        loop {
            let deadline = self.reconcile.next_deadline();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = receive(&mut self.stream, &mut reports) => self.take_reports(&mut reports),
                Some(done) = self.running.next(), if !self.running.is_empty() => self.done(done),
                () = self.wanted.notified() => self.step(Input::Signal(Signal::Everything), None),
                () = until(deadline) => self.step(Input::Tick, None),
            }
            self.publish();
        }
    }

    fn step(&mut self, input: Input, mut answer: Option<Answer>) {
        for action in self.reconcile.handle(now(), input) {
            self.carry_out(action, &mut answer);
        }
    }

    fn carry_out(&mut self, action: Action, answer: &mut Option<Answer>) {
        match action {
            Action::Connect => {
                let (client, first) = (self.client.clone(), self.next_member);
                self.spawn(async move { Done::Stream(client.open_stream(first, events::WANTED).await) });
            }
            Action::FetchList(ticket) => {
                self.stats.n_list_fetches.add_one();
                let (client, base, framework_known) =
                    (self.client.clone(), self.base.clone(), self.framework_known);
                self.spawn(async move {
                    let framework = async {
                        if framework_known {
                            return None;
                        }
                        let asking = tokio::time::timeout(FRAMEWORK_DEADLINE, client.framework(&base));
                        asking.await.ok().and_then(Result::ok).flatten()
                    };
                    let (result, framework) = tokio::join!(client.list(&base), framework);
                    Done::List { ticket, framework, result }
                });
            }
            Action::FetchApp(ticket, id) => {
                self.stats.n_app_fetches.add_one();
                let (client, base) = (self.client.clone(), self.base.clone());
                self.spawn(async move {
                    let result = client.app(&base, &id).await;
                    Done::App { ticket, id, result }
                });
            }
            Action::TakeList { keep } => {
                if let Some(answer) = answer.take() {
                    self.stats.n_tasks_skipped.add(answer.n_tasks_skipped);
                    self.take_list(answer, &keep);
                }
            }
            Action::TakeApp => {
                if let Some(answer) = answer.take() {
                    self.stats.n_tasks_skipped.add(answer.n_tasks_skipped);
                    for entry in answer.entries {
                        self.take_entry(entry);
                    }
                }
            }
            Action::RemoveApp(id) => {
                self.reader.forget(&id);
                self.catalog.remove(&id);
            }
            Action::Discard => self.stats.n_answers_outdated.add_one(),
            Action::Retire { app, instance, verdict } => self.retire(&app, &instance, verdict),
        }
    }

    fn spawn(&self, work: impl Future<Output = Done> + Send + 'static) {
        self.running.push(Box::pin(work));
    }

    fn take_reports(&mut self, reports: &mut Vec<Report>) {
        if reports.is_empty() {
            // The reader is gone without a word: its task was killed with the runtime.
            self.lost_stream(&StreamError::Closed);
        }
        for report in reports.drain(..) {
            match report {
                Report::Signal(signal) => self.step(Input::Signal(signal), None),
                Report::Down(error) => self.lost_stream(&error),
            }
        }
    }

    fn lost_stream(&mut self, error: &StreamError) {
        self.stream = None;
        self.stats.n_streams_lost.add_one();
        if matches!(error, StreamError::Silent(_)) {
            self.stats.n_streams_silent.add_one();
        }
        self.next_member += 1;
        let reason = chain(error);
        tracing::warn!(reason, "lost the event stream; the last known state keeps serving");
        self.step(Input::StreamDown { kind: FailureKind::Other, reason }, None);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Stream(Ok(stream)) => self.stream_opened(stream),
            Done::Stream(Err(error)) => {
                self.stats.n_connect_failures.add_one();
                self.next_member += 1;
                self.base = self.client.member(self.next_member);
                let reason = chain(&error);
                tracing::warn!(reason, "cannot open the event stream");
                self.step(Input::StreamDown { kind: error.kind(), reason }, None);
            }
            Done::List { ticket, framework, result } => {
                if let Some(framework) = framework {
                    self.framework_known = true;
                    self.set_framework(&framework);
                }
                match result {
                    Ok(body) => self.read_list(ticket, body, Patience::Left),
                    Err(error) => self.list_failed(&error),
                }
            }
            Done::App { ticket, id, result } => match result {
                Ok(Found::Body(body)) => self.read_app(ticket, id, body, Patience::Left),
                Ok(Found::Gone) => self.step(Input::AppGone { ticket, id }, None),
                Err(error) => {
                    self.stats.n_fetch_failures.add_one();
                    tracing::warn!(app = %id, reason = chain(&error), "cannot read an app");
                    self.step(Input::AppFailed { id }, None);
                }
            },
            Done::LookedUp { lookups, then } => {
                self.learn(lookups);
                match then {
                    Waiting::List { ticket, body } => self.read_list(ticket, body, Patience::None),
                    Waiting::App { ticket, id, body } => self.read_app(ticket, id, body, Patience::None),
                }
            }
            Done::Kept(result) => {
                self.keeper.is_busy = false;
                if let Err(error) = result {
                    if self.stats.n_keep_failures.value() == 0 {
                        tracing::warn!(%error, "cannot keep the last good list on disk");
                    }
                    self.stats.n_keep_failures.add_one();
                }
            }
        }
    }

    fn stream_opened(&mut self, OpenStream { response, base }: OpenStream) {
        self.stats.n_streams_opened.add_one();
        tracing::info!(host = base.host(), "the event stream is open");
        self.base = base;
        self.framework_known = false;
        let (sender, reports) = mpsc::channel(MAX_WAITING_SIGNALS);
        let reader = StreamReader {
            deadline: self.config.stream_deadline,
            max_event_bytes: self.config.max_event_bytes,
            reports: sender,
            seen: self.seen.clone(),
            stats: Arc::clone(&self.stats),
        };
        let reader = AbortOnDropHandle::new(tokio::spawn(reader.run(response)));
        self.stream = Some(LiveStream { reports, _reader: reader });
        self.step(Input::StreamUp, None);
    }

    fn read_list(&mut self, ticket: Ticket, body: Vec<u8>, patience: Patience) {
        match self.read(|reader, around| reader.list(&body, around)) {
            Err(source) => {
                let host = self.base.host();
                self.list_failed(&FetchError::Malformed { host, source });
            }
            Ok(mut answer) if patience == Patience::Left && !answer.unasked_hosts.is_empty() => {
                let hosts = std::mem::take(&mut answer.unasked_hosts);
                self.look_up(hosts, Waiting::List { ticket, body });
            }
            Ok(answer) => {
                let ids = answer.entries.iter().map(|entry| entry.id().clone()).collect();
                self.step(Input::ListFetched { ticket, ids }, Some(answer));
                self.keep(body);
            }
        }
    }

    fn list_failed(&mut self, error: &FetchError) {
        self.stats.n_fetch_failures.add_one();
        let reason = chain(error);
        tracing::warn!(reason, "cannot read the list of apps; the last known state keeps serving");
        self.step(Input::ListFailed { kind: error.kind(), reason }, None);
    }

    fn read_app(&mut self, ticket: Ticket, id: AppId, body: Vec<u8>, patience: Patience) {
        match self.read(|reader, around| reader.single(&body, around)) {
            Ok(mut answer) if patience == Patience::Left && !answer.unasked_hosts.is_empty() => {
                let hosts = std::mem::take(&mut answer.unasked_hosts);
                self.look_up(hosts, Waiting::App { ticket, id, body });
            }
            Ok(answer) if answer.entries.iter().all(|entry| *entry.id() == id) => {
                self.step(Input::AppFetched { ticket, id }, Some(answer));
            }
            Ok(_) => {
                self.stats.n_fetch_failures.add_one();
                tracing::warn!(app = %id, "asked for an app and got another one");
                self.step(Input::AppFailed { id }, None);
            }
            Err(error) => {
                self.stats.n_fetch_failures.add_one();
                tracing::warn!(app = %id, %error, "cannot make sense of an answer");
                self.step(Input::AppFailed { id }, None);
            }
        }
    }

    fn read(
        &self,
        read: impl FnOnce(&Reader, &Surroundings<'_>) -> Result<Answer, serde_json::Error>,
    ) -> Result<Answer, serde_json::Error> {
        let moment = now();
        let around = Surroundings {
            framework: self.catalog.framework(),
            resolve: &|host| self.resolver.resolve(host, moment),
            previous: &|id| self.catalog.app(id).map(|app| &**app),
        };
        read(&self.reader, &around)
    }

    fn take_list(&mut self, answer: Answer, keep: &BTreeSet<AppId>) {
        let mut known: BTreeSet<AppId> = keep.clone();
        known.extend(answer.entries.iter().map(|entry| entry.id().clone()));
        self.catalog.retain(&known);
        for entry in answer.entries {
            if !keep.contains(entry.id()) {
                self.take_entry(entry);
            }
        }
        self.catalog.set_source_problems(answer.problems);
        self.has_list = true;
    }

    fn take_entry(&mut self, entry: Entry) {
        match entry {
            Entry::Same(_) => self.stats.n_apps_unchanged.add_one(),
            Entry::Read { update, text } => {
                self.reader.remember(&update.app.id, text);
                self.catalog.replace(update);
            }
            Entry::Rejected(id, problem) => {
                self.stats.n_apps_rejected.add_one();
                self.reader.forget(&id);
                self.catalog.set_problems(&id, vec![problem]);
            }
        }
    }

    fn retire(&mut self, app: &AppId, instance: &InstanceRef, verdict: Verdict) {
        let Some(known) = self.catalog.app(app) else { return };
        let named = known.instances.iter().map(|i| &i.id).filter(|id| instance.names(id)).cloned();
        for id in named.collect::<Vec<_>>() {
            self.reader.forget(app);
            match verdict {
                Verdict::State(state) => self.catalog.retire(app, &id, state),
                Verdict::Unhealthy => self.catalog.mark_unhealthy(app, &id),
            }
        }
    }

    fn set_framework(&mut self, framework: &str) {
        if **self.catalog.framework() != *framework {
            tracing::info!(framework, "learnt the framework's name");
            self.catalog.set_framework(framework);
            self.reader.forget_all();
        }
    }

    fn look_up(&self, hosts: Vec<String>, then: Waiting) {
        self.spawn(async move { Done::LookedUp { lookups: resolver::look_up(hosts).await, then } });
    }

    fn learn(&mut self, lookups: Lookups) {
        if self.resolver.learn(lookups, now()) == Changed::Yes {
            self.reader.forget_all();
        }
    }

    fn publish(&mut self) {
        if self.has_list
            && let Some(snapshot) = self.catalog.snapshot()
        {
            self.stats.n_snapshots_published.add_one();
            self.publisher.publish(snapshot);
        }
        self.publisher.set_freshness(self.reconcile.freshness());
    }

    fn keep(&mut self, list: Vec<u8>) {
        let Some(path) = self.config.state_file.clone() else { return };
        let hash = self.keeper.hasher.hash_one(&list);
        if self.keeper.is_busy || self.keeper.saved == Some(hash) {
            return;
        }
        self.keeper.is_busy = true;
        self.keeper.saved = Some(hash);
        let framework = Arc::clone(self.catalog.framework());
        self.spawn(async move {
            let saving = tokio::task::spawn_blocking(move || keep::save(&path, &framework, &list));
            Done::Kept(saving.await.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }

    /// Serves what an earlier run kept, until the scheduler answers.
    async fn restore(&mut self) {
        let Some(path) = self.config.state_file.clone() else { return };
        let kept = match keep::load(&path) {
            Ok(Some(kept)) => kept,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(path = %path.display(), reason = chain(&error), "cannot use the kept list");
                return;
            }
        };
        self.set_framework(&kept.framework);
        let mut answer = self.read(|reader, around| reader.list(&kept.list, around));
        if let Ok(Answer { unasked_hosts, .. }) = &mut answer
            && !unasked_hosts.is_empty()
        {
            let hosts = std::mem::take(unasked_hosts);
            self.learn(resolver::look_up(hosts).await);
            answer = self.read(|reader, around| reader.list(&kept.list, around));
        }
        match answer {
            Ok(answer) => {
                let minutes = kept.age.as_secs() / 60;
                self.reconcile.restored(now(), &format!("serving the list kept {minutes} minutes ago"));
                self.take_list(answer, &BTreeSet::new());
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot use the kept list"),
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn receive(stream: &mut Option<LiveStream>, reports: &mut Vec<Report>) {
    match stream {
        Some(stream) => {
            stream.reports.recv_many(reports, SIGNALS_AT_ONCE).await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
