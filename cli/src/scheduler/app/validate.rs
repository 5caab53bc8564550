//! What makes an app definition acceptable: Marathon's rules in Marathon's words, and what this scheduler
//! refuses because it could not do it truly.
//!
//! Not here: conflicts with other apps or running deployments.

use super::input::{AppUpdate, FieldError};
use super::{App, Protocol};

/// How the instances are run, which decides what can be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    Processes,
    Simulated,
}

/// Everything wrong with the app, empty when it is acceptable.
pub fn problems(app: &App, execution: Execution) -> Vec<FieldError> {
    let mut found = Vec::new();
    let mut wrong = |path: &str, error: &str| found.push(FieldError::new(path, error));
    if app.id.is_root() {
        wrong("/id", "AppDefinition id must not be the root path");
    }
    if let Some(last @ ("restart" | "tasks" | "versions")) = app.id.as_str().rsplit('/').next() {
        wrong(
            "/id",
            &format!("must not end with any of the reserved words: restart, tasks, versions; got {last}"),
        );
    }
    if app.cmd.is_none() && app.args.is_none() && app.container.is_none() {
        wrong("/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.");
    }
    if app.cmd.is_some() && app.args.is_some() {
        wrong("/", "AppDefinition must not contain both 'cmd' and 'args'.");
    }
    for (name, value, min) in [
        ("cpus", app.cpus, 0.0),
        ("mem", app.mem, 0.0),
        ("disk", app.disk, 0.0),
        ("backoffSeconds", app.backoff_seconds, 0.0),
        ("backoffFactor", app.backoff_factor, 1.0),
        ("maxLaunchDelaySeconds", app.max_launch_delay_seconds, 0.0),
    ] {
        // The upper end keeps durations and sums finite.
        if !(min..=1e12).contains(&value) {
            wrong(&format!("/{name}"), &format!("got {value}, expected {min} or more"));
        }
    }
    let strategy = app.upgrade_strategy;
    for (name, value) in [
        ("minimumHealthCapacity", strategy.minimum_health_capacity),
        ("maximumOverCapacity", strategy.maximum_over_capacity),
    ] {
        if !(0.0..=1.0).contains(&value) {
            wrong(&format!("/upgradeStrategy/{name}"), &format!("got {value}, expected between 0.0 and 1.0"));
        }
    }
    let mut ports: Vec<u16> = app.service_ports().into_iter().filter(|&port| port != 0).collect();
    let mut names: Vec<&str> = app.port_definitions.iter().filter_map(|d| d.name.as_deref()).collect();
    if has_duplicates(&mut ports) {
        wrong("/portDefinitions", "Ports must be unique.");
    }
    if has_duplicates(&mut names) {
        wrong("/portDefinitions", "Port names must be unique.");
    }
    for (index, check) in app.health_checks.iter().enumerate() {
        let path = format!("/healthChecks({index})");
        if check.port_index.is_some_and(|port| port >= app.port_definitions.len()) {
            wrong(
                &path,
                "Health check port indices must address an element of the ports array or container port mappings.",
            );
        }
        if check.protocol() == Protocol::Command && check.command.is_none() {
            wrong(&format!("{path}/command"), "'command' is undefined on a COMMAND health check");
        }
        if check.interval_seconds == 0 || check.timeout_seconds == 0 {
            wrong(&path, "intervalSeconds and timeoutSeconds must be greater than 0");
        }
    }
    if app.readiness_checks.len() > 1 {
        wrong("/readinessChecks", "only one readiness check is allowed");
    }
    for (index, check) in app.readiness_checks.iter().enumerate() {
        if !app.port_definitions.iter().any(|d| d.name.as_deref() == Some(&check.port_name)) {
            let text = format!("No port definition reference for portName {}", check.port_name);
            wrong(&format!("/readinessChecks({index})"), &text);
        }
        if check.interval_seconds == 0 || check.timeout_seconds == 0 {
            wrong(
                &format!("/readinessChecks({index})"),
                "intervalSeconds and timeoutSeconds must be greater than 0",
            );
        }
    }
    for (index, constraint) in app.constraints.iter().enumerate() {
        let operator = constraint.get(1).map(String::as_str);
        if !matches!(operator, Some("UNIQUE" | "CLUSTER" | "GROUP_BY" | "MAX_PER" | "IS" | "LIKE" | "UNLIKE"))
        {
            wrong(
                &format!("/constraints({index})"),
                "expected [field, operator, value?] with a known operator",
            );
        }
    }
    if execution == Execution::Processes {
        refuse_what_processes_cannot_be(app, &mut wrong);
    }
    found
}

/// Taking these and then leaving them out would make the app look as if it ran as asked.
fn refuse_what_processes_cannot_be(app: &App, wrong: &mut impl FnMut(&str, &str)) {
    let is_docker = |c: &serde_json::Value| c.get("docker").is_some() || c["type"] == "DOCKER";
    if app.container.as_ref().is_some_and(is_docker) {
        wrong(
            "/container/docker",
            "the embedded scheduler runs apps as local processes and has no container images: use 'cmd' or 'args' without 'container'",
        );
    } else if app.cmd.is_none() && app.args.is_none() {
        wrong("/container", "a container without an image needs 'cmd' or 'args'");
    }
    if !app.fetch.is_empty() {
        wrong("/fetch", "the embedded scheduler does not fetch URIs: let 'cmd' refer to local files");
    }
    for (index, constraint) in app.constraints.iter().enumerate() {
        let is_hostname = constraint.first().is_some_and(|field| field == "hostname" || field == "@hostname");
        if !is_hostname || constraint.get(1).is_some_and(|op| op == "LIKE" || op == "UNLIKE") {
            let refusal = "the embedded scheduler has one agent: only hostname constraints without patterns are supported";
            wrong(&format!("/constraints({index})"), refusal);
        }
    }
}

