//! What the scheduler says about itself: `/ping`, `/v2/info`, `/v2/leader`, `/metrics` and the like.
//!
//! Not here: what a whole DC/OS cluster would say (`dcos`).

use http::{Method, StatusCode};
use serde_json::json;

use super::metrics::Metrics;
use super::reply::Reply;
use super::{Call, Context, not_found};
use crate::scheduler::core::{Core, Refusal};

/// Clients switch behaviour on this; it is the Marathon whose API this is closest to.
const MARATHON_VERSION: &str = "1.8.222";

/// Marathon has a page of its own here; the pages of Waymark are at the stats address.
const UI: &str = "<!doctype html><title>Waymark's scheduler</title><p>This is the API of Waymark's embedded \
scheduler: <a href=\"/v2/apps\">apps</a>, <a href=\"/v2/deployments\">deployments</a>, \
<a href=\"/v2/queue\">queue</a>, <a href=\"/v2/info\">info</a>, <a href=\"/metrics\">metrics</a>.";

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What Mesos would have given the scheduler at its registration.
pub const FRAMEWORK_ID: &str = "waymark";

pub(super) async fn answer(call: &Call, segments: &[&str], context: &Context) -> Reply {
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return match segments {
            ["v2", "leader"] if call.method == Method::DELETE => {
                Reply::json(&json!({"message": "Leadership abdicated"}))
            }
            ["ping" | "metrics" | "logging"] | ["v2", "info" | "leader" | "plugins" | "events"] => {
                Reply::message(StatusCode::METHOD_NOT_ALLOWED, "HTTP 405 Method Not Allowed")
            }
            _ => not_found(&call.path),
        };
    }
    match segments {
        [] => Reply::empty(StatusCode::FOUND).with_location("/ui/".into()),
        ["ui"] => Reply::new(StatusCode::OK, "text/html;charset=utf-8", UI),
        ["metrics"] => metrics(context, |metrics| Reply::json(&metrics.json())).await,
        ["metrics", "prometheus"] => {
            metrics(context, |metrics| Reply::new(StatusCode::OK, PROMETHEUS, metrics.text())).await
        }
        ["logging"] => Reply::json(&json!({"ROOT": "INFO"})),
        ["ping"] => ping(call),
        ["v2", "leader"] => Reply::json(&json!({"leader": context.address.to_string()})),
        ["v2", "plugins"] => Reply::json(&json!({"plugins": []})),
        ["v2", "info"] => info(context),
        ["waymark", "v1", "scheduler"] => state(context).await,
        _ => not_found(&call.path),
    }
}

/// `pong` as text to whoever takes text, `"pong"` as JSON to whoever asks for JSON, nothing to the rest.
fn ping(call: &Call) -> Reply {
    let named = call.headers.contains_key(http::header::ACCEPT);
    if !named || call.accepts("*/*") || call.accepts("text/*") || call.accepts("text/plain") {
        return Reply::text("pong");
    }
    if call.accepts("application/json") || call.accepts("application/*") {
        return Reply::json_text("\"pong\"");
    }
    Reply::empty(StatusCode::NO_CONTENT)
}

async fn metrics(context: &Context, write: fn(Metrics) -> Reply) -> Reply {
    let started = context.started;
    let counted = context.handle.call(move |core: &mut Core| Metrics::of(core, started)).await;
    counted.map_or_else(|| Refusal::Stopping.into(), write)
}

fn info(context: &Context) -> Reply {
    let config = &context.config;
    let url = format!("http://{}", context.address);
    Reply::json(&json!({
        "name": "marathon", "version": MARATHON_VERSION, "buildref": "unknown", "elected": true,
        "leader": context.address.to_string(), "frameworkId": FRAMEWORK_ID,
        "marathon_config": {
            "checkpoint": true, "executor": "//cmd", "failover_timeout": 604800,
            "features": ["task_killing", "secrets"], "framework_name": "marathon", "ha": true,
            "hostname": config.host, "leader_proxy_connection_timeout_ms": 5000,
            "leader_proxy_read_timeout_ms": 10000, "local_port_min": config.service_ports.start(),
            "local_port_max": config.service_ports.end(), "master": null, "mesos_leader_ui_url": null,
            "mesos_role": null, "mesos_user": null, "reconciliation_initial_delay": 15000,
            "reconciliation_interval": 600000, "task_launch_timeout": 300000,
            "task_reservation_timeout": 20000, "webui_url": url,
        },
        "zookeeper_config": {"zk": null, "zk_timeout": 10000, "zk_session_timeout": 10000,
            "zk_max_versions": 50},
        "http_config": {"http_port": context.address.port(), "https_port": null},
    }))
}

/// What Marathon's API has no place for.
async fn state(context: &Context) -> Reply {
    let facts = context.handle.call(|core| {
        json!({"subscribers": core.hub.n_subscribers(), "slow_subscribers_closed": core.hub.n_slow_closed(),
            "tasks": core.n_tasks()})
    });
    facts.await.map_or_else(|| Refusal::Stopping.into(), |facts| Reply::json(&facts))
}
