//! Scheduler faults in virtual time: what is decided about streams, lists, losses and leaders.
//!
//! Names begin with the number of the fault in the project's list of scheduler faults.

use super::*;
use crate::reconcile::guard::CONFIRM_EVERY;

const SECOND: Duration = Duration::from_secs(1);

fn down(kind: FailureKind) -> Input {
    Input::StreamDown { kind, reason: "gone".into() }
}

fn listed(ticket: Ticket, apps: &[&str], survey: Survey) -> Input {
    Input::ListFetched { ticket, ids: apps.iter().map(|a| id(a)).collect(), survey }
}

/// A list that lacks one instance of each of these apps, of `n_before` in all.
fn loss(n_before: usize, apps: &[&str], leader: &str) -> Survey {
    let contents = if apps.len() == n_before { Contents::Nothing } else { Contents::Apps };
    let lost = apps.iter().map(|a| (id(a), 1)).collect();
    Survey { n_before, lost, contents, leader: Some(leader.into()) }
}

/// Lets time pass until a list is fetched; streams stay as they are.
fn next_list(core: &mut Reconcile, now: &mut Instant) -> Ticket {
    for _ in 0..100 {
        *now = core.next_deadline().expect("something is due").max(*now);
        let actions = core.handle(*now, Input::Tick);
        if let Some(Action::FetchList(ticket)) = actions.iter().find(|a| matches!(a, Action::FetchList(_))) {
            return *ticket;
        }
    }
    panic!("no list was fetched");
}

fn kept(actions: &[Action]) -> Vec<String> {
    let keep = actions.iter().find_map(|action| match action {
        Action::TakeList { keep } => Some(keep),
        _ => None,
    });
    keep.expect("the list is taken").iter().map(ToString::to_string).collect()
}

#[test]
fn w01_a_cut_stream_is_opened_again_with_growing_jitter_and_read_after_the_attachment() {
    let mut first_delays = Vec::new();
    let mut last_delays = Vec::new();
    for seed in 0..200 {
        let start = Instant::now();
        let mut core = Reconcile::new(timing(), seed, start);
        core.handle(start, Input::Tick);
        let mut now = start;
        for turn in 0..12 {
            core.handle(now, down(FailureKind::Other));
            let Stream::Down { due } = core.stream else { panic!("{:?}", core.stream) };
            let delay = due - now;
            assert!(delay <= BACKOFF_MAX);
            match turn {
                0 => first_delays.push(delay),
                11 => last_delays.push(delay),
                _ => {}
            }
            now = due;
            core.handle(now, Input::Tick);
        }
        core.handle(now, Input::StreamUp);
        assert!(core.next_list().is_none(), "nothing is read before the stream delivers");
        let actions = core.handle(now + SECOND, Input::Signal(Signal::Attached));
        assert!(actions.iter().any(|a| matches!(a, Action::FetchList(_))) || core.list.is_some());
    }
    let mean = |delays: &[Duration]| delays.iter().sum::<Duration>() / delays.len() as u32;
    assert!(first_delays.iter().all(|delay| *delay <= BACKOFF_FIRST));
    assert!((4 * SECOND..6 * SECOND).contains(&mean(&last_delays)), "{:?}", mean(&last_delays));
}

#[test]
fn w08_events_out_of_order_only_make_it_look_again() {
    let now = Instant::now();
    let mut core = live(now, &["/a"]);
    let early = ticket_of(
        &core
            .handle(now, killing("/a", "a.1"))
            .into_iter()
            .chain(core.handle(now + timing().coalesce, Input::Tick))
            .collect::<Vec<_>>(),
    );
    // The running event of the same instance comes after its end: it starts another read and nothing else.
    let actions = core.handle(now + timing().coalesce, touched("/a"));
    assert!(actions.is_empty(), "{actions:?}");
    let actions = core.handle(now + SECOND, Input::AppFetched { ticket: early, id: id("/a") });
    assert_eq!(actions[0], Action::TakeApp);
}

