//! A seeded scheduler whose events are lost, doubled and late, and whose answers fail: after the faults, what the
//! watcher holds is the truth.
//!
//! A small world: apps whose instances come, sicken and go. The watcher's side is driven exactly as the real one.

use std::collections::VecDeque;

use rand::RngExt as _;

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
        let touch = Signal::Touched { apps: vec![app.clone()], urgency: Urgency::Now, news: News::Report };
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
        served.retain(|(app, task)| simulation.world.get(app).and_then(|i| i.get(task)) == Some(&Life::Runs));
        for (app, task) in &served {
            let life = simulation.catalog.get(app).and_then(|i| i.get(task));
            assert_eq!(life, Some(&Life::Runs), "seed {seed}: healthy {app} {task} was removed");
        }
        for (app, instances) in &simulation.catalog {
            served
                .extend(instances.iter().filter(|(_, l)| **l == Life::Runs).map(|(t, _)| (app.clone(), *t)));
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
