//! A table that was changed again and again is the table that is compiled at once.
//!
//! Who has a port or a host that two apps claim depends on who came first, so here nobody claims what is another's.

use proptest::prelude::*;

use super::*;

const N_APPS: u16 = 6;

#[derive(Clone, Copy, Debug)]
struct Change {
    app: u16,
    /// 0: the app goes.
    n_instances: u16,
    shape: u8,
}

fn change() -> impl Strategy<Value = Change> {
    (0..N_APPS, 0..4_u16, any::<u8>()).prop_map(|(app, n_instances, shape)| Change {
        app,
        n_instances,
        shape,
    })
}

fn made(Change { app: number, n_instances, shape }: Change) -> Arc<App> {
    let host = format!("{number}{}.test", shape % 2);
    let mut labels = vec![("HAPROXY_0_VHOST", &*host)];
    match shape >> 1 & 7 {
        0 => labels.push(("HAPROXY_0_ENABLED", "false")),
        1 => labels.push(("HAPROXY_0_STICKY", "true")),
        2 => labels.push(("HAPROXY_0_BACKEND_HEAD", "  server other elsewhere.test:80\n")),
        3 => labels.push(("HAPROXY_0_BALANCE", "source")),
        4 if number < 2 => labels.push(("HAPROXY_DEPLOYMENT_GROUP", "both")),
        _ => {}
    }
    let instances = (0..n_instances).map(|n| {
        let state = if shape >> 5 == n as u8 { InstanceState::Killing } else { InstanceState::Running };
        let health = if shape >> 6 == n as u8 { Health::Unhealthy } else { Health::Healthy };
        instance(&format!("{number}.{n}"), 31000 + 10 * number + n, state, health)
    });
    let mut app = App::clone(&app(&format!("/{number}"), "v", 10000 + number, &labels, instances.collect()));
    if shape & 16 != 0 {
        app.health_checks.push(event_watcher::catalog::HealthCheck {
            protocol: event_watcher::catalog::HealthCheckProtocol::Tcp,
            path: None,
            port_index: Some(0),
            port: None,
            grace_period_seconds: None,
            interval_seconds: None,
            timeout_seconds: None,
            max_consecutive_failures: None,
        });
    }
    Arc::new(app)
}

/// All of a table that has no history.
fn contents(table: &Table) -> Vec<String> {
    let backends = table.backends.iter().enumerate().map(|(index, backend)| {
        let servers = backend.servers.iter().map(|server| {
            let cookie = server.cookie.as_ref().map(|cookie| &cookie.value);
            (&server.name, server.status, server.endpoint.rotation(), cookie, server.check_address)
        });
        let servers: Vec<_> = servers.collect();
        format!("{index} {} {:?} {} {servers:?}", backend.name, backend.labels, backend.n_healthy)
    });
    let ports = (10000..10000 + N_APPS).map(|port| format!("{port} {:?}", table.routes.of_port(port)));
    let hosts = (0..N_APPS)
        .flat_map(|app| (0..2).map(move |n| format!("{app}{n}.test")))
        .map(|name| format!("{name} {:?}", table.routes.of_host(&name, "/")));
    let apps = (0..N_APPS).map(|app| format!("{app} {:?}", table.routes.of_app(&format!("/{app}"))));
    let probed = table.probed.keys().map(|key| format!("probed {key:?}"));
    let others = [format!("{:?} {:?}", table.problems, table.unknown_names)];
    backends.chain(ports).chain(hosts).chain(apps).chain(probed).chain(others).collect()
}

proptest! {
    #[test]
    fn changes_lead_where_a_fresh_start_does(changes in prop::collection::vec(change(), 1..40)) {
        let mut apps: BTreeMap<u16, Arc<App>> = BTreeMap::new();
        let mut compiled = Compiled::new();
        for change in changes {
            match change.n_instances {
                0 => apps.remove(&change.app),
                _ => apps.insert(change.app, made(change)),
            };
            let now: Vec<Arc<App>> = apps.values().cloned().collect();
            let table = compiled.table(&now);
            prop_assert_eq!(contents(&table), contents(&Compiled::new().table(&now)));
            let probed = table.backends.iter().filter(|b| b.labels.check.is_some());
            prop_assert!(probed.eq(table.probed.values().collect::<Vec<_>>()));
        }
    }
}
