//! What deployments do to instances, and the events on the way.
//!
//! Not here: processes themselves (`processes`).

use super::*;

#[tokio::test]
async fn create_scale_and_remove() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;

    let (status, app) = scheduler.send("POST", "/v2/apps", Some(sleeper("/dcos-101/app2", 1))).await;
    assert_eq!((status, &app["portDefinitions"][0]["port"]), (201, &json!(10000)));
    assert_eq!(
        events.until_deployed().await,
        [
            "group_change_success",
            "api_post_event",
            "deployment_info",
            "deployment_step_success",
            "deployment_info",
            "instance_changed_event Scheduled",
            "instance_changed_event Provisioned",
            "status_update_event TASK_STARTING",
            "instance_changed_event Starting",
            "status_update_event TASK_RUNNING",
            "instance_changed_event Running",
            "deployment_step_success",
            "deployment_success",
        ]
    );
    let first = scheduler.tasks("/dcos-101/app2").await;

    let path = "/service/marathon/v2/apps//dcos-101/app2/?force=False";
    let (status, result) = scheduler.send("PUT", path, Some(json!({"instances": 3, "cmd": null}))).await;
    assert!(status == 200 && result["deploymentId"].is_string(), "{result}");
    events.until_deployed().await;
    let three = scheduler.tasks("/dcos-101/app2").await;
    let mut ports: Vec<u64> = three.iter().filter_map(|task| task["ports"][0].as_u64()).collect();
    ports.dedup();
    assert_eq!((ports.len(), &three[0]), (3, &first[0]));
    processes_become(&scheduler.state, 3).await;

    scheduler.send("PUT", "/v2/apps/dcos-101/app2", Some(json!({"instances": 1}))).await;
    let seen = events.until_deployed().await;
    let at = |what: &str| seen.iter().position(|s| s == what).unwrap_or_else(|| panic!("{what} in {seen:?}"));
    assert!(at("status_update_event TASK_KILLING") < at("status_update_event TASK_KILLED"));
    // The youngest went.
    assert_eq!(scheduler.tasks("/dcos-101/app2").await, first);

    assert_eq!(scheduler.send("DELETE", "/v2/apps/dcos-101/app2", None).await.0, 200);
    assert_eq!(
        scheduler.get("/v2/apps/dcos-101/app2").await["message"],
        "App '/dcos-101/app2' does not exist"
    );
    let seen = events.until_deployed().await;
    assert!(seen.contains(&"app_terminated_event".to_owned()), "{seen:?}");
    assert_eq!(processes_in(&scheduler.state), [0; 0]);
    scheduler.stop().await;
}

#[tokio::test]
async fn what_a_get_shows_is_never_older_than_an_event() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/a", 2))).await;
    for _ in 0..2 {
        let id = std::cell::RefCell::new(Value::Null);
        events
            .until("status_update_event", |event| {
                id.replace(event["taskId"].clone());
                event["taskStatus"] == "TASK_RUNNING"
            })
            .await;
        let tasks = scheduler.tasks("/a").await;
        let task = tasks.iter().find(|task| task["id"] == *id.borrow()).expect("it is listed");
        assert_eq!(task["state"], "TASK_RUNNING");
    }
    scheduler.stop().await;
}

