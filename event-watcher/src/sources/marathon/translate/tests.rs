//! Apps as Marathon 1.1 to 1.10 write them, and hostile ones, with what must come out.

use serde_json::{Value, json};

use super::*;
use crate::catalog::{Health, InstanceState, Rotation};

fn translate(json: &Value, previous: Option<&App>) -> AppUpdate {
    let resolve = |host: &str| match host {
        "agent.example" => Resolved::Address("10.9.9.9".parse().unwrap()),
        "gone.example" => Resolved::Failed,
        _ => Resolved::Unasked,
    };
    let context = Context { framework: "marathon", resolve: &resolve, previous };
    app(&json.to_string(), &context).unwrap().update
}

/// Every endpoint as `port_index=address`, instance by instance.
fn endpoints(app: &App) -> Vec<String> {
    let endpoints = app.instances.iter().flat_map(|i| &i.endpoints);
    endpoints.map(|e| format!("{}={}", e.port_index, e.address)).collect()
}

fn vips(app: &App) -> Vec<String> {
    let keys = app.services.iter().flat_map(|s| &s.vips);
    keys.map(|k| format!("{}:{}/{}", k.target, k.port, k.protocol)).collect()
}

fn task(extra: Value) -> Value {
    let mut task = json!({
        "id": "a.1", "appId": "/a", "host": "10.0.0.1", "slaveId": "S0", "state": "TASK_RUNNING",
        "startedAt": "2026-01-01T00:00:00.000Z", "version": "v1", "ports": [31001, 31002],
        "ipAddresses": [{"ipAddress": "172.17.0.2", "protocol": "IPv4"}],
    });
    for (key, value) in extra.as_object().unwrap() {
        task[key] = value.clone();
    }
    task
}

