//! The scheduler's state as lines of JSON: what a change adds to the journal, what a whole state is, and how the
//! lines are read again.
//!
//! Not here: the file (`store`). Instances are not written: they end with the scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::deployment::{Action, Deployment, Step, read_name};
use super::groups::{Group, History, RootChange};
use super::{Core, MAX_VERSIONS};
use crate::scheduler::app::input::read_app;
use crate::scheduler::app::pod::read_pod;
use crate::scheduler::app::{App, VersionInfo};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// What the lines of a journal add up to.
#[derive(Debug, Default)]
pub struct State {
    /// Each with its kept definitions.
    pub apps: BTreeMap<AppId, BTreeMap<Timestamp, Arc<App>>>,
    pub groups: BTreeMap<AppId, Group>,
    pub history: History,
    /// Those that had not ended.
    pub deployments: Vec<Deployment>,
}

/// A definition with everything that its JSON alone would lose.
fn entry(app: &App) -> String {
    match app.pod {
        None => format!("{{\"app\":{}}}", app.json()),
        Some(_) => format!("{{\"pod\":{},\"versionInfo\":{}}}", app.json(), json!(app.version_info)),
    }
}

fn entry_or_null(app: &Option<Arc<App>>) -> String {
    app.as_ref().map_or_else(|| "null".to_owned(), |app| entry(app))
}

fn group_json(group: &Group) -> Value {
    json!({"dependencies": group.dependencies, "version": group.version})
}

fn deployment_json(deployment: &Deployment) -> Value {
    let steps: Vec<Vec<Value>> = deployment
        .steps
        .iter()
        .map(|step| step.actions.iter().map(|a| json!([a.name(), a.app])).collect())
        .collect();
    json!({"id": deployment.id, "version": deployment.version, "steps": steps,
        "current": deployment.current, "affected": deployment.affected})
}

/// What one accepted change adds.
#[derive(Debug, Default)]
pub struct ChangeRecord<'a> {
    pub defined: Vec<Arc<App>>,
    pub removed: Vec<AppId>,
    pub groups: Vec<(AppId, Option<Group>)>,
    pub deployment: Option<&'a Deployment>,
    /// Deployments that this one overrode.
    pub ended: Vec<String>,
}

impl ChangeRecord<'_> {
    pub fn line(&self, version: Timestamp) -> String {
        let defined: Vec<String> = self.defined.iter().map(|app| entry(app)).collect();
        let groups: Vec<Value> =
            self.groups.iter().map(|(id, group)| json!([id, group.as_ref().map(group_json)])).collect();
        format!(
            "{{\"change\":{{\"version\":\"{version}\",\"defined\":[{}],\"removed\":{},\"groups\":{},\"deployment\":{},\"ended\":{}}}}}",
            defined.join(","),
            json!(self.removed),
            json!(groups),
            json!(self.deployment.map(deployment_json)),
            json!(self.ended),
        )
    }
}

pub fn step_line(deployment: &str, index: usize) -> String {
    json!({"step": {"deployment": deployment, "index": index}}).to_string()
}

pub fn end_line(deployment: &str) -> String {
    json!({"end": deployment}).to_string()
}

impl Core {
    /// The whole state, one line for each thing.
    pub fn snapshot(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for state in self.run_specs() {
            let versions: Vec<String> = state.versions.values().map(|app| entry(app)).collect();
            lines.push(format!("{{\"versions\":[{}]}}", versions.join(",")));
        }
        for (id, group) in &self.groups {
            lines.push(json!({"group": [id, group_json(group)]}).to_string());
        }
        for change in self.history.changes() {
            let apps: Vec<String> = change
                .apps
                .iter()
                .map(|(id, before)| format!("[\"{id}\",{}]", entry_or_null(before)))
                .collect();
            let groups: Vec<Value> =
                change.groups.iter().map(|(id, group)| json!([id, group.as_ref().map(group_json)])).collect();
            lines.push(format!(
                "{{\"history\":{{\"version\":\"{}\",\"apps\":[{}],\"groups\":{}}}}}",
                change.version,
                apps.join(","),
                json!(groups)
            ));
        }
        for deployment in &self.deployments {
            let original: Vec<String> = deployment.original.values().map(|app| entry(app)).collect();
            lines.push(format!(
                "{{\"deployment\":{},\"original\":[{}]}}",
                deployment_json(deployment),
                original.join(",")
            ));
        }
        lines
    }
}

impl State {
    /// Takes in one line. Errors say why it cannot be understood.
    pub fn replay(&mut self, line: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let (kind, content) = value.as_object().and_then(|map| map.iter().next()).ok_or("it is no object")?;
        match kind.as_str() {
            "versions" => {
                for app in list(content).iter().map(read_entry) {
                    self.define(app?);
                }
            }
            "group" => {
                let (id, group) = read_group_pair(content)?;
                self.set_group(id, group);
            }
            "history" => self.history.push(RootChange {
                version: time(content, "version")?,
                apps: list(&content["apps"]).iter().map(read_app_pair).collect::<Result<_, String>>()?,
                groups: list(&content["groups"]).iter().map(read_group_pair).collect::<Result<_, _>>()?,
            }),
            "deployment" => {
                let mut deployment = read_deployment(&value["deployment"])?;
                for app in list(&value["original"]).iter().map(read_entry) {
                    let app = app?;
                    deployment.original.insert(app.id.clone(), app);
                }
                self.deployments.push(deployment);
            }
            "change" => self.change(content)?,
            "step" => {
                let index = content["index"].as_u64().ok_or("a step has no index")? as usize;
                let id = &content["deployment"];
                if let Some(deployment) = self.deployments.iter_mut().find(|d| *id == *d.id) {
                    deployment.current = Some(index);
                }
            }
            "end" => self.deployments.retain(|d| *content != *d.id),
            other => return Err(format!("'{other}' is not a kind of line")),
        }
        Ok(())
    }

