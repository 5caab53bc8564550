//! The watcher against a scripted scheduler on a real socket: what is published when streams die, answers break off,
//! members redirect and events tell the end of an instance.

mod conformance;
mod faults;
mod large;
mod login;
mod member;
mod sources;
mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::member::{Member, answer};
use super::*;
use crate::catalog::{AppId, Rotation, Snapshot};
use crate::config::{Credentials, Marathon};
use crate::publish::{self, Freshness, Subscriber};

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(10), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within 10 s"),
    }
}

struct Watch {
    subscriber: Subscriber,
    handle: Handle,
    cancel: CancellationToken,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn config(members: &[&Member]) -> Marathon {
    Marathon::new(members.iter().map(|m| m.url()).collect())
}

fn watch(config: Marathon) -> Watch {
    watch_all(Config::of_one(config))
}

fn watch_all(config: Config) -> Watch {
    let (publisher, subscriber) = publish::channel();
    let cancel = CancellationToken::new();
    let config = Config { vip_pools: vec!["127.11.0.0/16".parse().unwrap()], ..config };
    let handle = start(config, publisher, cancel.clone()).unwrap();
    Watch { subscriber, handle, cancel }
}

impl Watch {
    async fn until(&mut self, what: &str, met: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let waiting = async {
            loop {
                let snapshot = self.subscriber.latest();
                if snapshot.is_synced() && met(&snapshot) {
                    return snapshot;
                }
                self.subscriber.changed().await.unwrap();
            }
        };
        within(what, waiting).await
    }

    async fn freshness(&mut self, what: &str, met: impl Fn(&Freshness) -> bool) -> Freshness {
        let waiting = async {
            loop {
                let freshness = self.subscriber.freshness();
                if met(&freshness) {
                    return freshness;
                }
                self.subscriber.freshness_changed().await.unwrap();
            }
        };
        within(what, waiting).await
    }

