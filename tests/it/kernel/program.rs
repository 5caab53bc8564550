//! The program as a whole on a host of a test's own, with a scripted scheduler beside it.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;

use super::host::Host;

/// What `waymark serve` is told to serve VIPs of this pool by this plane, on this host alone.
pub fn flags(host: &Host, plane: &str, pool: &str) -> [String; 8] {
    let group = host.cgroup.flag();
    ["--planes", "vip,dns", "--vip-plane", plane, "--vip-cgroup", &group, "--vip-pool", pool]
        .map(str::to_owned)
}

/// Runs `work` in the host's network namespace, and outside of its control group, as agents may live.
pub fn on_host(host: &Host, work: impl Future<Output = anyhow::Result<()>> + Send) -> anyhow::Result<()> {
    host.netns.run(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(work)
    })
}

/// An app with one port, that is a VIP.
pub fn app(name: &str, protocol: &str, port: u16, instance: Option<SocketAddr>) -> Value {
    let tasks: Vec<Value> = instance
        .iter()
        .map(|at| json!({"id": format!("{name}.1"), "host": "127.0.0.1", "state": "TASK_RUNNING", "ports": [at.port()]}))
        .collect();
    json!({
        "id": format!("/{name}"), "instances": tasks.len(), "networks": [{"mode": "host"}], "tasks": tasks,
        "portDefinitions": [{"port": 0, "protocol": protocol, "labels": {"VIP_0": format!("{name}:{port}")}}],
    })
}

/// Tells of an app, and waits until its VIP is served at its address.
pub async fn announce(
    waymark: &Waymark,
    scheduler: &ScriptedScheduler,
    name: &str,
    app: Value,
) -> anyhow::Result<SocketAddr> {
    scheduler.set_definition(app);
    let own = ScriptedInstance { task_id: format!("{name}.1"), port: 0 };
    scheduler.status_update(&format!("/{name}"), &own, "TASK_RUNNING")?;
    let of = |vips: &Value| {
        let vips = vips["vips"].as_array().into_iter().flatten();
        vips.filter(|vip| vip["served"] == vip["addresses"] && vip["name"] == format!("{name}.marathon"))
            .find_map(|vip| {
                let ip = vip["addresses"][0].as_str()?.parse().ok()?;
                Some(SocketAddr::new(ip, u16::try_from(vip["port"].as_u64()?).ok()?))
            })
    };
    let is_served =
        |response: &tests::client::Response| response.json().is_ok_and(|vips| of(&vips).is_some());
    let vips = waymark.until("/api/vips", name, is_served).await?.json()?;
    of(&vips).ok_or_else(|| anyhow::anyhow!("{name} is not in {vips}"))
}
