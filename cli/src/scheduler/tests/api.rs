//! Answers of the API that hang on no process: errors, the framing of the stream, and who may ask.
//!
//! Not here: what changes do (`deployments`).

use super::*;

#[tokio::test]
async fn answers_of_the_api() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/g/a", 1))).await;
    events.until_deployed().await;
    let locked = json!({"cpus": 1000.0});
    for (method, path, body, status, message) in [
        ("GET", "/v2/apps/nix", None, 404, "App '/nix' does not exist"),
        ("GET", "/v2/nix", None, 404, "URI not found: /v2/nix"),
        ("DELETE", "/v2/apps/nix", None, 404, "App '/nix' does not exist"),
        ("PATCH", "/v2/apps/nix", Some(json!({"cmd": "x"})), 404, "App '/nix' does not exist"),
        ("POST", "/v2/apps", Some(sleeper("/g/a", 1)), 409, "An app with id [/g/a] already exists."),
        ("POST", "/v2/apps", Some(json!({"id": "/x", "cpus": "1"})), 422, "Invalid JSON"),
        ("POST", "/v2/apps", Some(json!({"id": "/x"})), 422, "Object is not valid"),
        (
            "GET",
            "/v2/apps/g/a/versions/20:39:32.972Z",
            None,
            422,
            "Invalid timestamp provided '20:39:32.972Z'. Expecting ISO-8601 datetime string.",
        ),
        (
            "POST",
            "/v2/tasks/delete",
            Some(json!({"ids": ["unknown-task-id"]})),
            400,
            "Invalid task id 'unknown-task-id'. [taskId unknown-task-id no valid identifier (of class java.lang.String)]",
        ),
        (
            "DELETE",
            "/v2/apps/g/a/tasks?scale=true&wipe=true",
            None,
            400,
            "You cannot use scale and wipe at the same time.",
        ),
        ("DELETE", "/v2/deployments/x", None, 404, "DeploymentPlan x does not exist"),
        ("DELETE", "/v2/queue/g/a/delay", None, 404, "Application /g/a not found in tasks queue."),
        (
            "PUT",
            "/v2/apps/g/a",
            Some(json!({"version": "2015-01-01T00:00:00Z", "cpus": 1})),
            422,
            "The 'version' field may only be combined with the 'id' field.",
        ),
        ("GET", "/v2/groups/nix", None, 404, "Group '/nix' does not exist"),
        ("PUT", "/v2/apps/g/a", Some(locked), 200, ""),
        (
            "POST",
            "/v2/apps/g/a/restart",
            None,
            409,
            "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.",
        ),
    ] {
        let (got, answer) = scheduler.send(method, path, body).await;
        let text = answer["message"].as_str().unwrap_or_default();
        assert_eq!((got, text), (status, message), "{method} {path}: {answer}");
    }
    scheduler.stop().await;
}

#[tokio::test]
async fn the_stream_is_framed_as_marathon_frames_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let mut stream = TcpStream::connect(scheduler.running.address).await.expect("connect");
    let request = "GET /v2/events?event_type=event_stream_attached HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut text = String::new();
    let read = async {
        while !text.ends_with("\r\n\r\n\r\n") {
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.expect("read");
            assert!(n > 0, "closed after {text}");
            text.push_str(std::str::from_utf8(&buffer[..n]).expect("UTF-8"));
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("an event in time");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let head = head.to_ascii_lowercase();
    for line in [
        "content-type: text/event-stream;charset=utf-8",
        "transfer-encoding: chunked",
        "connection: close",
        "cache-control: no-cache, no-store, must-revalidate",
    ] {
        assert!(head.lines().any(|l| l == line), "{line} in {head}");
    }
    // One chunk holds the whole event.
    let (size, event) = body.split_once("\r\n").expect("a chunk");
    assert_eq!(usize::from_str_radix(size, 16).expect("a size"), event.len() - 2);
    assert!(event.starts_with("event: event_stream_attached\r\ndata: {\"eventType\""), "{event}");

    // Any other wish than exactly this type is refused.
    let url = format!("http://{}/v2/events", scheduler.running.address);
    let refused = scheduler.client.get(url).header("accept", "text/event-stream;q=1").send().await;
    assert_eq!(refused.expect("an answer").status().as_u16(), 405);
    scheduler.stop().await;
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let url = format!("http://{}/v2/apps", scheduler.running.address);
    for (method, name, value, status) in [
        ("GET", "host", "rebound.example", 421),
        ("POST", "origin", "http://evil.example", 403),
        ("POST", "sec-fetch-site", "cross-site", 403),
        ("POST", "content-type", "text/plain", 415),
        ("GET", "origin", "http://evil.example", 200),
    ] {
        let request = scheduler.client.request(method.parse().expect("a method"), &url);
        let body = if method == "POST" { sleeper("/evil", 1).to_string() } else { String::new() };
        let answer = request.header(name, value).body(body).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{method} {name}: {value}");
    }
    let too_long = scheduler.client.post(&url).body(vec![b' '; 9 * 1024 * 1024]).send().await;
    // The server may close before everything is sent.
    assert!(too_long.is_err() || too_long.is_ok_and(|answer| answer.status().as_u16() == 413));
    assert_eq!(scheduler.get("/v2/apps").await, json!({"apps": []}));
    let open = Config { listen: "0.0.0.0:0".parse().expect("an address"), ..Config::default() };
    assert!(matches!(start(open, CancellationToken::new()).await, Err(Error::Open { .. })));
    scheduler.stop().await;
}

#[tokio::test]
async fn a_body_declared_too_long_is_refused_before_it_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let mut client = TcpStream::connect(scheduler.running.address).await.expect("a connection");
    let request = "POST /v2/apps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                   Content-Length: 104857600\r\n\r\n{";
    client.write_all(request.as_bytes()).await.expect("the head is sent");
    let mut answer = [0; 12];
    let read = tokio::time::timeout(DEADLINE, client.read_exact(&mut answer)).await;
    read.expect("an answer in time").expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
    scheduler.stop().await;
}