    async fn live(&mut self) {
        self.freshness("live", |f| *f == Freshness::Live).await;
    }
}

fn tasks(snapshot: &Snapshot, app: &str) -> Vec<(String, Rotation)> {
    let app = snapshot.app(&AppId::new(app));
    let instances = app.into_iter().flat_map(|app| &app.instances);
    instances.map(|i| (i.id.to_string(), i.rotation())).collect()
}

fn ids(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.apps.keys().map(AppId::as_str).collect()
}

#[tokio::test]
async fn events_wake_it_and_reads_tell_the_truth() {
    let member = Member::start().await;
    member.set_app("/dcos-101/app2", &["app2.1"]);
    member.set_app("/other", &["other.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    let first = watch.until("the first list", |_| true).await;
    assert_eq!(ids(&first), ["/dcos-101/app2", "/other"]);
    assert_eq!(&*first.framework, "dev.marathon", "learnt before the first snapshot");
    let names: Vec<String> = first.vips.names().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["dcos-101app2.dev.marathon", "other.dev.marathon"]);
    let head = &member.requests()[0].head.to_ascii_lowercase();
    assert!(head.contains("\r\naccept: text/event-stream\r\n"), "{head}");
    assert!(head.contains("plan-format=light") && head.contains("event_type=status_update_event"), "{head}");

    // A new instance.
    member.set_app("/dcos-101/app2", &["app2.1", "app2.2"]);
    member.status("/dcos-101/app2", "app2.2", "TASK_RUNNING").await;
    let second = watch.until("two instances", |s| tasks(s, "/dcos-101/app2").len() == 2).await;
    let other = AppId::new("/other");
    assert!(Arc::ptr_eq(first.app(&other).unwrap(), second.app(&other).unwrap()));
    assert!(Arc::ptr_eq(&first.vips, &second.vips));

    // A removed app.
    member.remove_app("/other");
    member.event(json!({"eventType": "app_terminated_event", "appId": "/other"})).await;
    watch.until("one app", |s| ids(s) == ["/dcos-101/app2"]).await;

    // An app scaled to nothing stays, with its VIP.
    member.set_app("/dcos-101/app2", &[]);
    member.event(json!({"eventType": "deployment_success", "plan": {"steps": [{"actions": [{"action": "ScaleApplication", "app": "/dcos-101/app2"}]}]}})).await;
    let empty = watch.until("no instance", |s| tasks(s, "/dcos-101/app2").is_empty()).await;
    assert_eq!(empty.vips.iter().len(), 1);
    assert_eq!(watch.handle.stats().n_list_fetches, 1, "all of that without another list");
    assert_eq!(watch.handle.stats().n_fetch_failures, 0);
}

#[tokio::test]
async fn a_killing_event_acts_before_any_read_and_a_late_answer_brings_nobody_back() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1", "a.2"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    // A read of the app begins, and its answer, with both running, is held back.
    let release = member.hold("/v2/apps/a");
    member.status("/a", "a.1", "TASK_RUNNING").await;
    member.requested(1, "/v2/apps/a").await;
    member.status("/a", "a.1", "TASK_KILLING").await;
    let expect = [("a.1".to_owned(), Rotation::Draining), ("a.2".to_owned(), Rotation::In)];
    let killed = watch.until("a.1 draining", |s| tasks(s, "/a") == expect).await;
    assert_eq!(watch.handle.stats().n_events_retiring, 1);

    // From now on the scheduler knows; the old answer comes first.
    member.set_app("/a", &["a.2", "a.3"]);
    let mut seen = watch.subscriber.clone();
    release.send(true).unwrap();
    let last = watch.until("a.1 gone", |s| tasks(s, "/a").len() == 2 && tasks(s, "/a")[1].0 == "a.3").await;
    assert!(last.generation > killed.generation);
    // Whatever was published in between, a.1 never got new work again.
    let snapshot = seen.changed().await.unwrap();
    assert!(!tasks(&snapshot, "/a").contains(&("a.1".to_owned(), Rotation::In)));
}

#[tokio::test]
async fn an_unhealthy_instance_is_out_at_once() {
    let member = Member::start().await;
    let healthy = |alive: bool| {
        json!({"id": "/a", "ports": [1], "healthChecks": [{"protocol": "HTTP"}], "tasks": [
            {"id": "a.u1", "host": "127.0.0.1", "state": "TASK_RUNNING", "ports": [31000], "healthCheckResults": [{"alive": alive}]},
        ]})
    };
    member.set_raw_app("/a", healthy(true));
    let mut watch = watch(config(&[&member]));
    watch.until("healthy", |s| tasks(s, "/a") == [("a.u1".to_owned(), Rotation::In)]).await;
    let release = member.hold("/v2/apps/a");
    member.set_raw_app("/a", healthy(false));
    member.event(json!({"eventType": "health_status_changed_event", "appId": "/a", "instanceId": "a.marathon-u1", "alive": false})).await;
    watch.until("unhealthy", |s| tasks(s, "/a") == [("a.u1".to_owned(), Rotation::Draining)]).await;
    member.set_raw_app("/a", healthy(true));
    release.send(true).unwrap();
    member.event(json!({"eventType": "health_status_changed_event", "appId": "/a", "instanceId": "a.marathon-u1", "alive": true})).await;
    watch.until("healthy again", |s| tasks(s, "/a") == [("a.u1".to_owned(), Rotation::In)]).await;
}

#[tokio::test]
async fn w01_a_cut_stream_is_opened_again_and_what_was_missed_is_read() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    // Cut within an event: it is as if it had never come.
    member.write("event: status_update_event\r\ndata: {\"appId\": \"/a\", \"taskId\": \"a.1\", \"task").await;
    member.set_app("/a", &["a.1", "a.2"]);
    member.cut_streams();
    watch.until("what was missed", |s| tasks(s, "/a").len() == 2).await;
    watch.live().await;
    assert_eq!(watch.handle.stats().n_streams_lost, 1);
    assert!(tasks(&watch.subscriber.latest(), "/a").iter().all(|(_, r)| *r == Rotation::In));
}

