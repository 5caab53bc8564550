//! How the processes of instances end, and what is told of those that fail.
//!
//! Not here: deployments (`deployments`).

use super::*;

fn leads_a_session(pid: u32) -> bool {
    // SAFETY: plain system call.
    unsafe { libc::getsid(pid as libc::pid_t) == pid as libc::pid_t }
}

#[tokio::test]
async fn the_whole_process_group_goes() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    // Nobody here ends on SIGTERM: not the shell, not what it started, not what that started. What leaves the
    // group lives until the scheduler stops.
    let cmd = "trap '' TERM; (setsid sleep 1000 &); (sh -c 'sleep 1000 & wait' &) ; sleep 1000 & touch up; while :; do wait; done";
    let app = json!({"id": "/stubborn", "cmd": cmd, "cpus": 0.1, "mem": 16,
        "healthChecks": [{"protocol": "COMMAND", "command": {"value": "test -e up"}, "delaySeconds": 0,
            "intervalSeconds": 1}]});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    events.until_deployed().await;
    assert!(processes_in(&scheduler.state).len() >= 3);
    let task = scheduler.tasks("/stubborn").await[0]["id"].as_str().expect("an id").to_owned();
    let (status, answer) =
        scheduler.send("POST", "/v2/tasks/delete?wipe=true", Some(json!({"ids": [task]}))).await;
    assert_eq!((status, &answer["tasks"][0]["id"]), (200, &json!(task)));
    let seen = events
        .until("status_update_event", |event| {
            event["taskStatus"] == "TASK_KILLED" && event["taskId"] == *task
        })
        .await;
    let environment_of = |pid: &u32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mark = format!("MESOS_TASK_ID={task}");
    for pid in processes_in(&scheduler.state) {
        let environment = environment_of(&pid);
        let is_of_task = environment.split(|&b| b == 0).any(|v| v == mark.as_bytes());
        assert!(!is_of_task || leads_a_session(pid), "{pid} is left");
    }
    // A wiped instance was forgotten before it ended.
    events
        .until("unknown_instance_terminated_event", |event| {
            event["condition"] == "Killed" && event["runSpecId"] == "/stubborn"
        })
        .await;
    // Another instance takes its place, mostly before the first one is gone; both are gone at the end.
    if !seen.iter().any(|event| event == "status_update_event TASK_RUNNING") {
        events.until("status_update_event", |event| event["taskStatus"] == "TASK_RUNNING").await;
    }
    let state = scheduler.state.clone();
    scheduler.stop().await;
    assert_eq!(processes_in(&state), [0; 0]);
}

#[tokio::test]
async fn a_crash_is_shown_and_backed_off() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let app = json!({"id": "/crash", "cmd": "echo out; echo err >&2; exit 3", "cpus": 0.1, "mem": 16,
        "backoffSeconds": 3600, "maxLaunchDelaySeconds": 3600});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    events.until("instance_changed_event", |event| event["condition"] == "Failed").await;
    let app = scheduler.get("/v2/apps/crash").await;
    let failure = &app["app"]["lastTaskFailure"];
    assert_eq!(failure["message"], "Command exited with status 3");
    let task = failure["taskId"].as_str().expect("an id");
    for (stream, text) in [("stdout", "out\n"), ("stderr", "err\n")] {
        let log = scheduler.get(&format!("/waymark/v1/tasks/{task}/logs/{stream}")).await;
        assert_eq!(log, json!(text));
    }
    let queue = scheduler.get("/v2/queue").await;
    let delay = &queue["queue"][0]["delay"];
    assert!(delay["overdue"] == false && delay["timeLeftSeconds"].as_u64() > Some(3500), "{delay}");
    assert_eq!(scheduler.send("DELETE", "/v2/queue/crash/delay", None).await.0, 204);
    // The second attempt of the same instance.
    let next = task.replace("._app.1", "._app.2");
    events
        .until("status_update_event", |event| {
            event["taskId"] == *next && event["taskStatus"] == "TASK_RUNNING"
        })
        .await;
    scheduler.stop().await;
}

#[tokio::test]
async fn what_cannot_be_started_fails_with_a_message() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let app = json!({"id": "/nix", "args": ["/nowhere/to/be/found"], "cpus": 0.1, "mem": 16});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    let failed = |event: &Value| {
        let message = event["message"].as_str().unwrap_or_default();
        event["taskStatus"] == "TASK_FAILED" && message.contains("/nowhere/to/be/found: No such file")
    };
    events.until("status_update_event", failed).await;
    assert_eq!(scheduler.get("/v2/deployments").await[0]["affectedApps"], json!(["/nix"]));
    scheduler.stop().await;
}

#[tokio::test]
async fn a_failing_check_takes_the_instance_out_and_then_ends_it() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("bound").port();
    let status = Arc::new(AtomicU16::new(200));
    let answered = status.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let status = answered.load(Ordering::Relaxed);
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
        }
    });
    let mut app = sleeper("/a", 1);
    app["healthChecks"] = json!([{"port": port, "path": "/h", "gracePeriodSeconds": 60, "intervalSeconds": 1,
        "timeoutSeconds": 1, "maxConsecutiveFailures": 1}]);
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    let seen = events.until_deployed().await;
    for kind in ["add_health_check_event", "health_status_changed_event", "instance_health_changed_event"] {
        assert!(seen.contains(&kind.to_owned()), "{kind} in {seen:?}");
    }
    assert_eq!(scheduler.tasks("/a").await[0]["healthCheckResults"][0]["alive"], true);
    status.store(503, Ordering::Relaxed);
    let seen = events.until("status_update_event", |event| event["taskStatus"] == "TASK_KILLED").await;
    let kinds: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(
        kinds,
        [
            "failed_health_check_event",
            "health_status_changed_event",
            "instance_health_changed_event",
            "failed_health_check_event",
            "unhealthy_instance_kill_event",
            "status_update_event TASK_KILLING",
            "instance_changed_event Killing",
            "status_update_event TASK_KILLED",
        ]
    );
    scheduler.stop().await;
}
