//! What the scheduler says about itself: `/ping`, `/v2/info`, `/v2/leader` and the like.
//!
//! Not here: metrics of the data planes.

use http::{Method, StatusCode};
use serde_json::json;

use super::reply::Reply;
use super::{Call, Context, not_found};

/// Clients switch behaviour on this; it is the Marathon whose API this is closest to.
const MARATHON_VERSION: &str = "1.8.222";

pub(super) async fn answer(call: &Call, segments: &[&str], context: &Context) -> Reply {
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return match segments {
            ["v2", "leader"] if call.method == Method::DELETE => {
                Reply::json(&json!({"message": "Leadership abdicated"}))
            }
            ["ping"] | ["v2", "info" | "leader" | "plugins" | "events"] => {
                Reply::message(StatusCode::METHOD_NOT_ALLOWED, "HTTP 405 Method Not Allowed")
            }
            _ => not_found(&call.path),
        };
    }
    match segments {
        [] => Reply::empty(StatusCode::FOUND).with_location("/v2/info".into()),
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

fn info(context: &Context) -> Reply {
    let config = &context.config;
    Reply::json(&json!({
        "name": "marathon", "version": MARATHON_VERSION, "buildref": "unknown", "elected": true,
        "leader": context.address.to_string(), "frameworkId": "waymark",
        "marathon_config": {
            "master": null, "failover_timeout": 604800, "framework_name": "marathon", "ha": true,
            "checkpoint": true, "hostname": config.host, "webui_url": null, "features": ["task_killing"],
            "local_port_min": config.service_ports.start(), "local_port_max": config.service_ports.end(),
            "executor": "//cmd", "mesos_role": null, "task_launch_timeout": 300000,
            "task_reservation_timeout": 20000, "reconciliation_initial_delay": 15000,
            "reconciliation_interval": 600000, "mesos_user": null, "leader_proxy_connection_timeout_ms": 5000,
            "leader_proxy_read_timeout_ms": 10000,
        },
        "zookeeper_config": {"zk": null, "zk_timeout": 10000},
        "http_config": {"http_port": context.address.port(), "https_port": null},
    }))
}

/// What Marathon's API has no place for.
async fn state(context: &Context) -> Reply {
    let facts = context.handle.call(|core| {
        json!({"subscribers": core.hub.n_subscribers(), "slow_subscribers_closed": core.hub.n_slow_closed(),
            "tasks": core.n_tasks()})
    });
    facts.await.map_or_else(|| crate::scheduler::core::Refusal::Stopping.into(), |facts| Reply::json(&facts))
}
