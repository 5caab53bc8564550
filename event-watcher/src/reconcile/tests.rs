//! The order of events and answers, case by case, and a seeded simulation of a scheduler whose events are lost,
//! doubled and late, and whose answers fail.

mod faults;

use super::*;
use crate::catalog::InstanceState;
use crate::publish::Freshness;

fn timing() -> Timing {
    Timing {
        resync: Duration::from_secs(30),
        coalesce: Duration::from_millis(50),
        poll: Duration::from_secs(5),
        stream_deadline: Duration::from_secs(15),
    }
}

fn id(name: &str) -> AppId {
    AppId::new(name)
}

fn touched(name: &str) -> Input {
    Input::Signal(Signal::Touched { apps: vec![id(name)], urgency: Urgency::Now, news: News::Report })
}

fn killing(name: &str, task: &str) -> Input {
    let verdict = Verdict::State(InstanceState::Killing);
    Input::Signal(Signal::Ended { app: id(name), instance: InstanceRef::Task(task.into()), verdict })
}

fn ticket_of(actions: &[Action]) -> Ticket {
    let mut tickets = actions.iter().filter_map(|action| match action {
        Action::FetchList(ticket) | Action::FetchApp(ticket, _) => Some(*ticket),
        _ => None,
    });
    let ticket = tickets.next().unwrap_or_else(|| panic!("no fetch in {actions:?}"));
    assert_eq!(tickets.next(), None, "{actions:?}");
    ticket
}

fn retires(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Retire { .. })).count()
}

/// A core with an open stream and a first list of these apps.
fn live(now: Instant, apps: &[&str]) -> Reconcile {
    let mut core = Reconcile::new(timing(), 1, now);
    assert_eq!(core.handle(now, Input::Tick), [Action::Connect]);
    assert_eq!(core.handle(now, Input::StreamUp), [], "what is read before the attachment may miss events");
    let ticket = ticket_of(&core.handle(now, Input::Signal(Signal::Attached)));
    assert!(matches!(core.state().freshness(), Freshness::Unsynced { .. }));
    let ids = apps.iter().map(|a| id(a)).collect();
    core.handle(now, Input::ListFetched { ticket, ids, survey: Survey::default() });
    assert_eq!(core.state().freshness(), Freshness::Live);
    core
}

#[test]
fn an_event_is_fetched_at_once_and_events_meanwhile_once_more() {
    let now = Instant::now();
    let mut core = live(now, &["/a"]);
    let ticket = ticket_of(&core.handle(now, touched("/a")));
    for _ in 0..1000 {
        assert_eq!(core.handle(now, touched("/a")), [], "one fetch per app at a time");
    }
    let actions = core.handle(now, Input::AppFetched { ticket, id: id("/a") });
    assert_eq!(actions[0], Action::TakeApp);
    let ticket = ticket_of(&actions);
    assert_eq!(core.handle(now, Input::AppFetched { ticket, id: id("/a") }), [Action::TakeApp]);
}

#[test]
fn a_storm_is_coalesced() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let mut n_fetches = 0;
    let mut in_flight = None;
    for ms in 0..10_000 {
        let now = start + Duration::from_millis(ms);
        let mut actions = core.handle(now, touched("/a"));
        if let Some(ticket) = in_flight.take() {
            actions.extend(core.handle(now, Input::AppFetched { ticket, id: id("/a") }));
        }
        for action in actions {
            if let Action::FetchApp(ticket, _) = action {
                n_fetches += 1;
                in_flight = Some(ticket);
            }
        }
    }
    assert!((190..=215).contains(&n_fetches), "{n_fetches} fetches in 10 s of 1,000 events/s");
    let mut n_lists = 0;
    for ms in 10_000..12_000 {
        let now = start + Duration::from_millis(ms);
        let actions = core.handle(now, Input::Signal(Signal::Everything));
        if let Some(Action::FetchList(ticket)) = actions.iter().find(|a| matches!(a, Action::FetchList(_))) {
            n_lists += 1;
            core.handle(
                now,
                Input::ListFetched { ticket: *ticket, ids: vec![id("/a")], survey: Survey::default() },
            );
        }
    }
    assert_eq!(n_lists, 10, "one list each 200 ms");
}