#[test]
fn w09_duplicated_events_are_coalesced() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let mut n_lists = 0;
    // 10,000 events a second that name no app.
    for tick in 0..20_000_u32 {
        let now = start + Duration::from_micros(100) * tick + LIST_INTERVAL;
        for action in core.handle(now, Input::Signal(Signal::Everything)) {
            if let Action::FetchList(ticket) = action {
                n_lists += 1;
                core.handle(now, listed(ticket, &["/a"], Survey::default()));
            }
        }
    }
    assert!((10..=11).contains(&n_lists), "{n_lists} lists in 2 s");
}

#[test]
fn w10_what_no_event_told_is_read_within_the_resync_interval() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let mut now = start;
    next_list(&mut core, &mut now);
    assert!(now - start <= timing().resync, "{:?}", now - start);
}

#[test]
fn w11_an_election_costs_a_read_every_quarter_of_a_second_at_most() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let mut now = start;
    let mut n_reads = 0;
    while now < start + 10 * SECOND {
        core.handle(now, Input::Signal(Signal::Everything));
        let ticket = next_list(&mut core, &mut now);
        let _ = ticket;
        n_reads += 1;
        core.handle(now, Input::ListFailed { kind: FailureKind::Other, reason: "503".into() });
        assert_eq!(core.state().cause(), Some(Cause::Fetch));
        now += Duration::from_millis(1);
    }
    assert!(n_reads <= 50, "{n_reads} reads in 10 s");
}

#[test]
fn w14_an_empty_list_after_an_election_is_held_and_believed_when_it_is_confirmed() {
    let start = Instant::now();
    let apps = ["/a", "/b", "/c"];
    let mut core = live(start, &apps);
    let mut now = start + SECOND;
    core.handle(now, down(FailureKind::Other));
    while !matches!(core.stream, Stream::Connecting) {
        now = core.next_deadline().unwrap();
        for action in core.handle(now, Input::Tick) {
            if let Action::FetchList(_) = action {
                core.handle(now, Input::ListFailed { kind: FailureKind::Other, reason: "502".into() });
            }
        }
    }
    core.handle(now, Input::StreamUp);
    let mut actions = core.handle(now, Input::Signal(Signal::Attached));
    let began = now;
    for _ in 0..50 {
        let ticket = match actions.iter().find_map(|a| match a {
            Action::FetchList(ticket) => Some(*ticket),
            _ => None,
        }) {
            Some(ticket) => ticket,
            None => next_list(&mut core, &mut now),
        };
        actions = core.handle(now, listed(ticket, &[], loss(3, &apps, "m1")));
        if core.held().is_none() {
            break;
        }
        assert_eq!(kept(&actions), apps);
        assert_eq!(core.state().cause(), Some(Cause::HeldDrop));
        assert!(core.next_deadline().unwrap() <= now + CONFIRM_EVERY, "it is looked at again every second");
    }
    let took = now - began;
    assert!((10 * SECOND..12 * SECOND).contains(&took), "believed after {took:?}");
    assert_eq!((kept(&actions).len(), core.state()), (0, &State::Live));
}

