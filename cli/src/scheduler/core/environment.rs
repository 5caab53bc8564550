//! The environment of a task as Marathon builds it (TaskBuilder, EnvironmentHelper; spec 6.1).
//!
//! Not here: what a task inherits from the machine (`agent::process`), nor the values of secrets
//! (`agent::secrets`).

use std::collections::BTreeMap;
use std::path::Path;

use super::instance::Instance;
use crate::scheduler::app::EnvValue;

/// Marathon leaves out labels whose key or value would make a longer variable than this, in bytes.
const LONGEST_LABEL_BYTES: usize = 512;
const LABEL_PREFIX: &str = "MARATHON_APP_LABEL_";

/// Everything the task of one container is given, the app's own `env` having the last word. `container` counts
/// the containers of a pod; an app has only the first.
pub fn task_environment(
    instance: &Instance,
    container: usize,
    task_id: &str,
    host: &str,
    sandbox: &Path,
) -> BTreeMap<String, EnvValue> {
    let app = &*instance.app;
    let mut env: BTreeMap<String, EnvValue> = BTreeMap::new();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), EnvValue::Text(value));
    set("MESOS_TASK_ID", task_id.to_owned());
    set("MESOS_SANDBOX", sandbox.display().to_string());
    set("MARATHON_APP_ID", app.id.to_string());
    set("MARATHON_APP_VERSION", app.version.to_string());
    if let Some(image) = app.container.as_ref().and_then(|container| container.docker.as_ref()) {
        set("MARATHON_APP_DOCKER_IMAGE", image.image.clone());
    }
    for (name, value) in [("CPUS", app.cpus), ("MEM", app.mem), ("DISK", app.disk)] {
        // Scala writes a double with at least one decimal.
        set(&format!("MARATHON_APP_RESOURCE_{name}"), format!("{value:?}"));
    }
    set("MARATHON_APP_RESOURCE_GPUS", app.gpus.to_string());
    let mut labels = Vec::new();
    for (key, value) in &app.labels {
        let fits = key.len() < LONGEST_LABEL_BYTES - LABEL_PREFIX.len() && value.len() < LONGEST_LABEL_BYTES;
        if fits {
            let key = variable_name(key);
            set(&format!("{LABEL_PREFIX}{key}"), value.clone());
            labels.push(key);
        }
    }
    set("MARATHON_APP_LABELS", labels.join(" "));
    set("HOST", host.to_owned());
    if let Some(address) = instance.address {
        // Mesos tells the programs of a container network the address that is theirs.
        set("MESOS_CONTAINER_IP", address.to_string());
        set("LIBPROCESS_IP", address.to_string());
    }
    set_ports(instance, &mut set);
    env.extend(app.env.clone());
    if let Some(pod) = &app.pod {
        env.extend(pod.environment.clone());
        env.extend(pod.containers[container].environment.clone());
    }
    // A zero byte cannot be passed to a process.
    let can_be_passed = |value: &EnvValue| !matches!(value, EnvValue::Text(text) if text.contains('\0'));
    env.retain(|key, value| !key.is_empty() && !key.contains(['=', '\0']) && can_be_passed(value));
    env
}

/// The host port of each port, or the port inside the container where there is none.
fn set_ports(instance: &Instance, mut set: impl FnMut(&str, String) -> Option<EnvValue>) {
    let specs = instance.app.ports();
    let host_ports = instance.app.host_ports(&instance.ports);
    let mut all = Vec::with_capacity(specs.len());
    for (index, (spec, host_port)) in specs.iter().zip(host_ports).enumerate() {
        let port = host_port.or(spec.container).unwrap_or(0).to_string();
        set(&format!("PORT{index}"), port.clone());
        let requested = spec.container.unwrap_or(spec.service);
        match requested {
            0 => set(&format!("PORT_{port}"), port.clone()),
            _ => set(&format!("PORT_{requested}"), port.clone()),
        };
        if let Some(name) = spec.name {
            set(&format!("PORT_{}", variable_name(name)), port.clone());
            if instance.app.is_pod() {
                set(&format!("ENDPOINT_{}", variable_name(name)), port.clone());
            }
        }
        all.push(port);
    }
    if let Some(first) = all.first() {
        set("PORT", first.clone());
        set("PORTS", all.join(","));
    }
}

