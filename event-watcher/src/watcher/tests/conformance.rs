//! What every kind of source must do, run against each: start late, break off, fall silent, talk nonsense, flap, and
//! be empty without being away.

use super::*;
use crate::config::{Source, SourceKind, Static};

/// A source that the test plays: what it says, and how it fails.
enum Rig {
    Scheduler { member: Member },
    File { folder: tempfile::TempDir },
}

impl Rig {
    async fn all() -> Vec<Self> {
        vec![
            Self::Scheduler { member: Member::start().await },
            Self::File { folder: tempfile::tempdir().unwrap() },
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Scheduler { .. } => "scheduler",
            Self::File { .. } => "file",
        }
    }

    fn path(&self) -> std::path::PathBuf {
        match self {
            Self::File { folder } => folder.path().join("apps.toml"),
            Self::Scheduler { .. } => unreachable!("only files have a path"),
        }
    }

    fn watch(&self) -> Watch {
        let kind = match self {
            Self::Scheduler { member } => SourceKind::Marathon(Box::new(Marathon {
                resync: Duration::from_millis(50),
                stream_deadline: Duration::from_millis(400),
                poll: Duration::from_millis(50),
                ..config(&[member])
            })),
            Self::File { .. } => {
                SourceKind::Static(Static { file: self.path(), poll: Duration::from_millis(20) })
            }
        };
        watch_all(Config::new(vec![Source { name: "it".into(), kind }]))
    }

    /// Says that these apps run, each with one instance.
    fn say(&self, apps: &[&str]) {
        match self {
            Self::Scheduler { member } => {
                for path in ["/v2/apps", "/v2/events"] {
                    member.answer_as_usual(path);
                }
                for known in ["/a", "/b", "/c"] {
                    member.remove_app(known);
                }
                for app in apps {
                    member.set_app(app, &[&format!("{}.1", &app[1..])]);
                }
            }
            Self::File { .. } => {
                let app = |id: &&str| {
                    format!("[[apps]]\nid = '{id}'\n[[apps.services]]\nendpoints = ['127.0.0.1:1']\n")
                };
                let text: String = apps.iter().map(app).collect();
                self.write(if text.is_empty() { "apps = []\n" } else { &text });
            }
        }
    }

    fn write(&self, text: &str) {
        // As a careful program would: readers see the old file or the new one.
        let draft = self.path().with_extension("new");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, self.path()).unwrap();
    }

    /// Nothing can be had from it any more.
    fn die(&self) {
        match self {
            Self::Scheduler { member } => {
                for path in ["/v2/apps", "/v2/events"] {
                    member.answer_always(path, answer("503 Service Unavailable", "", "{}"));
                }
                member.cut_streams();
            }
            Self::File { .. } => {
                // It may be away already.
                let _ = std::fs::remove_file(self.path());
            }
        }
    }

    fn talk_nonsense(&self) {
        match self {
            Self::Scheduler { member } => {
                member.answer_always("/v2/apps", answer("200 OK", "", "{\"apps\": [{]}"))
            }
            Self::File { .. } => self.write("[[apps]\nid = "),
        }
    }
}

#[tokio::test]
async fn a_late_start_is_waited_for() {
    for rig in Rig::all().await {
        rig.die();
        let mut watch = rig.watch();
        watch
            .freshness("a reason", |f| matches!(f, Freshness::Unsynced { reason } if !reason.contains("yet")))
            .await;
        assert!(
            !watch.subscriber.latest().is_synced(),
            "{}: nothing is known, so nothing is said",
            rig.name()
        );
        rig.say(&["/a"]);
        watch.live().await;
        assert_eq!(ids(&watch.subscriber.latest()), ["/a"], "{}", rig.name());
    }
}

#[tokio::test]
async fn what_a_source_said_serves_on_when_it_dies_or_talks_nonsense() {
    for rig in Rig::all().await {
        rig.say(&["/a", "/b", "/c"]);
        let mut watch = rig.watch();
        watch.live().await;
        let before = watch.subscriber.latest();
        for turn in 0..2 {
            if turn == 0 {
                rig.die()
            } else {
                rig.talk_nonsense()
            }
            watch.freshness("stale", |f| matches!(f, Freshness::Stale { .. })).await;
            assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()), "{}: {turn}", rig.name());
            rig.say(&["/a", "/b", "/c"]);
            watch.live().await;
            assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()), "{}: {turn}", rig.name());
        }
        assert!(!watch.handle.sources()[0].rejected.is_empty(), "{}: it is counted", rig.name());
    }
}

#[tokio::test]
async fn silence_is_no_change() {
    for rig in Rig::all().await {
        rig.say(&["/a"]);
        let mut watch = rig.watch();
        watch.live().await;
        let before = watch.subscriber.latest();
        // Longer than any deadline of either.
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()), "{}", rig.name());
        rig.say(&["/a", "/b"]);
        watch.until("a change after the silence", |s| s.apps.len() == 2).await;
    }
}

#[tokio::test]
async fn flapping_removes_nobody() {
    for rig in Rig::all().await {
        rig.say(&["/a", "/b", "/c"]);
        let mut watch = rig.watch();
        watch.live().await;
        let before = watch.subscriber.latest();
        for _ in 0..5 {
            rig.die();
            watch.freshness("stale", |f| matches!(f, Freshness::Stale { .. })).await;
            rig.say(&["/a", "/b", "/c"]);
            watch.live().await;
        }
        assert!(Arc::ptr_eq(&before, &watch.subscriber.latest()), "{}", rig.name());
    }
}

#[tokio::test]
async fn empty_is_not_away() {
    for rig in Rig::all().await {
        rig.say(&["/a"]);
        let mut watch = rig.watch();
        watch.live().await;
        rig.say(&[]);
        if let Rig::Scheduler { member } = &rig {
            // Right after the connection it takes an event, an operator or ten seconds to be believed.
            member.event(json!({"eventType": "app_terminated_event", "appId": "/a"})).await;
        }
        watch.until("nothing runs", |s| s.apps.is_empty()).await;
        watch.live().await;
        assert!(watch.subscriber.latest().is_synced(), "{}", rig.name());
    }
}

#[tokio::test]
async fn one_bad_app_keeps_its_last_good_version() {
    for rig in Rig::all().await {
        rig.say(&["/a", "/b"]);
        let mut watch = rig.watch();
        watch.live().await;
        match &rig {
            Rig::Scheduler { member } => member.set_raw_app("/a", json!({"id": "/a", "labels": 5})),
            Rig::File { .. } => rig.write("[[apps]]\nid = '/a'\n[[apps]]\nid = '/b'\n[[apps.services]]\nendpoints = ['127.0.0.1:1', '127.0.0.1:2']\n"),
        }
        if let Rig::Scheduler { member } = &rig {
            member.set_app("/b", &["b.1", "b.2"]);
        }
        let snapshot = watch.until("the good one's change", |s| tasks(s, "/b").len() == 2).await;
        assert_eq!(tasks(&snapshot, "/a").len(), 1, "{}", rig.name());
        assert!(snapshot.problems.iter().any(|p| p.app == Some(AppId::new("/a"))), "{}", rig.name());
    }
}