#[test]
fn addresses_follow_the_network_mode() {
    let host = json!([{"mode": "host"}]);
    let bridge = json!([{"mode": "container/bridge"}]);
    let overlay = json!([{"mode": "container", "name": "dcos"}]);
    let two_mappings = json!([
        {"containerPort": 80, "hostPort": 0, "servicePort": 10101, "name": "http", "protocol": "tcp"},
        {"containerPort": 443, "hostPort": 0, "servicePort": 10102},
    ]);
    /// A name, the definition, what differs in the task, its endpoints, and the service ports.
    type Case = (&'static str, Value, Value, &'static [&'static str], &'static [Option<u16>]);
    let cases: &[Case] = &[
        (
            "host mode, 1.5",
            json!({"networks": host, "portDefinitions": [{"port": 10000, "protocol": "tcp"}, {"port": 0}]}),
            json!({}),
            &["0=10.0.0.1:31001", "1=10.0.0.1:31002"],
            &[Some(10000), None],
        ),
        (
            "host mode, 1.4: no networks, explicit nulls",
            json!({"container": null, "ipAddress": null, "portDefinitions": [{"port": 10000}], "healthChecks": null}),
            json!({}),
            &["0=10.0.0.1:31001"],
            &[Some(10000)],
        ),
        (
            "ports only, 1.1",
            json!({"ports": [10000, 10001]}),
            json!({}),
            &["0=10.0.0.1:31001", "1=10.0.0.1:31002"],
            &[Some(10000), Some(10001)],
        ),
        (
            "docker HOST, 1.4",
            json!({"container": {"type": "DOCKER", "docker": {"network": "HOST", "portMappings": null}}, "portDefinitions": [{"port": 1}]}),
            json!({}),
            &["0=10.0.0.1:31001"],
            &[Some(1)],
        ),
        (
            "bridge, 1.5: the host's address although the container's is told",
            json!({"networks": bridge, "container": {"portMappings": two_mappings}}),
            json!({}),
            &["0=10.0.0.1:31001", "1=10.0.0.1:31002"],
            &[Some(10101), Some(10102)],
        ),
        (
            "bridge, 1.4",
            json!({"container": {"docker": {"network": "BRIDGE", "portMappings": two_mappings}}, "ports": [10101], "portDefinitions": [{"port": 10101}]}),
            json!({}),
            &["0=10.0.0.1:31001", "1=10.0.0.1:31002"],
            &[Some(10101), Some(10102)],
        ),
        (
            "container network: mappings without a host port take no place in the task's ports",
            json!({"networks": overlay, "container": {"portMappings": [
                {"containerPort": 80, "servicePort": 10103}, {"containerPort": 81, "hostPort": 0},
                {"containerPort": 0}, {"containerPort": 82, "hostPort": 9000}, {"containerPort": 83, "hostPort": null},
            ]}}),
            json!({}),
            &["0=172.17.0.2:80", "1=10.0.0.1:31001", "3=10.0.0.1:31002", "4=172.17.0.2:83"],
            &[Some(10103), None, None, None, None],
        ),
        (
            "IP per task, 1.4",
            json!({"ipAddress": {"networkName": "dcos", "discovery": {"ports": [{"number": 80, "name": "http", "protocol": "tcp", "labels": {}}]}}}),
            json!({"ports": []}),
            &["0=172.17.0.2:80"],
            &[None],
        ),
        (
            "docker USER, 1.4",
            json!({"ipAddress": {"discovery": {"ports": []}}, "container": {"docker": {"network": "USER", "portMappings": [{"containerPort": 8080, "servicePort": 5}]}}}),
            json!({"ports": []}),
            &["0=172.17.0.2:8080"],
            &[Some(5)],
        ),
        (
            "IPv6 only",
            json!({"networks": overlay, "container": {"portMappings": [{"containerPort": 80}]}}),
            json!({"ipAddresses": [{"ipAddress": "fd01::5", "protocol": "IPv6"}]}),
            &["0=[fd01::5]:80"],
            &[None],
        ),
        (
            "dual stack: an endpoint for each address, in the task's order",
            json!({"networks": overlay, "container": {"portMappings": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 0}]}}),
            json!({"ipAddresses": [{"ipAddress": "172.17.0.2"}, {"ipAddress": "fd01::5"}]}),
            &["0=172.17.0.2:80", "0=[fd01::5]:80", "1=10.0.0.1:31001"],
            &[None, None],
        ),
        (
            "a known host name",
            json!({"ports": [1]}),
            json!({"host": "agent.example"}),
            &["0=10.9.9.9:31001"],
            &[Some(1)],
        ),
        (
            "no address in the overlay yet",
            json!({"networks": overlay, "container": {"portMappings": [{"containerPort": 80}]}}),
            json!({"ipAddresses": null}),
            &[],
            &[None],
        ),
        (
            "fewer ports than definitions",
            json!({"ports": [1, 2]}),
            json!({"ports": [31001]}),
            &["0=10.0.0.1:31001"],
            &[Some(1), Some(2)],
        ),
        (
            "ports out of range",
            json!({"ports": [70000, 2]}),
            json!({"ports": [70000, 0]}),
            &[],
            &[None, Some(2)],
        ),
    ];
    for (name, definition, task_extra, expect, service_ports) in cases {
        let mut json = definition.clone();
        json["id"] = "/a".into();
        json["tasks"] = json!([task(task_extra.clone())]);
        let update = translate(&json, None);
        assert_eq!(endpoints(&update.app), *expect, "{name}");
        assert_eq!(
            update.app.services.iter().map(|s| s.service_port).collect::<Vec<_>>(),
            *service_ports,
            "{name}"
        );
        assert_eq!(update.problems, [], "{name}");
    }
}