/// Upper case, with each run of other characters than letters, digits and `_` as one `_`.
fn variable_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    let mut in_gap = false;
    for c in text.chars() {
        let keeps = c.is_ascii_alphanumeric() || c == '_';
        if keeps {
            name.push(c.to_ascii_uppercase());
        } else if !in_gap {
            name.push('_');
        }
        in_gap = !keeps;
    }
    name
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::scheduler::app::App;
    use crate::scheduler::app::input::read_app;
    use crate::scheduler::id::{AppId, InstanceId};
    use crate::scheduler::timestamp::Timestamp;

    fn environment_of(
        app: App,
        ports: Vec<u16>,
        address: Option<std::net::IpAddr>,
    ) -> BTreeMap<String, EnvValue> {
        let id = InstanceId::fresh(&app.id, &[0; 6]);
        let mut instance = Instance::new(id, 1, Arc::new(app));
        instance.ports = ports;
        instance.address = address;
        task_environment(&instance, 0, "t.1", "127.0.0.1", Path::new("/s"))
    }

    #[test]
    fn ports_of_a_container_network() {
        let definition = json!({"id": "/a", "cmd": "x", "networks": [{"mode": "container", "name": "n"}],
            "container": {"portMappings": [{"containerPort": 80, "name": "web"},
                {"containerPort": 81, "hostPort": 0}]}, "env": {"K": {"secret": "s"}}});
        let id = AppId::parse("/a").expect("valid");
        let app = read_app(&definition, "").and_then(|u| u.apply(&App::with_defaults(id, Timestamp::now())));
        let env = environment_of(app.expect("readable"), vec![31005], "127.128.0.9".parse().ok());
        for (key, value) in [
            ("PORT0", "80"),
            ("PORT1", "31005"),
            ("PORTS", "80,31005"),
            ("PORT_80", "80"),
            ("PORT_81", "31005"),
            ("PORT_WEB", "80"),
            ("MESOS_CONTAINER_IP", "127.128.0.9"),
        ] {
            assert_eq!(env.get(key), Some(&EnvValue::Text(value.into())), "{key}");
        }
        assert_eq!(env.get("K"), Some(&EnvValue::Secret { secret: "s".into() }));
    }

    #[test]
    fn marathons_variables() {
        let definition = json!({"id": "/a/b", "cmd": "x", "cpus": 0.1, "env": {"HOST": "mine", "K": "V"},
            "labels": {"vip.0 x": "1", "long": "v".repeat(600)},
            "portDefinitions": [{"port": 10000, "name": "http-api"}, {"port": 0}]});
        let id = AppId::parse("/a/b").expect("valid");
        let version = Timestamp::parse("2018-03-01T10:00:00.000Z").expect("valid");
        let app = read_app(&definition, "").and_then(|u| u.apply(&App::with_defaults(id, version)));
        let env = environment_of(app.expect("readable"), vec![31000, 31001], None);
        for (key, value) in [
            ("HOST", "mine"),
            ("K", "V"),
            ("PORT", "31000"),
            ("PORTS", "31000,31001"),
            ("PORT0", "31000"),
            ("PORT1", "31001"),
            ("PORT_10000", "31000"),
            ("PORT_31001", "31001"),
            ("PORT_HTTP_API", "31000"),
            ("MESOS_TASK_ID", "t.1"),
            ("MESOS_SANDBOX", "/s"),
            ("MARATHON_APP_ID", "/a/b"),
            ("MARATHON_APP_VERSION", "2018-03-01T10:00:00.000Z"),
            ("MARATHON_APP_RESOURCE_CPUS", "0.1"),
            ("MARATHON_APP_RESOURCE_MEM", "128.0"),
            ("MARATHON_APP_RESOURCE_GPUS", "0"),
            ("MARATHON_APP_LABELS", "VIP_0_X"),
            ("MARATHON_APP_LABEL_VIP_0_X", "1"),
        ] {
            assert_eq!(env.get(key), Some(&EnvValue::Text(value.into())), "{key}");
        }
        assert!(!env.contains_key("MARATHON_APP_LABEL_LONG"));
    }

    #[test]
    fn no_port_variables_without_ports() {
        let id = AppId::parse("/a").expect("valid");
        let mut app = App::with_defaults(id, Timestamp::now());
        app.port_definitions = Vec::new();
        let env = environment_of(app, Vec::new(), None);
        assert!(!env.keys().any(|key| key.starts_with("PORT")));
    }
}
