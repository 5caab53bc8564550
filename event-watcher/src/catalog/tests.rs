//! A catalog that was changed again and again says what one says that was told everything at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
struct Change {
    app: usize,
    /// 0: the app goes; 1: it has no instance.
    n_instances: usize,
    shape: u8,
}

/// Names, some of them with the same home, and addresses, one of them an agent's.
const VIPS: [&str; 8] = [
    "/app1115:80",
    "/app3307:80",
    "/app1115:81",
    "127.11.7.7:80",
    "127.11.0.9:80",
    "[fd01:c::7]:80",
    "10.0.0.1:80",
    "/other:80",
];

fn change() -> impl Strategy<Value = Change> {
    (0..5_usize, 0..4_usize, any::<u8>()).prop_map(|(app, n_instances, shape)| Change {
        app,
        n_instances,
        shape,
    })
}

fn update(Change { app, n_instances, shape }: Change) -> AppUpdate {
    let id = AppId::new(&format!("/{app}"));
    let named = [usize::from(shape & 7), usize::from(shape >> 3 & 7)];
    let vips = named
        .iter()
        .take(usize::from(shape >> 6))
        .map(|at| VipLabel::parse(VIPS[*at], "marathon").unwrap().for_protocol(Protocol::Tcp));
    let service = Service {
        id: ServiceId { app: id.clone(), port_index: 0 },
        name: None,
        service_port: None,
        protocols: Protocols::TCP,
        labels: BTreeMap::new(),
        vips: vips.collect(),
    };
    let instance = |n: usize| {
        let host: IpAddr = [127, 11, 0, 9 + n as u8 + (shape & 1)].into();
        let own: IpAddr = match shape & 32 {
            0 => host,
            _ => [0xfd00, 0, 0, 0, 0, 0, app as u16, n as u16].into(),
        };
        let endpoint = Endpoint { port_index: 0, address: (own, 31000).into() };
        Arc::new(Instance {
            host_address: (shape & 16 != 0).then_some(host),
            addresses: vec![own],
            ..Instance::running(InstanceId::new(&format!("{app}.{n}")), host, vec![endpoint])
        })
    };
    let instances = (1..n_instances).map(instance).collect();
    AppUpdate { app: App::settled(id, vec![service], instances), problems: vec![] }
}

fn catalog() -> Catalog {
    let vip_pools = vec!["127.11.0.0/16".parse().unwrap(), "fd01:c::/64".parse().unwrap()];
    Catalog::new(CatalogConfig { framework: "marathon".into(), vip_pools })
}

proptest! {
    #[test]
    fn changes_lead_where_a_fresh_start_does(changes in prop::collection::vec(change(), 1..40)) {
        let mut known: BTreeMap<usize, Change> = BTreeMap::new();
        let mut changed = catalog();
        let mut before = Arc::new(Snapshot::default());
        for change in changes {
            match change.n_instances {
                0 => {
                    known.remove(&change.app);
                    changed.remove(&AppId::new(&format!("/{}", change.app)));
                }
                _ => {
                    known.insert(change.app, change);
                    changed.replace(update(change));
                }
            }
            let Some(snapshot) = changed.snapshot() else { continue };
            let mut fresh = catalog();
            fresh.replace_all(known.values().copied().map(update).collect(), vec![]);
            let fresh = fresh.snapshot().unwrap();
            prop_assert_eq!(&snapshot.apps, &fresh.apps);
            for (id, app) in &snapshot.apps {
                let earlier = before.app(id).map_or(&[][..], |earlier| &earlier.instances);
                let mut same = app.instances.iter().filter_map(|i| Some((i, earlier.iter().find(|e| *e == i)?)));
                prop_assert!(same.all(|(now, earlier)| Arc::ptr_eq(now, earlier)), "{id} is held twice");
            }
            prop_assert_eq!(&snapshot.vips, &fresh.vips);
            prop_assert_eq!(&snapshot.problems, &fresh.problems);
            prop_assert_eq!(snapshot.n_instances, fresh.n_instances);
            let differing: Vec<&VipKey> = snapshot.vips.changed_since(&before.vips).collect();
            let differ = |key: &VipKey| before.vips.get(key) != snapshot.vips.get(key);
            prop_assert!(differing.iter().all(|key| differ(key)));
            let all = before.vips.iter().chain(snapshot.vips.iter()).map(|vip| &vip.key);
            prop_assert!(all.filter(|key| differ(key)).all(|key| differing.contains(&key)));
            before = snapshot;
        }
    }
}
