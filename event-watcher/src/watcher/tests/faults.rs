//! Scheduler faults on real sockets, byte for byte.
//!
//! Names begin with the number of the fault in the project's list of scheduler faults.

use super::*;
use crate::catalog::Health;

/// Apps with health checks: one running task each.
fn checked(id: &str, results: Value) -> Value {
    let mut task = json!({
        "id": format!("{}.1", &id[1..]), "host": "127.0.0.1", "state": "TASK_RUNNING", "ports": [31000],
    });
    if !results.is_null() {
        task["healthCheckResults"] = results;
    }
    json!({"id": id, "ports": [1], "healthChecks": [{"protocol": "HTTP"}], "tasks": [task]})
}

fn rotations(snapshot: &Snapshot) -> Vec<Rotation> {
    snapshot.apps.values().flat_map(|app| &app.instances).map(|i| i.rotation()).collect()
}

#[tokio::test]
async fn w02_a_stream_that_is_cut_anywhere_costs_a_read() {
    let event = "event: status_update_event\r\ndata: {\"appId\": \"/\u{e9}\", \"taskStatus\": \"TASK_RUNNING\"}\r\n\r\n";
    let within_utf8 = event.find('\u{e9}').unwrap() + 1;
    for cut in [3, within_utf8, event.len() - 3, event.len() - 1] {
        let member = Member::start().await;
        member.set_app("/a", &["a.1"]);
        let mut watch = watch(config(&[&member]));
        watch.live().await;
        member.write(&event.as_bytes()[..cut]).await;
        member.set_app("/a", &["a.1", "a.2"]);
        member.cut_streams();
        watch.until("what was missed", |s| tasks(s, "/a").len() == 2).await;
        assert_eq!(watch.handle.stats().n_events_unreadable, 0, "cut at {cut}");
    }
}

#[tokio::test]
async fn w04_an_event_of_ten_megabytes_is_left_out_and_answered_with_a_list() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    member.set_app("/a", &["a.1", "a.2"]);
    member.write(format!("event: deployment_info\r\ndata: {}\r\n\r\n", "x".repeat(10 << 20))).await;
    watch.until("the truth", |s| tasks(s, "/a").len() == 2).await;
    let stats = watch.handle.stats();
    assert_eq!((stats.n_events_oversized, stats.n_streams_lost), (1, 0));
}

#[tokio::test]
async fn w05_a_line_without_an_end_is_given_up() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    for _ in 0..65 {
        member.write(vec![b'x'; 1 << 20]).await;
    }
    watch.freshness("given up", |f| matches!(f, Freshness::Stale { .. })).await;
    watch.live().await;
    assert_eq!(watch.handle.sources()[0].reconnects.get("endless"), Some(&1));
}

#[tokio::test]
async fn w07_odd_frames_are_read_as_the_standard_says_and_unknown_events_only_name_apps() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    let n_lists = member.n_requests("/v2/apps");
    member.write("\u{feff}: a comment\rretry: 5\revent: nothing follows\r\revent: pod_created_event\rdata: {\"uri\": \"/v2/pods\"}\r\r").await;
    member.set_app("/a", &["a.1", "a.2"]);
    member.write("data: {\"eventType\": \"of_a_later_version\",\ndata:  \"appId\": \"/a\"}\n\n").await;
    watch.until("the app that was named", |s| tasks(s, "/a").len() == 2).await;
    assert_eq!(member.n_requests("/v2/apps"), n_lists, "no list for any of that");
}

#[tokio::test]
async fn w11_an_election_changes_nothing() {
    let (first, second) = (Member::start().await, Member::start().await);
    for member in [&first, &second] {
        member.set_app("/a", &["a.1"]);
    }
    let mut watch = watch(config(&[&first, &second]));
    watch.live().await;
    let before = watch.subscriber.latest();
    let leaderless = answer("503 Service Unavailable", "", r#"{"message": "no leader"}"#);
    for path in ["/v2/apps", "/v2/events", "/v2/apps/a"] {
        first.answer_always(path, leaderless.clone());
        second.answer_always(path, leaderless.clone());
    }
    first.cut_streams();
    watch.freshness("away", |f| matches!(f, Freshness::Stale { .. })).await;
    assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()));
    for path in ["/v2/apps", "/v2/events", "/v2/apps/a"] {
        second.answer_as_usual(path);
    }
    watch.live().await;
    assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()));
}

