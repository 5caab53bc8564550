//! How connections find an endpoint: turns, workers, endpoints that refuse or stay silent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::{Protocol, VipKey, VipTarget};
use l4_vip::Config;
use tokio::net::{TcpListener, TcpStream};

use super::support::*;

#[tokio::test]
async fn connections_take_turns_over_the_endpoints() {
    let mut rig = Rig::start(1, Config::default());
    let endpoints = [naming_endpoint().await, naming_endpoint().await, naming_endpoint().await];
    let vip = rig.serve("turns", &endpoints).await;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..30 {
        *counts.entry(answer(vip).await).or_default() += 1;
    }
    assert_eq!(counts, endpoints.iter().map(|e| (e.port().to_string(), 10)).collect());
    let view = &rig.plane.vips()[0];
    assert_eq!((view.counters.n_connections, view.counters.n_resets), (30, 0));
    assert!(view.counters.bytes_out >= 30 * 4);
    rig.stop().await;
}

#[tokio::test]
async fn every_worker_serves_its_share() {
    let mut rig = Rig::start(3, Config::default());
    let expected = naming_endpoint().await;
    let vip = rig.serve("share", &[expected]).await;
    for _ in 0..60 {
        assert_eq!(answer(vip).await, expected.port().to_string());
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_refused_connect_goes_to_another_endpoint() {
    let mut rig = Rig::start(1, Config::default());
    let good = naming_endpoint().await;
    let (_held, bad) = refusing_endpoint();
    let vip = rig.serve("refused", &[good, bad]).await;
    for _ in 0..20 {
        assert_eq!(answer(vip).await, good.port().to_string());
    }
    let view = &rig.plane.vips()[0];
    assert!(view.counters.n_connect_failures > 0);
    assert_eq!(view.counters.n_unreachable, 0);
    let failed: u64 = view.endpoints.iter().filter(|e| e.address == bad).map(|e| e.n_connect_failures).sum();
    assert_eq!(failed, view.counters.n_connect_failures);
    rig.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_left_for_another() {
    let mut rig = Rig::start(1, Config { connect_timeout: Duration::from_millis(50), ..Config::default() });
    let good = naming_endpoint().await;
    let (silent, address) = refusing_endpoint();
    silent.listen(0).unwrap();
    // With its queue full the kernel drops what comes next, as a host that is gone would.
    let mut waiting = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        waiting.push(connected.unwrap());
    }
    let vip = rig.serve("silent", &[address, good]).await;
    for _ in 0..6 {
        assert_eq!(answer(vip).await, good.port().to_string());
    }
    assert!(rig.plane.vips()[0].counters.n_connect_failures > 0);
    rig.stop().await;
}

#[tokio::test]
async fn without_an_endpoint_the_client_is_reset() {
    let mut rig = Rig::start(1, Config::default());
    let (_held, bad) = refusing_endpoint();
    for (name, endpoints) in [("none", vec![]), ("dead", vec![bad])] {
        let vip = rig.serve(name, &endpoints).await;
        // The reset may come before the client has looked at its connection for the first time.
        let kind = match soon("connect", TcpStream::connect(vip)).await {
            Ok(mut client) => read_to_error(&mut client).await,
            Err(e) => e.kind(),
        };
        assert_eq!(kind, ErrorKind::ConnectionReset, "{name}");
    }
    let counts: Vec<(u64, u64)> =
        rig.plane.vips().iter().map(|v| (v.counters.n_no_endpoint, v.counters.n_unreachable)).collect();
    assert_eq!(BTreeSet::from_iter(counts), [(0, 1), (1, 0)].into());
    rig.stop().await;
}

/// An address of IPv6 that anybody may bind: of the host itself.
#[tokio::test]
async fn ipv6_is_served_as_ipv4_is() {
    let mut rig = Rig::start(1, Config::default());
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let (endpoint, port) = (listener.local_addr().unwrap(), free_port().await);
    let mut six = app("six", &[], &[endpoint]);
    let target = VipTarget::Ip("::1".parse().unwrap());
    six.app.services[0].vips = vec![VipKey { target, protocol: Protocol::Tcp, port }];
    // A VIP may not have the address of an agent.
    let instance = Arc::get_mut(&mut six.app.instances[0]).expect("nobody else has it");
    instance.host_address = Some([127, 0, 0, 1].into());
    rig.apply(|catalog| catalog.replace(six)).await;
    let (mut client, mut server) = through(([0, 0, 0, 0, 0, 0, 0, 1], port).into(), &listener).await;
    exchange(&mut client, &mut server).await;
    drop((client, server));
    rig.stop().await;
}
