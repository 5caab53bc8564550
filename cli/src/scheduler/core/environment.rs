//! The environment of a task as Marathon builds it (TaskBuilder, EnvironmentHelper; spec 6.1).
//!
//! Not here: what a task inherits from the machine (`agent::process`).

use std::collections::BTreeMap;
use std::path::Path;

use crate::scheduler::app::App;

/// Marathon leaves out labels whose key or value would make a longer variable than this, in bytes.
const LONGEST_LABEL_BYTES: usize = 512;
const LABEL_PREFIX: &str = "MARATHON_APP_LABEL_";

/// Everything a task is given, the app's own `env` having the last word.
pub fn task_environment(
    app: &App,
    task_id: &str,
    host: &str,
    ports: &[u16],
    sandbox: &Path,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
    set("MESOS_TASK_ID", task_id.to_owned());
    set("MESOS_SANDBOX", sandbox.display().to_string());
    set("MARATHON_APP_ID", app.id.to_string());
    set("MARATHON_APP_VERSION", app.version.to_string());
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
    if let Some(first) = ports.first() {
        set("PORT", first.to_string());
        let all: Vec<String> = ports.iter().map(u16::to_string).collect();
        set("PORTS", all.join(","));
    }
    for (index, (port, definition)) in ports.iter().zip(&app.port_definitions).enumerate() {
        set(&format!("PORT{index}"), port.to_string());
        let requested = if definition.port == 0 { *port } else { definition.port };
        set(&format!("PORT_{requested}"), port.to_string());
        if let Some(name) = &definition.name {
            set(&format!("PORT_{}", variable_name(name)), port.to_string());
        }
    }
    env.extend(app.env.clone());
    // A zero byte cannot be passed to a process.
    env.retain(|key, value| !key.is_empty() && !key.contains(['=', '\0']) && !value.contains('\0'));
    env
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
    use serde_json::json;

    use super::*;
    use crate::scheduler::app::input::read_app;
    use crate::scheduler::id::AppId;
    use crate::scheduler::timestamp::Timestamp;

    #[test]
    fn marathons_variables() {
        let definition = json!({"id": "/a/b", "cmd": "x", "cpus": 0.1, "env": {"HOST": "mine", "K": "V"},
            "labels": {"vip.0 x": "1", "long": "v".repeat(600)},
            "portDefinitions": [{"port": 10000, "name": "http-api"}, {"port": 0}]});
        let id = AppId::parse("/a/b").expect("valid");
        let version = Timestamp::parse("2018-03-01T10:00:00.000Z").expect("valid");
        let app = read_app(&definition, "").and_then(|u| u.apply(&App::with_defaults(id, version)));
        let env =
            task_environment(&app.expect("readable"), "t.1", "127.0.0.1", &[31000, 31001], Path::new("/s"));
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
            assert_eq!(env.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert!(!env.contains_key("MARATHON_APP_LABEL_LONG"));
    }

    #[test]
    fn no_port_variables_without_ports() {
        let id = AppId::parse("/a").expect("valid");
        let app = App::with_defaults(id, Timestamp::now());
        let env = task_environment(&app, "t", "h", &[], Path::new("/s"));
        assert!(!env.keys().any(|key| key.starts_with("PORT")));
    }
}
