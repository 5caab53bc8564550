//! Decides when to connect, what to fetch, and which answers still count. Sans-io: [`Input`] in, [`Action`]s out, the
//! time is an argument.
//!
//! Everything is ordered by one counter: an event, the begin of a fetch and its answer each take the next number. When
//! two fetches about an app overlap, nobody can tell which one looked later; the answer that comes second is left out
//! and the app is fetched again. An ending told by an event holds against every answer whose fetch began before it.
//! It parses nothing, holds no catalog, and never reads a clock.

mod answers;
mod fetches;
mod guard;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use crate::catalog::AppId;
use crate::sources::{InstanceRef, News, Signal, Urgency, Verdict};

use guard::Guard;
pub(crate) use guard::{Contents, Survey};
pub use state::Cause;
pub(crate) use state::State;

/// Lists are read at most this often, whatever the events say.
const LIST_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait for `event_stream_attached` once the stream answered 200: servers that never send it exist.
const ATTACH_DEADLINE: Duration = Duration::from_millis(500);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A failed read is not repeated sooner, so that an election is not hammered.
const FETCH_BACKOFF_FLOOR: Duration = Duration::from_millis(250);
/// Refused credentials do not get better by asking again.
const AUTH_BACKOFF: Duration = Duration::from_secs(10);
/// A stream that lived shorter than this counts as another failure.
const STREAM_PROVEN: Duration = Duration::from_secs(10);
/// How often a scheduler without an event stream is asked for one again.
const STREAM_RETRY: Duration = Duration::from_secs(60);
/// With more apps touched at once, one list is cheaper for everybody.
const MAX_SINGLE_FETCHES: usize = 16;
const MAX_CONCURRENT_FETCHES: usize = 8;
/// Fetches of one app that may follow each other at once; a deployment's events come in bursts.
const APP_BURST: u32 = 10;
/// Streams in a row that fell silent before a proxy that holds events back is what it looks like.
const SILENT_STREAMS: u32 = 2;
/// More endings than this during one fetch: its answer is not worth correcting.
const MAX_ENDINGS: usize = 256;

#[derive(Clone, Debug)]
pub(crate) struct Timing {
    pub resync: Duration,
    pub coalesce: Duration,
    pub poll: Duration,
    pub stream_deadline: Duration,
}

/// The place of a fetch's begin in the order of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Auth,
    /// The scheduler has no event stream.
    NoStream,
    /// The stream was open and nothing came.
    Silent,
    /// The members do not agree on who leads them.
    SplitBrain,
    Other,
}

#[derive(Debug)]
pub(crate) enum Input {
    /// Time passed.
    Tick,
    /// The stream answered 200.
    StreamUp,
    StreamDown {
        kind: FailureKind,
        reason: String,
    },
    Signal(Signal),
    ListFetched {
        ticket: Ticket,
        ids: Vec<AppId>,
        survey: Survey,
    },
    AppFetched {
        ticket: Ticket,
        id: AppId,
    },
    /// The scheduler says that there is no such app.
    AppGone {
        ticket: Ticket,
        id: AppId,
    },
    ListFailed {
        kind: FailureKind,
        reason: String,
    },
    AppFailed {
        id: AppId,
    },
    /// Read everything now.
    Resync,
    /// Read everything now, and believe it.
    Believe,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Connect,
    FetchList(Ticket),
    FetchApp(Ticket, AppId),
    /// Apply the list at hand, except for `keep`: for these the catalog has younger knowledge.
    TakeList {
        keep: BTreeSet<AppId>,
    },
    /// Apply the app at hand.
    TakeApp,
    RemoveApp(AppId),
    /// The answer at hand is older than what the catalog holds.
    Discard,
    Retire {
        app: AppId,
        instance: InstanceRef,
        verdict: Verdict,
    },
}

#[derive(Debug)]
pub(crate) struct Reconcile {
    timing: Timing,
    rng: SmallRng,
    counter: u64,
    stream: Stream,
    n_stream_failures: u32,
    n_silent_streams: u32,
    /// The list is read often, because the stream cannot be counted on.
    polling: bool,
    list: Option<Ticket>,
    list_due: Option<Instant>,
    list_begun: Option<Instant>,
    n_list_failures: u32,
    tracks: BTreeMap<AppId, Track>,
    /// Apps with a fetch due.
    dirty: BTreeSet<AppId>,
    n_in_flight: usize,
    state: State,
    guard: Guard,
    listed: Listed,
}