#[test]
fn w14_what_is_a_suspicious_loss() {
    let many: Vec<String> = (0..10).map(|n| format!("/app{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (what, survey, after, expect) in [
        ("half of the instances, three apps and more", loss(10, &many[..5], "m1"), SECOND, true),
        ("fewer than half", loss(10, &many[..4], "m1"), SECOND, false),
        ("two apps only", loss(4, &many[..2], "m1"), SECOND, false),
        ("the only app, with an empty list", loss(1, &many[..1], "m1"), SECOND, true),
        ("long after the reconnect", loss(10, &many[..5], "m1"), 61 * SECOND, false),
        ("long after, but the leader changed", loss(10, &many[..5], "m2"), 61 * SECOND, true),
        ("nothing at all", loss(10, &[], "m1"), SECOND, false),
    ] {
        let start = Instant::now();
        let mut core = live(start, &many);
        let mut now = start;
        let ticket = next_list(&mut core, &mut now);
        core.handle(now, listed(ticket, &many, loss(10, &[], "m1")));
        now = now.max(start + after);
        core.handle(now, Input::Signal(Signal::Everything));
        let ticket = core.list.unwrap_or_else(|| next_list(&mut core, &mut now));
        // Within the minute after the attachment or not, as the case says.
        if after < 60 * SECOND {
            core.guard.arm(now);
        }
        core.handle(now, listed(ticket, &many, survey));
        assert_eq!(core.held().is_some(), expect, "{what}");
    }
}

#[test]
fn w14_a_list_that_is_empty_before_the_stream_is_back_is_held_too() {
    let start = Instant::now();
    let apps = ["/a", "/b", "/c"];
    let mut core = live(start, &apps);
    // Long after the last reconnect, and nobody names another leader.
    let mut now = start + 300 * SECOND;
    let ticket = next_list(&mut core, &mut now);
    core.handle(now, listed(ticket, &apps, loss(3, &[], "m1")));
    core.handle(now, down(FailureKind::Other));
    let ticket = next_list(&mut core, &mut now);
    let actions = core.handle(now, listed(ticket, &[], loss(3, &apps, "m1")));
    assert_eq!(kept(&actions), apps);
    assert_eq!(core.state().cause(), Some(Cause::HeldDrop));
}

#[test]
fn w14_events_and_the_operator_explain_a_loss() {
    let apps = ["/a", "/b", "/c"];
    for told in ["deployment", "operator", "nobody"] {
        let start = Instant::now();
        let mut core = live(start, &apps);
        let mut now = start + SECOND;
        match told {
            "deployment" => {
                let apps = apps.iter().map(|a| id(a)).collect();
                let signal = Signal::Touched { apps, urgency: Urgency::Soon, news: News::Plan };
                core.handle(now, Input::Signal(signal));
            }
            "operator" => {
                core.handle(now, Input::Believe);
            }
            _ => {}
        }
        core.handle(now, Input::Signal(Signal::Everything));
        let ticket = core.list.unwrap_or_else(|| next_list(&mut core, &mut now));
        core.handle(now, listed(ticket, &[], loss(3, &apps, "m1")));
        assert_eq!(core.held().is_some(), told == "nobody", "{told}");
    }
    // Said while the scheduler was away for long: that is not about what it says when it is back.
    let start = Instant::now();
    let mut core = live(start, &apps);
    core.handle(start, Input::Believe);
    core.guard.arm(start + 100 * SECOND);
    let mut now = start + 100 * SECOND;
    core.list = None;
    let ticket = next_list(&mut core, &mut now);
    core.handle(now, listed(ticket, &[], loss(3, &apps, "m1")));
    assert!(core.held().is_some());
    // A loss that is held already is let go, too.
    let start = Instant::now();
    let mut core = live(start, &apps);
    let mut now = start + SECOND;
    core.handle(now, Input::Signal(Signal::Everything));
    let ticket = core.list.unwrap_or_else(|| next_list(&mut core, &mut now));
    core.handle(now, listed(ticket, &[], loss(3, &apps, "m1")));
    assert!(core.held().is_some());
    core.handle(now, Input::Believe);
    let ticket = core.list.unwrap_or_else(|| next_list(&mut core, &mut now));
    let actions = core.handle(now, listed(ticket, &[], loss(3, &apps, "m1")));
    assert_eq!((kept(&actions).len(), core.held()), (0, None));
    assert!(now - start < 3 * SECOND);
}

#[test]
fn w14_a_list_that_recovers_meanwhile_was_never_a_loss_and_another_leader_starts_over() {
    let apps = ["/a", "/b", "/c"];
    let start = Instant::now();
    let mut core = live(start, &apps);
    let mut now = start + SECOND;
    core.handle(now, Input::Signal(Signal::Everything));
    for turn in 0..30 {
        let ticket = core.list.unwrap_or_else(|| next_list(&mut core, &mut now));
        let leader = format!("m{}", turn % 2);
        core.handle(now, listed(ticket, &[], loss(3, &apps, &leader)));
        assert!(core.held().is_some(), "no two lists in a row are of one leader");
    }
    assert!(now - start > 20 * SECOND);
    let ticket = next_list(&mut core, &mut now);
    let actions = core.handle(now, listed(ticket, &apps, loss(3, &[], "m0")));
    assert_eq!((kept(&actions).len(), core.held(), core.state()), (0, None, &State::Live));
}

#[test]
fn w21_refused_credentials_are_shown_and_tried_every_ten_seconds_at_most() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    core.handle(start, down(FailureKind::Auth));
    assert_eq!(core.state().cause(), Some(Cause::Auth));
    let (mut n_attempts, mut now) = (0, start);
    while now < start + 60 * SECOND {
        now = core.next_deadline().unwrap().max(now + Duration::from_micros(1));
        for action in core.handle(now, Input::Tick) {
            n_attempts += 1;
            let refused = match action {
                Action::Connect => down(FailureKind::Auth),
                _ => Input::ListFailed { kind: FailureKind::Auth, reason: "401".into() },
            };
            core.handle(now, refused);
        }
    }
    assert!(n_attempts <= 2 * 6 + 2, "{n_attempts} in a minute");
}