#[tokio::test]
async fn w03_a_silent_stream_is_dead() {
    let (silent, other) = (Member::start().await, Member::start().await);
    silent.set_app("/a", &["a.1"]);
    other.set_app("/a", &["a.1", "a.2"]);
    let mut config = config(&[&silent, &other]);
    config.stream_deadline = Duration::from_millis(150);
    let mut watch = watch(config);
    watch.until("the other member's state", |s| tasks(s, "/a").len() == 2).await;
    assert!(watch.handle.stats().n_streams_silent >= 1);
}

#[tokio::test]
async fn w06_senseless_events_cost_a_list() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut config = config(&[&member]);
    config.max_event_bytes = 1024;
    let mut watch = watch(config);
    watch.live().await;
    for (n, event) in [
        format!("event: x\ndata: {}\n\n", "x".repeat(5000)),
        "event: status_update_event\ndata: NaN\n\n".into(),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("a.{}", n + 2);
        member.set_app("/a", &["a.1", &name]);
        member.write(event).await;
        watch.until("the truth", |s| tasks(s, "/a").iter().any(|(id, _)| *id == name)).await;
    }
    let stats = watch.handle.stats();
    assert_eq!((stats.n_events_oversized, stats.n_events_unreadable, stats.n_streams_lost), (1, 1, 0));
}

