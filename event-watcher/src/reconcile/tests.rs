//! The order of events and answers, case by case.

mod faults;
mod simulation;

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
