//! What a table costs: looking a request up among 1,000 virtual hosts, applying one app's change of labels, compiling
//! 10,000 apps.
//!
//! `cargo bench -p lb-http --bench routes`. CPU time of this thread, best of several rounds; no sockets.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_watcher::catalog::{
    App, AppId, Endpoint, Generation, Health, Instance, InstanceId, InstanceState, Protocols, Readiness,
    Service, ServiceId, Snapshot,
};
use lb_http::labels::Reading;
use lb_http::table::{Compiler, Table};

const N_HOSTS: usize = 1_000;
const N_APPS: usize = 10_000;
const N_WORKERS: usize = 2;
const N_ROUNDS: usize = 20;
const N_LOOKUPS: usize = 100_000;

fn app(n: usize, path: &str) -> Arc<App> {
    let id = AppId::new(&format!("/group-{}/app-{n}", n % 50));
    let endpoint = SocketAddr::from(([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], 31000));
    let labels = [
        ("HAPROXY_GROUP", "external".to_owned()),
        ("HAPROXY_0_VHOST", format!("app-{n}.example.com,www.app-{n}.example.com")),
        ("HAPROXY_0_PATH", path.to_owned()),
        ("HAPROXY_0_STICKY", "true".to_owned()),
        ("HAPROXY_0_BALANCE", "leastconn".to_owned()),
    ];
    Arc::new(App {
        version: "2026-01-01T00:00:00.000Z".into(),
        labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        n_instances_wanted: 1,
        services: vec![Service {
            id: ServiceId { app: id.clone(), port_index: 0 },
            name: None,
            service_port: Some(10_000 + n as u16),
            protocols: Protocols::TCP,
            labels: BTreeMap::new(),
            vips: vec![],
        }],
        health_checks: vec![],
        instances: vec![Arc::new(Instance {
            id: InstanceId::new(&format!("app-{n}.1")),
            host: endpoint.ip().to_string().into(),
            host_address: Some(endpoint.ip()),
            agent: None,
            version: "v".into(),
            state: InstanceState::Running,
            health: Health::Unchecked,
            readiness: Readiness::Unchecked,
            started_at: None,
            addresses: vec![],
            endpoints: vec![Endpoint { port_index: 0, address: endpoint }],
        })],
        deployments: vec![],
        id,
    })
}

struct Apps {
    apps: BTreeMap<AppId, Arc<App>>,
    generation: u64,
    compiler: Compiler,
}

impl Apps {
    fn new(n: usize) -> Self {
        let apps = (0..n).map(|n| app(n, "/")).map(|app| (app.id.clone(), app)).collect();
        Self { apps, generation: 0, compiler: Compiler::new(Reading::default(), N_WORKERS) }
    }

    fn compile(&mut self) -> Table {
        self.generation += 1;
        let snapshot = Snapshot {
            generation: Generation(self.generation),
            apps: self.apps.iter().map(|(id, app)| (id.clone(), Arc::clone(app))).collect(),
            ..Snapshot::default()
        };
        self.compiler.compile(&snapshot, Instant::now())
    }
}

/// User and system time of this thread: other programs on the machine do not count.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call gets a pointer to a valid timespec that outlives it.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn best(mut round: impl FnMut() -> Duration) -> Duration {
    (0..N_ROUNDS).map(|_| round()).min().unwrap_or_default()
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn main() {
    let mut apps = Apps::new(N_HOSTS);
    let table = apps.compile();
    assert!(table.problems.is_empty(), "{:?}", table.problems.first());
    let hosts: Vec<String> =
        (0..N_HOSTS).map(|n| format!("www.app-{}.example.com", n * 7 % N_HOSTS)).collect();
    let lookup = best(|| {
        let began = cpu_time();
        for i in 0..N_LOOKUPS {
            let index = table.routes.of_host(black_box(&hosts[i % N_HOSTS]), black_box("/path/of/a/request"));
            assert!(black_box(index).is_some());
        }
        (cpu_time() - began) / N_LOOKUPS as u32
    });
    println!("lookup among {N_HOSTS} apps with 2 hosts each   {lookup:?}");

    let mut n_changes = 0;
    let change = best(|| {
        n_changes += 1;
        let changed = app(500, &format!("/changed-{n_changes}"));
        apps.apps.insert(changed.id.clone(), changed);
        let began = cpu_time();
        drop(black_box(apps.compile()));
        cpu_time() - began
    });
    println!("a change of one app's labels among {N_HOSTS}      {change:?}");

    drop((table, apps));
    let before = resident_mib();
    let mut many = Apps::new(N_APPS);
    let began = cpu_time();
    let table = many.compile();
    println!(
        "compiling {N_APPS} apps                          {:?}, {} MiB with the apps themselves",
        cpu_time() - began,
        resident_mib().saturating_sub(before)
    );
    drop(table);
}
