//! Turns what is asked of a group into changes of its apps, pods and groups.
//!
//! Not here: carrying them out (`core::operations`).

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use crate::scheduler::app::App;
use crate::scheduler::app::fields::{FieldError, Fields, undefined};
use crate::scheduler::app::input::read_app;
use crate::scheduler::app::pod::read_pod;
use crate::scheduler::core::groups::Tree;
use crate::scheduler::core::operations::{Change, GroupChange};
use crate::scheduler::core::{Core, Refusal};
use crate::scheduler::id::AppId;

/// Groups within groups; deeper ones are a mistake and would exhaust the stack.
const MAX_DEPTH: usize = 32;

type Changes = (Vec<Change>, Vec<GroupChange>);

/// Removes everything in the group, but not the group.
pub fn empty_group(tree: &Tree, id: &AppId) -> Changes {
    let apps = tree.apps.keys().filter(|app| app.is_inside(id.as_str()));
    let groups = tree.groups.keys().filter(|group| group.is_inside(id.as_str()));
    (apps.cloned().map(Change::Remove).collect(), groups.cloned().map(GroupChange::Remove).collect())
}

/// Multiplies the instances of every app in the group. One that is not there is made, as Marathon does.
pub fn scaled(core: &Core, id: &AppId, factor: f64) -> Result<Changes, Refusal> {
    if !(0.0..=1e6).contains(&factor) {
        let error = FieldError::new("/scaleBy", format!("got {factor}, expected 0 or more"));
        return Err(Refusal::Invalid(vec![error]));
    }
    let scale = |app: &Arc<App>| {
        let mut app = App::clone(app);
        app.instances = (f64::from(app.instances) * factor).ceil().min(f64::from(i32::MAX)) as u32;
        Change::Define(Box::new(app))
    };
    let inside = core.run_specs().filter(|state| state.app.id.is_inside(id.as_str()));
    let changes = inside.map(|state| scale(&state.app)).collect();
    let missing = (!core.has_group(id)).then(|| define(id.clone(), Vec::new()));
    Ok((changes, missing.into_iter().collect()))
}

fn define(id: AppId, dependencies: Vec<AppId>) -> GroupChange {
    GroupChange::Define { id, dependencies }
}

/// Makes the group what it was in `before`.
pub fn restored(core: &Core, id: &AppId, before: &Tree) -> Changes {
    let now = core.tree();
    let (mut changes, mut groups) = empty_group(&now, id);
    changes.retain(|change| !matches!(change, Change::Remove(app) if before.apps.contains_key(app)));
    groups
        .retain(|change| !matches!(change, GroupChange::Remove(group) if before.groups.contains_key(group)));
    let apps = before.apps.values().filter(|app| app.id.is_inside(id.as_str()));
    changes.extend(apps.map(|app| Change::Define(Box::new(App::clone(app)))));
    let of_before = before.groups.iter().filter(|(group, _)| *group == id || group.is_inside(id.as_str()));
    groups.extend(of_before.map(|(group, known)| define(group.clone(), known.dependencies.clone())));
    (changes, groups)
}

/// What the definition of a group asks for: apps, pods and groups that are listed replace those that were there;
/// a list that is absent leaves them alone.
pub fn requested(core: &Core, id: &AppId, value: &Value) -> Result<Changes, Refusal> {
    let mut reader =
        Reader { core, tree: core.tree(), changes: Vec::new(), groups: Vec::new(), errors: Vec::new() };
    reader.group(value, id, "", MAX_DEPTH)?;
    if !reader.errors.is_empty() {
        return Err(Refusal::BadJson(reader.errors));
    }
    Ok((reader.changes, reader.groups))
}

struct Reader<'a> {
    core: &'a Core,
    tree: Tree,
    changes: Vec<Change>,
    groups: Vec<GroupChange>,
    errors: Vec<FieldError>,
}

fn invalid(path: String, error: String) -> Refusal {
    Refusal::Invalid(vec![FieldError::new(path, error)])
}

