//! A list as large as they get.

use super::*;

const N_APPS: usize = 2_000;
const N_TASKS: usize = 10;

#[tokio::test]
async fn w17_a_list_of_fifty_megabytes_is_read_whole_and_changes_go_on() {
    let member = Member::start().await;
    // What nobody asked for is most of a real list.
    let padding = "x".repeat(2_400);
    let mut list = String::from("{\"apps\": [");
    for app in 0..N_APPS {
        if app > 0 {
            list.push(',');
        }
        let task = |n: usize| {
            format!(
                r#"{{"id": "app{app}.{n}", "host": "127.0.0.1", "state": "TASK_RUNNING", "ports": [{}], "localVolumes": ["{padding}"]}}"#,
                31_000 + n
            )
        };
        let tasks: Vec<String> = (0..N_TASKS).map(task).collect();
        list += &format!(
            r#"{{"id": "/app{app}", "ports": [{}], "env": {{"PADDING": "{padding}"}}, "tasks": [{}]}}"#,
            10_000 + app,
            tasks.join(",")
        );
    }
    list.push_str("]}");
    assert!(list.len() > 50 << 20, "{} bytes", list.len());
    member.answer_always("/v2/apps", answer("200 OK", "", &list));
    // The list is read by a thread that gives way to everybody: on a busy machine that takes minutes without
    // optimisation, and meanwhile nothing may look like a scheduler that is gone.
    let patience = Duration::from_secs(600);
    let mut watch = watch(Marathon {
        resync: patience,
        stream_deadline: patience,
        request_deadline: patience,
        ..config(&[&member])
    });
    let whole = async {
        loop {
            let snapshot = watch.subscriber.latest();
            if snapshot.is_synced() {
                return snapshot;
            }
            watch.subscriber.changed().await.unwrap();
        }
    };
    let snapshot = tokio::time::timeout(patience, whole).await.expect("the list");
    assert_eq!(snapshot.apps.len(), N_APPS);
    for app in snapshot.apps.values() {
        let ports: Vec<u16> = app.instances.iter().map(|i| i.endpoints[0].address.port()).collect();
        assert_eq!(ports, (31_000..).take(N_TASKS).collect::<Vec<u16>>(), "{}", app.id);
    }
    assert!(snapshot.problems.is_empty());
    member.set_app("/app7", &["app7.new"]);
    member.status("/app7", "app7.new", "TASK_RUNNING").await;
    watch.until("the change", |s| tasks(s, "/app7") == [("app7.new".to_owned(), Rotation::In)]).await;
    assert_eq!(watch.handle.stats().n_list_fetches, 1, "a change costs no list");
}
