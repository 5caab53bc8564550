//! What makes an app definition acceptable: Marathon's rules in Marathon's words, and what this scheduler
//! refuses because it could not do it truly.
//!
//! Not here: conflicts with other apps or running deployments.

use super::container::Volume;
use super::fields::FieldError;
use super::ports::{HostPort, PortSpec};
use super::{App, EnvValue, NetworkMode, Protocol};
use crate::scheduler::core::constraint::Constraint;

/// How the instances are run, which decides what can be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// As local processes; there is no `docker` command.
    Processes,
    /// As local processes, and images through the `docker` command.
    ProcessesAndImages,
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
    if !app.is_pod() {
        let has_image = app.container.as_ref().is_some_and(|container| container.docker.is_some());
        let one_of_both = app.cmd.is_some() != app.args.is_some();
        let image_alone = has_image && app.cmd.is_none();
        if !one_of_both && !image_alone {
            wrong("/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.");
        }
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
    let specs = app.ports();
    wrong_ports(app, &specs, &mut wrong);
    wrong_environment(app, &mut wrong);
    for (index, check) in app.health_checks.iter().enumerate() {
        let path = format!("/healthChecks({index})");
        if check.port_index.is_some_and(|port| port >= specs.len()) {
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
        if !specs.iter().any(|port| port.name == Some(&check.port_name)) {
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
        if let Err(reason) = Constraint::parse(constraint) {
            wrong(&format!("/constraints({index})"), &reason);
        }
    }
    if execution != Execution::Simulated {
        refuse_what_processes_cannot_be(app, execution, &mut wrong);
    }
    found
}

fn wrong_ports(app: &App, specs: &[PortSpec<'_>], wrong: &mut impl FnMut(&str, &str)) {
    let path = match app.network_mode() {
        NetworkMode::Host => "/portDefinitions",
        _ => "/container/portMappings",
    };
    let mut ports: Vec<u16> = specs.iter().map(|spec| spec.service).filter(|&port| port != 0).collect();
    let mut names: Vec<&str> = specs.iter().filter_map(|spec| spec.name).collect();
    let exact = |spec: &PortSpec<'_>| match spec.host {
        HostPort::Exactly(port) => Some((port, spec.protocol.to_owned())),
        _ => None,
    };
    let mut on_host: Vec<(u16, String)> = specs.iter().filter_map(exact).collect();
    if has_duplicates(&mut ports) || has_duplicates(&mut on_host) {
        wrong(path, "Ports must be unique.");
    }
    if has_duplicates(&mut names) {
        wrong(path, "Port names must be unique.");
    }
}

/// Every secret that a variable names must be one of the app's.
fn wrong_environment(app: &App, wrong: &mut impl FnMut(&str, &str)) {
    for (name, value) in &app.env {
        if let EnvValue::Secret { secret } = value
            && !app.secrets.contains_key(secret)
        {
            wrong(&format!("/env/{name}"), &format!("references undefined secret named '{secret}'"));
        }
    }
}

/// Taking these and then leaving them out would make the app look as if it ran as asked.
fn refuse_what_processes_cannot_be(app: &App, execution: Execution, wrong: &mut impl FnMut(&str, &str)) {
    let container = app.container.as_ref();
    let has_image = container.is_some_and(|c| c.docker.is_some())
        || app.pod.as_ref().is_some_and(|pod| pod.containers.iter().any(|c| c.image.is_some()));
    if has_image && execution == Execution::Processes {
        wrong(
            "/container/docker",
            "there is no 'docker' command on this machine to run images with: install Docker, or leave 'container' out to run 'cmd' as a local process",
        );
    }
    if let Some(pod) = &app.pod {
        for (index, container) in pod.containers.iter().enumerate() {
            if container.image.is_none() && container.program.is_none() {
                wrong(&format!("/containers({index})"), "a container without an image needs an exec command");
            }
        }
        return;
    }
    if has_image {
        return;
    }
    if app.cmd.is_none() && app.args.is_none() {
        wrong("/container", "a container without an image needs 'cmd' or 'args'");
    }
    let volumes: &[Volume] = container.map_or(&[], |container| &container.volumes);
    if !volumes.is_empty() {
        wrong(
            "/container/volumes",
            "the embedded scheduler runs apps without an image as local processes, which see the machine's own files: volumes need an image",
        );
    }
}

fn has_duplicates<T: Ord>(values: &mut [T]) -> bool {
    values.sort_unstable();
    values.windows(2).any(|pair| pair[0] == pair[1])
}
