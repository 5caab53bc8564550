//! How the stats server reads each plane: the planes' own views in the words of `admin`.
//!
//! Only translation; nothing is counted or kept here.

use std::fmt::Write;
use std::sync::Arc;

use event_watcher::catalog::{Problem, VipKey};
use event_watcher::publish::Applied;
use l4_vip::stats::{PlaneKind, VipView};
use lb_http::stats::{Series, Servers};
use serde::Serialize;

use crate::admin::{EndpointSample, Haproxy, Plane, VipPlane, Which};

pub struct Http(pub lb_http::Plane);

impl Plane for Http {
    fn applied(&self) -> Applied {
        self.0.applied()
    }

    fn problems(&self) -> Arc<[Problem]> {
        self.0.problems()
    }

    fn endpoints(&self, which: Which, each: &mut dyn FnMut(EndpointSample)) {
        let table = self.0.table();
        for backend in table.backends.iter().filter(|b| which == Which::All || b.is_used()) {
            for server in &backend.servers {
                let totals = backend.totals_of(server);
                each(EndpointSample {
                    instance: server.endpoint.instance.clone(),
                    address: server.endpoint.address,
                    vip: None,
                    n_in_flight: server.endpoint.n_in_flight().into(),
                    n_total: totals.n_sessions,
                    n_failures: totals.n_connect_errors + totals.n_response_errors,
                    bytes_in: totals.bytes_in,
                    bytes_out: totals.bytes_out,
                    latency: totals.mean_time,
                    ejected: server.endpoint.is_ejected(),
                });
            }
        }
    }

    fn metrics(&self, text: &mut String) {
        self.0.metrics(text);
    }

    fn totals(&self) -> Vec<(&'static str, u64)> {
        let table = self.0.table();
        let (mut n_requests, mut n_in_flight) = (0, 0);
        for backend in table.backends.iter().filter(|backend| backend.is_used()) {
            n_requests += backend.totals().n_requests;
            n_in_flight += u64::from(backend.series.n_current());
        }
        vec![("backends", table.backends.len() as u64), ("requests", n_requests), ("in flight", n_in_flight)]
    }
}

impl Haproxy for Http {
    fn page(&self, servers: Servers) -> String {
        self.0.stats_page(servers)
    }

    fn csv(&self, servers: Servers) -> String {
        self.0.stats_csv(servers)
    }

    fn json(&self, servers: Servers) -> String {
        self.0.stats_json(servers)
    }

    fn stats_series(&self) -> &Arc<Series> {
        self.0.stats_series()
    }

    fn vhost_map(&self) -> String {
        self.0.vhost_map()
    }

    fn app_map(&self) -> String {
        self.0.app_map()
    }

    fn routes(&self) -> String {
        #[derive(Serialize)]
        struct Routes {
            generation: u64,
            routes: Vec<lb_http::stats::RouteView>,
            backends: Vec<lb_http::stats::BackendView>,
        }
        let generation = self.0.applied().generation().0;
        let routes = Routes { generation, routes: self.0.routes(), backends: self.0.backends() };
        serde_json::to_string(&routes).expect("the views are made of texts and numbers")
    }

    fn explain(&self, url: &url::Url, app: Option<&str>) -> String {
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let explanation = self.0.explain(&lb_http::explain::Question {
            scheme: match url.scheme() {
                "https" => lb_http::access::Scheme::Https,
                _ => lb_http::access::Scheme::Http,
            },
            host: url.host_str().unwrap_or_default(),
            port: url.port_or_known_default(),
            target: &target,
            app,
        });
        serde_json::to_string(&explanation).expect("the view is made of texts and numbers")
    }
}

pub struct Vip(pub l4_vip::Plane);

impl Plane for Vip {
    fn applied(&self) -> Applied {
        self.0.applied()
    }

    fn problems(&self) -> Arc<[Problem]> {
        self.0.problems()
    }

    fn endpoints(&self, which: Which, each: &mut dyn FnMut(EndpointSample)) {
        let vips = match which {
            Which::All => self.0.vips(),
            Which::Used => self.0.used_vips(),
        };
        for vip in vips {
            let key = VipKey { target: vip.vip, protocol: vip.protocol, port: vip.port };
            for endpoint in vip.endpoints {
                each(EndpointSample {
                    instance: endpoint.instance,
                    address: endpoint.address,
                    vip: Some(key.clone()),
                    n_in_flight: endpoint.n_in_flight.into(),
                    n_total: endpoint.n_picked,
                    n_failures: endpoint.n_connect_failures,
                    bytes_in: endpoint.bytes_in,
                    bytes_out: endpoint.bytes_out,
                    latency: None,
                    ejected: endpoint.ejected,
                });
            }
        }
    }

