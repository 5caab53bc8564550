//! Which apps must be up before others: an app depends on what it names, and on what the groups around it name.
//!
//! Not here: the steps that follow from it (`deployment`).

use std::collections::{BTreeMap, BTreeSet};

use super::groups::Tree;
use crate::scheduler::id::AppId;

/// The dependencies among the apps of a tree. A missing one is tolerated.
#[derive(Debug)]
pub struct Graph<'a> {
    /// Apps to the apps that they wait for; those without are left out.
    edges: BTreeMap<&'a AppId, BTreeSet<&'a AppId>>,
}

impl<'a> Graph<'a> {
    pub fn of(tree: &'a Tree) -> Self {
        let mut edges: BTreeMap<&AppId, BTreeSet<&AppId>> = BTreeMap::new();
        let groups_depend = tree.groups.values().any(|group| !group.dependencies.is_empty());
        for app in tree.apps.values() {
            if app.dependencies.is_empty() && !groups_depend {
                continue;
            }
            let of_groups =
                app.id.groups().filter_map(|group| tree.groups.get(group)).flat_map(|g| &g.dependencies);
            for named in app.dependencies.iter().chain(of_groups) {
                // A dependency may name a group: then every app in it comes first.
                let from = tree.apps.range::<AppId, _>(named..).map(|(id, _)| id);
                let fits = from.take_while(|id| id.as_str().starts_with(named.as_str()));
                let below = fits.filter(|id| *id == named || id.is_inside(named.as_str()));
                edges.entry(&app.id).or_default().extend(below.filter(|id| **id != app.id));
            }
        }
        Self { edges }
    }

    /// Length of the longest chain below each app that has one. `None`: there is a circle.
    pub fn depths(&self) -> Option<BTreeMap<&'a AppId, usize>> {
        let mut depths = BTreeMap::new();
        // No chain is longer than there are apps; whoever gets deeper goes round in a circle.
        for _ in 0..=self.edges.len() {
            let mut changed = false;
            for (app, below) in &self.edges {
                let depth =
                    below.iter().map(|id| 1 + depths.get(id).copied().unwrap_or(0)).max().unwrap_or(0);
                if depths.insert(*app, depth) != Some(depth) {
                    changed |= depth > 0;
                }
            }
            if !changed {
                return Some(depths);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scheduler::app::App;
    use crate::scheduler::core::groups::Group;
    use crate::scheduler::timestamp::Timestamp;

    fn id(text: &str) -> AppId {
        AppId::parse(text).expect("valid")
    }

    fn tree(apps: &[(&str, &[&str])], groups: &[(&str, &[&str])]) -> Tree {
        let mut tree = Tree::default();
        let ids = |names: &[&str]| names.iter().map(|name| id(name)).collect::<Vec<_>>();
        for (app, dependencies) in apps {
            let mut app = App::with_defaults(id(app), Timestamp::now());
            app.dependencies = ids(dependencies);
            tree.apps.insert(app.id.clone(), Arc::new(app));
        }
        for (group, dependencies) in groups {
            let group_state = Group { dependencies: ids(dependencies), version: Timestamp::now() };
            tree.groups.insert(id(group), group_state);
        }
        tree
    }

    #[test]
    fn chains_over_apps_and_groups() {
        let apps: [(&str, &[&str]); 5] = [
            ("/db/main", &[]),
            ("/cache", &["/db/main"]),
            ("/web/front", &["/missing"]),
            ("/web/back", &[]),
            ("/dbx", &[]),
        ];
        let tree = tree(&apps, &[("/web", &["/cache", "/db"])]);
        let graph = Graph::of(&tree);
        let depths = graph.depths().expect("no circle");
        let of = |name: &str| depths.get(&id(name)).copied().unwrap_or(0);
        assert_eq!(["/db/main", "/cache", "/web/front", "/web/back", "/dbx"].map(of), [0, 1, 2, 2, 0]);
    }

    #[test]
    fn circles_are_found() {
        let apps: [(&str, &[&str]); 2] = [("/a", &["/b"]), ("/b", &["/a"])];
        let tree = tree(&apps, &[]);
        assert_eq!(Graph::of(&tree).depths(), None);
    }
}
