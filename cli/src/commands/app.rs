//! `waymark app …`: the verbs of the Marathon API, in the words of `dcos marathon app`.
//!
//! It validates nothing: the scheduler does, and its answer is shown.

use std::io::{IsTerminal, Read};

use event_watcher::catalog::AppId;
use serde_json::{Value, json};

use super::marathon::{Marathon, Path, deployment_id};
use super::{wait, words};
use crate::args::{AppCommand, ChangeArgs};
use crate::failure::Failure;
use crate::output::{self, Progress, Style, Table};

pub async fn run(command: AppCommand) -> Result<(), Failure> {
    match command {
        AppCommand::List { marathon, json } => list(&Marathon::new(&marathon)?, json).await,
        AppCommand::Show { marathon, id, app_version, json: _ } => {
            show(&Marathon::new(&marathon)?, &canonical(&id), app_version.as_deref()).await
        }
        AppCommand::Add { change, source } => add(&change, &source).await,
        AppCommand::Update { change, id, words, force } => {
            let body =
                if words.is_empty() { Value::Object(from_stdin()?) } else { words::parse(&words)?.into() };
            put(&change, &canonical(&id), &body, force).await
        }
        AppCommand::Scale { change, id, instances, force } => {
            put(&change, &canonical(&id), &json!({ "instances": instances }), force).await
        }
        AppCommand::Restart { change, id, force } => {
            let (marathon, id) = (Marathon::new(&change.marathon)?, canonical(&id));
            let path = Path::of_app(&id).join("restart").with_force(force);
            let answer = marathon.post(&path, None).await?;
            announce(&marathon, &change, &id, &answer).await
        }
        AppCommand::Kill { change, id, scale, host } => kill(&change, &canonical(&id), scale, host).await,
        AppCommand::Remove { change, id, force } => {
            let (marathon, id) = (Marathon::new(&change.marathon)?, canonical(&id));
            let answer = marathon.delete(&Path::of_app(&id).with_force(force)).await?;
            announce(&marathon, &change, &id, &answer).await
        }
        AppCommand::Log { marathon, id, instance } => {
            log(&Marathon::new(&marathon)?, &canonical(&id), instance.as_deref()).await
        }
    }
}

fn canonical(id: &str) -> String {
    AppId::new(id).as_str().to_owned()
}

async fn list(marathon: &Marathon, json: bool) -> Result<(), Failure> {
    let answer = marathon.get(&Path::new("v2/apps")).await?;
    let Some(apps) = answer.get("apps").and_then(Value::as_array) else {
        return Err(Failure::new("the scheduler's answer has no list of apps"));
    };
    if json {
        return output::print_json(apps);
    }
    let mut sorted: Vec<&Value> = apps.iter().collect();
    sorted.sort_by_key(|app| text(app, "id"));
    let mut table = Table::new(&["ID", "MEM", "CPUS", "INSTANCES", "HEALTH", "DEPLOYMENT", "VERSION", "CMD"]);
    for app in sorted {
        table.row([
            text(app, "id"),
            text(app, "mem"),
            text(app, "cpus"),
            format!("{}/{}", text(app, "tasksRunning"), text(app, "instances")),
            health(app),
            deployments(app),
            text(app, "version"),
            command(app),
        ]);
    }
    output::print(&table.render(Style::of_stdout()))
}

fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

fn n_of(value: &Value, key: &str) -> usize {
    value.get(key).and_then(Value::as_array).map_or(0, Vec::len)
}

fn health(app: &Value) -> String {
    if n_of(app, "healthChecks") == 0 {
        return "-".to_owned();
    }
    format!("{}/{}", text(app, "tasksHealthy"), text(app, "tasksRunning"))
}

fn deployments(app: &Value) -> String {
    match n_of(app, "deployments") {
        0 => "-".to_owned(),
        1 => text(&app["deployments"][0], "id").chars().take(8).collect(),
        n => format!("{n} running"),
    }
}

fn command(app: &Value) -> String {
    /// A table cell; `app show` has the whole.
    const MAX_CHARS: usize = 40;
    let words = app.get("args").and_then(Value::as_array);
    let command = match text(app, "cmd") {
        cmd if cmd != "-" => cmd,
        _ => words.into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
    };
    if command.chars().count() > MAX_CHARS {
        return command.chars().take(MAX_CHARS - 1).chain(['…']).collect();
    }
    command
}

async fn show(marathon: &Marathon, id: &str, version: Option<&str>) -> Result<(), Failure> {
    let app = match version {
        None => marathon.existing_app(id).await?,
        Some(version) => marathon.get(&Path::of_app(id).join("versions").join(version)).await?,
    };
    output::print_json(&app)
}