#[test]
fn vip_labels_are_found_wherever_they_may_stand() {
    let update = translate(
        &json!({
            "id": "/dcos-101/app2",
            "labels": {"VIP_PORT1": "udp://later:53", "vip_port0": "tcp://1.2.3.4:80", "VIP_PORTx": "tcp://a:1", "VIP_PORT7": "tcp://a:1", "VIP_PORT0": "a:1", "HAPROXY_GROUP": "external", "NOTHING": null},
            "portDefinitions": [
                {"port": 10000, "protocol": "tcp,udp", "labels": {"VIP_0": "/dcos-101/app2:10000", "vip_x": "two:2", "Vip_1": "not-a-vip:1", "VIP_2": "nonsense", "VIP_3": null}},
                {"port": 10001, "protocol": "sctp, udp", "labels": {"VIP": "$/:80", "VIP_0": "x:70000"}},
            ],
        }),
        None,
    );
    assert_eq!(
        vips(&update.app),
        [
            "dcos-101app2.marathon:10000/tcp",
            "dcos-101app2.marathon:10000/udp",
            "two.marathon:2/tcp",
            "two.marathon:2/udp",
            "1.2.3.4:80/tcp",
            "later.marathon:53/udp",
        ]
    );
    assert!(!update.app.labels.contains_key("NOTHING"), "null is absent");
    let at: Vec<&str> = update.problems.iter().map(|p| p.at.as_str()).collect();
    assert_eq!(
        at,
        [
            "portDefinitions[0].labels.VIP_2",
            "portDefinitions[1].protocol",
            "portDefinitions[1].labels.VIP",
            "portDefinitions[1].labels.VIP_0",
            "labels.VIP_PORT0",
            "labels.VIP_PORT7",
            "labels.VIP_PORTx",
        ]
    );
    assert!(
        update.problems.iter().all(|p| p.app == Some(AppId::new("/dcos-101/app2")) && !p.hint.is_empty())
    );

    let mapping = json!([{"containerPort": 80, "hostPort": 0, "labels": {"VIP_0": "bad"}}]);
    for (definition, expect) in [
        (
            json!({"networks": [{"mode": "container/bridge"}], "container": {"portMappings": mapping}}),
            "container.portMappings[0].labels.VIP_0",
        ),
        (
            json!({"container": {"docker": {"network": "BRIDGE", "portMappings": mapping}}}),
            "container.docker.portMappings[0].labels.VIP_0",
        ),
        (
            json!({"ipAddress": {"discovery": {"ports": [{"number": 1, "labels": {"VIP_0": "bad"}}]}}}),
            "ipAddress.discovery.ports[0].labels.VIP_0",
        ),
    ] {
        let mut json = definition;
        json["id"] = "/a".into();
        assert_eq!(translate(&json, None).problems[0].at, expect);
    }
}

#[test]
fn health_is_the_verdict_of_all_checks_and_unknown_is_the_last_known() {
    use Health::{Healthy, Unchecked, Unhealthy, Unknown};
    let one = json!([{"protocol": "HTTP", "path": "/", "portIndex": 0}]);
    let two = json!([{"protocol": "HTTP"}, {"protocol": "A_NEW_KIND"}]);
    let alive = json!({"alive": true, "lastFailure": null});
    let dead = json!({"alive": false});
    let read = |checks: &Value, results: &Value, previous: Option<&App>| {
        let json = json!({"id": "/a", "ports": [1], "healthChecks": checks, "tasks": [task(json!({"healthCheckResults": results}))]});
        translate(&json, previous).app
    };
    for (checks, results, expect) in [
        (&json!([]), json!(null), Unchecked),
        (&json!(null), json!([dead]), Unchecked),
        (&one, json!([alive]), Healthy),
        (&one, json!([dead]), Unhealthy),
        (&one, json!(null), Unknown),
        (&one, json!([]), Unknown),
        (&one, json!([null]), Unknown),
        (&two, json!([alive]), Unknown),
        (&two, json!([alive, alive]), Healthy),
        (&two, json!([alive, dead]), Unhealthy),
        (&two, json!([dead]), Unhealthy),
    ] {
        assert_eq!(read(checks, &results, None).instances[0].health, expect, "{checks} {results}");
    }
    // After a leader change there are no results for a while.
    for known in [json!([alive]), json!([dead])] {
        let before = read(&one, &known, None);
        let after = read(&one, &json!([]), Some(&before));
        assert_eq!(after.instances[0].health, before.instances[0].health);
        assert!(
            Arc::ptr_eq(&after.instances[0], &before.instances[0]),
            "an equal instance is the same object"
        );
    }
    let before = read(&one, &json!([alive]), None);
    assert_eq!(read(&one, &json!([dead]), Some(&before)).instances[0].health, Unhealthy);
    assert_eq!(read(&json!([]), &json!([]), Some(&before)).instances[0].health, Unchecked);
}

#[test]
fn readiness_gates_only_the_tasks_that_are_being_checked() {
    let update = translate(
        &json!({
            "id": "/a", "ports": [1], "readinessChecks": [{"name": "r"}],
            "readinessCheckResults": [{"name": "r", "taskId": "a.1", "ready": false}, {"name": "r", "taskId": "a.2", "ready": true}],
            "tasks": [task(json!({})), task(json!({"id": "a.2"})), task(json!({"id": "a.3"}))],
        }),
        None,
    );
    let got: Vec<_> = update.app.instances.iter().map(|i| (i.readiness, i.rotation())).collect();
    assert_eq!(
        got,
        [
            (Readiness::NotReady, Rotation::Out),
            (Readiness::Ready, Rotation::In),
            (Readiness::Unchecked, Rotation::In),
        ]
    );
}