/// Network modes other than the host's, which processes on this machine do not have.
pub fn network_problem(update: &AppUpdate) -> Option<FieldError> {
    let other = update.network_modes.iter().find(|mode| mode.as_str() != "host")?;
    Some(FieldError::new(
        "/networks",
        format!(
            "the embedded scheduler runs apps on the host's network only: mode '{other}' is not supported"
        ),
    ))
}

fn has_duplicates<T: Ord>(values: &mut [T]) -> bool {
    values.sort_unstable();
    values.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::input::read_app;
    use super::*;
    use crate::scheduler::id::AppId;
    use crate::scheduler::timestamp::Timestamp;

    fn app(value: &serde_json::Value) -> App {
        let id = AppId::parse(value["id"].as_str().unwrap_or("/a")).expect("valid id");
        read_app(value, "")
            .and_then(|update| update.apply(&App::with_defaults(id, Timestamp::now())))
            .expect("readable")
    }

    #[test]
    fn the_tutorials_definition_with_its_nulls_is_fine() {
        let app = app(&json!({
            "id": "/dcos-101/app2", "cmd": "./app2", "args": null, "user": null, "env": null, "instances": 1,
            "cpus": 0.1, "mem": 32, "constraints": null, "container": null, "healthChecks": null,
            "labels": {"HAPROXY_GROUP": "external"}, "acceptedResourceRoles": null, "fetch": null, "uris": [],
            "portDefinitions": [{"port": 10000, "protocol": "tcp", "labels": {"VIP_0": "/dcos-101/app2:10000"}}]
        }));
        assert_eq!(problems(&app, Execution::Processes), []);
        assert!(app.json().contains(r#""cpus":0.1,"mem":32,"#), "{}", app.json());
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let first = app(&json!({
            "id": "/a", "args": ["sleep", "9"], "constraints": [["hostname", "UNIQUE"]], "env": {"K": 1},
            "healthChecks": [{"protocol": "COMMAND", "command": {"value": "true"}}, {"path": "/h"}],
            "readinessChecks": [{"portName": "default"}], "killSelection": "OLDEST_FIRST",
            "upgradeStrategy": {"minimumHealthCapacity": 0.5}, "taskKillGracePeriodSeconds": 5
        }));
        let value = serde_json::from_str(first.json()).expect("JSON");
        let second = read_app(&value, "").and_then(|u| u.restore(first.id.clone())).expect("readable");
        assert_eq!(first.json(), second.json());
        assert!(!first.needs_restart_for(&second));
    }

    #[test]
    fn refusals() {
        for (value, path, text) in [
            (json!({"id": "/a"}), "/", "one of 'cmd' or 'args'"),
            (json!({"cmd": "x", "id": "/a/tasks"}), "/id", "reserved"),
            (
                json!({"cmd": "x", "upgradeStrategy": {"minimumHealthCapacity": 1.2}}),
                "/upgradeStrategy/minimumHealthCapacity",
                "got 1.2, expected between 0.0 and 1.0",
            ),
            (
                json!({"cmd": "x", "portDefinitions": [{"port": 9}, {"port": 9}]}),
                "/portDefinitions",
                "unique",
            ),
            (json!({"cmd": "x", "healthChecks": [{"portIndex": 1}]}), "/healthChecks(0)", "indices"),
            (json!({"container": {"docker": {"image": "nginx"}}}), "/container/docker", "container images"),
            (json!({"cmd": "x", "fetch": [{"uri": "http://a/b"}]}), "/fetch", "fetch"),
            (json!({"cmd": "x", "backoffFactor": 0.5}), "/backoffFactor", "got 0.5"),
            (
                json!({"cmd": "x", "readinessChecks": [{"portName": "web"}]}),
                "/readinessChecks(0)",
                "portName web",
            ),
        ] {
            let found = problems(&app(&value), Execution::Processes);
            assert!(found.iter().any(|e| e.path == path && e.errors[0].contains(text)), "{value}: {found:?}");
        }
    }

    #[test]
    fn wrong_types_are_named_as_play_json_names_them() {
        for (value, path, text) in [
            (json!({"cpus": "1"}), "/cpus", "error.expected.jsnumber"),
            (json!({"instances": -1}), "/instances", "got -1, expected 0 or more"),
            (json!({"portDefinitions": [{"port": 70000}]}), "/portDefinitions(0)/port", "error.max: 65535"),
            (json!({"killSelection": "ANY"}), "/killSelection", "error.unknown.enum.literal"),
            (json!({"labels": {"a": []}}), "/labels/a", "error.expected.jsstring"),
            (json!([]), "/", "error.expected.jsobject"),
        ] {
            assert_eq!(read_app(&value, "").err(), Some(vec![FieldError::new(path, text)]), "{value}");
        }
    }
}