#[tokio::test]
async fn w14_an_empty_list_after_an_election_is_held_until_the_operator_says_so() {
    let member = Member::start().await;
    let ids: Vec<String> = (0..4).map(|n| format!("/app{n}")).collect();
    for id in &ids {
        member.set_app(id, &[&format!("{}.1", &id[1..])]);
    }
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    let before = watch.subscriber.latest();
    member.answer_always("/v2/apps", answer("200 OK", "", r#"{"apps": []}"#));
    member.cut_streams();
    let held = watch.freshness("held", |f| format!("{f:?}").contains("no longer lists 4 of 4")).await;
    assert!(matches!(held, Freshness::Stale { .. }));
    member.requested(4, "/v2/apps").await;
    assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()), "nothing was removed");
    let source = &watch.handle.sources()[0];
    assert_eq!(source.held.len(), 4);
    assert_eq!(source.cause, Some(crate::Cause::HeldDrop));
    assert!(source.rejected["held_drop"] >= 1);
    watch.handle.command(Command::Believe);
    watch.until("believed", |s| s.apps.is_empty()).await;
    watch.live().await;
    assert!(watch.handle.sources()[0].held.is_empty());
}

#[tokio::test]
async fn w15_results_that_an_election_lost_take_nobody_out() {
    let member = Member::start().await;
    for id in ["/a", "/b", "/c"] {
        member.set_raw_app(id, checked(id, json!([{"alive": true}])));
    }
    member.set_raw_app("/sick", checked("/sick", json!([{"alive": false}])));
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    let before = watch.until("all apps", |s| s.apps.len() == 4).await;
    for id in ["/a", "/b", "/c", "/sick"] {
        member.set_raw_app(id, checked(id, Value::Null));
    }
    member.set_raw_app("/new", checked("/new", Value::Null));
    member.cut_streams();
    let after = watch.until("the list without results", |s| s.apps.len() == 5).await;
    for id in ["/a", "/b", "/c", "/sick"] {
        let health = |snapshot: &Snapshot| snapshot.app(&AppId::new(id)).unwrap().instances[0].health;
        assert_eq!(health(&after), health(&before), "{id}");
    }
}

#[tokio::test]
async fn w15_a_start_right_after_an_election_finds_nobody_down_and_a_new_instance_waits() {
    let member = Member::start().await;
    for id in ["/a", "/b", "/c"] {
        member.set_raw_app(id, checked(id, Value::Null));
    }
    let mut watch = watch(config(&[&member]));
    let first = watch.until("the first list", |s| s.apps.len() == 3).await;
    assert_eq!(
        rotations(&first),
        [Rotation::In; 3],
        "nobody has a result, so nobody is down for want of one"
    );
    // From now on there are results: one that has none is new.
    for id in ["/a", "/b", "/c"] {
        member.set_raw_app(id, checked(id, json!([{"alive": true}])));
    }
    member.set_raw_app("/new", checked("/new", Value::Null));
    member.everything().await;
    let second = watch.until("the new one", |s| s.apps.len() == 4).await;
    let new = &second.app(&AppId::new("/new")).unwrap().instances[0];
    assert_eq!((new.health, new.rotation()), (Health::Unknown, Rotation::Out));

    // Its app's own grace period, not Marathon's default, is how long it waits.
    let mut quick = checked("/quick", Value::Null);
    quick["healthChecks"][0]["gracePeriodSeconds"] = json!(1);
    member.set_raw_app("/quick", quick);
    member.everything().await;
    let health = |s: &Snapshot, id: &str| s.app(&AppId::new(id)).map(|app| app.instances[0].health);
    watch.until("it waits", |s| health(s, "/quick") == Some(Health::Unknown)).await;
    let third = watch.until("it serves", |s| health(s, "/quick") == Some(Health::Presumed)).await;
    assert_eq!(health(&third, "/new"), Some(Health::Unknown), "five minutes, if nobody says otherwise");
}