#[test]
fn states_are_read_in_every_spelling() {
    use InstanceState::{Killing, Running, Staging, Starting, Terminal, Unknown, Unreachable};
    for (state, expect) in [
        (json!("TASK_RUNNING"), Running),
        (json!("TASK_STAGING"), Staging),
        (json!("TASK_STARTING"), Starting),
        (json!("TASK_KILLING"), Killing),
        (json!("TASK_UNREACHABLE"), Unreachable),
        (json!("TASK_LOST"), Terminal),
        (json!("TASK_GONE_BY_OPERATOR"), Terminal),
        (json!("TASK_OF_THE_FUTURE"), Unknown),
        (json!(null), Running),
    ] {
        let json = json!({"id": "/a", "tasks": [task(json!({"state": state}))]});
        assert_eq!(translate(&json, None).app.instances[0].state, expect, "{state}");
    }
    let staged = json!({"id": "/a", "tasks": [task(json!({"state": null, "startedAt": null}))]});
    assert_eq!(translate(&staged, None).app.instances[0].state, Staging);
}

#[test]
fn a_bad_task_costs_only_itself() {
    let good = json!({"id": "/a", "ports": [1], "tasks": [task(json!({})), task(json!({"id": "a.2"}))]});
    let before = translate(&good, None).app;
    let json = json!({"id": "/a", "ports": [1], "tasks": [
        task(json!({"id": "a.2", "ports": "31001"})), task(json!({})), task(json!({"host": "10.0.0.2"})), 7,
        task(json!({"id": "a.4", "host": null})), task(json!({"id": "a.5", "host": "gone.example"})),
    ]});
    for (previous, expect) in
        [(None, &["0=10.0.0.1:31001"][..]), (Some(&before), &["0=10.0.0.1:31001", "0=10.0.0.1:31001"][..])]
    {
        let update = translate(&json, previous);
        assert_eq!(endpoints(&update.app), expect);
        let at: Vec<&str> = update.problems.iter().map(|p| p.at.as_str()).collect();
        assert_eq!(at, ["tasks[0]", "tasks[2].id", "tasks[3]", "tasks[4].host", "tasks[5].host"]);
    }
}

#[test]
fn an_unasked_host_is_told() {
    let json = json!({"id": "/a", "ports": [1], "tasks": [
        task(json!({"host": "new.example"})), task(json!({"id": "a.2", "host": "new.example"})),
    ]});
    let context = Context { framework: "marathon", resolve: &|_| Resolved::Unasked, previous: None };
    let translated = app(&json.to_string(), &context).unwrap();
    assert_eq!(translated.unasked_hosts, ["new.example"]);
    assert!(!translated.hosts_known());
}

#[test]
fn an_app_that_cannot_be_read_is_an_error_and_never_a_panic() {
    let context = Context { framework: "marathon", resolve: &|_| Resolved::Failed, previous: None };
    for json in [
        json!(null),
        json!([]),
        json!({"id": 5}),
        json!({"id": "/a", "labels": {"A": 5}}),
        json!({"id": "/a", "instances": -1}),
        json!({"id": "/a", "tasks": {}}),
        json!({"id": "/a", "portDefinitions": [{"port": "x"}]}),
    ] {
        assert!(app(&json.to_string(), &context).is_err(), "{json}");
    }
    let hostile = json!({"id": "//../a\r\n\u{1f600}/", "labels": {"HAPROXY_0_VHOST": "x".repeat(1 << 20), "VIP_PORT\u{e9}": "x", "VIP_P\u{f6}RT0": ""}, "ports": [0]});
    assert_eq!(app(&hostile.to_string(), &context).unwrap().update.problems.len(), 1);
}

