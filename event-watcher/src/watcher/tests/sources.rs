//! Several sources in one catalog: who wins, and that an outage of one is no other's.

use super::*;
use crate::config::{Source, SourceKind, Static};

fn source(name: &str, kind: SourceKind) -> Source {
    Source { name: name.into(), kind }
}

fn scheduler(name: &str, member: &Member) -> Source {
    source(name, SourceKind::Marathon(Box::new(config(&[member]))))
}

#[tokio::test]
async fn two_schedulers_and_a_file_are_one_catalog_and_the_first_one_wins() {
    let (one, two) = (Member::start().await, Member::start().await);
    two.call_framework("batch");
    one.set_app("/shared", &["one.1"]);
    one.set_app("/one", &["one.2"]);
    two.set_app("/shared", &["two.1"]);
    two.set_app("/two", &["two.2"]);
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), "[[apps]]\nid = '/fixed'\n[[apps.services]]\nendpoints = ['10.0.0.1:80']\n")
        .unwrap();
    let fixed = source("files", SourceKind::Static(Static::new(file.path().to_owned())));
    let all = vec![scheduler("one", &one), scheduler("two", &two), fixed];
    let mut watch = watch_all(Config::new(all));
    watch.live().await;
    let snapshot = watch.until("all apps", |s| s.apps.len() == 4).await;
    assert_eq!(snapshot.generation.0, 1, "the first snapshot waits for all");
    assert_eq!(tasks(&snapshot, "/shared")[0].0, "one.1");
    let framework = |snapshot: &Snapshot, app| snapshot.framework_of(&AppId::new(app)).to_string();
    let frameworks = ["/fixed", "/one", "/shared", "/two"].map(|app| framework(&snapshot, app));
    assert_eq!(frameworks, ["dev.marathon", "dev.marathon", "dev.marathon", "batch"]);
    let problem = &snapshot.problems[0];
    assert_eq!((problem.app.as_ref().unwrap().as_str(), problem.at.as_str()), ("/shared", "source two"));

    // One scheduler goes away: the other's changes go on, and nothing of either is lost.
    one.answer_always("/v2/apps", answer("503 Service Unavailable", "", "{}"));
    one.answer_always("/v2/events", answer("503 Service Unavailable", "", "{}"));
    one.cut_streams();
    let stale = watch.freshness("one is away", |f| matches!(f, Freshness::Stale { .. })).await;
    assert!(format!("{stale:?}").contains("one: "), "{stale:?}");
    two.set_app("/two", &["two.2", "two.3"]);
    two.status("/two", "two.3", "TASK_RUNNING").await;
    let after = watch.until("two's change", |s| tasks(s, "/two").len() == 2).await;
    assert_eq!(ids(&after), ["/fixed", "/one", "/shared", "/two"]);
    let states: Vec<bool> = watch.handle.sources().iter().map(|s| s.freshness == Freshness::Live).collect();
    assert_eq!(states, [false, true, true]);

    // The winner gives the app up.
    one.answer_as_usual("/v2/apps");
    one.answer_as_usual("/v2/events");
    watch.live().await;
    one.remove_app("/shared");
    one.event(json!({"eventType": "app_terminated_event", "appId": "/shared"})).await;
    let last =
        watch.until("the other's app", |s| tasks(s, "/shared").iter().any(|(id, _)| id == "two.1")).await;
    assert!(last.problems.is_empty(), "{:?}", last.problems);
    assert_eq!(framework(&last, "/shared"), "batch");
}

#[tokio::test]
async fn a_source_that_never_answers_holds_nobody_back() {
    let good = Member::start().await;
    good.set_app("/a", &["a.1"]);
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = Marathon::new(vec![format!("http://{dead}").parse().unwrap()]);
    let all = vec![source("away", SourceKind::Marathon(Box::new(away))), scheduler("good", &good)];
    let mut watch = watch_all(Config::new(all));
    let snapshot = watch.until("what there is", |s| s.apps.len() == 1).await;
    assert_eq!(tasks(&snapshot, "/a").len(), 1);
    assert!(matches!(watch.subscriber.freshness(), Freshness::Stale { .. }));
}

#[tokio::test]
async fn two_sources_of_one_name_are_refused() {
    let member = Member::start().await;
    let (publisher, _subscriber) = publish::channel();
    let config = Config::new(vec![scheduler("x", &member), scheduler("x", &member)]);
    let error = start(config, publisher, CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains("two sources"), "{error}");
}