#[tokio::test]
async fn w16_an_app_that_is_scaled_to_nothing_is_applied_at_once() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1", "a.2"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    member.set_app("/a", &[]);
    let plan = json!({"steps": [{"actions": [{"action": "ScaleApplication", "app": "/a"}]}]});
    member.event(json!({"eventType": "deployment_info", "plan": plan})).await;
    watch.until("no instance", |s| tasks(s, "/a").is_empty()).await;
    assert_eq!(
        ids(&watch.subscriber.latest()),
        ["/a"],
        "the app is there: 503 and NODATA, not 404 and NXDOMAIN"
    );
    // Without an event, too: by the list, within the minute after the attachment.
    member.set_app("/b", &["b.1"]);
    member.everything().await;
    watch.until("another app", |s| tasks(s, "/b").len() == 1).await;
    member.set_app("/b", &[]);
    member.everything().await;
    watch.until("nothing runs", |s| tasks(s, "/b").is_empty()).await;
}

#[tokio::test]
async fn w18_an_answer_that_drips_is_given_up() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut config = config(&[&member]);
    config.request_deadline = Duration::from_millis(300);
    let mut watch = watch(config);
    watch.live().await;
    let before = watch.subscriber.latest();
    // Bytes never cease, so only the time for the whole answer ends it.
    let n_failures = watch.handle.stats().n_fetch_failures;
    member.drip_once("/v2/apps");
    member.everything().await;
    watch.freshness("given up", |f| matches!(f, Freshness::Stale { .. })).await;
    assert_eq!(watch.handle.stats().n_fetch_failures, n_failures + 1);
    assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()));
    watch.live().await;
}

#[tokio::test]
async fn w19_nothing_is_unpacked_and_what_is_too_large_is_refused() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut config = config(&[&member]);
    config.max_answer_bytes = 1 << 20;
    let mut watch = watch(config);
    watch.live().await;
    let request = member.requests()[0].head.to_ascii_lowercase();
    assert!(!request.contains("accept-encoding"), "{request}");
    for (word, bytes) in [
        ("compressed", answer("200 OK", "Content-Encoding: gzip\r\n", "\u{1f}\u{8b}")),
        ("too_large", answer("200 OK", "", &format!("{{\"apps\": []{}}}", " ".repeat(2 << 20)))),
    ] {
        member.answer_once("/v2/apps", bytes);
        member.everything().await;
        watch.freshness(word, |f| matches!(f, Freshness::Stale { .. })).await;
        assert_eq!(watch.handle.sources()[0].rejected.get(word), Some(&1));
        watch.live().await;
    }
    assert_eq!(ids(&watch.subscriber.latest()), ["/a"]);
}

#[tokio::test]
async fn w25_a_member_that_accepts_and_never_answers_is_asked_last() {
    let (dead, good) = (Member::start().await, Member::start().await);
    dead.fall_silent();
    good.set_app("/a", &["a.1"]);
    let mut config = config(&[&dead, &good]);
    config.connect_timeout = Duration::from_millis(200);
    let mut watch = watch(config);
    watch.live().await;
    // The list was asked of the dead member until its time was over; from now on it is left alone.
    dead.requested(1, "/v2/events").await;
    good.cut_streams();
    watch.freshness("lost", |f| matches!(f, Freshness::Stale { .. })).await;
    watch.live().await;
    let n_before = dead.requests().len();
    for n in 0..5 {
        let name = format!("a.{}", n + 2);
        good.set_app("/a", &["a.1", &name]);
        good.status("/a", &name, "TASK_RUNNING").await;
        watch.until("the change", |s| tasks(s, "/a").iter().any(|(id, _)| *id == name)).await;
    }
    assert_eq!(dead.requests().len(), n_before);
}

