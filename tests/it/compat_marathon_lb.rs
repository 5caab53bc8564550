//! From app definitions to requests: what each of Marathon-LB's labels does on every way to an app.
//!
//! One table of cases: labels, a request, what it must come to. Each case has an app, a service port and a run of its
//! own requests; all apps are served side by side by one `waymark serve`.

use std::net::SocketAddr;

use anyhow::Context as _;
use serde_json::{Value, json};
use tests::backend::Backend;
use tests::client::{self, Response};
use tests::scheduler::ScriptedScheduler;
use tests::waymark::Waymark;

use crate::PROGRAM;

const FIRST_PORT: u16 = 20000;
/// The password is `s3cret`.
const AUTH: &str = "the realm:bob:$6$abcdefgh$Z7KfoKnKTSZrzo5VZ0YubGLQOj9ov6sHo9TmE3zIU/LHKhpE30zCnZ0mcIXYf9r9rQ4DYaXoxAFSPFlcWdxjB.";
const CREDENTIALS: &str = "Authorization: Basic Ym9iOnMzY3JldA==";

/// The way of a request.
#[derive(Clone, Copy, Debug)]
enum By {
    Port,
    /// Another service port than the app's own.
    At(u16),
    Host(&'static str),
    /// The same over TLS, with this server name.
    Tls(&'static str),
    AppId,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    /// Answered by the app's instance, with this text in what the instance was sent.
    Sent(&'static str),
    /// Answered by the instance, which was not sent this text.
    NotSent(&'static str),
    /// This status, with this text in the response's head.
    Answer(u16, &'static str),
    /// A response of the instance with this header line.
    Header(&'static str, &'static str),
    /// Nothing listens there.
    Refused,
}
use By::{AppId, At, Host, Port, Tls};
use Expect::{Answer, Header, NotSent, Refused, Sent};

type Labels = &'static [(&'static str, &'static str)];
type Requests = &'static [(By, &'static str, &'static [&'static str], Expect)];

/// Labels of an app of its own, and requests to it. Service port 0 stands for the app's own.
const CASES: &[(Labels, Requests)] = &[
    (&[("HAPROXY_0_MODE", "http")], &[(Port, "/", &[], Sent("get / ")), (AppId, "/x", &[], Sent("get /x "))]),
    (
        &[("HAPROXY_0_ENABLED", "false")],
        &[(Port, "/", &[], Refused), (AppId, "/", &[], Answer(503, "no-route"))],
    ),
    (
        &[("HAPROXY_0_VHOST", "V1.test, v2.test")],
        &[
            (Host("v1.test"), "/", &[], Sent("host: v1.test")),
            (Host("V2.TEST:80"), "/", &[], Sent("get / ")),
            (Host("v3.test"), "/", &[], Answer(503, "no-route")),
            (AppId, "/", &[], Sent("get / ")),
            (Tls("v1.test"), "/", &[], Sent("x-forwarded-proto: https")),
            (Tls("v2.test"), "/", &["Host: v1.test"], Answer(421, "misdirected")),
            (Tls("v3.test"), "/", &[], Answer(503, "no-route")),
        ],
    ),
    (
        &[("HAPROXY_0_VHOST", "*.wild.test")],
        &[
            (Tls("a.wild.test"), "/", &[], Sent("host: a.wild.test")),
            (Host("a.wild.test"), "/", &[], Sent("get / ")),
            (Host("b.a.wild.test"), "/", &[], Sent("get / ")),
            (Host("wild.test"), "/", &[], Answer(503, "no-route")),
        ],
    ),
    (
        &[("HAPROXY_0_VHOST", "path.test"), ("HAPROXY_0_PATH", "-i /a /b")],
        &[
            (Host("path.test"), "/A/x", &[], Sent("get /a/x ")),
            (Host("path.test"), "/bcd", &[], Sent("get /bcd ")),
            (Host("path.test"), "/c", &[], Answer(503, "no-route")),
            (Tls("path.test"), "/B", &[], Sent("get /b ")),
            (Tls("path.test"), "/c", &[], Answer(503, "no-route")),
        ],
    ),
    (
        &[("HAPROXY_0_PATH", "/only-this-path")],
        &[(Host("any.where.test"), "/only-this-path/x", &[], Sent("get /only-this-path/x"))],
    ),
    (&[("HAPROXY_0_MODE", "http"), ("HAPROXY_0_BIND_ADDR", "127.0.0.1")], &[(Port, "/", &[], Refused)]),
    (
        &[("HAPROXY_0_VHOST", "sticky.test"), ("HAPROXY_0_STICKY", "true")],
        &[(Host("sticky.test"), "/", &[], Header("set-cookie", "mesosphere_server_id="))],
    ),
    (
        &[
            ("HAPROXY_0_VHOST", "named-cookie.test"),
            ("HAPROXY_0_STICKY", "true"),
            ("HAPROXY_0_BACKEND_STICKY_OPTIONS", "  cookie SRV insert indirect nocache httponly"),
        ],
        &[
            (Host("named-cookie.test"), "/", &[], Header("set-cookie", "SRV=")),
            (Host("named-cookie.test"), "/", &[], Header("set-cookie", "; HttpOnly")),
        ],
    ),
    (
        &[("HAPROXY_0_VHOST", "https.test"), ("HAPROXY_0_REDIRECT_TO_HTTPS", "true")],
        &[
            (Host("https.test:9080"), "/x?y=z", &[], Answer(301, "location: https://https.test/x?y=z")),
            (Tls("https.test"), "/x?y=z", &[], Sent("get /x?y=z ")),
            (Port, "/", &[], Sent("get / ")),
            (AppId, "/", &[], Sent("get / ")),
        ],
    ),
    (
        &[("HAPROXY_0_VHOST", "hsts.test"), ("HAPROXY_0_USE_HSTS", "true")],
        &[
            (Port, "/", &[], Header("strict-transport-security", "max-age=15768000")),
            (Tls("hsts.test"), "/", &[], Header("strict-transport-security", "max-age=15768000")),
        ],
    ),
    (
        &[("HAPROXY_0_VHOST", "auth.test"), ("HAPROXY_0_AUTH", AUTH)],
        &[
            (Host("auth.test"), "/", &[], Answer(401, "www-authenticate: basic realm=\"the realm\"")),
            (Host("auth.test"), "/", &[CREDENTIALS], Sent("get / ")),
            (Host("auth.test"), "/", &["Authorization: Basic Ym9iOndyb25n"], Answer(401, "www-authenticate")),
            (Port, "/", &[], Answer(401, "www-authenticate")),
            (Port, "/", &[CREDENTIALS], Sent("get / ")),
            (AppId, "/", &[], Answer(401, "www-authenticate")),
            (AppId, "/", &[CREDENTIALS], Sent("get / ")),
            (Tls("auth.test"), "/", &[], Answer(401, "www-authenticate")),
            (Tls("auth.test"), "/", &[CREDENTIALS], Sent("get / ")),
        ],
    ),
    (
        &[("HAPROXY_0_MODE", "http"), ("HAPROXY_0_AUTH", "realm:bob:not-a-hash")],
        &[(Port, "/", &[CREDENTIALS], Answer(401, "www-authenticate"))],
    ),
    (
        &[
            ("HAPROXY_0_VHOST", "acl.test"),
            ("HAPROXY_0_BACKEND_NETWORK_ALLOWED_ACL", "10.0.0.0/8 192.168.0.1"),
        ],
        &[
            (Host("acl.test"), "/", &[], Answer(403, "address-denied")),
            (Port, "/", &[], Answer(403, "address-denied")),
            (AppId, "/", &[], Answer(403, "address-denied")),
            (Tls("acl.test"), "/", &[], Answer(403, "address-denied")),
        ],
    ),
    (
        &[("HAPROXY_0_MODE", "http"), ("HAPROXY_0_BACKEND_NETWORK_ALLOWED_ACL", "127.0.0.0/8")],
        &[(Port, "/", &[], Sent("get / "))],
    ),
    (
        &[("HAPROXY_0_MODE", "http"), ("WAYMARK_0_DENY", "127.0.0.0/8")],
        &[(Port, "/", &[], Answer(403, "address-denied"))],
    ),
    (
        &[("HAPROXY_0_VHOST", "strip.test"), ("HAPROXY_0_HTTP_BACKEND_PROXYPASS_PATH", "/api")],
        &[
            (Port, "/api/v1?q=1", &[], Sent("get /v1?q=1 ")),
            (Port, "/API", &[], Sent("get / ")),
            (Port, "/other", &[], Sent("get /other ")),
            (Port, "/", &["Host: else.test"], Sent("host: strip.test")),
        ],
    ),
    (
        &[("HAPROXY_0_VHOST", "moved.test"), ("HAPROXY_0_HTTP_BACKEND_REVPROXY_PATH", "/below")],
        &[(Host("moved.test"), "/", &[], Header("location", "/below/login"))],
    ),
    (
        &[("HAPROXY_0_VHOST", "root.test"), ("HAPROXY_0_HTTP_BACKEND_REDIR", "/web")],
        &[
            (Host("root.test"), "/", &[], Answer(301, "location: /web")),
            (Host("root.test"), "/x", &[], Sent("get /x ")),
            (Tls("root.test"), "/", &[], Answer(301, "location: /web")),
        ],
    ),
    (
        &[
            ("HAPROXY_0_MODE", "http"),
            (
                "HAPROXY_0_BACKEND_HTTP_OPTIONS",
                "  http-request set-header X-Set yes\n  http-request del-header X-Secret\n  http-response set-header X-Answered by-us\n  timeout server 30m\n",
            ),
        ],
        &[
            (Port, "/", &[], Sent("x-set: yes")),
            (Port, "/", &["X-Secret: 1"], NotSent("x-secret")),
            (Port, "/", &[], NotSent("x-forwarded-for")),
            (Port, "/", &[], Header("x-answered", "by-us")),
        ],
    ),
    (
        &[
            ("HAPROXY_0_VHOST", "behind.test"),
            (
                "HAPROXY_0_BACKEND_HTTP_OPTIONS",
                "  option forwardfor\n  acl is_proxy_https hdr(X-Forwarded-Proto) https\n  redirect scheme https unless { ssl_fc } or is_proxy_https\n",
            ),
        ],
        &[
            (Host("behind.test"), "/x", &[], Answer(302, "location: https://behind.test/x")),
            (Host("behind.test"), "/x", &["X-Forwarded-Proto: https"], Sent("x-forwarded-for: 127.0.0.1")),
            (Tls("behind.test"), "/x", &[], Sent("get /x ")),
        ],
    ),
    (
        &[
            ("HAPROXY_0_VHOST", "ends.test"),
            (
                "HAPROXY_0_HTTP_FRONTEND_ACL",
                "  acl host_{cleanedUpHostname} hdr_end(host) -i {hostname}\n  use_backend {backend} if host_{cleanedUpHostname}\n",
            ),
        ],
        &[(Host("x.ends.test"), "/", &[], Sent("get / ")), (Host("ends.test"), "/", &[], Sent("get / "))],
    ),
    (
        &[
            ("HAPROXY_0_VHOST", "closed.test"),
            ("HAPROXY_0_FRONTEND_HEAD", ""),
            ("HAPROXY_0_FRONTEND_BACKEND_GLUE", ""),
        ],
        &[(Port, "/", &[], Refused), (Host("closed.test"), "/", &[], Sent("get / "))],
    ),
    (
        &[("HAPROXY_0_MODE", "http")],
        &[
            (Port, "/", &["X-Forwarded-Port: 1"], NotSent("x-forwarded-port: 1\n")),
            (Port, "/", &["X-Forwarded-For: 1.2.3.4"], Sent("x-forwarded-for: 1.2.3.4")),
        ],
    ),
    (
        &[("HAPROXY_0_MODE", "http"), ("HAPROXY_0_PORT", "21999")],
        &[(At(21999), "/", &[], Sent("get / ")), (Port, "/", &[], Refused)],
    ),
    (
        &[("HAPROXY_0_MODE", "tcp"), ("HAPROXY_0_BALANCE", "leastconn")],
        &[(Port, "/", &[], NotSent("x-forwarded-for")), (AppId, "/", &[], Answer(503, "no-route"))],
    ),
    (
        &[("HAPROXY_0_VHOST", "weight.test"), ("HAPROXY_0_PATH", "/a"), ("HAPROXY_0_BACKEND_WEIGHT", "1")],
        &[(Host("weight.test"), "/a", &[], Sent("x-app: heavier"))],
    ),
    (
        &[
            ("HAPROXY_0_VHOST", "weight.test"),
            ("HAPROXY_0_BACKEND_WEIGHT", "2"),
            ("HAPROXY_0_BACKEND_HTTP_OPTIONS", "  http-request add-header X-App heavier"),
        ],
        &[
            (Host("weight.test"), "/a/b", &[], Sent("x-app: heavier")),
            (Tls("weight.test"), "/", &[], Sent("x-app: heavier")),
        ],
    ),
    (
        &[
            ("HAPROXY_0_VHOST", "sni.test"),
            (
                "HAPROXY_0_HTTPS_FRONTEND_ACL",
                "  use_backend {backend} if {{ ssl_fc_sni -m end .{hostname} }}\n",
            ),
        ],
        &[
            (Tls("x.sni.test"), "/", &[], Sent("host: x.sni.test")),
            (Tls("sni.test"), "/", &[], Sent("get / ")),
            (Tls("notsni.test"), "/", &[], Answer(503, "no-route")),
        ],
    ),
    (
        &[("HAPROXY_0_VHOST", "balance.test"), ("HAPROXY_0_BALANCE", "hdr(X-User)")],
        &[(Host("balance.test"), "/", &["X-User: 7"], Sent("x-user: 7"))],
    ),
    (&[("HAPROXY_0_MODE", "http"), ("HAPROXY_0_BIND_OPTIONS", "accept-proxy")], &[(Port, "/", &[], Refused)]),
];

fn definition(index: usize, labels: Value, instance: u16) -> Value {
    let id = format!("/case/{index}");
    json!({
        "id": id, "version": "2026-01-01T00:00:00.000Z", "instances": 1, "labels": labels,
        "networks": [{"mode": "host"}], "portDefinitions": [{"port": FIRST_PORT + index as u16, "protocol": "tcp"}],
        "healthChecks": [], "readinessChecks": [], "deployments": [],
        "tasks": [{
            "id": format!("case_{index}.1"), "appId": id, "host": "127.0.0.1", "slaveId": "S0", "state": "TASK_RUNNING",
            "startedAt": "2026-01-01T00:00:00.000Z", "version": "2026-01-01T00:00:00.000Z", "ports": [instance],
            "ipAddresses": [{"ipAddress": "127.0.0.1", "protocol": "IPv4"}],
        }],
    })
}

/// One `waymark serve` with these apps.
async fn serve(apps: Vec<Value>, extra: &[&str]) -> anyhow::Result<(ScriptedScheduler, Waymark)> {
    let scheduler = ScriptedScheduler::start().await?;
    apps.into_iter().for_each(|app| scheduler.set_definition(app));
    let waymark = Waymark::serve(PROGRAM, scheduler.address, extra).await?;
    Ok((scheduler, waymark))
}

async fn request(
    waymark: &Waymark,
    index: usize,
    by: By,
    target: &str,
    headers: &[&str],
) -> anyhow::Result<Response> {
    let (address, own): (SocketAddr, String) = match by {
        Port => (waymark.service(FIRST_PORT + index as u16), "X-By: port".to_owned()),
        Host(host) => (waymark.address("http"), format!("Host: {host}")),
        At(port) => (waymark.service(port), "X-By: another port".to_owned()),
        AppId => (waymark.address("appid"), format!("X-Marathon-App-Id: /CASE/{index}")),
        Tls(host) => return over_tls(waymark.address("https"), host, target, headers).await,
    };
    let headers: Vec<&str> = [own.as_str()].into_iter().chain(headers.iter().copied()).collect();
    client::get_with(address, target, &headers).await
}

/// With curl, which asks for the server name; whose certificate it is shown is `https`'s business.
async fn over_tls(
    address: SocketAddr,
    host: &str,
    target: &str,
    headers: &[&str],
) -> anyhow::Result<Response> {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sSki", "--http1.1", "--max-time", "10", "--noproxy", "*"]);
    curl.args(["--resolve", &format!("{host}:{}:{}", address.port(), address.ip())]);
    for header in headers {
        curl.args(["-H", header]);
    }
    let output = curl.arg(format!("https://{host}:{}{target}", address.port())).kill_on_drop(true).output();
    let output = tokio::time::timeout(2 * client::DEADLINE, output).await??;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    Ok(Response {
        status: status.context("no status")?,
        headers: headers.map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect(),
        body: body.as_bytes().to_vec(),
    })
}

#[tokio::test]
async fn every_label_does_on_the_wire_what_it_says() -> anyhow::Result<()> {
    let backend = Backend::start(&["Location: /login"]).await?;
    let apps = CASES.iter().enumerate().map(|(index, (labels, _))| {
        let labels: serde_json::Map<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        definition(index, labels.into(), backend.port())
    });
    let (_scheduler, waymark) = serve(apps.collect(), &[]).await?;
    for (index, (labels, requests)) in CASES.iter().enumerate() {
        for (by, target, headers, expect) in *requests {
            let context = format!("{labels:?} {by:?} {target} {headers:?}");
            let answer = request(&waymark, index, *by, target, headers).await;
            let answer = match (answer, expect) {
                (Err(_), Refused) => continue,
                (Err(error), _) => panic!("{context}: {error:#}"),
                (Ok(answer), Refused) => panic!("{context}: {answer:?}"),
                (Ok(answer), _) => answer,
            };
            let head: String =
                answer.headers.iter().map(|(n, v)| format!("{n}: {v}\n").to_ascii_lowercase()).collect();
            let is_of_instance = answer.text().starts_with(&backend.port().to_string());
            match expect {
                Sent(text) => {
                    assert!(is_of_instance && answer.text().contains(text), "{context}: {answer:?}")
                }
                NotSent(text) => {
                    assert!(is_of_instance && !answer.text().contains(text), "{context}: {}", answer.text())
                }
                Answer(status, text) => {
                    assert!(answer.status == *status && head.contains(text), "{context}: {head} {answer:?}");
                }
                Header(name, value) => {
                    let found = answer.header(name).unwrap_or_default();
                    assert!(is_of_instance && found.contains(value), "{context}: {head}");
                }
                Refused => {}
            }
        }
    }
    let csv = waymark.stats("/haproxy?stats;csv").await?.text();
    let denied = csv.lines().find(|l| l.contains("case_13_20013,BACKEND")).unwrap_or_default();
    assert_eq!(denied.split(',').nth(10), Some("4"), "dreq counts who was turned away: {denied}");
    Ok(())
}

#[tokio::test]
async fn marathon_lbs_own_ways_are_there_for_who_asks() -> anyhow::Result<()> {
    let backend = Backend::start(&[]).await?;
    let labels = [
        json!({"HAPROXY_0_VHOST": "auth.test", "HAPROXY_0_AUTH": AUTH}),
        json!({"HAPROXY_0_VHOST": "order.test", "HAPROXY_0_PATH": "/a"}),
        json!({"HAPROXY_0_VHOST": "order.test", "HAPROXY_0_PATH": "/a/b"}),
        json!({"HAPROXY_0_PATH": "/path"}),
        json!({"HAPROXY_0_VHOST": "*.wild.test"}),
        json!({"HAPROXY_0_MODE": "http", "HAPROXY_0_ENABLED": "1"}),
    ];
    let apps = labels.into_iter().enumerate().map(|(i, l)| definition(i, l, backend.port())).collect();
    let (_scheduler, waymark) = serve(apps, &["--compat", "marathon-lb"]).await?;
    for (index, by, target, status) in [
        (0, Host("auth.test"), "/", 401),
        (0, Port, "/", 200),
        (0, AppId, "/", 200),
        (3, Host("x.test"), "/path", 503),
        (4, Host("a.wild.test"), "/", 503),
    ] {
        let answer = request(&waymark, index, by, target, &[]).await?;
        assert_eq!(answer.status, status, "{index} {by:?}");
    }
    assert!(request(&waymark, 5, Port, "/", &[]).await.is_err(), "1 means false");
    let routes = waymark.ok(&["route", "explain", "http://order.test/a/b"]).await?;
    assert!(routes.contains("case_1_20001"), "the first app wins, not the longest path: {routes}");
    assert_eq!(waymark.stats("/_mlb_signal/hup").await?.text(), "Sent SIGHUP signal to marathon-lb");
    Ok(())
}

#[tokio::test]
async fn groups_and_strict_mode_say_who_is_served() -> anyhow::Result<()> {
    let backend = Backend::start(&[]).await?;
    let labels = [
        json!({"HAPROXY_0_MODE": "http"}),
        json!({"HAPROXY_0_MODE": "http", "HAPROXY_GROUP": "internal, external", "HAPROXY_0_ENABLED": "true"}),
        json!({"HAPROXY_0_MODE": "http", "HAPROXY_GROUP": "external"}),
        json!({"HAPROXY_0_MODE": "http", "HAPROXY_GROUP": "other", "HAPROXY_0_ENABLED": "true"}),
    ];
    let apps: Vec<Value> =
        labels.into_iter().enumerate().map(|(i, l)| definition(i, l, backend.port())).collect();
    for (extra, served) in [
        (&["--group", "external"][..], [false, true, true, false]),
        (&["--group", "other", "--group", "internal"], [false, true, false, true]),
        (&["--strict-mode"], [false, true, false, true]),
        (&["--strict-mode", "--group", "external"], [false, true, false, false]),
    ] {
        let (_scheduler, waymark) = serve(apps.clone(), extra).await?;
        for (index, expect) in served.into_iter().enumerate() {
            let is_served = request(&waymark, index, Port, "/", &[]).await.is_ok();
            assert_eq!(is_served, expect, "{extra:?} {index}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_label_stalls_nobody_and_is_told() -> anyhow::Result<()> {
    let backend = Backend::start(&[]).await?;
    let labels = [
        json!({"HAPROXY_0_PORT": "http", "HAPROXY_0_MODE": "http", "HAPROXY_0_BACKEND_HEAD": "backend {nope}"}),
        json!({"HAPROXY_0_MODE": "http", "HAPROXY_0_VHOTS": "a.test", "HAPROXY_9_VHOST": "b.test"}),
        json!({"HAPROXY_0_MODE": "http", "HAPROXY_0_HEAD": "global", "HAPROXY_0_USERLIST_HEAD": "userlist x"}),
    ];
    let apps = labels.into_iter().enumerate().map(|(i, l)| definition(i, l, backend.port())).collect();
    let (_scheduler, waymark) = serve(apps, &[]).await?;
    for index in 0..3 {
        assert_eq!(request(&waymark, index, Port, "/", &[]).await?.status, 200);
    }
    let status = waymark.ok(&["status"]).await?;
    for label in [
        "0_PORT",
        "0_BACKEND_HEAD",
        "0_VHOTS",
        "9_VHOST",
        "HAPROXY_0_HEAD",
        "0_USERLIST_HEAD",
        "did you mean VHOST",
    ] {
        assert!(status.contains(label), "{label} is not in\n{status}");
    }
    Ok(())
}

#[tokio::test]
async fn an_app_of_a_static_server_leads_to_it() -> anyhow::Result<()> {
    let backend = Backend::start(&[]).await?;
    let named = format!("server db localhost:{}", backend.port());
    let addressed = format!("  timeout server 86400s\n  server db {}", backend.address);
    let labels = [named, addressed]
        .map(|server| json!({"HAPROXY_0_MODE": "http", "HAPROXY_0_BACKEND_SERVER_OPTIONS": server}));
    // Port 1 is nobody's: only the static server can answer.
    let apps = labels.into_iter().enumerate().map(|(i, l)| definition(i, l, 1)).collect();
    let (_scheduler, waymark) = serve(apps, &[]).await?;
    waymark
        .until("/haproxy?stats;csv", "the name is looked up", |csv| csv.text().contains("case_0_20000,db,"))
        .await?;
    for index in 0..2 {
        assert_eq!(request(&waymark, index, Port, "/", &[]).await?.status, 200, "{index}");
    }
    Ok(())
}
