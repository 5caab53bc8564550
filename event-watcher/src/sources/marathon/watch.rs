//! The task that watches one scheduler: carries out what `reconcile` decides, and holds what the scheduler runs.
//!
//! It never holds less because something failed: without an answer, the last good state stays and is called stale.

mod answers;
mod keeping;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::keeping::Keeper;
use super::client::{About, Base, Client, Found, HostAndPort, Leadership, ListAnswer, OpenStream};
use super::events;
use super::grace::Grace;
use super::list::{Answer, Entry, Kind, Surroundings, Texts};
use super::stream::{Report, SeenEvent, StreamReader};
use super::words::Words;
use crate::catalog::{AppId, Leaders};
use crate::config::Marathon;
use crate::error::{ConfigError, FetchError, StreamError, chain};
use crate::hub::Feed;
use crate::reconcile::{Action, Input, Reconcile, Ticket, Timing};
use crate::resolver::{self, Changed, Lookups, Names};
use crate::stats::Stats;
use crate::watcher::{Command, now};

/// Signals that may wait while the watcher is busy with an answer. Beyond, a full read stands for all of them.
const MAX_WAITING_SIGNALS: usize = 1024;
/// Signals that are taken in before a snapshot is published for all of them.
const SIGNALS_AT_ONCE: usize = 256;
/// How long the first list waits for what the scheduler says about itself: its name is part of every DNS name.
const ABOUT_DEADLINE: Duration = Duration::from_secs(3);

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
    /// What the scheduler says about itself was read since the stream was opened and its leader changed last.
    about_known: bool,
    leaders: Leaders,
    /// Who the last list named as leader.
    listed_leader: Option<String>,
    grace: Grace,
    keeper: Keeper,
}

struct LiveStream {
    reports: mpsc::Receiver<Report>,
    _reader: AbortOnDropHandle<()>,
}

enum Done {
    Stream(Result<OpenStream, FetchError>),
    List {
        ticket: Ticket,
        about: Option<Told>,
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

/// What the scheduler says about itself, with addresses.
struct Told {
    framework: Option<String>,
    leaders: Leaders,
}

impl Told {
    async fn of(about: About) -> Self {
        let (scheduler, master) = tokio::join!(address(about.leader), address(about.master));
        Self { framework: about.framework, leaders: Leaders { scheduler, master } }
    }
}

async fn address(of: Option<HostAndPort>) -> Option<SocketAddr> {
    let HostAndPort { host, port } = of?;
    if let Ok(ip) = host.parse() {
        return Some(SocketAddr::new(ip, port));
    }
    let (_, ip) = resolver::look_up(vec![host]).await.pop()?;
    Some(SocketAddr::new(ip?, port))
}

/// An answer that waits for the addresses of new hosts.
enum Waiting {
    List { ticket: Ticket, answer: ListAnswer },
    App { ticket: Ticket, id: AppId, kind: Kind, body: Vec<u8> },
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
            about_known: false,
            leaders: Leaders::default(),
            listed_leader: None,
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
        let (client, base, about_known) = (self.client.clone(), self.base.clone(), self.about_known);
        let mut around = self.surroundings();
        self.spawn(async move {
            let about = match about_known {
                true => None,
                false => {
                    let asking = async { Some(Told::of(client.about(&base).await.ok()?).await) };
                    tokio::time::timeout(ABOUT_DEADLINE, asking).await.ok().flatten()
                }
            };
            let framework = about.as_ref().and_then(|told| told.framework.as_deref());
            if let Some(framework) = framework.filter(|name| **name != *around.framework) {
                around.framework = framework.into();
                around.texts.forget_all();
            }
            let (result, leadership) = tokio::join!(client.list(&base, around), client.leadership(&base));
            Done::List { ticket, about, leadership, result }
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
            Done::List { ticket, about, leadership, result } => {
                if let Some(told) = about {
                    // Without a name it is not done starting: ask again with the next list.
                    self.about_known = told.framework.is_some();
                    self.leaders = told.leaders;
                    if let Some(framework) = told.framework {
                        self.set_framework(&framework);
                    }
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
                Ok(Found::Body(kind, body)) => self.read_app(ticket, id, kind, &body, Patience::Left),
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
                    Waiting::App { ticket, id, kind, body } => {
                        self.read_app(ticket, id, kind, &body, Patience::None);
                    }
                }
            }
            Done::Kept(result) => self.kept(result),
        }
    }

    fn stream_opened(&mut self, OpenStream { response, base }: OpenStream) {
        self.stats.n_streams_opened.add_one();
        tracing::info!(source = %self.feed.name(), host = base.host(), "the event stream is open");
        self.read_from(base);
        self.about_known = false;
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

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            framework: Arc::clone(&self.framework),
            names: self.names.clone(),
            moment: now(),
            previous: self.feed.held.apps().clone(),
            texts: self.texts.clone(),
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