/// A pod as `/v2/pods/::status` has it: two containers, two instances.
fn pod_status() -> Value {
    let instance = |uuid: &str, host: &str, web: Value| {
        json!({"id": format!("p.instance-{uuid}"), "status": "STABLE", "agentHostname": host, "agentId": "S0",
        "networks": [{"name": "dcos", "addresses": ["9.0.1.2", "fd00::2"]}],
        "specReference": "/v2/pods/p::versions/v1",
        "containers": [
            {"name": "web", "status": "TASK_RUNNING", "containerId": format!("p.instance-{uuid}.web"),
             "statusSince": "2026-01-01T00:00:00.000Z", "endpoints": [web, {"name": "admin"}]},
            {"name": "db", "status": "TASK_RUNNING", "containerId": format!("p.instance-{uuid}.db"),
             "endpoints": [{"name": "sql", "allocatedHostPort": 31009}]},
            {"name": "not launched", "containerId": null},
        ]})
    };
    json!({"id": "/p", "status": "STABLE", "spec": {
    "id": "/p", "version": "v1", "labels": {"A": "b"}, "scaling": {"kind": "fixed", "instances": 2},
    "networks": [{"mode": "container", "name": "dcos"}],
    "containers": [
        {"name": "web", "labels": {"VIP_PORT0": "tcp://by-task:81"},
         "healthCheck": {"http": {"endpoint": "http", "path": "/up"}, "gracePeriodSeconds": 7},
         "endpoints": [
            {"name": "http", "containerPort": 80, "hostPort": 0, "protocol": ["tcp"], "labels": {"VIP_0": "/p:80"}},
            {"name": "admin", "containerPort": 90, "labels": {"VIP_0": "9.9.9.9:90", "VIP_1": "nonsense"}}]},
        {"name": "db", "endpoints": [{"name": "sql", "hostPort": 0, "protocol": ["udp", "tcp"], "labels": {"vip": "db:5432"}}]},
    ]},
    "instances": [
        instance("u", "10.0.0.1", json!({"name": "http", "allocatedHostPort": 31007, "healthy": true})),
        instance("v", "10.0.0.2", json!({"name": "http", "allocatedHostPort": 31008, "healthy": false})),
        {"id": "p.instance-w", "status": "PENDING", "networks": [], "containers": []},
    ]})
}

fn translate_pod(json: &Value, previous: Option<&App>) -> AppUpdate {
    let context = Context { framework: "marathon", resolve: &|_| Resolved::Failed, previous };
    pod(&json.to_string(), &context).unwrap().update
}

#[test]
fn each_container_of_a_pod_is_an_instance_with_its_own_endpoints() {
    let AppUpdate { app: pod, problems } = translate_pod(&pod_status(), None);
    assert_eq!((pod.id.as_str(), pod.label("A"), pod.n_instances_wanted), ("/p", Some("b"), 4));
    assert_eq!(
        vips(&pod),
        [
            "by-task.marathon:81/tcp",
            "p.marathon:80/tcp",
            "9.9.9.9:90/tcp",
            "db.marathon:5432/tcp",
            "db.marathon:5432/udp"
        ]
    );
    let rotations: Vec<_> = pod.instances.iter().map(|i| (i.id.as_str(), i.rotation())).collect();
    assert_eq!(
        rotations,
        [
            ("p.instance-u.db", Rotation::In),
            ("p.instance-u.web", Rotation::In),
            ("p.instance-v.db", Rotation::In),
            ("p.instance-v.web", Rotation::Draining),
        ]
    );
    assert_eq!(
        endpoints(&pod)[..4],
        ["2=10.0.0.1:31009", "0=10.0.0.1:31007", "1=9.0.1.2:90", "1=[fd00::2]:90"],
        "a host port where there is one, the pod's addresses otherwise"
    );
    assert_eq!(pod.health_checks[0].grace_period_seconds, Some(7));
    assert_eq!(pod.health_checks[0].port_index, Some(0));
    let said: Vec<String> = problems.iter().map(|p| p.at.clone()).collect();
    assert_eq!(said, ["containers[0].endpoints[1].labels.VIP_1"]);

    let again = translate_pod(&pod_status(), Some(&pod)).app;
    let same = again.instances.iter().zip(&pod.instances).all(|(a, b)| Arc::ptr_eq(a, b));
    assert!(same, "what did not change stays the same object");
}

#[test]
fn an_instance_of_a_pod_that_cannot_be_read_keeps_its_last_good_state() {
    let known = translate_pod(&pod_status(), None).app;
    let mut json = pod_status();
    json["instances"][0]["containers"] = json!("none");
    let AppUpdate { app: pod, problems } = translate_pod(&json, Some(&known));
    assert_eq!(pod.instances, known.instances);
    assert!(problems.iter().any(|p| p.at == "instances[0]" && p.hint.contains("last good")), "{problems:?}");
}