#[test]
fn many_apps_at_once_are_one_list() {
    let now = Instant::now();
    let mut core = live(now, &[]);
    let apps = (0..1000).map(|n| id(&format!("/app{n}"))).collect();
    let later = now + LIST_INTERVAL;
    let actions = core
        .handle(later, Input::Signal(Signal::Touched { apps, urgency: Urgency::Now, news: News::Report }));
    assert!(matches!(actions[..], [Action::FetchList(_)]), "{actions:?}");
}

#[test]
fn an_answer_begun_before_an_ending_brings_nobody_back() {
    let now = Instant::now();
    // A read of the app alone.
    let mut core = live(now, &["/a"]);
    let early = ticket_of(&core.handle(now, touched("/a")));
    assert_eq!(retires(&core.handle(now, killing("/a", "a.1"))), 1);
    let actions = core.handle(now, Input::AppFetched { ticket: early, id: id("/a") });
    assert_eq!((&actions[0], retires(&actions)), (&Action::TakeApp, 1), "taken, and the ending repeated");
    let later = now + timing().coalesce;
    let late = ticket_of(&core.handle(later, Input::Tick));
    let actions = core.handle(later, Input::AppFetched { ticket: late, id: id("/a") });
    assert_eq!(actions, [Action::TakeApp], "an answer begun after the ending knows of it");

    // A read of the list.
    let mut core = live(now, &["/a"]);
    let early = ticket_of(&core.handle(now + timing().resync, Input::Tick));
    let now = now + timing().resync;
    core.handle(now, killing("/a", "a.1"));
    let actions = core
        .handle(now, Input::ListFetched { ticket: early, ids: vec![id("/a")], survey: Survey::default() });
    assert_eq!((&actions[0], retires(&actions)), (&Action::TakeList { keep: BTreeSet::new() }, 1));
}

#[test]
fn of_two_overlapping_answers_the_second_is_left_out_and_the_app_read_again() {
    let start = Instant::now();
    for younger in ["fetched", "gone"] {
        let mut core = live(start, &["/a", "/b"]);
        let now = start + timing().resync;
        let list = ticket_of(&core.handle(now, Input::Tick));
        let news = if younger == "gone" { News::Plan } else { News::Report };
        let signal = Signal::Touched { apps: vec![id("/a")], urgency: Urgency::Now, news };
        let ticket = ticket_of(&core.handle(now, Input::Signal(signal)));
        let input = match younger {
            "fetched" => Input::AppFetched { ticket, id: id("/a") },
            _ => Input::AppGone { ticket, id: id("/a") },
        };
        core.handle(now, input);
        let actions = core.handle(
            now,
            Input::ListFetched { ticket: list, ids: vec![id("/a"), id("/b")], survey: Survey::default() },
        );
        assert_eq!(actions, [Action::TakeList { keep: [id("/a")].into() }], "{younger}");
        ticket_of(&core.handle(now + timing().coalesce, Input::Tick));
    }
    // And the other way round.
    let mut core = live(start, &["/a"]);
    let now = start + timing().resync / 2;
    let early = ticket_of(&core.handle(now, touched("/a")));
    let now = start + timing().resync;
    let list = ticket_of(&core.handle(now, Input::Tick));
    core.handle(now, Input::ListFetched { ticket: list, ids: vec![id("/a")], survey: Survey::default() });
    assert_eq!(core.handle(now, Input::AppFetched { ticket: early, id: id("/a") }), [Action::Discard]);
    ticket_of(&core.handle(now + timing().coalesce, Input::Tick));
}

#[test]
fn endless_endings_are_not_remembered_one_by_one() {
    let now = Instant::now();
    let mut core = live(now, &["/a"]);
    let early = ticket_of(&core.handle(now, touched("/a")));
    for n in 0..10 * MAX_ENDINGS {
        core.handle(now, killing("/a", &format!("a.{n}")));
    }
    assert!(core.tracks[&id("/a")].endings.len() <= MAX_ENDINGS);
    let actions = core.handle(now, Input::AppFetched { ticket: early, id: id("/a") });
    assert_eq!(actions[0], Action::Discard, "too old to be corrected");
    ticket_of(&core.handle(now + timing().coalesce, Input::Tick));
}

