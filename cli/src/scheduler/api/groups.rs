//! `/v2/groups`: the tree that app ids make, and changes of many apps at once.
//!
//! Not here: groups of their own. A group exists while an app is in it; its dependencies become those of its
//! apps.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::reply::Reply;
use super::view::{Embed, ServicePorts, TaskWriter, write_app};
use super::{Answer, Call, Context, Failure, settled};
use crate::scheduler::app::App;
use crate::scheduler::app::input::{FieldError, Fields, read_app};
use crate::scheduler::core::operations::{Change, Conflict};
use crate::scheduler::core::{Core, Refusal};
use crate::scheduler::id::AppId;

/// Groups within groups; deeper ones are a mistake and would exhaust the stack.
const MAX_DEPTH: usize = 32;

pub(super) async fn answer(call: &Call, rest: &[&str], context: &Context) -> Answer {
    match (&call.method, rest) {
        (&Method::GET | &Method::HEAD, [path @ .., "apps"]) => {
            let id = super::apps::id_of(path)?;
            settled(context.handle.call(move |core| apps_of(core, &id)).await)
        }
        (&Method::GET | &Method::HEAD, path) => {
            let id = super::apps::id_of(path)?;
            let embed = embed_of(call);
            let work = move |core: &mut Core| {
                if !id.is_root() && !exists(core, &id) {
                    return Err(Refusal::UnknownGroup(id.to_string()).into());
                }
                Ok(Reply::json(&tree(core, id.as_str(), embed)))
            };
            settled(context.handle.call(work).await)
        }
        (&Method::POST | &Method::PUT, path) => change(call, super::apps::id_of(path)?, context).await,
        (&Method::DELETE, path) => {
            let id = super::apps::id_of(path)?;
            let conflict = call.conflict(Conflict::Refuse);
            let work = move |core: &mut Core| {
                let inside = members(core, &id);
                if inside.is_empty() && !id.is_root() {
                    return Err(Refusal::UnknownGroup(id.to_string()).into());
                }
                let changes = inside.into_iter().map(Change::Remove).collect();
                Ok(Reply::accepted(&core.apply(changes, conflict, id.as_str(), None)?))
            };
            settled(context.handle.call_stored(work).await)
        }
        _ => Err(Failure::NoSuchMethod),
    }
}

fn embed_of(call: &Call) -> Embed {
    let wanted = |name: &str| call.target.all("embed").any(|embed| embed.ends_with(name));
    Embed {
        tasks: wanted("apps.tasks"),
        counts: wanted("apps.counts"),
        deployments: wanted("apps.deployments"),
        readiness: wanted("apps.readiness"),
        last_failure: wanted("apps.lastTaskFailure"),
    }
}

fn members(core: &Core, group: &AppId) -> Vec<AppId> {
    core.live_apps().map(|s| &s.app.id).filter(|id| id.is_inside(group.as_str())).cloned().collect()
}

fn exists(core: &Core, group: &AppId) -> bool {
    core.live_apps().any(|state| state.app.id.is_inside(group.as_str()))
}

fn apps_of(core: &Core, group: &AppId) -> Answer {
    Ok(Reply::json(&tree(core, group.as_str(), Embed::default())["apps"]))
}

fn tree(core: &Core, group: &str, embed: Embed) -> Value {
    let prefix = if group == "/" { "/".to_owned() } else { format!("{group}/") };
    let writer = TaskWriter::new(core, ServicePorts::Hidden);
    let (mut apps, mut below) = (Vec::new(), BTreeSet::new());
    for state in core.live_apps() {
        let Some(rest) = state.app.id.as_str().strip_prefix(&prefix) else { continue };
        match rest.split_once('/') {
            Some((child, _)) => {
                below.insert(format!("{prefix}{child}"));
            }
            None => {
                let mut out = Vec::new();
                write_app(state, &writer, embed, &mut out);
                apps.push(serde_json::from_slice::<Value>(&out).unwrap_or_default());
            }
        }
    }
    let groups: Vec<Value> = below.iter().map(|child| tree(core, child, embed)).collect();
    json!({"id": group, "apps": apps, "groups": groups, "pods": [], "dependencies": [],
        "version": core.clock.newest()})
}

async fn change(call: &Call, path: AppId, context: &Context) -> Answer {
    let value = call.json_or_empty()?;
    let conflict = call.conflict(Conflict::Refuse);
    let (is_post, dry_run) = (call.method == Method::POST, call.target.flag("dryRun"));
    let mut errors = Vec::new();
    let id = {
        let mut fields = Fields::of(&value, "", &mut errors);
        let id = fields.as_mut().and_then(|fields| fields.text("id"));
        match id {
            Some(id) => AppId::parse_in(path.as_str(), &id)
                .map_err(|error| Refusal::Invalid(vec![FieldError::new("/id", error)]))?,
            None => path,
        }
    };
    if !errors.is_empty() {
        return Err(Refusal::BadJson(errors).into());
    }
    let work = move |core: &mut Core| {
        if is_post && !id.is_root() && exists(core, &id) {
            return Err(Refusal::GroupExists(id.to_string()).into());
        }
        if core.app(&id).is_some() {
            let text = format!("An app with the path {id} already exists.");
            return Err(Refusal::Unprocessable(text).into());
        }
        let changes = changes_for(core, &id, &value)?;
        if dry_run {
            let steps: Vec<Value> = changes.iter().map(describe).collect();
            return Ok(Reply::json(&json!({"steps": [{"actions": steps}]})));
        }
        let reply = Reply::accepted(&core.apply(changes, conflict, id.as_str(), None)?);
        if is_post {
            return Ok(reply.with_status(StatusCode::CREATED).with_location(format!("/v2/groups{id}")));
        }
        Ok(reply)
    };
    settled(context.handle.call_stored(work).await)
}

