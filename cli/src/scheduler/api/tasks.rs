//! Tasks: lists, kills, and their output.
//!
//! Not here: how a kill goes on (`core::status`).

use std::path::PathBuf;

use http::Method;
use serde_json::{Value, json};

use super::apps::id_of;
use super::reply::Reply;
use super::view::{ServicePorts, TaskWriter};
use super::{Answer, Call, Context, Failure, settled};
use crate::scheduler::agent::logs;
use crate::scheduler::app::fields::{FieldError, Fields};
use crate::scheduler::core::instance::{Condition, Instance};
use crate::scheduler::core::kills::KillMode;
use crate::scheduler::core::operations::Conflict;
use crate::scheduler::core::{AppState, Core, Refusal};
use crate::scheduler::id::AppId;

/// What `/waymark/v1/tasks/{id}/logs/{stream}` shows when not told how much, and the most it shows.
const TAIL_BYTES: u64 = 64 * 1024;
const LONGEST_TAIL_BYTES: u64 = 8 * 1024 * 1024;

pub(super) async fn answer(call: &Call, rest: &[&str], context: &Context) -> Answer {
    match (&call.method, rest) {
        (&Method::GET | &Method::HEAD, []) => list(call, context).await,
        (&Method::POST, ["delete"]) => delete(call, context).await,
        (_, [] | ["delete"]) => Err(Failure::NoSuchMethod),
        _ => Err(Failure::NoSuchPath),
    }
}

fn prefers_text(call: &Call) -> bool {
    call.accepts("text/plain") && !call.accepts("application/json")
}

async fn list(call: &Call, context: &Context) -> Answer {
    let wanted: Vec<String> =
        call.target.all("status").chain(call.target.all("status[]")).map(str::to_owned).collect();
    let text = prefers_text(call);
    let work = move |core: &mut Core| {
        if text {
            return Ok(Reply::text(endpoints(&core.settings.host, core.live_apps())));
        }
        let is_wanted = |i: &&Instance| {
            let running = matches!(i.condition, Condition::Running | Condition::Killing);
            wanted.is_empty() || wanted.iter().any(|w| w == if running { "running" } else { "staging" })
        };
        let mut out = b"{\"tasks\":[".to_vec();
        let apps = core.apps.values().filter(|state| !state.app.is_pod());
        let instances = apps.flat_map(|state| state.instances.values());
        TaskWriter::new(core, ServicePorts::Shown).write(instances.filter(is_wanted), &mut out);
        out.extend_from_slice(b"]}");
        Ok(Reply::json_text(out))
    };
    settled(context.handle.call(work).await)
}

/// Marathon's text form: one line for each service port with the addresses behind it.
fn endpoints<'a>(host: &str, apps: impl Iterator<Item = &'a AppState>) -> String {
    let mut lines = Vec::new();
    for state in apps {
        let name = state.app.id.flat();
        let running = || state.instances.values().filter(|i| i.condition == Condition::Running);
        let ports = state.app.ports();
        for (index, port) in ports.iter().enumerate() {
            let address = |instance: &Instance| {
                let on_host = state.app.host_ports(&instance.ports).get(index).copied().flatten();
                match (on_host, instance.address, port.container) {
                    (Some(host_port), _, _) => Some(format!("{host}:{host_port}\t")),
                    (None, Some(own), Some(inside)) => Some(format!("{own}:{inside}\t")),
                    _ => None,
                }
            };
            let addresses: String = running().filter_map(address).collect();
            lines.push(format!("{name}\t{}\t{addresses}\n", port.service));
        }
        if ports.is_empty() {
            let hosts: String = running().map(|_| format!("{host}\t")).collect();
            lines.push(format!("{name}\t \t{hosts}\n"));
        }
    }
    lines.sort_unstable();
    lines.concat()
}

fn kill_mode(call: &Call) -> Result<KillMode, Refusal> {
    match (call.target.flag("scale"), call.target.flag("wipe")) {
        (true, true) => Err(Refusal::BadRequest("You cannot use scale and wipe at the same time.".into())),
        (true, false) => Ok(KillMode::Scale),
        (false, true) => Ok(KillMode::Wipe),
        (false, false) => Ok(KillMode::Restart),
    }
}

/// Kills the tasks and answers with what they were, or with the deployment that scales down.
fn kill(core: &mut Core, ids: &[String], mode: KillMode, conflict: Conflict) -> Result<KillAnswer, Refusal> {
    let writer = TaskWriter::new(core, ServicePorts::Hidden);
    let instances = core.apps.values().flat_map(|state| state.instances.values());
    let killed: Vec<Value> = instances
        .filter(|i| i.is_task() && ids.contains(&i.task_id()))
        .map(|instance| writer.json(instance))
        .collect();
    Ok(match core.kill_tasks(ids, mode, conflict)? {
        Some(accepted) => KillAnswer::Deployment(Reply::accepted(&accepted)),
        None => KillAnswer::Tasks(killed),
    })
}

enum KillAnswer {
    Deployment(Reply),
    Tasks(Vec<Value>),
}

impl KillAnswer {
    fn list(self) -> Reply {
        match self {
            KillAnswer::Deployment(reply) => reply,
            KillAnswer::Tasks(tasks) => Reply::json(&json!({"tasks": tasks})),
        }
    }
}

