//! Definitions read, judged and written again.

use serde_json::{Value, json};

use super::fields::FieldError;
use super::input::read_app;
use super::pod::read_pod;
use super::validate::{Execution, problems};
use super::*;
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

fn app(value: &Value) -> App {
    let id = AppId::parse(value["id"].as_str().unwrap_or("/a")).expect("valid id");
    read_app(value, "")
        .and_then(|update| update.apply(&App::with_defaults(id, Timestamp::now())))
        .expect("readable")
}

fn json_of(app: &App) -> Value {
    serde_json::from_str(app.json()).expect("JSON")
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
        (json!({"cmd": "x", "portDefinitions": [{"port": 9}, {"port": 9}]}), "/portDefinitions", "unique"),
        (json!({"cmd": "x", "healthChecks": [{"portIndex": 1}]}), "/healthChecks(0)", "indices"),
        (json!({"cmd": "x", "args": ["y"]}), "/", "one of 'cmd' or 'args'"),
        (json!({"container": {"docker": {"image": "nginx"}}}), "/container/docker", "no 'docker' command"),
        (json!({"container": {"type": "MESOS"}}), "/container", "needs 'cmd' or 'args'"),
        (
            json!({"cmd": "x", "container": {"volumes": [{"containerPath": "/a", "hostPath": "/b"}]}}),
            "/container/volumes",
            "volumes need an image",
        ),
        (json!({"cmd": "x", "env": {"K": {"secret": "s"}}}), "/env/K", "undefined secret named 's'"),
        (json!({"cmd": "x", "constraints": [["hostname", "LIKE", "["]]}), "/constraints(0)", "regular"),
        (json!({"cmd": "x", "constraints": [["hostname", "NEAR"]]}), "/constraints(0)", "must be one of"),
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

#[test]
fn both_spellings_of_bridge_networking_are_one() {
    let old = app(&json!({"id": "/a", "container": {"type": "DOCKER", "docker": {"image": "nginx",
        "network": "BRIDGE", "portMappings": [{"containerPort": 80, "labels": {"VIP_0": "/web:80"}}]}}}));
    let new = app(&json!({"id": "/a", "networks": [{"mode": "container/bridge"}], "container":
        {"type": "DOCKER", "docker": {"image": "nginx"},
            "portMappings": [{"containerPort": 80, "hostPort": 0, "labels": {"VIP_0": "/web:80"}}]}}));
    assert!(!old.needs_restart_for(&new), "{}\n{}", old.json(), new.json());
    let written = json_of(&old);
    assert!(written.get("ports").is_none() && written.get("portDefinitions").is_none(), "{written}");
    assert_eq!(
        written["container"]["portMappings"],
        json!([{"containerPort": 80, "hostPort": 0, "servicePort": 0, "protocol": "tcp",
            "labels": {"VIP_0": "/web:80"}}])
    );
    // What a GET shows may be sent back with other values in it.
    let mut echo = written.clone();
    echo["ports"] = json!([10000]);
    echo["tasks"] = json!([]);
    assert!(!old.needs_restart_for(&app(&echo)));
}

#[test]
fn an_address_per_task_is_a_container_network() {
    let old = app(&json!({"id": "/a", "cmd": "x", "ipAddress": {"networkName": "dcos", "discovery":
        {"ports": [{"number": 80, "name": "http", "protocol": "tcp"}]}}}));
    let written = json_of(&old);
    assert_eq!(written["networks"], json!([{"mode": "container", "name": "dcos"}]));
    assert_eq!(written["container"]["portMappings"][0]["containerPort"], 80);
    assert!(old.host_ports(&[]) == [None] && old.has_own_address());
    let both = json!({"cmd": "x", "ipAddress": {}, "networks": [{"mode": "host"}]});
    let refused = read_app(&both, "").expect_err("both");
    assert_eq!(refused[0].errors, ["must not specify both networks and ipAddress"]);
}

#[test]
fn uris_are_fetches() {
    let from_uris = app(&json!({"cmd": "x", "uris": ["http://a/b.tgz"]}));
    assert_eq!(
        json_of(&from_uris)["fetch"],
        json!([{"uri": "http://a/b.tgz", "extract": true, "executable": false, "cache": false}])
    );
    let both = json!({"cmd": "x", "uris": ["a"], "fetch": [{"uri": "b"}]});
    assert_eq!(read_app(&both, "").expect_err("both")[0].path, "/uris");
    let refused = read_app(&json!({"fetch": [{"extract": true}]}), "").expect_err("no URI");
    assert_eq!(
        (refused[0].path.as_str(), refused[0].errors[0].as_str()),
        ("/fetch(0)/uri", r#"'uri' is undefined on object: {"extract":true}"#)
    );
}

#[test]
fn a_pod_is_written_with_its_defaults() {
    let definition = json!({"id": "/p", "containers": [{"name": "web", "resources": {"cpus": 0.5, "mem": 64},
        "exec": {"command": {"shell": "sleep 9"}},
        "endpoints": [{"name": "http", "hostPort": 0, "protocol": ["tcp"], "labels": {"VIP_0": "/p:80"}}],
        "healthCheck": {"http": {"path": "/h", "endpoint": "http"}}}]});
    let pod = read_pod(&definition, Timestamp::now()).expect("readable");
    assert_eq!(problems(&pod, Execution::Processes), []);
    assert_eq!((pod.cpus, pod.mem), (0.6, 96.0));
    assert_eq!(
        (pod.health_checks[0].port_index, pod.health_checks[0].wire_protocol.as_str()),
        (Some(0), "MESOS_HTTP")
    );
    let written = json_of(&pod);
    assert_eq!(written["scaling"], json!({"kind": "fixed", "instances": 1}));
    assert_eq!(written["networks"], json!([{"mode": "host"}]));
    assert_eq!(
        written["scheduling"]["upgrade"],
        json!({"minimumHealthCapacity": 1, "maximumOverCapacity": 1})
    );
    assert_eq!(written["containers"][0]["endpoints"], definition["containers"][0]["endpoints"]);
    let again = read_pod(&written, pod.version).expect("readable");
    assert!(!pod.needs_restart_for(&again), "{}\n{}", pod.json(), again.json());
    for (bad, path) in [
        (json!({"containers": []}), "/id"),
        (json!({"id": "/p"}), "/containers"),
        (json!({"id": "/p", "containers": [{"name": "a"}]}), "/containers(0)/resources"),
        (json!({"id": "/P", "containers": []}), "/id"),
    ] {
        let refused = read_pod(&bad, Timestamp::now()).expect_err("bad");
        assert!(refused.iter().any(|error| error.path == path), "{bad}: {refused:?}");
    }
}
