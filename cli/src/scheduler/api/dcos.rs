//! The few URLs of a DC/OS cluster that its command line asks for besides Marathon's: what the cluster is, and
//! what its Mesos master and its DNS would say of this one machine.
//!
//! Not here: Marathon below `/service/marathon`, which is the same API at another place.

use serde_json::{Value, json};

use super::reply::Reply;
use super::{Answer, Call, Context, not_found, settled};
use crate::scheduler::core::{AppState, Core};

/// The release whose command line behaviour this is closest to.
const DCOS_VERSION: &str = "1.11.0";
const CLUSTER_NAME: &str = "waymark-dev";

/// Answers reads; `None`: not one of these URLs.
pub(super) async fn answer(call: &Call, segments: &[&str], context: &Context) -> Option<Answer> {
    let host = context.config.host.clone();
    let reply = match segments {
        // It only needs to exist: the command line then knows that it may ask without logging in.
        ["pkgpanda", "active.buildinfo.full.json"] => Reply::json(&json!({})),
        ["metadata"] => Reply::json(&json!({"PUBLIC_IPV4": host, "CLUSTER_ID": context.cluster_id})),
        ["dcos-metadata", "dcos-version.json"] => Reply::json(&json!({"version": DCOS_VERSION,
            "dcos-image-commit": "0000000000000000000000000000000000000000",
            "bootstrap-id": "0000000000000000000000000000000000000000"})),
        ["mesos_dns", "v1", "hosts", name] => {
            let known = ["master.mesos", "leader.mesos", "marathon.mesos"];
            let name = name.trim_end_matches('.');
            let address = if known.contains(&name) { host } else { String::new() };
            Reply::json(&json!([{"host": format!("{name}."), "ip": address}]))
        }
        ["mesos", "state-summary"] | ["mesos", "master", "state-summary"] => {
            return Some(settled(context.handle.call(|core| Ok(Reply::json(&summary(core)))).await));
        }
        ["mesos", "state" | "state.json"] | ["mesos", "master", "state" | "state.json"] => {
            return Some(settled(context.handle.call(|core| Ok(Reply::json(&state(core)))).await));
        }
        ["mesos", "slaves"] | ["mesos", "master", "slaves"] => {
            let slaves = |core: &mut Core| Ok(Reply::json(&json!({"slaves": [slave(core)]})));
            return Some(settled(context.handle.call(slaves).await));
        }
        ["acs" | "pkgpanda" | "cluster" | "ca" | "mesos" | "mesos_dns" | "dcos-metadata", ..] => {
            not_found(&call.path)
        }
        _ => return None,
    };
    Some(Ok(reply))
}

fn resources(values: &crate::scheduler::core::resources::Resources) -> Value {
    // A simulated agent has no end; JSON has no infinity.
    let finite = |value: f64| value.min(f64::from(u32::MAX));
    json!({"cpus": finite(values.cpus), "mem": finite(values.mem), "disk": finite(values.disk), "gpus": 0})
}

fn slave(core: &Core) -> Value {
    let host = &core.settings.host;
    json!({"id": core.agent_id, "hostname": host, "pid": format!("slave(1)@{host}:5051"), "active": true,
        "port": 5051, "resources": resources(&core.settings.resources),
        "used_resources": resources(&core.used), "attributes": core.settings.attributes})
}

fn summary(core: &Core) -> Value {
    json!({"hostname": core.settings.host, "cluster": CLUSTER_NAME, "slaves": [slave(core)],
        "frameworks": [framework(core)]})
}

fn framework(core: &Core) -> Value {
    json!({"id": super::about::FRAMEWORK_ID, "name": "marathon", "active": true, "connected": true,
        "hostname": core.settings.host, "role": "*", "resources": resources(&core.used),
        "used_resources": resources(&core.used),
        "TASK_RUNNING": core.n_tasks()})
}

fn state(core: &Core) -> Value {
    let mut framework = framework(core);
    let tasks_of = |state: &AppState| -> Vec<Value> {
        let running = state.instances.values().filter(|instance| instance.is_task());
        running
            .flat_map(|instance| {
                instance.task_ids().into_iter().map(|id| {
                    json!({"id": id, "name": state.app.id.flat().replace('_', "."), "executor_id": "",
                        "framework_id": super::about::FRAMEWORK_ID, "slave_id": core.agent_id,
                        "state": instance.condition.task_state(), "statuses": [],
                        "resources": {"cpus": state.app.cpus, "mem": state.app.mem, "disk": state.app.disk,
                            "gpus": 0}})
                })
            })
            .collect()
    };
    framework["tasks"] = core.run_specs().flat_map(tasks_of).collect();
    framework["completed_tasks"] = json!([]);
    framework["executors"] = json!([]);
    json!({"hostname": core.settings.host, "cluster": CLUSTER_NAME, "version": "1.5.0",
        "leader": format!("master@{}:5050", core.settings.host), "slaves": [slave(core)],
        "frameworks": [framework], "completed_frameworks": [], "orphan_tasks": []})
}