#[test]
fn w26_members_that_disagree_cost_nothing_but_freshness() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let mut now = start;
    next_list(&mut core, &mut now);
    let reason = "m0 and m1 both lead".to_owned();
    let actions = core.handle(now, Input::ListFailed { kind: FailureKind::SplitBrain, reason });
    assert!(actions.is_empty(), "{actions:?}");
    assert_eq!(core.state().cause(), Some(Cause::SplitBrain));
    let ticket = next_list(&mut core, &mut now);
    core.handle(now, listed(ticket, &["/a"], Survey::default()));
    assert_eq!(core.state(), &State::Live);
}

#[test]
fn w27_only_the_monotonic_clock_decides() {
    // The wall clock is read for the age of a file, for a login token that others check, and nowhere else.
    let allowed = ["keep.rs", "auth.rs", "fixed.rs"];
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    let mut n_files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !path.components().any(|c| c.as_os_str() == "tests") && name != "tests.rs" {
                n_files += 1;
                let reads = std::fs::read_to_string(&path).unwrap().contains(concat!("System", "Time"));
                assert!(!reads || allowed.contains(&name.as_str()), "{}", path.display());
            }
        }
    }
    assert!(n_files > 20);
}

#[test]
fn w32_a_scheduler_that_flaps_every_second_for_an_hour_is_not_hammered() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let (mut now, mut n_connects, mut is_up) = (start, 0, true);
    let mut next_flap = start + SECOND;
    while now < start + 3600 * SECOND {
        now = core.next_deadline().map_or(next_flap, |due| due.min(next_flap)).max(now);
        let mut actions = core.handle(now, Input::Tick);
        if now >= next_flap {
            next_flap += SECOND;
            is_up = !is_up;
            if !is_up && matches!(core.stream, Stream::Up { .. } | Stream::Attaching { .. }) {
                actions.extend(core.handle(now, down(FailureKind::Other)));
            }
        }
        while let Some(action) = actions.pop() {
            actions.extend(match action {
                Action::Connect if is_up => {
                    n_connects += 1;
                    let mut more = core.handle(now, Input::StreamUp);
                    more.extend(core.handle(now, Input::Signal(Signal::Attached)));
                    more
                }
                Action::Connect => {
                    n_connects += 1;
                    core.handle(now, down(FailureKind::Other))
                }
                Action::FetchList(ticket) if is_up => {
                    core.handle(now, listed(ticket, &["/a"], Survey::default()))
                }
                Action::FetchList(_) => {
                    core.handle(now, Input::ListFailed { kind: FailureKind::Other, reason: "503".into() })
                }
                Action::TakeList { keep } => {
                    assert!(keep.is_empty());
                    Vec::new()
                }
                other => panic!("{other:?}"),
            });
        }
        now += Duration::from_micros(1);
    }
    assert!(n_connects <= 3600, "{n_connects} in an hour");
    assert!(core.tracks.is_empty() && core.dirty.is_empty(), "nothing piles up");
}

