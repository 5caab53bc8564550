//! Deployment groups: the apps of one `HAPROXY_DEPLOYMENT_GROUP` are one backend, and as instances of the new app come
//! up, as many of the old one are taken out of use.
//!
//! Marathon-LB's rules, which zdd.py steers by, but for two of its faults: new instances count when they are usable,
//! not when they are wanted, and the two apps only change roles in a deployment that splits.

use std::collections::BTreeSet;
use std::sync::Arc;

use event_watcher::catalog::{App, AppId, InstanceId, Rotation, Service, ServiceId};

/// What a backend is compiled from: one app, or the apps of a group as one.
#[derive(Debug)]
pub(crate) struct Unit {
    pub app: Arc<App>,
    /// Out of use: they finish what they have.
    pub disabled: BTreeSet<InstanceId>,
}

/// The id of the group that an app says it is of. `shop` and `/shop` are the same.
pub(crate) fn group(app: &App) -> Option<AppId> {
    let name = app.label("WAYMARK_DEPLOYMENT_GROUP").or_else(|| app.label("HAPROXY_DEPLOYMENT_GROUP"))?;
    let id = AppId::new(name.trim());
    let is_named = id.segments().next().is_some();
    is_named.then_some(id)
}

/// The apps of a group as one, with the labels and ports of the oldest.
pub(crate) fn merge(group: &AppId, apps: &[Arc<App>]) -> Unit {
    let mut apps: Vec<&App> = apps.iter().map(|app| &**app).collect();
    // Without a date it was there before anybody deployed.
    apps.sort_by_key(|app| (app.label("HAPROXY_DEPLOYMENT_STARTED_AT"), &app.id));
    let mut disabled = BTreeSet::new();
    if let [.., old, new] = apps[..] {
        disabled.extend(drained(old, new));
    }
    let oldest = apps[0];
    let services = oldest.services.iter().map(|service| Service {
        id: ServiceId { app: group.clone(), port_index: service.id.port_index },
        ..service.clone()
    });
    let mut instances: Vec<_> = apps.iter().flat_map(|app| &app.instances).map(Arc::clone).collect();
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    let app = App {
        id: group.clone(),
        services: services.collect(),
        n_instances_wanted: apps.iter().map(|app| app.n_instances_wanted).sum(),
        instances,
        deployments: apps.iter().flat_map(|app| &app.deployments).map(Arc::clone).collect(),
        ..oldest.clone()
    };
    Unit { app: Arc::new(app), disabled }
}

/// The instances of the old app that the new app's stand in for: always the same ones, by id.
fn drained<'a>(old: &'a App, new: &'a App) -> impl Iterator<Item = InstanceId> + use<'a> {
    let number = |app: &App, label: &str| app.label(label).and_then(|text| text.trim().parse::<usize>().ok());
    let splits = number(new, "HAPROXY_DEPLOYMENT_NEW_INSTANCES").is_some_and(|n| n > 0);
    // In a split, the app that was changed last is the one that grows. A version is the time of the last change.
    let (shrinking, growing) = if splits && old.version > new.version { (new, old) } else { (old, new) };
    let target = match new.label("HAPROXY_DEPLOYMENT_NEW_INSTANCES") {
        Some(_) => number(new, "HAPROXY_DEPLOYMENT_TARGET_INSTANCES").unwrap_or(1),
        None => 1,
    };
    let usable =
        |app: &'a App| app.instances.iter().filter(|i| i.rotation() == Rotation::In).map(|i| i.id.clone());
    let n_new = usable(growing).count();
    let n_spare = (n_new + shrinking.n_instances_wanted as usize).saturating_sub(target);
    usable(shrinking).take(n_new.min(n_spare))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use event_watcher::catalog::{Health, Instance, InstanceState, Readiness};

    use super::*;

    fn app(id: &str, labels: &[(&str, &str)], version: &str, healths: &[Health]) -> Arc<App> {
        let instance = |(n, health): (usize, &Health)| {
            Arc::new(Instance {
                id: InstanceId::new(&format!("{id}.{n}")),
                host: "127.0.0.1".into(),
                host_address: None,
                agent: None,
                version: "v".into(),
                state: InstanceState::Running,
                health: *health,
                readiness: Readiness::Unchecked,
                started_at: None,
                addresses: vec![],
                endpoints: vec![],
            })
        };
        Arc::new(App {
            id: AppId::new(id),
            version: version.into(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            n_instances_wanted: healths.len() as u32,
            services: vec![],
            health_checks: vec![],
            instances: healths.iter().enumerate().map(instance).collect(),
            deployments: vec![],
        })
    }

    #[test]
    fn as_many_old_ones_are_drained_as_new_ones_can_stand_in_for() {
        use Health::{Healthy as H, Unchecked as C, Unknown as U};
        const NEW: &str = "HAPROXY_DEPLOYMENT_NEW_INSTANCES";
        const TARGET: &str = "HAPROXY_DEPLOYMENT_TARGET_INSTANCES";
        const STARTED: (&str, &str) = ("HAPROXY_DEPLOYMENT_STARTED_AT", "2026-01-01T00:00:00");
        // Marathon-LB's own results for the cases that its faults do not touch.
        for (old, new, labels, old_version, expect) in [
            (&[H, H, H, H][..], &[H][..], &[][..], "1", &["/blue.0"][..]),
            (&[H, H, H, H], &[H, H], &[(NEW, "0"), (TARGET, "4")], "1", &["/blue.0", "/blue.1"]),
            (&[H, H, H, H], &[U], &[], "1", &[]),
            (&[C, C], &[C, C], &[(NEW, "0"), (TARGET, "2")], "1", &["/blue.0", "/blue.1"]),
            (&[H], &[H, H, H, H], &[(NEW, "0"), (TARGET, "4")], "1", &["/blue.0"]),
            (&[H, H], &[H], &[(NEW, "0"), (TARGET, "4")], "1", &[]),
            (&[U, H, H], &[H, H], &[], "1", &["/blue.1", "/blue.2"]),
            (&[H, H], &[H, H], &[(NEW, "1"), (TARGET, "2")], "9", &["/green.0", "/green.1"]),
            (&[H, H], &[H, H], &[(NEW, "0"), (TARGET, "2")], "9", &["/blue.0", "/blue.1"]),
        ] {
            let labels: Vec<_> = labels.iter().copied().chain([STARTED]).collect();
            let (blue, green) = (app("/blue", &[], old_version, old), app("/green", &labels, "5", new));
            let unit = merge(&AppId::new("g"), &[green, blue]);
            let disabled: Vec<_> = unit.disabled.iter().map(InstanceId::as_str).collect();
            assert_eq!(disabled, expect, "{old:?} {new:?} {labels:?}");
            assert_eq!(unit.app.id.as_str(), "/g");
            assert_eq!(unit.app.instances.len(), old.len() + new.len());
            assert_eq!(unit.app.labels.len(), 0, "the old app's labels count");
        }
    }

    #[test]
    fn groups_are_named_by_their_label() {
        for (labels, expect) in [
            (&[][..], None),
            (&[("HAPROXY_DEPLOYMENT_GROUP", "shop")], Some("/shop")),
            (&[("HAPROXY_DEPLOYMENT_GROUP", "/shop")], Some("/shop")),
            (&[("HAPROXY_DEPLOYMENT_GROUP", " ")], None),
        ] {
            let group = group(&app("/a", labels, "1", &[]));
            assert_eq!(group.as_ref().map(AppId::as_str), expect, "{labels:?}");
        }
    }
}
