//! `/v2/groups`: the tree of groups, its versions, and changes of many apps at once.
//!
//! Not here: reading a group's definition (`group_update`).

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::apps::id_of;
use super::group_update::{empty_group, requested, scaled};
use super::reply::Reply;
use super::request::Target;
use super::view::{Embed, ServicePorts, TaskWriter, write_app};
use super::{Answer, Call, Context, Failure, settled};
use crate::scheduler::app::fields::{FieldError, Fields};
use crate::scheduler::core::groups::Tree;
use crate::scheduler::core::operations::{Conflict, GroupChange, Request};
use crate::scheduler::core::{Core, Refusal};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

pub(super) async fn answer(call: &Call, rest: &[&str], context: &Context) -> Answer {
    match (&call.method, rest) {
        (&Method::GET | &Method::HEAD, [path @ .., "apps"]) => apps(call, id_of(path)?, context).await,
        (&Method::GET | &Method::HEAD, [path @ .., "versions"]) => versions(id_of(path)?, context).await,
        (&Method::GET | &Method::HEAD, [path @ .., "versions", version]) => {
            one_version(call, id_of(path)?, (*version).to_owned(), context).await
        }
        (&Method::GET | &Method::HEAD, path) => show(call, id_of(path)?, context).await,
        (&Method::POST, path) => create(call, id_of(path)?, context).await,
        (&Method::PUT, path) => update(call, id_of(path)?, context).await,
        (&Method::DELETE, path) => remove(call, id_of(path)?, context).await,
        _ => Err(Failure::NoSuchMethod),
    }
}

/// Which parts of a group are listed.
#[derive(Clone, Copy)]
struct GroupEmbed {
    apps: bool,
    pods: bool,
    groups: bool,
    of_apps: Embed,
}

impl GroupEmbed {
    /// Everything but what runs, unless the request names parts.
    fn of(target: &Target) -> Self {
        let names: Vec<&str> =
            target.all("embed").map(|name| name.strip_prefix("group.").unwrap_or(name)).collect();
        let has = |name: &str| names.contains(&name);
        let of_apps = Embed {
            tasks: has("apps.tasks"),
            counts: has("apps.counts"),
            deployments: has("apps.deployments"),
            readiness: has("apps.readiness"),
            last_failure: has("apps.lastTaskFailure"),
            stats: has("apps.taskStats"),
        };
        let all = names.is_empty();
        Self {
            apps: all || names.iter().any(|name| *name == "apps" || name.starts_with("apps.")),
            pods: all || has("pods"),
            groups: all || has("groups"),
            of_apps,
        }
    }
}

/// The group as Marathon writes it; the apps' states are looked up in `core`, their definitions in `tree`.
fn write_group(core: &Core, tree: &Tree, group: &AppId, embed: GroupEmbed, version: Timestamp) -> Value {
    let writer = TaskWriter::new(core, ServicePorts::Hidden);
    let mut written = json!({"id": group, "dependencies": [],
        "version": tree.version_of(group).unwrap_or(version)});
    if let Some(known) = tree.groups.get(group) {
        written["dependencies"] = json!(known.dependencies);
    }
    let direct = || tree.apps.values().filter(|app| app.id.group() == group.as_str());
    let definition = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    if embed.apps {
        let of_app = |app: &std::sync::Arc<crate::scheduler::app::App>| match core.app(&app.id) {
            Some(state) if state.app.version == app.version => {
                let mut out = Vec::new();
                write_app(state, &writer, embed.of_apps, &mut out);
                serde_json::from_slice(&out).unwrap_or_default()
            }
            _ => definition(app.json()),
        };
        written["apps"] = direct().filter(|app| !app.is_pod()).map(of_app).collect();
    }
    if embed.pods {
        written["pods"] = direct().filter(|app| app.is_pod()).map(|app| definition(app.json())).collect();
    }
    if embed.groups {
        let below = tree.groups.keys().filter(|id| !id.is_root() && id.group() == group.as_str());
        written["groups"] = below.map(|id| write_group(core, tree, id, embed, version)).collect();
    }
    written
}

async fn show(call: &Call, id: AppId, context: &Context) -> Answer {
    let embed = GroupEmbed::of(&call.target);
    let work = move |core: &mut Core| {
        if !core.has_group(&id) {
            return Err(Refusal::UnknownGroup(id.to_string()).into());
        }
        Ok(Reply::json(&write_group(core, &core.tree(), &id, embed, core.clock.newest())))
    };
    settled(context.handle.call(work).await)
}

async fn apps(call: &Call, id: AppId, context: &Context) -> Answer {
    let embed = Embed::for_list(&call.target);
    let work = move |core: &mut Core| {
        if !core.has_group(&id) {
            return Err(Refusal::UnknownGroup(id.to_string()).into());
        }
        let inside = core.live_apps().filter(|state| state.app.id.is_inside(id.as_str()));
        Ok(super::apps::write_list(core, "apps", inside, embed))
    };
    settled(context.handle.call(work).await)
}

