//! A zone that was changed again and again is the zone that is made at once.

use std::collections::BTreeMap;

use event_watcher::catalog::{
    AppUpdate, Catalog, CatalogConfig, Endpoint, Health, Instance, InstanceId, InstanceState, Protocols,
    Readiness, Service, ServiceId, VipLabel,
};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
struct Change {
    app: usize,
    /// 0: the app goes.
    n_instances: usize,
    shape: u8,
    framework: bool,
}

/// Several of them have the same label in DNS, and one is in a group.
const IDS: [&str; 6] = ["/web", "/a/b", "/a.b", "/A/b", "/a-b", "/b/a"];

fn change() -> impl Strategy<Value = Change> {
    (0..IDS.len(), 0..4_usize, any::<u8>(), prop::bool::weighted(0.1))
        .prop_map(|(app, n_instances, shape, framework)| Change { app, n_instances, shape, framework })
}

fn app(change: Change) -> App {
    let Change { app, n_instances, shape, .. } = change;
    let id = AppId::new(IDS[app]);
    let vip = ["/shared:80", "/own:81", "/shared:82"]
        .get(usize::from(shape % 4))
        .map(|label| VipLabel::parse(label, "marathon").unwrap().for_protocol(Protocol::Tcp));
    let service = Service {
        id: ServiceId { app: id.clone(), port_index: 0 },
        name: (shape & 4 != 0).then(|| "http".into()),
        service_port: None,
        protocols: Protocols { tcp: true, udp: shape & 8 != 0 },
        labels: BTreeMap::new(),
        vips: vip.into_iter().collect(),
    };
    let instance = |n: usize| {
        let host: IpAddr = [10, 0, 0, 1 + (shape >> 6) + n as u8].into();
        let own: IpAddr = if shape & 16 == 0 { host } else { [172, 16, app as u8, n as u8].into() };
        Arc::new(Instance {
            id: InstanceId::new(&format!("{app}.{n}")),
            host: host.to_string().into(),
            host_address: Some(host),
            agent: Some("x-S1".into()),
            version: "v".into(),
            state: if shape & 32 != 0 && n == 0 { InstanceState::Killing } else { InstanceState::Running },
            health: if n == 1 { Health::Unhealthy } else { Health::Healthy },
            readiness: Readiness::Unchecked,
            started_at: None,
            addresses: vec![own],
            endpoints: vec![Endpoint { port_index: 0, address: (own, 31000 + n as u16).into() }],
        })
    };
    App {
        id,
        version: "v".into(),
        labels: BTreeMap::new(),
        n_instances_wanted: n_instances as u32,
        services: vec![service],
        health_checks: vec![],
        instances: (0..n_instances).map(instance).collect(),
        deployments: vec![],
    }
}

type Contents = BTreeMap<String, (usize, u32, bool, String)>;

fn contents(zone: &Zone) -> Contents {
    let of = |(name, node): (&WireName, &Node)| {
        let is_said = node.said_by != SaidBy::Nobody;
        (name.to_string(), (node.apex, node.n_children, is_said, format!("{:?}", **node)))
    };
    zone.nodes().map(of).collect()
}

proptest! {
    #[test]
    fn changes_lead_where_a_fresh_start_does(changes in prop::collection::vec(change(), 1..30)) {
        let config = Config { vip_pools: vec!["127.11.0.0/16".parse().unwrap()], ..Config::default() };
        let mut catalog = Catalog::new(CatalogConfig {
            framework: "marathon".into(),
            vip_pools: config.vip_pools.clone(),
        });
        let mut compiler = Compiler::new(&config);
        let empty = contents(&compiler.zone());
        for change in changes {
            match change.n_instances {
                0 => catalog.remove(&AppId::new(IDS[change.app])),
                _ => catalog.replace(AppUpdate { app: app(change), problems: vec![] }),
            }
            if change.framework {
                catalog.set_framework(["marathon", "other.one"][usize::from(change.shape % 2)]);
            }
            let Some(snapshot) = catalog.snapshot() else { continue };
            if compiler.apply_without_new_vips(&snapshot) == NewVips::Yes {
                compiler.zone();
                compiler.apply_new_vips();
            }
            let mut fresh = Compiler::new(&config);
            fresh.apply_without_new_vips(&snapshot);
            fresh.apply_new_vips();
            prop_assert_eq!(contents(&compiler.zone()), contents(&fresh.zone()));
        }
        // Nothing stays behind.
        for id in IDS {
            catalog.remove(&AppId::new(id));
        }
        catalog.set_framework("");
        if let Some(snapshot) = catalog.snapshot() {
            compiler.apply_without_new_vips(&snapshot);
            prop_assert_eq!(contents(&compiler.zone()), empty);
        }
    }
}
