//! `/v2/apps`: definitions, their versions, restarts.
//!
//! Not here: their tasks (`tasks`).

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::reply::Reply;
use super::request::Target;
use super::selector::Selector;
use super::view::{Embed, ServicePorts, TaskWriter, write_app};
use super::{Answer, Call, Context, Failure, settled, tasks};
use crate::scheduler::app::App;
use crate::scheduler::app::fields::{FieldError, undefined};
use crate::scheduler::app::input::{AppUpdate, read_app};
use crate::scheduler::core::operations::{Accepted, Caller, Change, Conflict, Post, Request};
use crate::scheduler::core::{AppState, Core, Refusal};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

pub(super) async fn answer(call: &Call, rest: &[&str], context: &Context) -> Answer {
    match (&call.method, rest) {
        (&Method::GET | &Method::HEAD, []) => list(call, context).await,
        (&Method::POST, []) => create(call, context).await,
        (&Method::PUT | &Method::PATCH, []) => update_many(call, context).await,
        (_, []) => Err(Failure::NoSuchMethod),
        (_, [path @ .., "tasks"]) => tasks::answer_app(call, path, None, context).await,
        (_, [path @ .., "tasks", task]) => tasks::answer_app(call, path, Some(task), context).await,
        (&Method::POST, [path @ .., "restart"]) => restart(call, id_of(path)?, context).await,
        (&Method::GET | &Method::HEAD, [path @ .., "versions"]) => versions(id_of(path)?, context).await,
        (&Method::GET | &Method::HEAD, [path @ .., "versions", version]) => {
            one_version(id_of(path)?, (*version).to_owned(), context).await
        }
        (&Method::GET | &Method::HEAD, [path @ .., "*"]) => list_group(call, id_of(path)?, context).await,
        (&Method::GET | &Method::HEAD, path) => show(call, id_of(path)?, context).await,
        (&Method::PUT, path) => update(call, id_of(path)?, Creation::Allowed, context).await,
        (&Method::PATCH, path) => update(call, id_of(path)?, Creation::Refused, context).await,
        (&Method::DELETE, path) => remove(call, id_of(path)?, context).await,
        _ => Err(Failure::NoSuchMethod),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Creation {
    Allowed,
    Refused,
}

pub(super) fn id_of(path: &[&str]) -> Result<AppId, Refusal> {
    AppId::parse(&path.join("/")).map_err(|error| Refusal::Invalid(vec![FieldError::new("/id", error)]))
}

pub(super) fn caller(call: &Call, post: Post) -> Caller {
    Caller { ip: call.remote.ip().to_string(), uri: call.path.clone(), post }
}

fn unknown(id: &AppId) -> Refusal {
    Refusal::UnknownApp(id.clone())
}

/// Which apps a list has.
struct Filter {
    id: Option<String>,
    cmd: Option<String>,
    labels: Vec<Selector>,
}

impl Filter {
    fn of(target: &Target) -> Result<Self, Refusal> {
        let lower = |key| target.first(key).map(str::to_lowercase);
        let labels = target
            .all("label")
            .map(Selector::parse)
            .collect::<Result<_, _>>()
            .map_err(Refusal::Unprocessable)?;
        Ok(Self { id: lower("id"), cmd: lower("cmd"), labels })
    }

    fn takes(&self, app: &App) -> bool {
        let has = |wanted: &Option<String>, text: Option<&str>| {
            wanted.as_ref().is_none_or(|w| text.is_some_and(|text| text.to_lowercase().contains(w)))
        };
        has(&self.id, Some(app.id.as_str()))
            && has(&self.cmd, app.cmd.as_deref())
            && self.labels.iter().all(|selector| selector.matches(&app.labels))
    }
}

/// Room for one app with a few tasks; a list is sized by it so that it rarely grows.
const APP_BYTES: usize = 2048;

pub(super) fn write_list<'a>(
    core: &Core,
    key: &str,
    apps: impl Iterator<Item = &'a AppState>,
    embed: Embed,
) -> Reply {
    let mut out = Vec::with_capacity(APP_BYTES * (core.apps.len() + 1));
    out.extend_from_slice(format!("{{\"{key}\":[").as_bytes());
    let tasks = TaskWriter::new(core, ServicePorts::Hidden);
    for (index, state) in apps.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_app(state, &tasks, embed, &mut out);
    }
    out.extend_from_slice(b"]}");
    Reply::json_text(out)
}