async fn delete(call: &Call, context: &Context) -> Answer {
    let mode = kill_mode(call)?;
    let conflict = call.conflict(Conflict::Refuse);
    let value = call.json()?;
    let mut errors = Vec::new();
    let ids = Fields::of(&value, "", &mut errors).and_then(|mut fields| fields.texts("ids"));
    if errors.is_empty() && ids.is_none() {
        errors.push(FieldError::new("/ids", "error.path.missing"));
    }
    if !errors.is_empty() {
        return Err(Refusal::BadJson(errors).into());
    }
    let ids = ids.unwrap_or_default();
    let work = move |core: &mut Core| Ok(kill(core, &ids, mode, conflict)?.list());
    settled(context.handle.call_stored(work).await)
}

/// `/v2/apps/{id}/tasks` and `/v2/apps/{id}/tasks/{task}`.
pub(super) async fn answer_app(call: &Call, path: &[&str], task: Option<&str>, context: &Context) -> Answer {
    match (&call.method, path, task) {
        (&Method::GET | &Method::HEAD, [group @ .., "*"], None) => {
            list_of(call, id_of(group)?, Scope::Group, context).await
        }
        (&Method::GET | &Method::HEAD, path, None) => list_of(call, id_of(path)?, Scope::App, context).await,
        (&Method::DELETE, path, None) => delete_all(call, id_of(path)?, context).await,
        (&Method::DELETE, path, Some(task)) => delete_one(call, id_of(path)?, task.to_owned(), context).await,
        _ => Err(Failure::NoSuchMethod),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    App,
    Group,
}

async fn list_of(call: &Call, id: AppId, scope: Scope, context: &Context) -> Answer {
    let text = prefers_text(call);
    let work = move |core: &mut Core| {
        if scope == Scope::App && core.app(&id).is_none() {
            return Err(Refusal::UnknownApp(id).into());
        }
        let in_scope = |state: &&AppState| match scope {
            Scope::App => state.app.id == id,
            Scope::Group => state.app.id.is_inside(id.as_str()),
        };
        if text {
            return Ok(Reply::text(endpoints(&core.settings.host, core.live_apps().filter(in_scope))));
        }
        let mut out = b"{\"tasks\":[".to_vec();
        let instances = core.live_apps().filter(in_scope).flat_map(|state| state.instances.values());
        TaskWriter::new(core, ServicePorts::Hidden).write(instances, &mut out);
        out.extend_from_slice(b"]}");
        Ok(Reply::json_text(out))
    };
    settled(context.handle.call(work).await)
}

async fn delete_all(call: &Call, id: AppId, context: &Context) -> Answer {
    let mode = kill_mode(call)?;
    let conflict = call.conflict(Conflict::Refuse);
    let host = call.target.first("host").filter(|host| *host != "*").map(str::to_owned);
    let work = move |core: &mut Core| {
        let state = core.app(&id).ok_or_else(|| Refusal::UnknownApp(id.clone()))?;
        let here = host.is_none_or(|host| host == core.settings.host);
        let ids: Vec<String> = state
            .instances
            .values()
            .filter(|i| here && i.is_task() && i.is_active())
            .map(Instance::task_id)
            .collect();
        Ok(kill(core, &ids, mode, conflict)?.list())
    };
    settled(context.handle.call_stored(work).await)
}

async fn delete_one(call: &Call, id: AppId, task: String, context: &Context) -> Answer {
    let mode = kill_mode(call)?;
    let conflict = call.conflict(Conflict::Refuse);
    let work = move |core: &mut Core| {
        let state = core.app(&id).ok_or_else(|| Refusal::UnknownApp(id.clone()))?;
        if !state.instances.values().any(|i| i.is_task() && i.task_id() == task) {
            return Err(Refusal::UnknownTask(task).into());
        }
        Ok(match kill(core, &[task], mode, conflict)? {
            KillAnswer::Deployment(reply) => reply,
            KillAnswer::Tasks(tasks) => Reply::json(&json!({"task": tasks.first()})),
        })
    };
    settled(context.handle.call_stored(work).await)
}

/// The end of a task's output, as plain text.
pub(super) async fn log(call: &Call, task: &str, stream: &str, context: &Context) -> Answer {
    if call.method != Method::GET {
        return Err(Failure::NoSuchMethod);
    }
    if !matches!(stream, "stdout" | "stderr") {
        return Err(Failure::NoSuchPath);
    }
    let n_bytes = match call.target.first("tail_bytes").map(str::parse::<u64>) {
        None => TAIL_BYTES,
        Some(Ok(n)) => n.min(LONGEST_TAIL_BYTES),
        Some(Err(_)) => return Err(Refusal::BadRequest("tail_bytes must be a number of bytes".into()).into()),
    };
    let id = task.to_owned();
    let sandbox: Option<PathBuf> =
        context.handle.call(move |core| core.sandbox_of(&id)).await.ok_or(Refusal::Stopping)?;
    let unknown = || Refusal::UnknownTask(task.to_owned());
    let path = sandbox.ok_or_else(unknown)?.join(stream);
    let read = tokio::task::spawn_blocking(move || logs::tail(&path, n_bytes)).await;
    // A task that has not started yet has no files: nothing has been written.
    let text = read.ok().and_then(Result::ok).unwrap_or_default();
    Ok(Reply::new(http::StatusCode::OK, "text/plain;charset=utf-8", text))
}