impl Reader<'_> {
    fn group(&mut self, value: &Value, id: &AppId, path: &str, depth: usize) -> Result<(), Refusal> {
        if depth == 0 {
            return Err(invalid(path.to_owned(), "groups are nested too deeply".into()));
        }
        let Some(mut fields) = Fields::of(value, path, &mut self.errors) else { return Ok(()) };
        let keep = |item: &Value, _: &str, _: &mut Vec<FieldError>| Some(item.clone());
        let dependencies = fields.texts("dependencies");
        let apps = fields.list("apps", keep);
        let pods = fields.list("pods", keep);
        let groups = fields.list("groups", keep);
        self.dependencies(id, path, dependencies)?;
        let mut named: BTreeSet<AppId> = BTreeSet::new();
        for (index, item) in apps.iter().flatten().enumerate() {
            named.extend(self.app(item, id, &format!("{path}/apps({index})"))?);
        }
        for (index, item) in pods.iter().flatten().enumerate() {
            named.extend(self.pod(item, id, &format!("{path}/pods({index})"))?);
        }
        let lists = (apps.is_some(), pods.is_some());
        let gone = self.tree.apps.values().filter(|app| {
            let listed = if app.is_pod() { lists.1 } else { lists.0 };
            listed && app.id.group() == id.as_str() && !named.contains(&app.id)
        });
        self.changes.extend(gone.map(|app| Change::Remove(app.id.clone())));
        let Some(groups) = groups else { return Ok(()) };
        let mut kept: BTreeSet<AppId> = BTreeSet::new();
        for (index, item) in groups.iter().enumerate() {
            let path = format!("{path}/groups({index})");
            let Some(child) = item.get("id").and_then(Value::as_str) else {
                self.errors.push(undefined(&path, "id", item));
                continue;
            };
            let child = AppId::parse_in(id.as_str(), child).map_err(|e| invalid(format!("{path}/id"), e))?;
            self.group(item, &child, &path, depth - 1)?;
            kept.insert(child);
        }
        let below: Vec<AppId> =
            self.tree.groups.keys().filter(|g| !g.is_root() && g.group() == id.as_str()).cloned().collect();
        for gone in below.into_iter().filter(|group| !kept.contains(group)) {
            let (changes, groups) = empty_group(&self.tree, &gone);
            self.changes.extend(changes);
            self.groups.extend(groups);
            self.groups.push(GroupChange::Remove(gone));
        }
        Ok(())
    }

    /// A group that is new or names its dependencies.
    fn dependencies(&mut self, id: &AppId, path: &str, named: Option<Vec<String>>) -> Result<(), Refusal> {
        if named.is_none() && self.tree.has_group(id) {
            return Ok(());
        }
        let mut dependencies = Vec::new();
        for dependency in named.unwrap_or_default() {
            let parsed = AppId::parse_in(id.as_str(), &dependency);
            dependencies.push(parsed.map_err(|e| invalid(format!("{path}/dependencies"), e))?);
        }
        self.groups.push(define(id.clone(), dependencies));
        Ok(())
    }

    fn app(&mut self, item: &Value, group: &AppId, path: &str) -> Result<Option<AppId>, Refusal> {
        let update = match read_app(item, path) {
            Ok(update) => update,
            Err(errors) => {
                self.errors.extend(errors);
                return Ok(None);
            }
        };
        let Some(id) = &update.id else {
            self.errors.push(undefined(path, "id", item));
            return Ok(None);
        };
        let id = AppId::parse_in(group.as_str(), id).map_err(|e| invalid(format!("{path}/id"), e))?;
        let base = App::with_defaults(id.clone(), self.core.clock.newest());
        let change = self.core.define(&update, &base).map_err(|refusal| below(path, refusal))?;
        self.changes.push(change);
        Ok(Some(id))
    }

    fn pod(&mut self, item: &Value, group: &AppId, path: &str) -> Result<Option<AppId>, Refusal> {
        let Some(id) = item.get("id").and_then(Value::as_str) else {
            self.errors.push(undefined(path, "id", item));
            return Ok(None);
        };
        let id = AppId::parse_in(group.as_str(), id).map_err(|e| invalid(format!("{path}/id"), e))?;
        let mut item = item.clone();
        item["id"] = id.as_str().into();
        match read_pod(&item, self.core.clock.newest()) {
            Ok(pod) => {
                self.changes.push(self.core.checked_change(pod).map_err(|refusal| below(path, refusal))?);
                Ok(Some(id))
            }
            Err(errors) => {
                self.errors.extend(errors.into_iter().map(|error| prefixed(path, error)));
                Ok(None)
            }
        }
    }
}

/// What is wrong with one app of a group is told with the app's place in it.
fn below(path: &str, refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Invalid(errors) => {
            Refusal::Invalid(errors.into_iter().map(|error| prefixed(path, error)).collect())
        }
        other => other,
    }
}

fn prefixed(path: &str, mut error: FieldError) -> FieldError {
    error.path = if error.path == "/" { path.to_owned() } else { format!("{path}{}", error.path) };
    error
}
