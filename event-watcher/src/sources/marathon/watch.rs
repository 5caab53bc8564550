//! The task that watches one scheduler: carries out what `reconcile` decides, and holds what the scheduler runs.
//!
//! It never holds less because something failed: without an answer, the last good state stays and is called stale.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::client::{Base, Client, Found, Leadership, ListAnswer, OpenStream};
use super::events;
use super::grace::Grace;
use super::list::{Answer, Entry, Surroundings, Texts};
use super::stream::{Report, SeenEvent, StreamReader};
use super::words::Words;
use crate::catalog::{App, AppId, InstanceId, InstanceState};
use crate::config::Marathon;
use crate::error::{ConfigError, FetchError, StreamError, chain};
use crate::hub::Feed;
use crate::keep;
use crate::reconcile::{Action, Contents, Input, Reconcile, Survey, Ticket, Timing};
use crate::resolver::{self, Changed, Lookups, Names};
use crate::sources::{InstanceRef, Verdict};
use crate::stats::Stats;
use crate::watcher::{Command, now};

/// Signals that may wait while the watcher is busy with an answer. Beyond, a full read stands for all of them.
const MAX_WAITING_SIGNALS: usize = 1024;
/// Signals that are taken in before a snapshot is published for all of them.
const SIGNALS_AT_ONCE: usize = 256;
/// How long the first list waits for the framework's name, which is part of every DNS name.
const FRAMEWORK_DEADLINE: Duration = Duration::from_secs(3);
/// With fewer instances, that nobody has a result yet is nothing special.
const MANY_WITHOUT_RESULTS: usize = 3;
/// What is kept on disk is this much behind what is held.
const KEEP_AFTER: Duration = Duration::from_secs(1);
/// Keeping takes at most this share of the time: what is kept of a small cluster is a moment old.
const KEEP_SHARE: u32 = 100;
/// What is kept of a large cluster is never older than this.
const KEEP_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct Watch {
    config: Marathon,
    client: Client,
    /// Where reads go.
    base: Base,
    /// The member at which the next stream is looked for first.
    next_member: usize,
    reconcile: Reconcile,
    feed: Feed,
    framework: Arc<str>,
    texts: Texts,
    names: Names,
    stats: Arc<Stats>,
    seen: broadcast::Sender<Arc<SeenEvent>>,
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    stream: Option<LiveStream>,
    framework_known: bool,
    grace: Grace,
    keeper: Keeper,
}

struct LiveStream {
    reports: mpsc::Receiver<Report>,
    _reader: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Keeper {
    /// When the next save begins.
    due: Option<Instant>,
    busy_since: Option<Instant>,
    not_before: Option<Instant>,
}

enum Done {
    Stream(Result<OpenStream, FetchError>),
    List {
        ticket: Ticket,
        framework: Option<String>,
        leadership: Leadership,
        result: Result<ListAnswer, FetchError>,
    },
    App {
        ticket: Ticket,
        id: AppId,
        result: Result<Found, FetchError>,
    },
    LookedUp {
        lookups: Lookups,
        then: Waiting,
    },
    Kept(std::io::Result<()>),
}

/// An answer that waits for the addresses of new hosts.
enum Waiting {
    List { ticket: Ticket, answer: ListAnswer },
    App { ticket: Ticket, id: AppId, body: Vec<u8> },
}

/// Whether an answer may still wait for addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Left,
    None,
}

impl Watch {
    pub(crate) fn new(
        config: Marathon,
        feed: Feed,
        stats: Arc<Stats>,
        seen: broadcast::Sender<Arc<SeenEvent>>,
    ) -> Result<Self, ConfigError> {
        let client = Client::new(&config)?;
        let timing = Timing {
            resync: config.resync,
            coalesce: config.coalesce,
            poll: config.poll,
            stream_deadline: config.stream_deadline,
        };
        Ok(Self {
            base: client.member(0),
            client,
            next_member: 0,
            reconcile: Reconcile::new(timing, rand::random(), now()),
            feed,
            framework: Arc::clone(&config.framework),
            texts: Texts::default(),
            names: Names::default(),
            stats,
            seen,
            running: FuturesUnordered::new(),
            stream: None,
            framework_known: false,
            grace: Grace::default(),
            keeper: Keeper::default(),
            config,
        })
    }

