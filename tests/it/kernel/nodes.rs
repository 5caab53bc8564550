//! Three nodes, each a network namespace with an agent of its own, and one scheduler on a fourth: do they agree on
//! every address, and does each reach every VIP?
//!
//! The nodes learn of the apps in different orders, in a pool so small that names collide.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tests::netns::{Netns, is_root};
use tests::scheduler::ScriptedScheduler;
use tests::waymark::Waymark;
use tokio::runtime::Handle;

use super::peers::{names, reached, tcp_backend};
use crate::PROGRAM;

const N_APPS: usize = 24;
/// Names have 30 addresses to share.
const POOL: &str = "11.64.0.0/27";
const VERSION: &str = "2026-01-01T00:00:00.000Z";

/// An agent and where it lives.
struct Node {
    netns: Netns,
    agent: Option<Waymark>,
}

impl Node {
    fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        let runtime = Handle::current();
        self.netns.run(move || runtime.block_on(work))
    }

    /// Waits until the agent knows this many VIPs that it serves; their addresses.
    fn addresses(&self, n_apps: usize) -> anyhow::Result<BTreeMap<String, Value>> {
        let agent = self.agent.as_ref().expect("it was started");
        let is_served = |vip: &Value| vip["served"] == vip["addresses"];
        let served = |vips: &Value| {
            vips["vips"].as_array().is_some_and(|vips| vips.len() == n_apps && vips.iter().all(is_served))
        };
        let answer = self.run(agent.until("/api/vips", "all VIPs are served", |response| {
            response.json().is_ok_and(|vips| served(&vips))
        }))?;
        let vips = answer.json()?;
        let addresses = vips["vips"].as_array().into_iter().flatten();
        Ok(addresses.map(|vip| (vip["name"].to_string(), vip["addresses"].clone())).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_agree_on_all_addresses() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    tokio::task::block_in_place(agree)
}

fn agree() -> anyhow::Result<()> {
    let scheduler_host = Netns::new("scheduler")?;
    scheduler_host.add_bridge("br0", "10.5.0.254/24")?;
    let mut nodes = Vec::new();
    for n in 1..=3 {
        let netns = Netns::new(&format!("node{n}"))?;
        scheduler_host.plug("br0", &format!("port{n}"), &netns, &format!("10.5.0.{n}/24"))?;
        tcp_backend(&netns, &format!("10.5.0.{n}:8080"), b'0' + n)?;
        nodes.push(Node { netns, agent: None });
    }
    let runtime = Handle::current();
    let scheduler = scheduler_host
        .run(|| runtime.block_on(ScriptedScheduler::start_at("10.5.0.254:0".parse().expect("an address"))))?;
    // Each agent starts with other apps than the one before, and hears of the rest later.
    for (nth, node) in nodes.iter_mut().enumerate() {
        for n in (0..N_APPS).filter(|n| n % 3 == nth) {
            scheduler.set_definition(app(n, &[1, 2, 3]));
        }
        scheduler.cut_streams();
        let flags = ["--planes", "vip,dns", "--vip-plane", "nft", "--vip-pool", POOL];
        let agent = node.run(Waymark::serve(PROGRAM, scheduler.address, &flags))?;
        node.agent = Some(agent);
        node.addresses(N_APPS / 3 * (nth + 1))?;
    }
    let agreed = nodes[0].addresses(N_APPS)?;
    for node in &nodes {
        assert_eq!(node.addresses(N_APPS)?, agreed);
    }
    let mut distinct: Vec<String> = agreed.values().map(Value::to_string).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), N_APPS, "one address for each");
    for (name, addresses) in agreed.iter().take(3) {
        let vip = SocketAddr::new(addresses[0].as_str().unwrap_or_default().parse()?, 80);
        for node in &nodes {
            assert_eq!(names(&reached(&node.netns, &vip.to_string(), 40)?), "123", "{name}");
        }
    }
    for node in &mut nodes {
        let agent = node.agent.take().expect("it was started");
        let status = node.run(agent.stop())?;
        assert_eq!(status, Some(0));
    }
    scheduler.stop();
    Ok(())
}

/// With an instance at each of these nodes.
fn app(n: usize, nodes: &[u8]) -> Value {
    let id = format!("/app{n}");
    let tasks: Vec<Value> = nodes
        .iter()
        .map(|node| {
            let host = format!("10.5.0.{node}");
            json!({
                "id": format!("app{n}.{node}"), "appId": id, "host": host, "slaveId": format!("agent-S{node}"),
                "state": "TASK_RUNNING", "stagedAt": VERSION, "startedAt": VERSION, "version": VERSION,
                "ports": [8080], "ipAddresses": [{"ipAddress": host, "protocol": "IPv4"}],
            })
        })
        .collect();
    json!({
        "id": id, "version": VERSION, "instances": tasks.len(), "labels": {},
        "networks": [{"mode": "host"}],
        "portDefinitions": [
            {"port": 0, "protocol": "tcp", "labels": {"VIP_0": format!("{id}:80")}},
        ],
        "healthChecks": [], "readinessChecks": [], "deployments": [], "tasks": tasks,
        "tasksRunning": tasks.len(), "tasksStaged": 0, "tasksHealthy": 0, "tasksUnhealthy": 0,
    })
}