async fn versions(id: AppId, context: &Context) -> Answer {
    let work = move |core: &mut Core| {
        if !core.has_group(&id) {
            return Err(Refusal::UnknownGroup(id.to_string()).into());
        }
        Ok(Reply::json(&json!(core.versions_of_group(&id))))
    };
    settled(context.handle.call(work).await)
}

async fn one_version(call: &Call, id: AppId, version: String, context: &Context) -> Answer {
    let embed = GroupEmbed::of(&call.target);
    let work = move |core: &mut Core| {
        let (tree, at) = tree_at(core, &id, &version)?;
        Ok(Reply::json(&write_group(core, &tree, &id, embed, at)))
    };
    settled(context.handle.call(work).await)
}

/// The tree at a version in which there was the group.
fn tree_at(core: &Core, id: &AppId, version: &str) -> Result<(Tree, Timestamp), Refusal> {
    let at = Timestamp::parse(version).ok_or_else(|| Refusal::BadTimestamp(version.to_owned()))?;
    let tree = core.tree_at(at).filter(|tree| tree.has_group(id));
    tree.map(|tree| (tree, at))
        .ok_or_else(|| Refusal::UnknownGroupVersion(id.to_string(), version.to_owned()))
}

async fn remove(call: &Call, id: AppId, context: &Context) -> Answer {
    let conflict = call.conflict(Conflict::Refuse);
    let work = move |core: &mut Core| {
        if !core.has_group(&id) {
            return Err(Refusal::UnknownGroup(id.to_string()).into());
        }
        let (changes, mut groups) = empty_group(&core.tree(), &id);
        groups.extend((!id.is_root()).then(|| GroupChange::Remove(id.clone())));
        let request = Request { changes, groups, conflict, origin: Some(id), caller: None };
        Ok(Reply::accepted(&core.apply(request)?))
    };
    settled(context.handle.call_stored(work).await)
}

/// The group that the request is about: its path, or the `id` in its body, relative to the path.
fn addressed(path: AppId, value: &Value) -> Result<AppId, Refusal> {
    let mut errors = Vec::new();
    let id = Fields::of(value, "", &mut errors).and_then(|mut fields| fields.text("id"));
    match id {
        _ if !errors.is_empty() => Err(Refusal::BadJson(errors)),
        Some(id) if path.is_root() => {
            AppId::parse(&id).map_err(|error| Refusal::Invalid(vec![FieldError::new("/id", error)]))
        }
        _ => Ok(path),
    }
}

async fn create(call: &Call, path: AppId, context: &Context) -> Answer {
    let value = call.json_or_empty()?;
    let conflict = call.conflict(Conflict::Refuse);
    let id = addressed(path, &value)?;
    let host = call.host();
    let work = move |core: &mut Core| {
        if core.run_spec(&id).is_some() {
            return Err(Refusal::PathIsApp(id).into());
        }
        if core.has_group(&id) && !id.is_root() {
            return Err(Refusal::GroupExists(id.to_string()).into());
        }
        let (changes, groups) = requested(core, &id, &value)?;
        let origin = Some(id.clone());
        let accepted = core.apply(Request { changes, groups, conflict, origin, caller: None })?;
        Ok(Reply::accepted(&accepted)
            .with_status(StatusCode::CREATED)
            .with_location(format!("http://{host}/v2/groups{id}")))
    };
    settled(context.handle.call_stored(work).await)
}

async fn update(call: &Call, path: AppId, context: &Context) -> Answer {
    let value = call.json_or_empty()?;
    let conflict = call.conflict(Conflict::Refuse);
    let dry_run = call.target.flag("dryRun");
    let id = addressed(path, &value)?;
    let work = move |core: &mut Core| {
        if core.run_spec(&id).is_some() {
            return Err(Refusal::PathIsApp(id).into());
        }
        let mut errors = Vec::new();
        let asked = Fields::of(&value, "", &mut errors)
            .map(|mut fields| (fields.text("version"), fields.number("scaleBy")));
        if !errors.is_empty() {
            return Err(Refusal::BadJson(errors).into());
        }
        let (changes, groups) = match asked {
            Some((Some(version), _)) => {
                let (tree, _) = tree_at(core, &id, &version)?;
                super::group_update::restored(core, &id, &tree)
            }
            Some((None, Some(factor))) => scaled(core, &id, factor)?,
            _ => requested(core, &id, &value)?,
        };
        let request = Request { changes, groups, conflict, origin: Some(id), caller: None };
        if dry_run {
            let steps: Vec<Value> = core.plan(request)?.iter().map(|step| step.json()).collect();
            return Ok(Reply::json(&json!({"steps": steps})));
        }
        Ok(Reply::accepted(&core.apply(request)?))
    };
    settled(context.handle.call_stored(work).await)
}
