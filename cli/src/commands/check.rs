//! `waymark check FILE…`: what each label of app definitions will do, and what is wrong with them.
//!
//! The definitions go through the same translation and compilation as in the daemon; no scheduler is asked.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use event_watcher::catalog::{App, Generation, Problem, Snapshot};
use lb_http::labels::vocabulary::{self, Heeded};
use lb_http::labels::{Compat, Listens, Reading, Unlabelled};
use lb_http::table::{Backend, Compiler, Table};
use serde::Serialize;
use serde_json::Value;

use crate::args::{self, CheckArgs};
use crate::failure::Failure;
use crate::output::{self, Style};

/// A name for VIPs; every scheduler that does not say otherwise is called so.
const FRAMEWORK: &str = "marathon";
/// Ports that the scheduler assigns are shown from here on.
const FIRST_ASSIGNED_PORT: u16 = 10000;

#[derive(Serialize)]
struct Report {
    id: String,
    services: Vec<ServiceReport>,
    labels: Vec<LabelReport>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct ServiceReport {
    port_index: usize,
    /// `None`: the service port is closed.
    port: Option<u16>,
    /// The scheduler assigns the port.
    assigned: bool,
    backend: String,
    mode: String,
    reached_by: Vec<String>,
    /// What takes the place of its instances, and how servers are spoken to when that is not plain text.
    servers: Vec<String>,
    costs: Vec<&'static str>,
}

#[derive(Serialize)]
struct LabelReport {
    label: String,
    value: String,
    effect: String,
}

pub fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let mut apps: BTreeMap<_, Arc<App>> = BTreeMap::new();
    let mut assigned = Vec::new();
    let mut problems = Vec::new();
    for file in &args.files {
        for definition in definitions(file)? {
            let update = event_watcher::read_definition(&definition.to_string(), FRAMEWORK).map_err(|e| {
                Failure::new(format!("{file}: {e}"))
                    .hint("waymark check reads app definitions as Marathon does")
            })?;
            let mut app = update.app;
            problems.extend(update.problems);
            for (service, port) in app.services.iter_mut().zip(FIRST_ASSIGNED_PORT..) {
                if service.service_port.is_none() {
                    assigned.push(service.id.clone());
                    // Apps of one file are not to look as if they wanted the same one.
                    service.service_port = Some(port + apps.len() as u16 * 10);
                }
            }
            apps.insert(app.id.clone(), Arc::new(app));
        }
    }
    let reading = reading(args);
    let snapshot =
        Snapshot { generation: Generation(1), apps: apps.into_iter().collect(), ..Snapshot::default() };
    let table = Compiler::new(reading.clone(), 1).compile(&snapshot, Instant::now());
    problems.extend(table.problems.iter().cloned());
    let reports: Vec<Report> = snapshot
        .apps
        .values()
        .map(|app| Report {
            id: app.id.to_string(),
            services: services(app, &table, &assigned),
            labels: labels(app, &reading),
            problems: problems.iter().filter(|p| is_about(p, app)).cloned().collect(),
        })
        .collect();
    if args.json {
        output::print_json(&reports)?;
    } else {
        output::print(&reports.iter().map(|r| text(r, Style::of_stdout())).collect::<Vec<_>>().join("\n"))?;
    }
    let is_clean = reports.iter().all(|r| r.problems.is_empty());
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn reading(args: &CheckArgs) -> Reading {
    Reading {
        groups: args.group.clone(),
        unlabelled: if args.strict_mode { Unlabelled::Ignored } else { Unlabelled::Served },
        compat: match args.compat.contains(&args::Compat::MarathonLb) {
            true => Compat::MarathonLb,
            false => Compat::None,
        },
        ..Reading::default()
    }
}

/// One app, a list of apps, `{"app": …}` or `{"apps": […]}`.
fn definitions(file: &str) -> Result<Vec<Value>, Failure> {
    let text = match file {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        file => std::fs::read_to_string(file),
    };
    let text = text.map_err(|e| {
        Failure::new(format!("cannot read {file}: {e}"))
            .hint("waymark check takes files with app definitions")
    })?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Failure::new(format!("{file} is not JSON: {e}")).hint("see the line that is named"))?;
    let apps = match value {
        Value::Array(apps) => apps,
        Value::Object(mut object) => match (object.remove("apps"), object.remove("app")) {
            (Some(Value::Array(apps)), _) => apps,
            (_, Some(app @ Value::Object(_))) => vec![app],
            _ => vec![Value::Object(object)],
        },
        _ => return Err(Failure::new(format!("{file} holds no app definition"))),
    };
    Ok(apps)
}

/// A deployment group's problems are those of its apps.
fn is_about(problem: &Problem, app: &App) -> bool {
    let group = app.label("HAPROXY_DEPLOYMENT_GROUP").map(event_watcher::catalog::AppId::new);
    problem.app.as_ref().is_some_and(|id| *id == app.id || Some(id) == group.as_ref())
}