async fn list(call: &Call, context: &Context) -> Answer {
    let filter = Filter::of(&call.target)?;
    let embed = Embed::for_list(&call.target);
    let work = move |core: &mut Core| {
        Ok(write_list(core, "apps", core.live_apps().filter(|state| filter.takes(&state.app)), embed))
    };
    settled(context.handle.call(work).await)
}

async fn list_group(call: &Call, group: AppId, context: &Context) -> Answer {
    let embed = Embed::for_list(&call.target);
    let work = move |core: &mut Core| {
        let inside = core.live_apps().filter(|state| state.app.id.is_inside(group.as_str()));
        Ok(write_list(core, "*", inside, embed))
    };
    settled(context.handle.call(work).await)
}

async fn show(call: &Call, id: AppId, context: &Context) -> Answer {
    let embed = Embed::for_one(&call.target);
    let work = move |core: &mut Core| {
        let state = core.app(&id).ok_or_else(|| unknown(&id))?;
        let mut out = b"{\"app\":".to_vec();
        write_app(state, &TaskWriter::new(core, ServicePorts::Hidden), embed, &mut out);
        out.push(b'}');
        Ok(Reply::json_text(out))
    };
    settled(context.handle.call(work).await)
}

fn read(value: &Value, path: &str) -> Result<AppUpdate, Refusal> {
    read_app(value, path).map_err(Refusal::BadJson)
}

fn id_in_body(update: &AppUpdate, value: &Value) -> Result<AppId, Refusal> {
    match &update.id {
        Some(id) => AppId::parse(id).map_err(|error| Refusal::Invalid(vec![FieldError::new("/id", error)])),
        None => Err(Refusal::BadJson(vec![undefined("", "id", value)])),
    }
}

fn add(
    core: &mut Core,
    value: &Value,
    conflict: Conflict,
    caller: Option<Caller>,
) -> Result<(AppId, Accepted), Refusal> {
    let update = read(value, "")?;
    let id = id_in_body(&update, value)?;
    let change = core.define(&update, &App::with_defaults(id.clone(), core.clock.newest()))?;
    core.refuse_known(&id)?;
    let origin = Some(id.clone());
    let request = Request { changes: vec![change], conflict, origin, caller, ..Request::default() };
    Ok((id, core.apply(request)?))
}

/// Adds the app unless it is known.
pub fn ensure(core: &mut Core, definition: &Value) -> Result<(), Refusal> {
    match add(core, definition, Conflict::Refuse, None) {
        Err(Refusal::AppExists(_)) => Ok(()),
        other => other.map(drop),
    }
}

fn created(core: &Core, id: &AppId, accepted: &Accepted) -> Reply {
    let definition = core.apps.get(id).map_or("{", |state| state.app.json_open());
    let text = format!(
        "{definition},\"tasksStaged\":0,\"tasksRunning\":0,\"tasksHealthy\":0,\"tasksUnhealthy\":0,\"deployments\":[{{\"id\":\"{}\"}}]}}",
        accepted.deployment
    );
    Reply::json_text(text).with_status(StatusCode::CREATED).with_deployment(accepted)
}

fn location(call: &Call, id: &AppId) -> String {
    format!("http://{}/v2/apps{id}", call.host())
}

async fn create(call: &Call, context: &Context) -> Answer {
    let value = call.json()?;
    let (conflict, caller) = (call.conflict(Conflict::Refuse), caller(call, Post::App));
    let work = move |core: &mut Core| {
        let (id, accepted) = add(core, &value, conflict, Some(caller))?;
        Ok((created(core, &id, &accepted), id))
    };
    let result: Option<Result<_, Refusal>> = context.handle.call_stored(work).await;
    let (reply, id) = result.unwrap_or(Err(Refusal::Stopping))?;
    Ok(reply.with_location(location(call, &id)))
}

/// The change that a PUT or PATCH of one app asks for.
fn change_for(
    core: &Core,
    id: &AppId,
    update: &AppUpdate,
    partial: bool,
    creation: Creation,
) -> Result<Change, Refusal> {
    let known = core.app(id);
    if known.is_none() && core.pod(id).is_some() {
        return Err(Refusal::PodExists(id.clone()));
    }
    if known.is_none() && creation == Creation::Refused {
        return Err(unknown(id));
    }
    // A body with only a version (and an id) asks for that version.
    if let Some(version) = update.version.as_ref().filter(|_| update.n_fields == 0) {
        let state = known.ok_or_else(|| unknown(id))?;
        return Ok(Change::Define(Box::new(App::clone(find_version(state, version)?))));
    }
    match known {
        Some(state) if partial => core.define(update, &state.app),
        _ => core.define(update, &App::with_defaults(id.clone(), core.clock.newest())),
    }
}