#[tokio::test]
async fn rolling_upgrade_keeps_its_limits() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let mut app = sleeper("/a", 4);
    app["upgradeStrategy"] = json!({"minimumHealthCapacity": 0.75, "maximumOverCapacity": 0.25});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    events.until_deployed().await;
    scheduler.send("PUT", "/v2/apps/a", Some(json!({"env": {"NEW": "1"}}))).await;
    let (mut running, mut n_tasks) = (4i32, 4i32);
    loop {
        let event = tokio::time::timeout(DEADLINE, events.next()).await.expect("it goes on");
        match (event["taskStatus"].as_str(), event["condition"].as_str()) {
            (Some("TASK_RUNNING"), _) => running += 1,
            (Some("TASK_KILLING"), _) => running -= 1,
            (Some("TASK_KILLED"), _) => n_tasks -= 1,
            (_, Some("Provisioned")) => n_tasks += 1,
            _ => {}
        }
        assert!(running >= 3 && n_tasks <= 5, "running {running}, tasks {n_tasks}");
        if event["eventType"] == "deployment_success" {
            break;
        }
    }
    let app = scheduler.get("/v2/apps/a").await;
    let version = &app["app"]["version"];
    let tasks = scheduler.tasks("/a").await;
    assert!(tasks.len() == 4 && tasks.iter().all(|task| &task["version"] == version));
    processes_become(&scheduler.state, 4).await;
    scheduler.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_waits_and_can_be_overridden() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/a", 1))).await;
    events.until_deployed().await;
    scheduler.send("PUT", "/v2/apps/a", Some(json!({"instances": 100}))).await;
    let queue = scheduler.get("/v2/queue").await;
    assert_eq!(
        (&queue["queue"][0]["count"], &queue["queue"][0]["delay"]["overdue"]),
        (&json!(60), &json!(true))
    );
    let deployments = scheduler.get("/v2/deployments").await;
    let (status, refusal) = scheduler.send("PUT", "/v2/apps/a", Some(json!({"instances": 2}))).await;
    assert_eq!((status, &refusal["deployments"][0]["id"]), (409, &deployments[0]["id"]));
    let forced = scheduler.send("PUT", "/v2/apps/a?force=True", Some(json!({"instances": 2}))).await;
    assert_eq!(forced.0, 200);
    let seen = events.until_deployed().await;
    assert!(seen.contains(&"deployment_failed".to_owned()), "{seen:?}");
    assert_eq!(
        (scheduler.tasks("/a").await.len(), scheduler.get("/v2/queue").await),
        (2, json!({"queue": []}))
    );

    // Taking a deployment back restores the definition before it.
    let (_, stuck) = scheduler.send("PUT", "/v2/apps/a", Some(json!({"cpus": 100}))).await;
    let id = stuck["deploymentId"].as_str().expect("an id");
    assert_eq!(scheduler.send("DELETE", &format!("/v2/deployments/{id}"), None).await.0, 200);
    events.until_deployed().await;
    assert_eq!(scheduler.get("/v2/apps/a").await["app"]["cpus"], json!(0.1));
    scheduler.stop().await;
}

#[tokio::test]
async fn definitions_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Processes).await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/a/b", 2))).await;
    events.until_deployed().await;
    scheduler.send("PUT", "/v2/apps/a/b", Some(json!({"labels": {"x": "y"}}))).await;
    events.until_deployed().await;
    let before = scheduler.get("/v2/apps/a/b/versions").await;
    let second = Config { state_dir: dir.path().to_owned(), ..Config::default() };
    assert!(matches!(start(second, CancellationToken::new()).await, Err(Error::Locked { .. })));
    scheduler.stop().await;

    let scheduler = Scheduler::start(dir.path(), Instances::Processes).await;
    assert_eq!(scheduler.get("/v2/apps/a/b/versions").await, before);
    let app = scheduler.get("/v2/apps/a/b").await["app"].clone();
    assert_eq!((&app["labels"], &app["portDefinitions"][0]["port"]), (&json!({"x": "y"}), &json!(10000)));
    let known = json!({"id": "/a/b", "cmd": "never used"});
    scheduler.running.ensure_app(known).await.expect("it is known");
    assert_eq!(scheduler.get("/v2/apps/a/b").await["app"]["cmd"], "exec sleep 1000");
    scheduler.stop().await;
}

#[tokio::test]
async fn taking_a_deployment_back_restores_its_groups() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/kept/db", 1))).await;
    events.until_deployed().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/kept/web/a", 1))).await;
    events.until_deployed().await;
    let root = scheduler.get("/v2/groups").await;

    let mut huge = sleeper("/made/deep/b", 1);
    huge["cpus"] = json!(1000);
    let groups = json!({"groups": [
        {"id": "/kept", "apps": [sleeper("/kept/db", 1)], "groups": [
            {"id": "web", "dependencies": ["/kept/db"], "apps": [sleeper("/kept/web/a", 1)]}]},
        {"id": "/made", "groups": [{"id": "deep", "apps": [huge]}, {"id": "empty"}]}]});
    let (status, stuck) = scheduler.send("PUT", "/v2/groups", Some(groups)).await;
    let id = stuck["deploymentId"].as_str().unwrap_or_else(|| panic!("{status} {stuck}"));
    let web = scheduler.get("/v2/groups/kept/web").await;
    assert_eq!(web["dependencies"], json!(["/kept/db"]));
    assert_eq!(scheduler.get("/v2/groups/made/empty").await["id"], "/made/empty");
    assert_eq!(scheduler.send("DELETE", &format!("/v2/deployments/{id}"), None).await.0, 200);
    events.until_deployed().await;
    assert_eq!(scheduler.get("/v2/groups/kept/web").await["dependencies"], json!([]));
    assert_eq!(scheduler.send("GET", "/v2/groups/made", None).await.0, 404);
    let names = |root: &Value| -> Vec<Value> {
        root["groups"].as_array().into_iter().flatten().map(|group| group["id"].clone()).collect()
    };
    assert_eq!(names(&scheduler.get("/v2/groups").await), names(&root));
    scheduler.stop().await;
}