#[test]
fn the_state_is_stale_while_the_stream_is_away_and_live_after_a_list() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let down = start + Duration::from_secs(1);
    core.handle(down, Input::StreamDown { kind: FailureKind::Other, reason: "cut".into() });
    assert_eq!(core.state().freshness(), Freshness::Stale { since: down, reason: "cut".into() });
    // Failing for a minute: never more than one attempt at a time, and not every moment.
    let mut n_attempts = 0;
    let mut now = down;
    while now < down + Duration::from_secs(60) {
        now = core.next_deadline().unwrap().max(now + Duration::from_micros(1));
        for action in core.handle(now, Input::Tick) {
            match action {
                Action::Connect => {
                    n_attempts += 1;
                    core.handle(
                        now,
                        Input::StreamDown { kind: FailureKind::Other, reason: "refused".into() },
                    );
                }
                Action::FetchList(_) => {
                    core.handle(
                        now,
                        Input::ListFailed { kind: FailureKind::Other, reason: "refused".into() },
                    );
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!((8..60).contains(&n_attempts), "{n_attempts} attempts in a minute");
    assert_eq!(core.state().freshness(), Freshness::Stale { since: down, reason: "refused".into() });

    while !core.handle(now, Input::Tick).contains(&Action::Connect) {
        now = core.next_deadline().unwrap();
    }
    core.handle(now, Input::StreamUp);
    // A server that never says that the stream is attached.
    let attached = core.next_deadline().unwrap();
    assert!(attached <= now + ATTACH_DEADLINE);
    let ticket = ticket_of(&core.handle(attached, Input::Tick));
    core.handle(attached, Input::ListFetched { ticket, ids: vec![id("/a")], survey: Survey::default() });
    assert_eq!(core.state().freshness(), Freshness::Live);
}

#[test]
fn without_an_event_stream_the_list_is_polled() {
    let start = Instant::now();
    let mut core = Reconcile::new(timing(), 1, start);
    core.handle(start, Input::Tick);
    let down = Input::StreamDown { kind: FailureKind::NoStream, reason: "404".into() };
    let mut ticket = ticket_of(&core.handle(start, down));
    let mut now = start;
    for _ in 0..5 {
        core.handle(now, Input::ListFetched { ticket, ids: vec![], survey: Survey::default() });
        assert_eq!(core.state().freshness(), Freshness::Live);
        assert_eq!(core.next_deadline(), Some(now + timing().poll));
        now += timing().poll;
        ticket = ticket_of(&core.handle(now, Input::Tick));
    }
}

#[test]
fn refused_credentials_are_not_tried_again_at_once() {
    let start = Instant::now();
    let mut core = Reconcile::new(timing(), 1, start);
    core.handle(start, Input::Tick);
    core.handle(start, Input::StreamDown { kind: FailureKind::Auth, reason: "401".into() });
    core.handle(start, Input::ListFailed { kind: FailureKind::Auth, reason: "401".into() });
    assert_eq!(core.next_deadline(), Some(start + AUTH_BACKOFF));
    assert_eq!(core.state().freshness(), Freshness::Unsynced { reason: "401".into() });
}

mod simulation {
    //! A small world: apps whose instances come, sicken and go. The watcher's side is driven exactly as the real one.

    use std::collections::VecDeque;

    use super::*;

    /// App name to instances that run: task number to "is being killed".
    type World = BTreeMap<AppId, BTreeMap<u32, Life>>;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Life {
        Runs,
        Killing,
        Terminal,
    }

    enum Fetch {
        List,
        App(AppId),
    }

    struct Running {
        ticket: Ticket,
        fetch: Fetch,
        /// When the scheduler looks at its own state, and when the answer is here.
        read_at: Instant,
        answer_at: Instant,
        seen: Option<World>,
    }

    struct Simulation {
        rng: SmallRng,
        core: Reconcile,
        world: World,
        catalog: World,
        synced: bool,
        next_task: u32,
        events: Vec<(Instant, Signal)>,
        running: VecDeque<Running>,
        connecting: Option<Instant>,
        stream_is_up: bool,
        faults: bool,
        /// Instances that an event said are ending.
        told: BTreeSet<(AppId, u32)>,
        /// The world or the catalog changed in this step.
        moved: bool,
        next_change: Instant,
        /// A leader that has just been elected knows of nothing until then.
        confused_until: Instant,
    }

    impl Simulation {
        fn new(seed: u64, now: Instant) -> Self {
            Self {
                rng: SmallRng::seed_from_u64(seed),
                core: Reconcile::new(timing(), seed, now),
                world: (0..5).map(|n| (id(&format!("/app{n}")), BTreeMap::new())).collect(),
                catalog: World::new(),
                synced: false,
                next_task: 0,
                events: Vec::new(),
                running: VecDeque::new(),
                connecting: None,
                stream_is_up: false,
                faults: true,
                told: BTreeSet::new(),
                moved: false,
                next_change: now,
                confused_until: now,
            }
        }

        fn chance(&mut self, percent: u32) -> bool {
            self.rng.random_range(0..100) < percent
        }

        fn millis(&mut self, max: u64) -> Duration {
            Duration::from_millis(self.rng.random_range(0..=max))
        }

        fn emit(&mut self, now: Instant, signal: Signal) {
            if !self.stream_is_up || (self.faults && self.chance(10)) {
                return;
            }
            let n_copies = if self.faults && self.chance(10) { 2 } else { 1 };
            for _ in 0..n_copies {
                // Late and out of order while there are faults, but never before it happened.
                let delay = if self.faults { self.millis(300) } else { Duration::from_millis(1) };
                self.events.push((now + delay, signal.clone()));
            }
        }

        fn change_world(&mut self, now: Instant) {
            self.moved = true;
            let app = id(&format!("/app{}", self.rng.random_range(0..6)));
            let touch =
                Signal::Touched { apps: vec![app.clone()], urgency: Urgency::Now, news: News::Report };
            match self.rng.random_range(0..10) {
                0 => {
                    // Task 0 mod 7 is never killed, so its app stays.
                    let stays = |i: &BTreeMap<u32, Life>| i.keys().any(|task| task % 7 == 0);
                    if !self.world.get(&app).is_some_and(stays) {
                        self.world.remove(&app);
                        self.emit(now, touch);
                    }
                }
                1..=4 => {
                    self.next_task += 1;
                    let task = self.next_task;
                    self.world.entry(app).or_default().insert(task, Life::Runs);
                    self.emit(now, touch);
                }
                _ => {
                    let Some(instances) = self.world.get_mut(&app) else { return };
                    // Task 0 mod 7 is never killed: it must never leave the catalog once it is there.
                    let Some((task, life)) = instances.iter_mut().find(|(task, _)| **task % 7 != 0) else {
                        return;
                    };
                    let task = *task;
                    let verdict = match life {
                        Life::Runs => {
                            *life = Life::Killing;
                            Verdict::State(InstanceState::Killing)
                        }
                        _ => {
                            instances.remove(&task);
                            Verdict::State(InstanceState::Terminal)
                        }
                    };
                    let instance = InstanceRef::Task(task.to_string());
                    self.emit(now, Signal::Ended { app, instance, verdict });
                }
            }
        }

        fn give(&mut self, now: Instant, input: Input, answer: Option<&World>) {
            if let Input::Signal(Signal::Ended { app, instance: InstanceRef::Task(task), .. }) = &input {
                self.told.insert((app.clone(), task.parse().unwrap()));
            }
            for action in self.core.handle(now, input) {
                self.carry_out(now, action, answer);
            }
        }

        fn carry_out(&mut self, now: Instant, action: Action, answer: Option<&World>) {
            self.moved = true;
            let (fetch, ticket) = match action {
                Action::Connect => {
                    self.connecting = Some(now + Duration::from_millis(5));
                    return;
                }
                Action::FetchList(ticket) => (Fetch::List, ticket),
                Action::FetchApp(ticket, id) => (Fetch::App(id), ticket),
                Action::TakeList { keep } => {
                    let list = answer.unwrap();
                    self.catalog.retain(|id, _| keep.contains(id) || list.contains_key(id));
                    for (id, instances) in list.iter().filter(|(id, _)| !keep.contains(*id)) {
                        self.catalog.insert(id.clone(), instances.clone());
                    }
                    self.synced = true;
                    return;
                }
                Action::TakeApp => {
                    self.catalog.extend(answer.unwrap().clone());
                    return;
                }
                Action::RemoveApp(id) => {
                    self.catalog.remove(&id);
                    return;
                }
                Action::Discard => return,
                Action::Retire { app, instance: InstanceRef::Task(task), verdict: Verdict::State(state) } => {
                    let known = self.catalog.get_mut(&app).and_then(|i| i.get_mut(&task.parse().unwrap()));
                    if let Some(life) = known.filter(|life| **life != Life::Terminal) {
                        *life = if state == InstanceState::Killing { Life::Killing } else { Life::Terminal };
                    }
                    return;
                }
                Action::Retire { .. } => unreachable!("the simulation tells of states only"),
            };
            let read_at = now + if self.faults { self.millis(50) } else { Duration::from_millis(1) };
            let answer_at = read_at + if self.faults { self.millis(400) } else { Duration::from_millis(1) };
            self.running.push_back(Running { ticket, fetch, read_at, answer_at, seen: None });
        }

        /// When something happens next.
        fn next(&self, now: Instant) -> Instant {
            let events = self.events.iter().map(|(at, _)| *at);
            let reads = self.running.iter().filter(|r| r.seen.is_none()).map(|r| r.read_at);
            let answers = self.running.iter().map(|r| r.answer_at);
            let change = self.faults.then_some(self.next_change);
            let all = events.chain(reads).chain(answers).chain(self.connecting).chain(change);
            all.chain(self.core.next_deadline()).min().unwrap_or(now).max(now + Duration::from_micros(10))
        }

        fn survey(&self, seen: &World) -> Survey {
            let alive = |i: &BTreeMap<u32, Life>| i.values().filter(|life| **life == Life::Runs).count();
            let mut survey = Survey {
                contents: if seen.is_empty() { Contents::Nothing } else { Contents::Apps },
                leader: Some("m".into()),
                ..Survey::default()
            };
            for (app, instances) in &self.catalog {
                let (n_before, n_now) = (alive(instances), seen.get(app).map_or(0, alive));
                survey.n_before += n_before;
                if n_now < n_before {
                    survey.lost.insert(app.clone(), n_before - n_now);
                }
            }
            survey
        }

        fn step(&mut self, now: Instant) {
            if self.faults && self.next_change <= now {
                self.next_change = now + self.millis(80);
                self.change_world(now);
                if self.stream_is_up && self.rng.random_range(0..75) == 0 {
                    self.stream_is_up = false;
                    self.events.clear();
                    let cut = Input::StreamDown { kind: FailureKind::Other, reason: "cut".into() };
                    self.give(now, cut, None);
                }
            }
            let world = if now < self.confused_until { World::new() } else { self.world.clone() };
            for running in &mut self.running {
                if running.read_at <= now && running.seen.is_none() {
                    running.seen = Some(world.clone());
                }
            }
            if self.connecting.is_some_and(|at| at <= now) {
                self.connecting = None;
                if self.faults && self.chance(40) {
                    self.give(
                        now,
                        Input::StreamDown { kind: FailureKind::Other, reason: "refused".into() },
                        None,
                    );
                } else {
                    self.stream_is_up = true;
                    if self.faults && self.synced && self.chance(30) {
                        self.confused_until = now + self.millis(5_000);
                    }
                    self.give(now, Input::StreamUp, None);
                    self.give(now, Input::Signal(Signal::Attached), None);
                }
            }
            let (due, later) = std::mem::take(&mut self.events).into_iter().partition(|(at, _)| *at <= now);
            self.events = later;
            let due: Vec<(Instant, Signal)> = due;
            for (_, signal) in due {
                self.give(now, Input::Signal(signal), None);
            }
            let (done, rest): (VecDeque<_>, _) =
                std::mem::take(&mut self.running).into_iter().partition(|r| r.answer_at <= now);
            self.running = rest;
            for Running { ticket, fetch, seen, .. } in done {
                // Answered within one step: the scheduler looked just now.
                let seen = seen.unwrap_or_else(|| world.clone());
                let failed = self.faults && self.chance(10);
                match fetch {
                    Fetch::List if failed => {
                        self.give(
                            now,
                            Input::ListFailed { kind: FailureKind::Other, reason: "503".into() },
                            None,
                        );
                    }
                    Fetch::List => {
                        let survey = self.survey(&seen);
                        let ids = seen.keys().cloned().collect();
                        self.give(now, Input::ListFetched { ticket, ids, survey }, Some(&seen));
                    }
                    Fetch::App(id) if failed => self.give(now, Input::AppFailed { id }, None),
                    Fetch::App(id) => match seen.get(&id) {
                        Some(instances) => {
                            let answer = World::from([(id.clone(), instances.clone())]);
                            self.give(now, Input::AppFetched { ticket, id }, Some(&answer));
                        }
                        None => self.give(now, Input::AppGone { ticket, id }, None),
                    },
                }
            }
            if self.core.next_deadline().is_some_and(|due| due <= now) {
                self.give(now, Input::Tick, None);
                let next = self.core.next_deadline();
                assert!(next.is_none_or(|due| due > now), "a deadline that never passes");
            }
        }

        /// Nobody whom an event has ended gets new work again.
        fn check_nobody_came_back(&self, seed: u64) {
            for (app, task) in &self.told {
                let life = self.catalog.get(app).and_then(|i| i.get(task));
                assert_ne!(life, Some(&Life::Runs), "seed {seed}: {app} {task} came back");
            }
        }
    }

    fn run(seed: u64) {
        let start = Instant::now();
        let mut simulation = Simulation::new(seed, start);
        let mut served: BTreeSet<(AppId, u32)> = BTreeSet::new();
        let mut now = start;
        while now < start + Duration::from_secs(30) {
            simulation.step(now);
            now = simulation.next(now);
            if !std::mem::take(&mut simulation.moved) {
                continue;
            }
            simulation.check_nobody_came_back(seed);
            // Whoever was served, runs and never stopped running, is served.
            served.retain(|(app, task)| {
                simulation.world.get(app).and_then(|i| i.get(task)) == Some(&Life::Runs)
            });
            for (app, task) in &served {
                let life = simulation.catalog.get(app).and_then(|i| i.get(task));
                assert_eq!(life, Some(&Life::Runs), "seed {seed}: healthy {app} {task} was removed");
            }
            for (app, instances) in &simulation.catalog {
                served.extend(
                    instances.iter().filter(|(_, l)| **l == Life::Runs).map(|(t, _)| (app.clone(), *t)),
                );
            }
        }
        simulation.faults = false;
        // What the faults left behind is repaired within the resync interval.
        simulation.confused_until = start;
        let end = now + timing().resync;
        while now < end {
            simulation.step(now);
            now = simulation.next(now);
        }
        simulation.check_nobody_came_back(seed);
        assert!(simulation.synced, "seed {seed}: never synced");
        assert_eq!(simulation.core.state().freshness(), Freshness::Live, "seed {seed}");
        assert_eq!(simulation.catalog, simulation.world, "seed {seed}: the catalog is not the truth");
    }

    /// The seed of a failure is in its message; `WAYMARK_SEED` runs that one alone, `WAYMARK_SEEDS` says how many.
    #[test]
    fn whatever_is_lost_late_or_doubled_the_catalog_becomes_the_truth() {
        if let Ok(seed) = std::env::var("WAYMARK_SEED") {
            return run(seed.parse().unwrap());
        }
        let first: u64 = rand::random();
        let few = if std::env::var_os("CI").is_some() { 500 } else { 40 };
        let n_seeds = std::env::var("WAYMARK_SEEDS").map_or(few, |n| n.parse().unwrap());
        eprintln!("{n_seeds} seeds from {first}");
        for n in 0..n_seeds {
            run(first.wrapping_add(n));
        }
    }
}