    fn metrics(&self, text: &mut String) {
        let vips = self.0.vips();
        let forwarded = |vip: &VipView, n: u64| (vip.plane == PlaneKind::Userspace).then_some(n);
        let mut family = |name: &str, kind: &str, value: &dyn Fn(&VipView) -> Option<u64>| {
            let _ = writeln!(text, "# TYPE waymark_vip_{name} {kind}");
            for vip in &vips {
                // What a plane does not count has no line, not a zero.
                let Some(value) = value(vip) else { continue };
                // VIP names are DNS names or addresses: nothing in them needs an escape.
                let _ = writeln!(
                    text,
                    "waymark_vip_{name}{{vip=\"{}\",protocol=\"{}\",port=\"{}\"}} {}",
                    vip.vip, vip.protocol, vip.port, value
                );
            }
        };
        let failures = |vip: &VipView| vip.counts.connect_failures.then_some(vip.counters.n_connect_failures);
        family("connections_in_flight", "gauge", &|vip| forwarded(vip, vip.n_in_flight.into()));
        family("endpoints", "gauge", &|vip| Some(vip.endpoints.len() as u64));
        family("connections_total", "counter", &|vip| Some(vip.counters.n_connections));
        family("no_endpoint_total", "counter", &|vip| Some(vip.counters.n_no_endpoint));
        family("unreachable_total", "counter", &|vip| forwarded(vip, vip.counters.n_unreachable));
        family("resets_total", "counter", &|vip| forwarded(vip, vip.counters.n_resets));
        family("connect_failures_total", "counter", &failures);
        family("idle_total", "counter", &|vip| forwarded(vip, vip.counters.n_idle));
        family("bytes_in_total", "counter", &|vip| vip.counts.bytes.then_some(vip.counters.bytes_in));
        family("bytes_out_total", "counter", &|vip| vip.counts.bytes.then_some(vip.counters.bytes_out));
        let choice = self.0.choice();
        let failed = u8::from(choice.failure.is_some());
        let _ = write!(
            text,
            "# TYPE waymark_vip_plane_info gauge\nwaymark_vip_plane_info{{wanted=\"{}\",active=\"{}\"}} 1\n\
             # TYPE waymark_vip_plane_failing gauge\nwaymark_vip_plane_failing {failed}\n\
             # TYPE waymark_vip_plane_repaired_total counter\nwaymark_vip_plane_repaired_total {}\n",
            choice.wanted,
            choice.active.as_str(),
            choice.n_repaired,
        );
        let totals = self.0.totals();
        for (name, n) in [
            ("accept_pauses", totals.n_accept_pauses),
            ("refused_for_descriptors", totals.n_refused_for_descriptors),
            ("moved", totals.n_moved),
            ("flows_evicted", totals.n_flows_evicted),
            ("datagrams_dropped", totals.n_datagrams_dropped),
            ("datagrams_refused", totals.n_datagrams_refused),
            ("ends_unheard", totals.n_unheard),
        ] {
            let _ = writeln!(text, "# TYPE waymark_vip_{name}_total counter\nwaymark_vip_{name}_total {n}");
        }
    }

    fn totals(&self) -> Vec<(&'static str, u64)> {
        let totals = self.0.totals();
        vec![
            ("VIPs", totals.n_vips as u64),
            ("listening", totals.n_listening as u64),
            ("connections", totals.n_connections),
            ("open", totals.n_in_flight),
        ]
    }
}

impl VipPlane for Vip {
    fn choice(&self) -> l4_vip::kernel::ChoiceView {
        self.0.choice()
    }

    fn vips(&self) -> Vec<l4_vip::stats::VipView> {
        self.0.vips()
    }
}

pub struct Dns(pub dns::Plane);

impl Plane for Dns {
    fn applied(&self) -> Applied {
        self.0.applied()
    }

    fn problems(&self) -> Arc<[Problem]> {
        Arc::default()
    }

    /// DNS sends nobody any traffic.
    fn endpoints(&self, _which: Which, _each: &mut dyn FnMut(EndpointSample)) {}

    fn metrics(&self, text: &mut String) {
        self.0.metrics(text);
    }

    fn totals(&self) -> Vec<(&'static str, u64)> {
        let statistics = self.0.statistics();
        let answers = statistics.n_answers_by_rcode.iter().filter(|(_, n)| **n > 0).map(|(k, n)| (*k, *n));
        [
            ("names", statistics.n_names as u64),
            ("queries over UDP", statistics.n_queries_udp),
            ("queries over TCP", statistics.n_queries_tcp),
            ("queries over HTTPS", statistics.n_queries_https),
            ("from the cache", statistics.n_answers_by_source.get("cache").copied().unwrap_or_default()),
            ("from upstreams", statistics.n_answers_by_source.get("upstream").copied().unwrap_or_default()),
        ]
        .into_iter()
        .chain(answers)
        .collect()
    }
}

/// What the networking API of DNS shows of the VIPs' traffic.
pub fn vip_traffic(vips: l4_vip::Plane) -> dns::VipTrafficSource {
    let traffic = move || {
        let of_vip = |vip: l4_vip::stats::VipView| dns::VipTraffic {
            n_connections: vip.counters.n_connections,
            // A forwarder tries the next backend; in the kernel the client sees each failed connect.
            n_failures: vip.counters.n_no_endpoint
                + match vip.plane {
                    PlaneKind::Userspace => vip.counters.n_unreachable,
                    PlaneKind::Ebpf | PlaneKind::Nft => vip.counters.n_connect_failures,
                },
            backends: vip
                .endpoints
                .iter()
                .map(|endpoint| dns::BackendTraffic {
                    address: endpoint.address,
                    n_in_flight: endpoint.n_in_flight.into(),
                    n_connections: endpoint.n_picked,
                    n_failures: endpoint.n_connect_failures,
                })
                .collect(),
            key: VipKey { target: vip.vip, protocol: vip.protocol, port: vip.port },
        };
        vips.vips().into_iter().map(of_vip).collect()
    };
    dns::VipTrafficSource(Box::new(traffic))
}