    fn newest(&self, id: &AppId) -> Option<Arc<App>> {
        Some(self.apps.get(id)?.last_key_value()?.1.clone())
    }

    fn define(&mut self, app: Arc<App>) {
        let versions = self.apps.entry(app.id.clone()).or_default();
        versions.insert(app.version, app);
        while versions.len() > MAX_VERSIONS {
            versions.pop_first();
        }
    }

    fn set_group(&mut self, id: AppId, group: Option<Group>) {
        match group {
            Some(group) => self.groups.insert(id, group),
            None => self.groups.remove(&id),
        };
    }

    fn change(&mut self, content: &Value) -> Result<(), String> {
        let defined: Vec<Arc<App>> =
            list(&content["defined"]).iter().map(read_entry).collect::<Result<_, _>>()?;
        let removed: Vec<AppId> = ids(&content["removed"])?;
        let groups: Vec<(AppId, Option<Group>)> =
            list(&content["groups"]).iter().map(read_group_pair).collect::<Result<_, _>>()?;
        let named: Vec<AppId> = defined.iter().map(|app| app.id.clone()).chain(removed.clone()).collect();
        self.history.push(RootChange {
            version: time(content, "version")?,
            apps: named.iter().map(|id| (id.clone(), self.newest(id))).collect(),
            groups: groups.iter().map(|(id, _)| (id.clone(), self.groups.get(id).cloned())).collect(),
        });
        self.deployments.retain(|d| !list(&content["ended"]).iter().any(|id| *id == *d.id));
        if !content["deployment"].is_null() {
            let mut deployment = read_deployment(&content["deployment"])?;
            for id in &deployment.affected {
                if let Some(app) = self.newest(id) {
                    deployment.original.insert(id.clone(), app);
                }
            }
            self.deployments.push(deployment);
        }
        for id in removed {
            self.apps.remove(&id);
        }
        defined.into_iter().for_each(|app| self.define(app));
        groups.into_iter().for_each(|(id, group)| self.set_group(id, group));
        Ok(())
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn id(value: &Value) -> Result<AppId, String> {
    AppId::parse(value.as_str().ok_or("an id is no text")?)
}

fn ids(value: &Value) -> Result<Vec<AppId>, String> {
    list(value).iter().map(id).collect()
}

fn time(value: &Value, key: &str) -> Result<Timestamp, String> {
    let text = value[key].as_str();
    text.and_then(Timestamp::parse).ok_or_else(|| format!("it has no time '{key}'"))
}

fn read_entry(value: &Value) -> Result<Arc<App>, String> {
    let in_words = |errors| serde_json::to_string(&errors).unwrap_or_default();
    if value["app"].is_object() {
        let update = read_app(&value["app"], "").map_err(in_words)?;
        let id = AppId::parse(update.id.as_deref().ok_or("a definition has no id")?)?;
        return update.restore(id).map(Arc::new).map_err(in_words);
    }
    let version = time(&value["pod"], "version")?;
    let mut app = read_pod(&value["pod"], version).map_err(in_words)?;
    app.version_info = VersionInfo {
        last_scaling_at: time(&value["versionInfo"], "lastScalingAt")?,
        last_config_change_at: time(&value["versionInfo"], "lastConfigChangeAt")?,
    };
    Ok(Arc::new(app))
}

fn read_app_pair(value: &Value) -> Result<(AppId, Option<Arc<App>>), String> {
    let before = if value[1].is_null() { None } else { Some(read_entry(&value[1])?) };
    Ok((id(&value[0])?, before))
}

fn read_group_pair(value: &Value) -> Result<(AppId, Option<Group>), String> {
    let group = match &value[1] {
        Value::Null => None,
        group => Some(Group { dependencies: ids(&group["dependencies"])?, version: time(group, "version")? }),
    };
    Ok((id(&value[0])?, group))
}

fn read_deployment(value: &Value) -> Result<Deployment, String> {
    let mut steps = Vec::new();
    for step in list(&value["steps"]) {
        let mut actions = Vec::new();
        for action in list(step) {
            let word = action[0].as_str().unwrap_or_default();
            let (kind, subject) = read_name(word).ok_or_else(|| format!("'{word}' is no action"))?;
            actions.push(Action::new(kind, subject, id(&action[1])?));
        }
        steps.push(Step { actions });
    }
    let affected: BTreeSet<AppId> = ids(&value["affected"])?.into_iter().collect();
    Ok(Deployment {
        id: value["id"].as_str().ok_or("a deployment has no id")?.to_owned(),
        version: time(value, "version")?,
        steps,
        current: value["current"].as_u64().map(|index| index as usize),
        original: BTreeMap::new(),
        affected,
    })
}