fn describe(change: &Change) -> Value {
    match change {
        Change::Define(app) => json!({"action": "ScaleApplication", "app": app.id}),
        Change::Restart(id) => json!({"action": "RestartApplication", "app": id}),
        Change::Remove(id) => json!({"action": "StopApplication", "app": id}),
    }
}

fn changes_for(core: &Core, id: &AppId, value: &Value) -> Result<Vec<Change>, Refusal> {
    let mut errors = Vec::new();
    let scale = Fields::of(value, "", &mut errors).and_then(|mut fields| fields.number("scaleBy"));
    if !errors.is_empty() {
        return Err(Refusal::BadJson(errors));
    }
    if let Some(factor) = scale {
        if !(0.0..=1e6).contains(&factor) {
            let error = FieldError::new("/scaleBy", format!("got {factor}, expected 0 or more"));
            return Err(Refusal::Invalid(vec![error]));
        }
        let scaled = |id: AppId| {
            let mut app = App::clone(&core.app(&id)?.app);
            app.instances = (f64::from(app.instances) * factor).ceil().min(f64::from(i32::MAX)) as u32;
            Some(Change::Define(Box::new(app)))
        };
        return Ok(members(core, id).into_iter().filter_map(scaled).collect());
    }
    let mut read = GroupReader { core, changes: Vec::new(), errors: Vec::new() };
    read.group(value, id.as_str(), "", &[], MAX_DEPTH)?;
    if !read.errors.is_empty() {
        return Err(Refusal::BadJson(read.errors));
    }
    // A definition of a group is complete: what it does not name goes.
    let named: BTreeSet<AppId> = read
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Define(app) => Some(app.id.clone()),
            _ => None,
        })
        .collect();
    let mut changes = read.changes;
    if value.get("apps").is_some() || value.get("groups").is_some() {
        changes.extend(members(core, id).into_iter().filter(|app| !named.contains(app)).map(Change::Remove));
    }
    Ok(changes)
}

struct GroupReader<'a> {
    core: &'a Core,
    changes: Vec<Change>,
    errors: Vec<FieldError>,
}

impl GroupReader<'_> {
    fn group(
        &mut self,
        value: &Value,
        id: &str,
        path: &str,
        outer: &[AppId],
        depth: usize,
    ) -> Result<(), Refusal> {
        let invalid = |path: String, error: String| Refusal::Invalid(vec![FieldError::new(path, error)]);
        if depth == 0 {
            return Err(invalid(path.to_owned(), "groups are nested too deeply".into()));
        }
        let Some(mut fields) = Fields::of(value, path, &mut self.errors) else { return Ok(()) };
        let mut dependencies = outer.to_vec();
        for dependency in fields.texts("dependencies").unwrap_or_default() {
            let parsed = AppId::parse_in(id, &dependency);
            dependencies.push(parsed.map_err(|e| invalid(format!("{path}/dependencies"), e))?);
        }
        let keep = |item: &Value, _: &str, _: &mut Vec<FieldError>| Some(item.clone());
        let apps = fields.list("apps", keep).unwrap_or_default();
        let groups = fields.list("groups", keep).unwrap_or_default();
        for (index, item) in apps.iter().enumerate() {
            self.app(item, id, &format!("{path}/apps({index})"), &dependencies)?;
        }
        for (index, item) in groups.iter().enumerate() {
            let path = format!("{path}/groups({index})");
            let Some(child) = item.get("id").and_then(Value::as_str) else {
                self.errors.push(undefined_id(&path, item));
                continue;
            };
            let child = AppId::parse_in(id, child).map_err(|e| invalid(format!("{path}/id"), e))?;
            self.group(item, child.as_str(), &path, &dependencies, depth - 1)?;
        }
        Ok(())
    }

    fn app(&mut self, item: &Value, group: &str, path: &str, outer: &[AppId]) -> Result<(), Refusal> {
        let update = match read_app(item, path) {
            Ok(update) => update,
            Err(errors) => {
                self.errors.extend(errors);
                return Ok(());
            }
        };
        let Some(id) = &update.id else {
            self.errors.push(undefined_id(path, item));
            return Ok(());
        };
        let id = AppId::parse_in(group, id)
            .map_err(|error| Refusal::Invalid(vec![FieldError::new(format!("{path}/id"), error)]))?;
        let mut change = self.core.define(&update, &App::with_defaults(id, self.core.clock.newest()))?;
        if let Change::Define(app) = &mut change {
            app.dependencies.extend_from_slice(outer);
        }
        self.changes.push(change);
        Ok(())
    }
}

fn undefined_id(path: &str, item: &Value) -> FieldError {
    let object = if item.as_object().is_some_and(|map| map.is_empty()) { "{}" } else { "{...}" };
    FieldError::new(format!("{path}/id"), format!("'id' is undefined on object: {object}"))
}