async fn add(change: &ChangeArgs, source: &str) -> Result<(), Failure> {
    let definition = match source {
        "-" => Value::Object(from_stdin()?),
        url if url.starts_with("http://") || url.starts_with("https://") => parse(&fetch(url).await?, url)?,
        file => {
            let text = std::fs::read_to_string(file).map_err(|e| {
                Failure::new(format!("cannot read {file}: {e}"))
                    .hint("waymark app add takes a file, an http(s) URL, or - for standard input")
            })?;
            parse(&text, file)?
        }
    };
    let Some(id) = definition.get("id").and_then(Value::as_str).map(canonical) else {
        return Err(Failure::new(format!("the definition in {source} has no \"id\"")));
    };
    let marathon = Marathon::new(&change.marathon)?;
    let answer = marathon.post(&Path::new("v2/apps"), Some(&definition)).await?;
    announce(&marathon, change, &id, &answer).await
}

async fn fetch(url: &str) -> Result<String, Failure> {
    let failed = |e: reqwest::Error| Failure::chain(format!("cannot fetch {url}"), &e.without_url());
    let response = reqwest::get(url).await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    response.text().await.map_err(failed)
}

fn from_stdin() -> Result<serde_json::Map<String, Value>, Failure> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::usage("nothing was given")
            .hint("write key=value words, or pipe a JSON object to standard input"));
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text).map_err(|e| Failure::chain("cannot read standard input", &e))?;
    match parse(&text, "standard input")? {
        Value::Object(object) => Ok(object),
        _ => Err(Failure::usage("standard input is no JSON object")),
    }
}

fn parse(text: &str, source: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|e| Failure::usage(format!("{source} is no JSON: {e}")))
}

async fn put(change: &ChangeArgs, id: &str, body: &Value, force: bool) -> Result<(), Failure> {
    let marathon = Marathon::new(&change.marathon)?;
    // A PUT would create the app; an update is of one that exists.
    marathon.existing_app(id).await?;
    let answer = marathon.put(&Path::of_app(id).with_force(force), body).await?;
    announce(&marathon, change, id, &answer).await
}

async fn kill(change: &ChangeArgs, id: &str, scale: bool, host: Option<String>) -> Result<(), Failure> {
    let marathon = Marathon::new(&change.marathon)?;
    let mut path = Path::of_app(id).join("tasks");
    if scale {
        path = path.with("scale", "true");
    }
    if let Some(host) = host {
        path = path.with("host", host);
    }
    let answer = marathon.delete(&path).await?;
    if let Some(killed) = answer.get("tasks").and_then(Value::as_array) {
        let ids: Vec<String> = killed.iter().map(|task| text(task, "id")).collect();
        output::print_line(&format!("Killed {} of {id}", counted(ids.len(), "instance")))?;
        return match change.wait.wait {
            true => wait::until_replaced(&marathon, &change.wait, id, &ids).await,
            false => Ok(()),
        };
    }
    announce(&marathon, change, id, &answer).await
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

async fn announce(marathon: &Marathon, change: &ChangeArgs, id: &str, answer: &Value) -> Result<(), Failure> {
    let deployment = deployment_id(answer);
    if let Some(deployment) = deployment {
        output::print_line(&format!("Created deployment {deployment}"))?;
    }
    if change.wait.wait {
        wait::until_applied(marathon, &change.wait, id, deployment).await?;
    }
    Ok(())
}

async fn log(marathon: &Marathon, id: &str, instance: Option<&str>) -> Result<(), Failure> {
    let app = marathon.existing_app(id).await?;
    let tasks = app.get("tasks").and_then(Value::as_array).cloned().unwrap_or_default();
    let ids: Vec<String> = match instance {
        Some(instance) => vec![instance.to_owned()],
        None => tasks.iter().map(|task| text(task, "id")).collect(),
    };
    if ids.is_empty() {
        return Err(Failure::new(format!("{id} has no instances"))
            .hint("waymark app log takes --instance ID for one that ended"));
    }
    let mut n_printed = 0;
    for task in &ids {
        for stream in ["stdout", "stderr"] {
            let path = Path::new(super::TASKS_PATH).join(task).join("logs").join(stream);
            let Some(lines) = marathon.text(&path).await? else {
                return Err(Failure::new(format!("this scheduler has no log of {task}")).hint(
                    "only the scheduler of waymark dev keeps logs; on a cluster they are in the instance's sandbox",
                ));
            };
            if lines.is_empty() {
                continue;
            }
            n_printed += 1;
            let style = Style::of_stdout();
            output::print_line(&style.bold(&format!("==> {task} {stream} <==")))?;
            output::print(&lines)?;
            if !lines.ends_with('\n') {
                output::print_line("")?;
            }
        }
    }
    if n_printed == 0 {
        // Not on standard output: that is the log.
        Progress::default().say(&format!("{id} has written nothing yet"));
    }
    Ok(())
}