fn find_version<'a>(state: &'a AppState, text: &str) -> Result<&'a App, Refusal> {
    let version = Timestamp::parse(text).ok_or_else(|| Refusal::BadTimestamp(text.to_owned()))?;
    let found = state.versions.get(&version).map(|app| app.as_ref());
    found.ok_or_else(|| Refusal::UnknownVersion(state.app.id.clone(), text.to_owned()))
}

/// A version together with other changes is an error, unless it comes with everything else that a GET shows:
/// clients send that back.
fn check_version_alone(update: &AppUpdate) -> Result<(), Refusal> {
    let is_echo = update.version_info.is_some();
    if update.version.is_some() && update.n_fields > 0 && !is_echo {
        let text = "The 'version' field may only be combined with the 'id' field.";
        return Err(Refusal::Unprocessable(text.into()));
    }
    Ok(())
}

async fn update(call: &Call, id: AppId, creation: Creation, context: &Context) -> Answer {
    let value = call.json()?;
    let update = read(&value, "")?;
    check_version_alone(&update)?;
    let partial = creation == Creation::Refused || call.target.flag_or("partialUpdate", true);
    let (conflict, caller) = (call.conflict(Conflict::Refuse), caller(call, Post::App));
    let location = location(call, &id);
    let work = move |core: &mut Core| {
        let is_new = core.app(&id).is_none();
        let change = change_for(core, &id, &update, partial, creation)?;
        let origin = Some(id);
        let request =
            Request { changes: vec![change], conflict, origin, caller: Some(caller), ..Request::default() };
        let accepted = core.apply(request)?;
        let reply = Reply::accepted(&accepted);
        if is_new {
            return Ok(reply.with_status(StatusCode::CREATED).with_location(location));
        }
        Ok(reply)
    };
    settled(context.handle.call_stored(work).await)
}

async fn update_many(call: &Call, context: &Context) -> Answer {
    let value = call.json()?;
    let Value::Array(items) = value else {
        return Err(Refusal::BadJson(vec![FieldError::new("/", "error.expected.jsarray")]).into());
    };
    let mut updates = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        let update = read(item, &format!("({index})"))?;
        let id = id_in_body(&update, item)?;
        check_version_alone(&update)?;
        updates.insert(id, update);
    }
    let conflict = call.conflict(Conflict::Refuse);
    let creation = if call.method == Method::PATCH { Creation::Refused } else { Creation::Allowed };
    let partial = creation == Creation::Refused || call.target.flag_or("partialUpdate", true);
    let work = move |core: &mut Core| {
        let changes = updates
            .iter()
            .map(|(id, update)| change_for(core, id, update, partial, creation))
            .collect::<Result<_, _>>()?;
        Ok(Reply::accepted(&core.apply(Request { changes, conflict, ..Request::default() })?))
    };
    settled(context.handle.call_stored(work).await)
}

async fn remove(call: &Call, id: AppId, context: &Context) -> Answer {
    // Marathon forces this one unless told otherwise.
    let conflict = call.conflict(Conflict::Override);
    let work = move |core: &mut Core| {
        core.app(&id).ok_or_else(|| unknown(&id))?;
        let changes = vec![Change::Remove(id.clone())];
        let request = Request { changes, conflict, origin: Some(id), ..Request::default() };
        Ok(Reply::accepted(&core.apply(request)?))
    };
    settled(context.handle.call_stored(work).await)
}

async fn restart(call: &Call, id: AppId, context: &Context) -> Answer {
    let conflict = call.conflict(Conflict::Refuse);
    let work = move |core: &mut Core| {
        core.app(&id).ok_or_else(|| unknown(&id))?;
        let changes = vec![Change::Restart(id.clone())];
        let request = Request { changes, conflict, origin: Some(id), ..Request::default() };
        Ok(Reply::accepted(&core.apply(request)?))
    };
    settled(context.handle.call_stored(work).await)
}

async fn versions(id: AppId, context: &Context) -> Answer {
    let work = move |core: &mut Core| {
        let state = core.app(&id).ok_or_else(|| unknown(&id))?;
        let newest_first: Vec<&Timestamp> = state.versions.keys().rev().collect();
        Ok(Reply::json(&json!({"versions": newest_first})))
    };
    settled(context.handle.call(work).await)
}

async fn one_version(id: AppId, version: String, context: &Context) -> Answer {
    let work = move |core: &mut Core| {
        let state = core.app(&id).ok_or_else(|| unknown(&id))?;
        Ok(Reply::json_text(find_version(state, &version)?.json().to_owned()))
    };
    settled(context.handle.call(work).await)
}