/// Whether the scheduler has answered with a list since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Never,
    Once,
}

#[derive(Debug)]
enum Stream {
    Down { due: Instant },
    Connecting,
    Attaching { deadline: Instant },
    Up { since: Instant },
}

/// What has to be remembered about an app while something about it is under way.
#[derive(Debug)]
struct Track {
    due: Option<Instant>,
    /// The number of the newest event about it.
    touched: u64,
    in_flight: Option<Ticket>,
    /// When the last answer came; fetches that began before may have looked earlier or later.
    known: u64,
    /// Endings told by events since a fetch began that is still under way and may not know of them.
    endings: Vec<(u64, InstanceRef, Verdict)>,
    /// When the burst will be paid back (generic cell rate algorithm).
    paid_at: Instant,
}

impl Reconcile {
    pub(crate) fn new(timing: Timing, seed: u64, now: Instant) -> Self {
        Self {
            timing,
            rng: SmallRng::seed_from_u64(seed),
            counter: 0,
            stream: Stream::Down { due: now },
            n_stream_failures: 0,
            n_silent_streams: 0,
            polling: false,
            list: None,
            list_due: None,
            list_begun: None,
            n_list_failures: 0,
            tracks: BTreeMap::new(),
            dirty: BTreeSet::new(),
            n_in_flight: 0,
            state: State::new(),
            guard: Guard::default(),
            listed: Listed::Never,
        }
    }

    /// What an earlier run kept is being served; it was the present at `since`.
    pub(crate) fn restored(&mut self, since: Instant, reason: &str) {
        self.state.known_as_of(since, Cause::Restored, reason);
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Instances that are held although the scheduler no longer lists them, by app.
    pub(crate) fn held(&self) -> Option<&BTreeMap<AppId, usize>> {
        self.guard.held()
    }

    pub(crate) fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let before = self.state.clone();
        let actions = self.take(now, input);
        debug_assert!(self.state.may_follow(&before, now), "{before:?} to {:?} at {now:?}", self.state);
        actions
    }