#[test]
fn w33_many_watchers_do_not_come_back_at_once() {
    let start = Instant::now();
    // 200 watchers lose their streams in the same moment, and the scheduler stays away for some attempts.
    let mut attempts: Vec<Duration> = Vec::new();
    for seed in 0..200 {
        let mut core = Reconcile::new(timing(), seed, start);
        core.handle(start, Input::Tick);
        let mut now = start;
        while now < start + 30 * SECOND {
            core.handle(now, down(FailureKind::Other));
            let Stream::Down { due } = core.stream else { panic!() };
            now = due;
            attempts.push(now - start);
            core.handle(now, Input::Tick);
        }
    }
    // Once the first retries are over, no second sees more than twice the mean.
    let mut seconds = [0_u32; 25];
    for at in attempts {
        if let Some(n) = (at.as_secs() as usize).checked_sub(5).and_then(|s| seconds.get_mut(s)) {
            *n += 1;
        }
    }
    let mean = seconds.iter().sum::<u32>() / seconds.len() as u32;
    assert!(seconds.iter().all(|n| *n <= 2 * mean), "{seconds:?}, mean {mean}");
}

#[test]
fn w36_a_scheduler_that_is_away_for_a_day_costs_nothing_but_freshness() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    core.handle(start + SECOND, down(FailureKind::Other));
    let mut now = start + SECOND;
    let mut n_steps = 0;
    while now < start + 24 * 3600 * SECOND {
        now = core.next_deadline().unwrap().max(now + Duration::from_micros(1));
        n_steps += 1;
        for action in core.handle(now, Input::Tick) {
            match action {
                Action::Connect => core.handle(now, down(FailureKind::Other)),
                Action::FetchList(_) => {
                    core.handle(now, Input::ListFailed { kind: FailureKind::Other, reason: "away".into() })
                }
                other => panic!("nothing may be removed: {other:?}"),
            };
        }
    }
    let State::Degraded { since, .. } = core.state() else { panic!("{:?}", core.state()) };
    assert_eq!(*since, start + SECOND, "its age is a day");
    assert!(n_steps < 24 * 3600, "{n_steps} attempts in a day");
}

#[test]
fn w39_without_an_event_stream_the_list_is_read_every_five_seconds() {
    let start = Instant::now();
    let mut core = Reconcile::new(timing(), 1, start);
    core.handle(start, Input::Tick);
    let mut ticket = ticket_of(&core.handle(start, down(FailureKind::NoStream)));
    let (mut now, mut n_lists) = (start, 0);
    while now < start + 30 * SECOND {
        core.handle(now, listed(ticket, &["/a"], Survey::default()));
        assert_eq!(core.state(), &State::Live);
        ticket = next_list(&mut core, &mut now);
        n_lists += 1;
    }
    assert_eq!(n_lists, 6);
}

#[test]
fn w40_a_proxy_that_holds_events_back_leads_to_polling_until_heartbeats_come_through() {
    let start = Instant::now();
    let mut core = live(start, &["/a"]);
    let mut now = start;
    for _ in 0..SILENT_STREAMS {
        now += timing().stream_deadline;
        core.handle(now, down(FailureKind::Silent));
        if core.polling {
            break;
        }
        let Stream::Down { due } = core.stream else { panic!() };
        now = due;
        let actions = core.handle(now, Input::Tick);
        assert!(actions.contains(&Action::Connect), "{actions:?}");
        core.handle(now, Input::StreamUp);
        core.handle(now, Input::Signal(Signal::Attached));
        let ticket = core.list.unwrap();
        core.handle(now, listed(ticket, &["/a"], Survey::default()));
    }
    assert!(core.polling, "two silent streams in a row");
    let before = now;
    let ticket = core.list.unwrap_or_else(|| next_list(&mut core, &mut now));
    core.handle(now, listed(ticket, &["/a"], Survey::default()));
    assert_eq!(core.state(), &State::Live, "what is read every five seconds is live");
    next_list(&mut core, &mut now);
    assert!(now - before <= timing().poll + LIST_INTERVAL);
    // The stream is tried again later; polling goes on until it has proved itself.
    core.list = None;
    while !core.handle(now, Input::Tick).contains(&Action::Connect) {
        now = core.next_deadline().unwrap().max(now);
        core.list = None;
    }
    core.handle(now, Input::StreamUp);
    core.handle(now, Input::Signal(Signal::Attached));
    assert!(core.polling);
    let later = now + core.proven_after() + SECOND;
    core.handle(later, Input::Tick);
    assert!(!core.polling);
}
