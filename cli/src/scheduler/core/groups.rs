//! Groups, and the versions of the whole tree: each change remembers what it replaced, so that any kept version
//! can be looked at again.
//!
//! Not here: changing groups (`operations`), nor how they are written (`api::groups`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{Core, MAX_VERSIONS};
use crate::scheduler::app::App;
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub dependencies: Vec<AppId>,
    pub version: Timestamp,
}

/// What one change of the tree replaced; `None`: there was nothing.
#[derive(Clone, Debug)]
pub struct RootChange {
    pub version: Timestamp,
    pub apps: Vec<(AppId, Option<Arc<App>>)>,
    pub groups: Vec<(AppId, Option<Group>)>,
}

/// The tree at one moment.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub apps: BTreeMap<AppId, Arc<App>>,
    pub groups: BTreeMap<AppId, Group>,
}

impl Tree {
    pub fn has_group(&self, id: &AppId) -> bool {
        id.is_root() || self.groups.contains_key(id)
    }

    pub fn version_of(&self, id: &AppId) -> Option<Timestamp> {
        self.groups.get(id).map(|group| group.version)
    }

    fn undo(&mut self, change: &RootChange) {
        for (id, before) in &change.apps {
            match before {
                Some(app) => self.apps.insert(id.clone(), app.clone()),
                None => self.apps.remove(id),
            };
        }
        for (id, before) in &change.groups {
            match before {
                Some(group) => self.groups.insert(id.clone(), group.clone()),
                None => self.groups.remove(id),
            };
        }
    }
}

/// The last changes, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<RootChange>);

impl History {
    pub fn push(&mut self, change: RootChange) {
        self.0.push_back(change);
        while self.0.len() > MAX_VERSIONS {
            self.0.pop_front();
        }
    }

    pub fn changes(&self) -> impl DoubleEndedIterator<Item = &RootChange> {
        self.0.iter()
    }
}

impl Core {
    pub fn tree(&self) -> Tree {
        let apps = self.run_specs().map(|state| (state.app.id.clone(), state.app.clone()));
        Tree { apps: apps.collect(), groups: self.groups.clone() }
    }

    pub fn has_group(&self, id: &AppId) -> bool {
        id.is_root() || self.groups.contains_key(id)
    }

    /// The tree as `version` left it.
    pub fn tree_at(&self, version: Timestamp) -> Option<Tree> {
        if !self.history.changes().any(|change| change.version == version) {
            return None;
        }
        let mut tree = self.tree();
        for change in self.history.changes().rev().take_while(|change| change.version > version) {
            tree.undo(change);
        }
        Some(tree)
    }

    /// The kept versions in which the group existed, newest first.
    pub fn versions_of_group(&self, id: &AppId) -> Vec<Timestamp> {
        let mut tree = self.tree();
        let mut versions = Vec::new();
        for change in self.history.changes().rev() {
            if tree.has_group(id) {
                versions.push(change.version);
            }
            tree.undo(change);
        }
        versions
    }
}