#[tokio::test]
async fn w30_a_bad_app_keeps_its_last_good_version_and_hides_nobody() {
    let member = Member::start().await;
    member.set_app("/bad", &["bad.1"]);
    member.set_app("/good", &["good.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    member.set_raw_app("/bad", json!({"id": "/bad", "labels": {"HAPROXY_GROUP": 5}}));
    member.set_raw_app("/worse", json!({"id": 7}));
    member.set_app("/good", &["good.1", "good.2"]);
    member.event(json!({"eventType": "group_change_success", "groupId": "/"})).await;
    let snapshot = watch.until("the good one", |s| tasks(s, "/good").len() == 2).await;
    assert_eq!(tasks(&snapshot, "/bad"), [("bad.1".to_owned(), Rotation::In)]);
    let at: Vec<String> = snapshot.problems.iter().map(|p| p.at.clone()).collect();
    assert_eq!(at, ["apps[2]", "the app's definition"]);
    assert_eq!(snapshot.problems[1].app, Some(AppId::new("/bad")));
    // Alone, too; and it comes back when it can be read.
    member.set_app("/bad", &["bad.2"]);
    member.status("/bad", "bad.2", "TASK_RUNNING").await;
    let snapshot = watch.until("the mended one", |s| tasks(s, "/bad")[0].0 == "bad.2").await;
    assert_eq!(snapshot.problems.len(), 1);
}

#[tokio::test]
async fn w20_broken_answers_change_nothing() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let list = "/v2/apps";
    let mut config = config(&[&member]);
    config.max_answer_bytes = 2000;
    config.request_deadline = Duration::from_millis(500);
    let mut watch = watch(config);
    watch.live().await;
    let first = watch.subscriber.latest();
    let whole = json!({"apps": []}).to_string();
    for broken in [
        answer("503 Service Unavailable", "", "{}"),
        answer("502 Bad Gateway", "", r#"{"message": "Could not determine the current leader"}"#),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{\"apps\": []}CUT".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{\"apps\": []}\r\n".to_vec(),
        answer("200 OK", "", &whole[..8]),
        answer("200 OK", "", "{}"),
        answer("200 OK", "", r#"{"apps": null}"#),
        answer("200 OK", "", &format!("{whole}{}", " ".repeat(3000))),
        answer("200 OK", "Content-Encoding: gzip\r\n", "\u{1f}\u{8b}"),
        answer("404 Not Found", "", "a proxy's page"),
        answer("401 Unauthorized", "", ""),
    ] {
        let n_failures = watch.handle.stats().n_fetch_failures;
        member.answer_once(list, broken.clone());
        member.event(json!({"eventType": "group_change_success", "groupId": "/"})).await;
        let text = String::from_utf8_lossy(&broken).into_owned();
        let stale = watch.freshness(&text, |f| matches!(f, Freshness::Stale { .. })).await;
        assert_eq!(watch.handle.stats().n_fetch_failures, n_failures + 1, "{stale:?}");
        assert!(Arc::ptr_eq(&first, &watch.subscriber.latest()), "{text}");
        if !text.contains("401") {
            watch.live().await;
        }
    }
}

#[tokio::test]
async fn a_missing_page_of_a_proxy_does_not_remove_an_app() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    member.answer_once("/v2/apps/a", answer("404 Not Found", "", "<html>"));
    member.status("/a", "a.1", "TASK_RUNNING").await;
    // The failure is answered with a list, after which all is as before.
    member.requested(2, "/v2/apps").await;
    watch.live().await;
    assert_eq!(ids(&watch.subscriber.latest()), ["/a"]);
    assert_eq!(watch.handle.stats().n_fetch_failures, 1);
}

#[tokio::test]
async fn w12_a_standby_redirects_to_the_leader_and_credentials_stay_at_home() {
    let (standby, leader) = (Member::start().await, Member::start().await);
    leader.set_app("/a", &["a.1"]);
    for configured in [true, false] {
        let redirect = format!(
            "Location: http://{0}/v2/events?x=1\r\nX-Marathon-Leader: http://{0}\r\n",
            leader.address
        );
        standby.answer_once("/v2/events", answer("302 Found", &redirect, ""));
        let members = [&standby, &leader];
        let mut config = config(if configured { &members } else { &members[..1] });
        // An unconfigured leader gets no credentials, so reads stay with the standby, which passes them on.
        standby.set_app("/a", &["a.1"]);
        config.credentials = Some(Credentials::Basic { user: "u".into(), password: "secret".into() });
        let n_requests = leader.requests().len();
        let mut watch = watch(config);
        watch.live().await;
        assert_eq!(ids(&watch.subscriber.latest()), ["/a"]);
        let got = leader.requests().split_off(n_requests);
        let authorized = got.iter().filter(|r| r.head.to_ascii_lowercase().contains("authorization")).count();
        assert_eq!(authorized, if configured { got.len() } else { 0 }, "{got:?}");
        assert!(got.iter().any(|r| r.path == "/v2/events"), "{got:?}");
        assert_eq!(got.iter().any(|r| r.path == "/v2/apps"), configured);
    }
}

#[tokio::test]
async fn w13_redirects_end_at_strangers_and_in_circles() {
    let (member, stranger) = (Member::start().await, Member::start().await);
    stranger.set_app("/evil", &[]);
    let mut config = config(&[&member]);
    config.poll = Duration::from_millis(50);
    let to_stranger = format!("Location: http://{}/v2/events\r\n", stranger.address);
    let to_itself = "Location: /v2/events\r\n";
    member.answer_once("/v2/events", answer("307 Temporary Redirect", &to_stranger, ""));
    for _ in 0..=3 {
        member.answer_once("/v2/events", answer("302 Found", to_itself, ""));
    }
    member.set_app("/a", &["a.1"]);
    let mut watch = watch(config);
    watch.live().await;
    assert_eq!(watch.handle.stats().n_connect_failures, 2);
    assert_eq!(stranger.requests().len(), 0);
    assert_eq!(ids(&watch.subscriber.latest()), ["/a"]);
}

#[tokio::test]
async fn w39_without_an_event_stream_the_list_is_polled() {
    for refusal in [
        answer("404 Not Found", "", ""),
        answer("405 Method Not Allowed", "", ""),
        answer("406 Not Acceptable", "", ""),
        answer("200 OK", "Content-Type: text/html\r\n", "<html>"),
    ] {
        let member = Member::start().await;
        member.set_app("/a", &["a.1"]);
        member.answer_once("/v2/events", refusal);
        let mut config = config(&[&member]);
        config.poll = Duration::from_millis(50);
        let mut watch = watch(config);
        watch.live().await;
        member.set_app("/a", &["a.1", "a.2"]);
        watch.until("the polled change", |s| tasks(s, "/a").len() == 2).await;
        assert_eq!(watch.subscriber.freshness(), Freshness::Live);
    }
}

#[tokio::test]
async fn w10_the_resync_repairs_what_no_event_told_and_reads_only_what_differs() {
    let member = Member::start().await;
    for n in 0..20 {
        member.set_app(&format!("/app{n}"), &["x.1"]);
    }
    let mut config = config(&[&member]);
    config.resync = Duration::from_millis(50);
    let mut watch = watch(config);
    watch.live().await;
    member.requested(3, "/v2/apps").await;
    let before = watch.subscriber.latest();
    member.set_app("/app7", &["x.1", "x.2"]);
    let after = watch.until("the missed change", |s| tasks(s, "/app7").len() == 2).await;
    assert_eq!(after.generation.0, before.generation.0 + 1, "equal lists publish nothing");
    let shared = before.apps.iter().filter(|(id, app)| Arc::ptr_eq(app, after.app(id).unwrap())).count();
    assert_eq!(shared, 19);
    let stats = watch.handle.stats();
    assert!(stats.n_apps_unchanged >= 20 + 19, "{stats:?}");
}

#[tokio::test]
async fn an_app_that_a_list_leaves_out_for_once_comes_back_as_it_was() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    member.set_app("/b", &["b.1"]);
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    member.remove_app("/b");
    member.everything().await;
    watch.until("it is gone", |s| ids(s) == ["/a"]).await;
    member.set_app("/b", &["b.1"]);
    member.everything().await;
    let back = watch.until("it is back", |s| ids(s) == ["/a", "/b"]).await;
    assert_eq!(tasks(&back, "/b"), [("b.1".to_owned(), Rotation::In)]);
}

#[tokio::test]
async fn w24_a_member_that_is_down_or_silent_does_not_delay_the_start() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut config = config(&[&member]);
    let at = |address: SocketAddr| format!("http://{address}").parse().unwrap();
    config.schedulers = vec![at(dead), at(silent.local_addr().unwrap()), member.url()];
    let mut watch = watch(config);
    watch.live().await;
    assert_eq!(watch.handle.stats().n_connect_failures, 0, "others were tried within the same attempt");
}

