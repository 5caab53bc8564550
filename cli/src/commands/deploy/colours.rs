//! The two colours of an app: the definition of the next one, as zdd.py makes it.
//!
//! Pure: a definition and the app that runs now in, a definition out.

use serde_json::{Map, Value, json};

use crate::failure::Failure;

pub const GROUP: &str = "HAPROXY_DEPLOYMENT_GROUP";
pub const STARTED_AT: &str = "HAPROXY_DEPLOYMENT_STARTED_AT";
pub const TARGET: &str = "HAPROXY_DEPLOYMENT_TARGET_INSTANCES";
const ALT_PORT: &str = "HAPROXY_DEPLOYMENT_ALT_PORT";
const COLOUR: &str = "HAPROXY_DEPLOYMENT_COLOUR";
const NEW_INSTANCES: &str = "HAPROXY_DEPLOYMENT_NEW_INSTANCES";
const APP_ID: &str = "HAPROXY_APP_ID";
const PORT: &str = "HAPROXY_0_PORT";

pub fn label<'a>(app: &'a Value, name: &str) -> Option<&'a str> {
    app["labels"][name].as_str()
}

pub fn instances(app: &Value) -> u64 {
    app["instances"].as_u64().unwrap_or(1)
}

/// How many instances the deployment is to reach.
pub fn target(app: &Value) -> u64 {
    label(app, TARGET).and_then(|t| t.parse().ok()).unwrap_or_else(|| instances(app))
}

/// What must be there before anything is asked of the scheduler.
pub fn check(definition: &Value) -> Result<(), Failure> {
    if definition["id"].as_str().is_none_or(str::is_empty) {
        return Err(Failure::usage("the definition has no \"id\""));
    }
    for name in [GROUP, ALT_PORT] {
        if label(definition, name).is_none_or(|v| v.trim().is_empty()) {
            return Err(Failure::usage(format!("the definition has no label {name}")).hint(
                "a group names both colours; the alternative port is the service port of the second one",
            ));
        }
    }
    service_port(definition).map(|_| ())
}

/// How many instances of the new app a split keeps; 0: it is none.
pub fn kept_new(app: &Value) -> u64 {
    label(app, NEW_INSTANCES).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// How the new colour begins, and where it is to end.
#[derive(Clone, Copy, Debug)]
pub struct Beginning<'a> {
    /// Instances to begin with.
    pub n_initial: u64,
    /// `Some`: a split that keeps so many of the new app.
    pub split: Option<u64>,
    pub now: &'a str,
}

/// The definition of the next colour. `last`: the app that runs now.
pub fn next(definition: &Value, last: Option<&Value>, begin: Beginning<'_>) -> Result<Value, Failure> {
    let mut app = definition.clone();
    let own_port = service_port(definition)?;
    let (colour, port, target) = match last {
        None => ("blue", own_port, instances(definition)),
        Some(last) => {
            let colour = if label(last, COLOUR) == Some("blue") { "green" } else { "blue" };
            (colour, next_port(definition, last, own_port)?, instances(last))
        }
    };
    if let Some(n) = begin.split {
        if last.is_none() {
            return Err(Failure::usage("there is no version yet that traffic could be split with")
                .hint("deploy it without --new-instances first"));
        }
        if n >= target {
            return Err(Failure::usage(format!(
                "--new-instances {n} leaves nothing of the {target} there are"
            ))
            .hint("without it, all instances are replaced"));
        }
    }
    let id = definition["id"].as_str().unwrap_or_default();
    let most = begin.split.unwrap_or(target).max(1);
    let count = if last.is_some() { begin.n_initial.clamp(1, most) } else { target };
    set_service_port(&mut app, port);
    let Value::Object(object) = &mut app else { return Err(Failure::usage("the definition is no app")) };
    object.insert("id".to_owned(), json!(format!("/{}-{colour}", id.trim_matches('/'))));
    object.insert("instances".to_owned(), json!(count));
    if let Some(labels) = object.get_mut("labels").and_then(Value::as_object_mut) {
        set_labels(
            labels,
            &[
                (APP_ID, id),
                (PORT, &own_port.to_string()),
                (TARGET, &target.to_string()),
                (COLOUR, colour),
                (STARTED_AT, begin.now),
                (NEW_INSTANCES, &begin.split.unwrap_or(0).to_string()),
            ],
        );
    }
    Ok(app)
}

fn set_labels(labels: &mut Map<String, Value>, values: &[(&str, &str)]) {
    for (name, value) in values {
        labels.insert((*name).to_owned(), json!(value));
    }
}