fn services(app: &App, table: &Table, assigned: &[event_watcher::catalog::ServiceId]) -> Vec<ServiceReport> {
    let group = app.label("HAPROXY_DEPLOYMENT_GROUP").map(event_watcher::catalog::AppId::new);
    let own = |b: &Backend| b.service.app == app.id || Some(&b.service.app) == group.as_ref();
    let of_app = table.backends.iter().enumerate().filter(|(_, b)| own(b));
    of_app
        .map(|(index, backend)| service(backend, index, table, assigned.contains(&backend.service)))
        .collect()
}

fn service(backend: &Backend, index: usize, table: &Table, assigned: bool) -> ServiceReport {
    let labels = &backend.labels;
    let listens = labels.listens == Listens::Yes && table.routes.of_port(labels.port) == Some(index);
    let mut reached_by = Vec::new();
    for (host, rule) in table.routes.rules().iter().filter(|(_, rule)| rule.backend == index) {
        let path = rule.path.as_ref().map_or("", |p| &p.prefix);
        reached_by.push(format!("{host}{path}"));
    }
    for (host, _) in table.routes.passed_hosts().iter().filter(|(_, passed)| *passed == index) {
        reached_by.push(format!("{host} (its TLS, passed on as it is)"));
    }
    let placed = labels.static_server.as_ref();
    let placed =
        placed.map(|s| format!("{}:{} ({}) takes the place of its instances", s.host, s.port, s.name));
    let tls = labels.server_tls.as_ref().map(ToString::to_string);
    let servers = placed.into_iter().chain(tls).collect();
    let mut costs = Vec::new();
    if labels.admission.login.is_some() {
        costs.push("a password that was not seen before takes some milliseconds to look at");
    }
    if labels.vhosts.iter().any(|h| matches!(h, lb_http::labels::HostPattern::Expression(_))) {
        costs.push("requests of hosts that no other rule names are matched with an expression each");
    }
    ServiceReport {
        port_index: backend.service.port_index,
        port: listens.then_some(labels.port),
        assigned,
        backend: backend.name.to_string(),
        mode: serde_json::to_value(labels.mode)
            .ok()
            .and_then(|mode| mode.as_str().map(str::to_owned))
            .unwrap_or_default(),
        reached_by,
        servers,
        costs,
    }
}

fn labels(app: &App, reading: &Reading) -> Vec<LabelReport> {
    let of_app = vocabulary::explain(app, reading).into_iter().map(|explained| LabelReport {
        label: explained.label,
        value: explained.value,
        effect: match explained.heeded {
            Heeded::Yes => explained.effect.to_owned(),
            Heeded::No => format!("no effect: {}", explained.effect),
        },
    });
    let of_ports = app.services.iter().flat_map(|service| {
        service.labels.iter().filter(|(label, _)| label.starts_with("VIP") || label.starts_with("vip")).map(
            move |(label, value)| {
                let served = service.vips.iter().map(|vip| format!("{}:{}", vip.target, vip.port));
                let served: Vec<String> = served.collect();
                LabelReport {
                    label: format!("port {} {label}", service.id.port_index),
                    value: value.clone(),
                    effect: match &served[..] {
                        [] => "no effect: no VIP can be read".to_owned(),
                        served => format!("a virtual IP leads to it: {}", served.join(", ")),
                    },
                }
            },
        )
    });
    of_app.chain(of_ports).collect()
}

fn text(report: &Report, style: Style) -> String {
    let mut text = format!("{}\n", style.bold(&report.id));
    for service in &report.services {
        let port = match service.port {
            Some(port) if service.assigned => {
                format!("a service port that the scheduler assigns (shown as {port})")
            }
            Some(port) => format!("service port {port}"),
            None => "no service port".to_owned(),
        };
        text.push_str(&format!("  port {}: {port}, mode {}", service.port_index, service.mode));
        if !service.reached_by.is_empty() {
            text.push_str(&format!(", hosts {}", service.reached_by.join(" ")));
        }
        text.push_str(&format!(", as {}\n", service.backend));
        for server in &service.servers {
            text.push_str(&format!("    {server}\n"));
        }
        for cost in &service.costs {
            text.push_str(&format!("    {}\n", style.dim(cost)));
        }
    }
    if report.services.is_empty() {
        text.push_str("  nothing of it is served over HTTP or by service port\n");
    }
    for label in &report.labels {
        let value: String = label.value.chars().filter(|c| !c.is_control()).take(60).collect();
        text.push_str(&format!("  {} = {value}\n      {}\n", label.label, style.dim(&label.effect)));
    }
    for problem in &report.problems {
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        let hint =
            if problem.hint.is_empty() { String::new() } else { format!(" ({})", clean(&problem.hint)) };
        text.push_str(&format!(
            "  {} {}: {}{hint}\n",
            style.red("problem"),
            problem.at,
            clean(&problem.what)
        ));
    }
    text
}