#[tokio::test]
async fn w34_the_kept_state_serves_until_the_scheduler_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list");
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let mut config = config(&[&member]);
    config.state_file = Some(path.clone());
    config.resync = Duration::from_millis(50);
    {
        let mut watch = watch(config.clone());
        watch.live().await;
        let saved = async {
            while !path.exists() {
                tokio::task::yield_now().await;
            }
        };
        within("the list is kept", saved).await;
    }
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    config.schedulers = vec![format!("http://{dead}").parse().unwrap()];
    let mut watch = watch(config);
    let snapshot = watch.until("the kept list", |_| true).await;
    assert_eq!(tasks(&snapshot, "/a"), [("a.1".to_owned(), Rotation::In)]);
    assert_eq!(&*snapshot.framework, "dev.marathon");
    let freshness = watch.freshness("stale", |f| matches!(f, Freshness::Stale { .. })).await;
    assert_ne!(freshness, Freshness::Live);
}

#[tokio::test]
async fn onlookers_see_the_events() {
    let member = Member::start().await;
    let mut watch = watch(config(&[&member]));
    watch.live().await;
    let mut events = watch.handle.events();
    member.status("/a", "a.1", "TASK_RUNNING").await;
    let event = within("an event", events.recv()).await.unwrap();
    assert_eq!(event.kind, "status_update_event");
    assert_eq!(serde_json::from_str::<Value>(&event.data).unwrap()["taskId"], "a.1");
    watch.cancel.cancel();
    let end = async { while watch.subscriber.changed().await.is_ok() {} };
    within("the end", end).await;
}