    fn take(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Tick => {}
            Input::StreamUp => {
                self.stream = Stream::Attaching { deadline: now + ATTACH_DEADLINE };
            }
            Input::StreamDown { kind, reason } => self.stream_down(now, kind, &reason),
            Input::Signal(signal) => self.signal(now, signal, &mut actions),
            Input::ListFetched { ticket, ids, survey } => {
                self.list_fetched(now, ticket, ids, survey, &mut actions);
            }
            Input::AppFetched { ticket, id } => {
                self.app_answered(now, ticket, id, Action::TakeApp, &mut actions)
            }
            Input::AppGone { ticket, id } => {
                if self.guard.doubts(now, &id) {
                    // A leader that does not know yet what it runs says so of every app; a list can be judged.
                    self.app_landed(&id);
                    self.want_list(now);
                    actions.push(Action::Discard);
                    self.begin_due(now, &mut actions);
                    return actions;
                }
                let remove = Action::RemoveApp(id.clone());
                self.app_answered(now, ticket, id, remove, &mut actions);
            }
            Input::ListFailed { kind, reason } => {
                self.list = None;
                let delay = self.fetch_backoff(kind);
                self.list_due = Some(now + delay);
                let cause = match kind {
                    FailureKind::Auth => Cause::Auth,
                    FailureKind::SplitBrain => Cause::SplitBrain,
                    _ => Cause::Fetch,
                };
                self.state.lost(now, cause, &reason);
            }
            Input::Resync => self.want_list(now),
            Input::Believe => {
                self.guard.believe_next(now);
                // A list under way began before it was told to be believed.
                self.counter += 1;
                self.want_list(now);
            }
            Input::AppFailed { id } => {
                self.app_landed(&id);
                // Its event is not forgotten: a list that begins later knows of it.
                let delay = self.fetch_backoff(FailureKind::Other);
                self.want_list(now + delay);
            }
        }
        if let Stream::Attaching { deadline } = self.stream
            && deadline <= now
        {
            self.attached(now);
        }
        if self.polling
            && let Stream::Up { since } = self.stream
            && now.duration_since(since) > self.proven_after()
        {
            // Heartbeats come through.
            self.polling = false;
            self.n_silent_streams = 0;
        }
        self.begin_due(now, &mut actions);
        actions
    }

    /// When to call [`Self::handle`] with [`Input::Tick`] at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let stream = match self.stream {
            Stream::Down { due } => Some(due),
            Stream::Attaching { deadline } => Some(deadline),
            Stream::Connecting | Stream::Up { .. } => None,
        };
        let apps = self.may_fetch_apps().then(|| self.next_app()).flatten().map(|(due, _)| due);
        [stream, self.next_list(), apps].into_iter().flatten().min()
    }

    fn signal(&mut self, now: Instant, signal: Signal, actions: &mut Vec<Action>) {
        if let Stream::Attaching { .. } = self.stream {
            self.attached(now);
        }
        match signal {
            Signal::Attached | Signal::Nothing => {}
            Signal::Everything => {
                self.counter += 1;
                self.want_list(now);
            }
            Signal::Touched { apps, urgency, news } => {
                for app in apps {
                    if news == News::Plan {
                        self.guard.explain(now, app.clone());
                    }
                    self.touch(now, app, urgency);
                }
            }
            Signal::Ended { app, instance, verdict } => {
                self.touch(now, app.clone(), Urgency::Soon);
                let (number, list) = (self.counter, self.list);
                if let Some(track) = self.tracks.get_mut(&app)
                    && (track.in_flight.is_some() || list.is_some())
                {
                    if track.endings.len() == MAX_ENDINGS {
                        track.endings.clear();
                        track.known = number;
                    } else {
                        track.endings.push((number, instance.clone(), verdict));
                    }
                }
                actions.push(Action::Retire { app, instance, verdict });
            }
        }
    }

    fn touch(&mut self, now: Instant, app: AppId, urgency: Urgency) {
        self.counter += 1;
        let due = match urgency {
            Urgency::Now => now,
            Urgency::Soon => now + self.timing.coalesce,
        };
        let track = self.tracks.entry(app.clone()).or_insert_with(|| Track {
            due: None,
            touched: 0,
            in_flight: None,
            known: 0,
            endings: Vec::new(),
            paid_at: now,
        });
        track.touched = self.counter;
        track.due = Some(track.due.map_or(due, |known| known.min(due)));
        self.dirty.insert(app);
    }

    fn attached(&mut self, now: Instant) {
        self.stream = Stream::Up { since: now };
        self.guard.arm(now);
        // What was read before missed the events between then and now.
        self.counter += 1;
        self.want_list(now);
    }

    fn stream_down(&mut self, now: Instant, kind: FailureKind, reason: &str) {
        if let Stream::Up { since } = self.stream
            && now.duration_since(since) >= STREAM_PROVEN
            && kind != FailureKind::Silent
        {
            self.n_stream_failures = 0;
        }
        if let Stream::Up { since } = self.stream
            && now.duration_since(since) > self.proven_after()
        {
            self.n_silent_streams = 0;
        }
        let mut delay = self.backoff(self.n_stream_failures);
        self.n_stream_failures = self.n_stream_failures.saturating_add(1);
        match kind {
            FailureKind::NoStream => {
                self.polling = true;
                delay = STREAM_RETRY;
                self.want_list(now);
            }
            FailureKind::Auth => delay = delay.max(AUTH_BACKOFF),
            FailureKind::Silent => {
                self.n_silent_streams = self.n_silent_streams.saturating_add(1);
                if self.n_silent_streams >= SILENT_STREAMS {
                    self.polling = true;
                    delay = STREAM_RETRY;
                    self.want_list(now);
                }
            }
            FailureKind::SplitBrain | FailureKind::Other => {}
        }
        if let Stream::Up { .. } | Stream::Attaching { .. } = self.stream {
            // An election cuts streams, and a list may be had before a stream.
            self.guard.arm(now);
        }
        self.stream = Stream::Down { due: now + delay };
        if !self.polling {
            let cause = if kind == FailureKind::Auth { Cause::Auth } else { Cause::Stream };
            self.state.lost(now, cause, reason);
        }
        // A list may be had where a stream is not. The first one is worth asking for at once.
        let first = !self.state.is_synced() && self.n_list_failures == 0;
        self.want_list(if first { now } else { now + self.interval() });
    }
}

#[cfg(test)]
mod tests;
