//! A pod's VIPs: its endpoints' labels, one backend for each instance of the container that has the endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use serde_json::{Value, json};
use tests::client::{self, DEADLINE};
use tests::waymark::Waymark;

use crate::PROGRAM;

const NAME: &str = "pod-it.marathon.l4lb.thisdcos.directory";
const PORT: u16 = 8088;

/// Answers each request with its container's task id.
const SERVER: &str = "import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ['MESOS_TASK_ID'].encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(('127.0.0.1', int(os.environ['ENDPOINT_HTTP'])), Handler).serve_forever()
";

fn pod() -> Value {
    json!({
        "id": "/pod-it", "scaling": {"kind": "fixed", "instances": 2}, "networks": [{"mode": "host"}],
        "containers": [
            {"name": "idle", "exec": {"command": {"shell": "sleep 1000"}}, "resources": {"cpus": 0.1, "mem": 32}},
            {"name": "web", "exec": {"command": {"argv": ["python3", "-c", SERVER]}},
             "resources": {"cpus": 0.1, "mem": 32},
             "endpoints": [{"name": "http", "hostPort": 0, "protocol": ["tcp"],
                            "labels": {"VIP_0": format!("/pod-it:{PORT}")}}]},
        ],
    })
}

async fn backends(waymark: &Waymark) -> anyhow::Result<Vec<Value>> {
    let shown: Value = serde_json::from_str(&waymark.ok(&["vip", "show", "/pod-it", "--json"]).await?)?;
    Ok(shown[0]["backends"].as_array().cloned().unwrap_or_default())
}

/// Asks until so many instances have answered: those that have just started may not listen yet.
async fn answering(vip: SocketAddr, n_wanted: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + DEADLINE;
    while seen.len() < n_wanted && Instant::now() < deadline {
        if let Ok(answer) = client::get(vip, "/").await {
            seen.insert(answer.text());
        }
        tokio::task::yield_now().await;
    }
    seen
}

#[tokio::test]
async fn a_pod_is_served_at_the_vip_of_its_endpoint_for_as_long_as_it_is_defined() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let (status, _) = waymark.api("POST", "/v2/pods", Some(pod())).await?;
    assert_eq!(status, 201);
    let n_backends = |n: usize| {
        move |answer: &client::Response| {
            let vips = answer.json().unwrap_or_default();
            vips["vips"][0]["backends"].as_array().is_some_and(|backends| backends.len() == n)
        }
    };
    waymark.until("/api/vips", "both instances are backends", n_backends(2)).await?;
    let address: IpAddr = waymark.ok(&["dns", "lookup", "--short", NAME]).await?.trim().parse()?;
    let vip = SocketAddr::new(address, PORT);
    let seen = answering(vip, 2).await;
    let shown: BTreeSet<String> =
        backends(&waymark).await?.iter().filter_map(|b| b["instance"].as_str().map(str::to_owned)).collect();
    assert_eq!(seen, shown);
    assert!(shown.iter().all(|id| id.ends_with(".web") || id.contains(".web.")), "{shown:?}");

    let mut smaller = pod();
    smaller["scaling"]["instances"] = 1.into();
    assert_eq!(waymark.api("PUT", "/v2/pods/pod-it", Some(smaller)).await?.0, 200);
    waymark.until("/api/vips", "one backend is left", n_backends(1)).await?;
    assert_eq!(answering(vip, 1).await.len(), 1);

    assert_eq!(waymark.api("DELETE", "/v2/pods/pod-it", None).await?.0, 202);
    let is_gone = |answer: &client::Response| {
        answer.json().is_ok_and(|vips| vips["vips"].as_array().is_some_and(Vec::is_empty))
    };
    waymark.until("/api/vips", "the VIP goes with the pod", is_gone).await?;
    Ok(())
}
