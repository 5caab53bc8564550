//! VIPs that were changed again and again are those that are compiled at once.

use event_watcher::catalog::{
    App, AppId, AppUpdate, Catalog, CatalogConfig, Endpoint, Instance, InstanceId, InstanceState, Protocol,
    Protocols, Service, VipLabel,
};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
struct Change {
    app: usize,
    /// 0: the app goes; 1: it has no instance.
    n_instances: usize,
    shape: u8,
}

fn change() -> impl Strategy<Value = Change> {
    (0..4_usize, 0..4_usize, any::<u8>()).prop_map(|(app, n_instances, shape)| Change {
        app,
        n_instances,
        shape,
    })
}

fn update(Change { app, n_instances, shape }: Change) -> AppUpdate {
    let id = AppId::new(&format!("/{app}"));
    let own = format!("/own{app}:80");
    let label = match shape & 3 {
        0 => None,
        1 => Some("/shared:80"),
        2 => Some("127.11.7.7:81"),
        _ => Some(&*own),
    };
    let vips = label.map(|label| VipLabel::parse(label, "marathon").unwrap().for_protocol(Protocol::Tcp));
    let service = Service {
        id: ServiceId { app: id.clone(), port_index: 0 },
        name: None,
        service_port: None,
        protocols: Protocols::TCP,
        labels: BTreeMap::new(),
        vips: vips.into_iter().collect(),
    };
    let instance = |n: usize| {
        let address = SocketAddr::from(([10, 0, app as u8, n as u8 + (shape >> 7)], 31000));
        let endpoint = Endpoint { port_index: 0, address };
        Arc::new(Instance {
            state: if shape & 4 == 0 { InstanceState::Running } else { InstanceState::Killing },
            ..Instance::running(InstanceId::new(&format!("{app}.{n}")), address.ip(), vec![endpoint])
        })
    };
    let instances = (1..n_instances).map(instance).collect();
    AppUpdate { app: App::settled(id, vec![service], instances), problems: vec![] }
}

/// All of the VIPs that has no history.
fn contents(vips: &Vips) -> Vec<String> {
    let of = |vip: &Arc<VipState>| {
        let control = vip.control();
        let endpoints: Vec<_> = [vip.v4.load(), vip.v6.load()]
            .iter()
            .flat_map(|pool| pool.endpoints().iter().map(|e| (e.address, e.rotation(), e.weight())))
            .collect();
        format!("{:?} {:?} {:?} {endpoints:?}", vip.key, control.addresses, control.services)
    };
    vips.values().map(of).collect()
}

proptest! {
    #[test]
    fn changes_lead_where_a_fresh_start_does(changes in prop::collection::vec(change(), 1..40)) {
        let config = Config::default();
        let mut catalog = Catalog::new(CatalogConfig {
            framework: "marathon".into(),
            vip_pools: vec!["127.11.0.0/16".parse().unwrap()],
        });
        let (mut vips, mut before) = (Arc::new(Vips::new()), Arc::new(Snapshot::default()));
        for change in changes {
            match change.n_instances {
                0 => catalog.remove(&AppId::new(&format!("/{}", change.app))),
                _ => catalog.replace(update(change)),
            }
            let Some(snapshot) = catalog.snapshot() else { continue };
            vips = compile(&vips, &mut Leaving::default(), &before, &snapshot, &config).0;
            let (fresh, _) = compile(&Arc::new(Vips::new()), &mut Leaving::default(), &Snapshot::default(), &snapshot, &config);
            prop_assert_eq!(contents(&vips), contents(&fresh));
            before = snapshot;
        }
    }
}