    pub(crate) async fn run(mut self, mut commands: broadcast::Receiver<Command>, cancel: CancellationToken) {
        self.restore();
        self.feed.reads_from(self.base.host());
        self.commit();
        let mut reports = Vec::with_capacity(SIGNALS_AT_ONCE);
        self.step(Input::Tick, None);
        loop {
            let deadlines = [self.reconcile.next_deadline(), self.keeper.due, self.grace.next()];
            let deadline = deadlines.into_iter().flatten().min();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = receive(&mut self.stream, &mut reports) => self.take_reports(&mut reports),
                Ok(command) = commands.recv() => match command {
                    Command::Resync => self.step(Input::Resync, None),
                    Command::Believe => self.step(Input::Believe, None),
                },
                Some(done) = self.running.next(), if !self.running.is_empty() => self.done(done),
                () = until(deadline) => self.step(Input::Tick, None),
            }
            let over = self.grace.take_over(now());
            self.presume(over);
            self.commit();
            self.keep_when_due();
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
            Action::FetchList(ticket) => self.fetch_list(ticket),
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
                self.texts.forget(&id);
                self.feed.held.remove(&id);
            }
            Action::Discard => self.stats.n_answers_outdated.add_one(),
            Action::Retire { app, instance, verdict } => self.retire(&app, &instance, verdict),
        }
    }

    fn fetch_list(&mut self, ticket: Ticket) {
        self.stats.n_list_fetches.add_one();
        let (client, base, framework_known) = (self.client.clone(), self.base.clone(), self.framework_known);
        let mut around = self.surroundings();
        self.spawn(async move {
            let framework = match framework_known {
                true => None,
                false => {
                    let asking = tokio::time::timeout(FRAMEWORK_DEADLINE, client.framework(&base));
                    asking.await.ok().and_then(Result::ok).flatten()
                }
            };
            if let Some(framework) = framework.as_deref().filter(|name| **name != *around.framework) {
                around.framework = framework.into();
                around.texts.forget_all();
            }
            let (result, leadership) = tokio::join!(client.list(&base, around), client.leadership(&base));
            Done::List { ticket, framework, leadership, result }
        });
    }

    fn spawn(&self, work: impl Future<Output = Done> + Send + 'static) {
        self.running.push(Box::pin(work));
    }

    fn take_reports(&mut self, reports: &mut Vec<Report>) {
        if reports.is_empty() {
            // The reader is gone without a word: its task was killed with the runtime.
            self.lost_stream(&StreamError::Closed);
        } else {
            self.feed.saw_event();
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
        self.feed.reconnects(error.word());
        self.next_member += 1;
        let reason = chain(error);
        tracing::warn!(source = %self.feed.name(), reason, "lost the event stream; the last known state keeps serving");
        self.step(Input::StreamDown { kind: error.kind(), reason }, None);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Stream(Ok(stream)) => self.stream_opened(stream),
            Done::Stream(Err(error)) => {
                self.stats.n_connect_failures.add_one();
                self.feed.reconnects(error.word());
                self.next_member += 1;
                self.read_from(self.client.member(self.next_member));
                let reason = chain(&error);
                tracing::warn!(source = %self.feed.name(), reason, "cannot open the event stream");
                self.step(Input::StreamDown { kind: error.kind(), reason }, None);
            }
            Done::List { ticket, framework, leadership, result } => {
                if let Some(framework) = framework {
                    self.framework_known = true;
                    self.set_framework(&framework);
                }
                match (result, leadership) {
                    (Err(error), _) => self.list_failed(&error),
                    (Ok(_), Leadership::Split(claims)) => {
                        self.list_failed(&FetchError::SplitBrain { claims })
                    }
                    (Ok(_), Leadership::Elsewhere(member)) => self.follow(member),
                    (Ok(answer), Leadership::Agreed) => {
                        self.feed.saw_answer();
                        self.take_list_answer(ticket, answer, Patience::Left);
                    }
                }
            }
            Done::App { ticket, id, result } => match result {
                Ok(Found::Body(body)) => self.read_app(ticket, id, &body, Patience::Left),
                Ok(Found::Gone) => self.step(Input::AppGone { ticket, id }, None),
                Err(error) => self.app_failed(id, &error),
            },
            Done::LookedUp { lookups, then } => {
                self.learn(lookups);
                match then {
                    Waiting::List { ticket, mut answer } => {
                        match answer.answer.look_again(&self.surroundings()) {
                            Ok(()) => self.take_list_answer(ticket, answer, Patience::None),
                            Err(error) => self.list_failed(&FetchError::Malformed {
                                host: self.base.host(),
                                source: error.into(),
                            }),
                        }
                    }
                    Waiting::App { ticket, id, body } => self.read_app(ticket, id, &body, Patience::None),
                }
            }
            Done::Kept(result) => self.kept(result),
        }
    }

    fn stream_opened(&mut self, OpenStream { response, base }: OpenStream) {
        self.stats.n_streams_opened.add_one();
        tracing::info!(source = %self.feed.name(), host = base.host(), "the event stream is open");
        self.read_from(base);
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

    fn read_from(&mut self, base: Base) {
        self.feed.reads_from(base.host());
        self.base = base;
    }

    /// Goes over to the member that most follow: what was read from here is nobody's truth.
    fn follow(&mut self, member: usize) {
        let error = FetchError::NotTheLeader { host: self.base.host() };
        self.next_member = member;
        self.read_from(self.client.member(member));
        self.list_failed(&error);
        if self.stream.take().is_some() {
            self.stats.n_streams_lost.add_one();
            self.feed.reconnects(error.word());
            self.step(Input::StreamDown { kind: error.kind(), reason: chain(&error) }, None);
        }
    }

    fn take_list_answer(&mut self, ticket: Ticket, mut answer: ListAnswer, patience: Patience) {
        if patience == Patience::Left && !answer.answer.unasked_hosts.is_empty() {
            let hosts = std::mem::take(&mut answer.answer.unasked_hosts);
            return self.look_up(hosts, Waiting::List { ticket, answer });
        }
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
    fn survey(&self, answer: &ListAnswer) -> Survey {
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

    fn list_failed(&mut self, error: &FetchError) {
        self.stats.n_fetch_failures.add_one();
        self.feed.rejected(error.word());
        let reason = chain(error);
        tracing::warn!(source = %self.feed.name(), reason, "cannot read the list of apps; the last known state keeps serving");
        self.step(Input::ListFailed { kind: error.kind(), reason }, None);
    }

    fn app_failed(&mut self, id: AppId, error: &FetchError) {
        self.stats.n_fetch_failures.add_one();
        tracing::warn!(source = %self.feed.name(), app = %id, reason = chain(error), "cannot read an app");
        self.step(Input::AppFailed { id }, None);
    }

    fn read_app(&mut self, ticket: Ticket, id: AppId, body: &[u8], patience: Patience) {
        let malformed = |this: &Self, error: serde_json::Error| FetchError::Malformed {
            host: this.base.host(),
            source: error.into(),
        };
        let answer = self.surroundings().single(body);
        match answer {
            Ok(mut answer) if patience == Patience::Left && !answer.unasked_hosts.is_empty() => {
                let hosts = std::mem::take(&mut answer.unasked_hosts);
                self.look_up(hosts, Waiting::App { ticket, id, body: body.to_vec() });
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

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            framework: Arc::clone(&self.framework),
            names: self.names.clone(),
            moment: now(),
            previous: self.feed.held.apps().clone(),
            texts: self.texts.clone(),
        }
    }

    fn take_list(&mut self, answer: Answer, keep: &BTreeSet<AppId>) {
        let mut known: BTreeSet<AppId> = keep.clone();
        known.extend(answer.entries.iter().map(|entry| entry.id().clone()));
        self.feed.held.retain(&known);
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
    fn presume(&mut self, instances: Vec<(AppId, InstanceId)>) {
        for (app, instance) in instances {
            self.feed.held.presume_healthy(&app, &instance);
        }
    }

    fn take_entry(&mut self, entry: Entry) {
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

    fn retire(&mut self, app: &AppId, instance: &InstanceRef, verdict: Verdict) {
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

    fn set_framework(&mut self, framework: &str) {
        if *self.framework != *framework {
            tracing::info!(source = %self.feed.name(), framework, "learnt the framework's name");
            self.framework = framework.into();
            self.texts.forget_all();
        }
    }

    fn look_up(&self, hosts: Vec<String>, then: Waiting) {
        self.spawn(async move { Done::LookedUp { lookups: resolver::look_up(hosts).await, then } });
    }

    fn learn(&mut self, lookups: Lookups) {
        if self.names.learn(lookups, now()) == Changed::Yes {
            self.texts.forget_all();
        }
    }

    fn commit(&mut self) {
        if self.feed.commit(self.reconcile.state(), Some(&self.framework)) == crate::hub::Changed::Yes
            && self.config.state_file.is_some()
            && self.keeper.due.is_none()
        {
            let due = now() + KEEP_AFTER;
            self.keeper.due = Some(self.keeper.not_before.map_or(due, |at| due.max(at)));
        }
    }

    fn keep_when_due(&mut self) {
        let Some(path) = self.config.state_file.clone() else { return };
        if self.keeper.due.is_none_or(|due| due > now()) || self.keeper.busy_since.is_some() {
            return;
        }
        self.keeper.due = None;
        self.keeper.busy_since = Some(now());
        let (name, framework, apps) =
            (Arc::clone(self.feed.name()), Arc::clone(&self.framework), self.feed.held.apps().clone());
        self.spawn(async move {
            let saving = tokio::task::spawn_blocking(move || keep::save(&path, &name, &framework, &apps));
            Done::Kept(saving.await.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }

    fn kept(&mut self, result: std::io::Result<()>) {
        let now = now();
        if let Some(since) = self.keeper.busy_since.take() {
            self.keeper.not_before = Some(now + ((now - since) * KEEP_SHARE).min(KEEP_AT_LEAST_EVERY));
        }
        if let Err(error) = result {
            if self.stats.n_keep_failures.value() == 0 {
                let path = self.config.state_file.as_ref().map(|path| path.display().to_string());
                tracing::warn!(path, %error, "cannot keep the last good state on disk; serving goes on");
            }
            self.stats.n_keep_failures.add_one();
        }
    }

    /// Serves what an earlier run kept, until the scheduler answers.
    fn restore(&mut self) {
        let Some(path): Option<PathBuf> = self.config.state_file.clone() else { return };
        match keep::load(&path, self.feed.name()) {
            Ok(Some(kept)) => {
                self.framework = kept.framework.as_str().into();
                let mut words = Words::default();
                for mut app in kept.apps {
                    words.share(Arc::make_mut(&mut app));
                    self.feed.held.put(app, Vec::new());
                }
                let minutes = kept.age.as_secs() / 60;
                let reason =
                    format!("serving the state kept {minutes} minutes ago; no answer from the scheduler yet");
                let since = now().checked_sub(kept.age).unwrap_or_else(now);
                self.reconcile.restored(since, &reason);
            }
            Ok(None) => {}
            Err(error) => {
                self.feed.rejected("kept_state");
                tracing::warn!(path = %path.display(), reason = chain(&error), "cannot use the kept state");
            }
        }
    }
}

/// Instances that have not ended and are not being ended.
fn n_alive(app: &App) -> usize {
    let ends = |state| matches!(state, InstanceState::Killing | InstanceState::Terminal);
    app.instances.iter().filter(|instance| !ends(instance.state)).count()
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