#[tokio::test]
async fn w26_two_leaders_are_not_believed_and_a_majority_is_followed() {
    let members = [Member::start().await, Member::start().await, Member::start().await];
    for (n, member) in members.iter().enumerate() {
        member.set_app("/a", &["a.1"]);
        member.name_leader(&members[n.min(1)].address.to_string());
    }
    // The first one leads in its own eyes only, and has lost what runs.
    members[0].set_app("/a", &[]);
    let mut majority = watch(config(&[&members[0], &members[1], &members[2]]));
    majority.live().await;
    assert_eq!(tasks(&majority.subscriber.latest(), "/a").len(), 1);
    assert_eq!(majority.handle.sources()[0].from, format!("http://{}", members[1].address));

    let mut split = watch(config(&[&members[1], &members[0]]));
    let unsynced = split.freshness("split", |f| format!("{f:?}").contains("do not agree")).await;
    assert!(matches!(unsynced, Freshness::Unsynced { .. }));
    members[0].name_leader(&members[1].address.to_string());
    split.live().await;
    members[0].name_leader(&members[0].address.to_string());
    members[1].set_app("/a", &[]);
    members[1].everything().await;
    split.freshness("split again", |f| matches!(f, Freshness::Stale { .. })).await;
    assert_eq!(tasks(&split.subscriber.latest(), "/a").len(), 1, "the old state is held");
}

#[tokio::test]
async fn w28_odd_tasks_cost_only_themselves() {
    let member = Member::start().await;
    let task = |id: &str, extra: Value| {
        let mut task = json!({"id": id, "host": "127.0.0.1", "state": "TASK_RUNNING", "ports": [31000]});
        for (key, value) in extra.as_object().unwrap() {
            task[key] = value.clone();
        }
        task
    };
    let tasks_of_a = json!([
        task("good", json!({})),
        task("no-host", json!({"host": null})),
        task("no-ports", json!({"ports": null})),
        task("no-addresses", json!({"ipAddresses": null})),
        task("six", json!({"host": "fd00::1"})),
        task("lost", json!({"state": "TASK_LOST"})),
        task("unreachable", json!({"state": "TASK_UNREACHABLE"})),
        task("killing", json!({"state": "TASK_KILLING"})),
        task("good", json!({"ports": [1]})),
        {"id": 5},
        "a text",
    ]);
    member.set_raw_app("/a", json!({"id": "/a", "ports": [1], "tasks": tasks_of_a}));
    let mut watch = watch(config(&[&member]));
    let snapshot = watch.until("the app", |s| !tasks(s, "/a").is_empty()).await;
    let found: Vec<String> = snapshot
        .app(&AppId::new("/a"))
        .unwrap()
        .instances
        .iter()
        .map(|i| {
            let address = i.endpoints.first().map_or("-".to_owned(), |e| e.address.to_string());
            format!("{} {:?} {address}", i.id, i.rotation())
        })
        .collect();
    assert_eq!(
        found,
        [
            "good In 127.0.0.1:31000",
            "killing Draining 127.0.0.1:31000",
            "lost Out 127.0.0.1:31000",
            "no-addresses In 127.0.0.1:31000",
            "no-host In -",
            "no-ports In -",
            "six In [fd00::1]:31000",
            "unreachable In 127.0.0.1:31000",
        ]
    );
    assert_eq!(watch.handle.stats().n_tasks_skipped, 3);
}

#[tokio::test]
async fn w29_hostile_labels_hurt_nobody() {
    let member = Member::start().await;
    member.set_app("/good", &["good.1"]);
    let long = "x".repeat(1 << 20);
    for (n, vip) in
        ["no port", "a\r\nb:80", "../../etc:80", "\u{1f4a5}:80", &long, ":::", "/x:99999"].iter().enumerate()
    {
        let id = format!("/bad{n}");
        let definition = json!([{"port": 10000, "labels": {"VIP_0": vip}}]);
        member.set_raw_app(&id, json!({
            "id": id, "labels": {"HAPROXY_0_VHOST": vip}, "networks": [{"mode": "host"}], "portDefinitions": definition,
            "tasks": [{"id": format!("bad{n}.1"), "host": "127.0.0.1", "state": "TASK_RUNNING", "ports": [31001]}],
        }));
    }
    let mut watch = watch(config(&[&member]));
    let snapshot = watch.until("all apps", |s| s.apps.len() == 8).await;
    assert_eq!(tasks(&snapshot, "/good").len(), 1);
    assert_eq!(rotations(&snapshot), [Rotation::In; 8], "a bad label does not take an instance out");
    let names: Vec<String> = snapshot.vips.names().map(|(name, _)| name.to_string()).collect();
    for name in &names {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        assert!(name.bytes().all(good) && name.len() < 200, "{name}");
    }
    assert!(names.iter().any(|name| name.starts_with("good.")));
    assert!(snapshot.problems.iter().any(|p| p.at.contains("VIP_0")));
}