/// The scheduler wants service ports to be unique, so the colours take turns with two.
fn next_port(definition: &Value, last: &Value, own_port: u64) -> Result<u64, Failure> {
    let alternative = label(definition, ALT_PORT).and_then(|text| text.trim().parse().ok());
    let alternative: u64 = alternative.ok_or_else(|| {
        Failure::usage(format!("the label {ALT_PORT} is no port number")).hint("write it as \"10001\"")
    })?;
    Ok(if service_port(last).ok() == Some(alternative) { own_port } else { alternative })
}

/// Where a definition may have its first service port.
const PLACES: [(&str, &str); 4] = [
    ("/container/docker/portMappings/0", "servicePort"),
    ("/container/portMappings/0", "servicePort"),
    ("/portDefinitions/0", "port"),
    ("/ports", "0"),
];

fn service_port(app: &Value) -> Result<u64, Failure> {
    let port = PLACES.iter().find_map(|(place, key)| {
        let at = app.pointer(place)?;
        let port = if *place == "/ports" { at.get(0) } else { at.get(key) };
        port?.as_u64().filter(|p| *p > 0)
    });
    port.ok_or_else(|| {
        Failure::usage("the definition has no service port")
            .hint("give its first port mapping a servicePort, or its first port definition a port")
    })
}

fn set_service_port(app: &mut Value, port: u64) {
    for (place, key) in PLACES {
        let Some(at) = app.pointer_mut(place) else { continue };
        match at {
            Value::Array(ports) if !ports.is_empty() => ports[0] = json!(port),
            Value::Object(object) => {
                object.insert(key.to_owned(), json!(port));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({
            "id": "shop", "instances": 4,
            "labels": {GROUP: "shop", ALT_PORT: "10001"},
            "portDefinitions": [{"port": 10000}],
        })
    }

    #[test]
    fn colours_take_turns_with_names_and_ports() {
        let begin = |n_initial, now| Beginning { n_initial, split: None, now };
        let first = next(&definition(), None, begin(1, "t1")).unwrap();
        assert_eq!((&first["id"], &first["instances"]), (&json!("/shop-blue"), &json!(4)));
        assert_eq!(first["portDefinitions"][0]["port"], 10000);
        let second = next(&definition(), Some(&first), begin(1, "t2")).unwrap();
        assert_eq!((&second["id"], &second["instances"]), (&json!("/shop-green"), &json!(1)));
        assert_eq!(second["portDefinitions"][0]["port"], 10001);
        assert_eq!(label(&second, PORT), Some("10000"), "both are served on the port of the definition");
        assert_eq!((target(&second), label(&second, STARTED_AT)), (4, Some("t2")));
        assert_eq!(kept_new(&second), 0);
        let third = next(&definition(), Some(&second), begin(9, "t3")).unwrap();
        assert_eq!((&third["id"], &third["instances"]), (&json!("/shop-blue"), &json!(1)));
        assert_eq!(third["portDefinitions"][0]["port"], 10000);
    }

    #[test]
    fn a_split_leaves_something_of_both() {
        let begin = |split| Beginning { n_initial: 9, split: Some(split), now: "t" };
        let first = next(&definition(), None, Beginning { split: None, ..begin(1) }).unwrap();
        let second = next(&definition(), Some(&first), begin(3)).unwrap();
        assert_eq!((kept_new(&second), target(&second), instances(&second)), (3, 4, 3));
        assert_eq!(next(&definition(), Some(&first), begin(4)).unwrap_err().code(), 2);
        assert_eq!(next(&definition(), None, begin(1)).unwrap_err().code(), 2, "nothing to split with");
    }

    #[test]
    fn ports_are_found_wherever_a_definition_has_them() {
        for app in [
            json!({"container": {"docker": {"portMappings": [{"servicePort": 7}]}}}),
            json!({"container": {"portMappings": [{"servicePort": 7}]}}),
            json!({"portDefinitions": [{"port": 7}]}),
            json!({"ports": [7]}),
        ] {
            assert_eq!(service_port(&app).unwrap(), 7, "{app}");
            let mut changed = app.clone();
            set_service_port(&mut changed, 8);
            assert_eq!(service_port(&changed).unwrap(), 8, "{app}");
        }
        assert!(service_port(&json!({"ports": []})).is_err());
    }

    #[test]
    fn what_is_missing_is_a_usage_error() {
        for key in ["id", "labels", "portDefinitions"] {
            let mut incomplete = definition();
            incomplete.as_object_mut().unwrap().remove(key);
            assert_eq!(check(&incomplete).unwrap_err().code(), 2, "{key}");
        }
        assert!(check(&definition()).is_ok());
    }
}