#[tokio::test]
async fn w30_one_bad_app_among_a_thousand_is_the_only_one_refused() {
    let member = Member::start().await;
    for n in 0..1000 {
        member.set_app(&format!("/app{n}"), &[&format!("app{n}.1")]);
    }
    member.set_raw_app("/app500", json!({"id": "/app500", "tasks": 5}));
    let mut watch = watch(config(&[&member]));
    let snapshot = watch.until("the list", |_| true).await;
    assert_eq!(snapshot.apps.len(), 999);
    let refused: Vec<&str> =
        snapshot.problems.iter().filter_map(|p| p.app.as_ref()).map(AppId::as_str).collect();
    assert_eq!(refused, ["/app500"]);
}

#[tokio::test]
async fn w31_a_storm_of_events_is_read_on_and_ends_in_the_truth() {
    let member = Member::start().await;
    for n in 0..20 {
        member.set_app(&format!("/app{n}"), &["x.1"]);
    }
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    let frame = |n: usize| {
        let body = json!({"eventType": "status_update_event", "appId": format!("/app{}", n % 20),
                          "taskId": "x.1", "taskStatus": "TASK_RUNNING"});
        format!("event: status_update_event\r\ndata: {body}\r\n\r\n")
    };
    let n_before = member.requests().len();
    for _ in 0..100 {
        member.write((0..500).map(frame).collect::<String>()).await;
    }
    for n in 0..20 {
        member.set_app(&format!("/app{n}"), &["x.1", "x.2"]);
    }
    member.write((0..20).map(frame).collect::<String>()).await;
    watch.until("the truth", |s| (0..20).all(|n| tasks(s, &format!("/app{n}")).len() == 2)).await;
    assert_eq!(watch.handle.stats().n_streams_lost, 0);
    let n_reads = member.requests().len() - n_before;
    assert!(n_reads < 2000, "{n_reads} reads for 50,020 events");
}

#[tokio::test]
async fn w35_a_file_that_cannot_be_used_costs_nothing_but_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let damaged = folder.path().join("damaged");
    std::fs::write(&damaged, "{\"apps\": []}\n").unwrap();
    for path in [damaged.clone(), folder.path().to_owned(), "/proc/waymark/state".into()] {
        let mut config = config(&[&member]);
        config.state_file = Some(path.clone());
        let mut watch = watch(config);
        watch.live().await;
        assert_eq!(tasks(&watch.subscriber.latest(), "/a").len(), 1, "{}", path.display());
        if path == damaged {
            assert_eq!(watch.handle.sources()[0].rejected.get("kept_state"), Some(&1));
            continue;
        }
        let failed = async {
            while watch.handle.stats().n_keep_failures == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the failure is counted", failed).await;
    }
}

#[tokio::test]
async fn w40_a_stream_that_delivers_nothing_is_replaced_by_polling() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut config = config(&[&member]);
    config.stream_deadline = Duration::from_millis(100);
    config.poll = Duration::from_millis(50);
    let mut watch = watch(config);
    watch.live().await;
    let silent = async {
        while watch.handle.stats().n_streams_silent < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("two silent streams", silent).await;
    member.set_app("/a", &["a.1", "a.2"]);
    watch.until("the polled change", |s| tasks(s, "/a").len() == 2).await;
    watch.live().await;
    assert_eq!(watch.handle.stats().n_streams_opened, 2, "the stream is left alone for a while");
}
