//! What labels ask of a VIP: policy, weight, session affinity, times.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use event_watcher::catalog::{AppId, Protocol};
use l4_vip::Config;
use l4_vip::policy::Policy;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

use super::support::*;

/// Who answers a client at this address of the loopback network.
async fn answer_to(client: u8, vip: SocketAddr) -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 77, client), 0).into()).unwrap();
    let mut text = String::new();
    soon("answer", async { socket.connect(vip).await?.read_to_string(&mut text).await }).await.unwrap();
    text.parse().unwrap()
}

#[tokio::test]
async fn weights_of_the_apps_that_share_a_vip_are_their_shares() {
    let mut rig = Rig::start(1, Config::default());
    let [heavy, light, none] = [naming_endpoint().await, naming_endpoint().await, naming_endpoint().await];
    let port = free_port().await;
    let shared = |name: &str, endpoint, weight: &str| {
        let mut update = app(name, &[(Protocol::Tcp, port)], &[endpoint]);
        update.app.services[0].vips[0].target = target("shared");
        labelled(update, &[("WAYMARK_0_WEIGHT", weight)])
    };
    rig.apply(|catalog| {
        catalog.replace(shared("heavy", heavy, "3"));
        catalog.replace(shared("light", light, "1"));
        catalog.replace(shared("none", none, "0"));
    })
    .await;
    let vip = rig.address("shared", port);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..40 {
        *counts.entry(answer(vip).await).or_default() += 1;
    }
    assert_eq!(counts, [(heavy.port().to_string(), 30), (light.port().to_string(), 10)].into());

    rig.apply(|catalog| catalog.replace(shared("none", none, "4"))).await;
    let mut n = 0;
    for _ in 0..16 {
        n += usize::from(answer(vip).await == none.port().to_string());
    }
    assert_eq!(n, 8, "a label changes without a new VIP");
    rig.stop().await;
}

#[tokio::test]
async fn keyed_policies_send_a_client_to_one_endpoint_and_clients_to_all() {
    let mut rig = Rig::start(2, Config::default());
    let endpoints = [naming_endpoint().await, naming_endpoint().await, naming_endpoint().await];
    for policy in ["source", "maglev"] {
        let port = free_port().await;
        let update = app(policy, &[(Protocol::Tcp, port)], &endpoints);
        rig.apply(|c| c.replace(labelled(update, &[("WAYMARK_VIP_POLICY", policy)]))).await;
        let vip = rig.address(policy, port);
        let mut first = Vec::new();
        for client in 1..=20 {
            first.push(answer_to(client, vip).await);
        }
        for (client, port) in (1..=20).zip(&first) {
            assert_eq!(answer_to(client, vip).await, *port, "{policy}");
        }
        assert!(endpoints.iter().all(|e| first.contains(&e.port())), "{policy}: {first:?}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn maglev_moves_hardly_anybody_whose_endpoint_stays() {
    const N_CLIENTS: u8 = 240;
    let mut rig = Rig::start(2, Config { policy: Policy::Maglev, ..Config::default() });
    let endpoints = [naming_endpoint().await, naming_endpoint().await, naming_endpoint().await];
    let vip = rig.serve("hashed", &endpoints).await;
    let mut before = Vec::new();
    for client in 1..=N_CLIENTS {
        before.push(answer_to(client, vip).await);
    }
    let left = &endpoints[1..];
    rig.apply(|c| c.replace(app("hashed", &[(Protocol::Tcp, vip.port())], left))).await;
    let (mut n_stayed, mut n_moved) = (0, 0);
    for (client, before) in (1..=N_CLIENTS).zip(before) {
        let now = answer_to(client, vip).await;
        assert!(left.iter().any(|endpoint| endpoint.port() == now));
        if before != endpoints[0].port() {
            *if now == before { &mut n_stayed } else { &mut n_moved } += 1;
        }
    }
    assert!(n_stayed > 100 && n_moved * 50 <= n_stayed, "{n_moved} moved, {n_stayed} stayed");
    rig.stop().await;
}

#[tokio::test]
async fn least_connections_goes_by_what_is_held_open() {
    let mut rig = Rig::start(2, Config { policy: Policy::LeastConn, ..Config::default() });
    let endpoints = [greeting_endpoint().await, greeting_endpoint().await, greeting_endpoint().await];
    let vip = rig.serve("least", &endpoints).await;
    let mut held: BTreeMap<u16, Vec<TcpStream>> = BTreeMap::new();
    let hold = async |held: &mut BTreeMap<u16, Vec<TcpStream>>, n: usize| {
        for _ in 0..n {
            let mut client = soon("connect", TcpStream::connect(vip)).await.unwrap();
            let port = soon("greeting", client.read_u16()).await.unwrap();
            held.entry(port).or_default().push(client);
        }
    };
    hold(&mut held, 12).await;
    let counts = |held: &BTreeMap<u16, Vec<TcpStream>>| held.values().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(counts(&held), [4, 4, 4]);

    held.insert(endpoints[1].port(), Vec::new());
    soon("the plane sees that they are closed", async {
        while rig.plane.totals().n_in_flight != 8 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    hold(&mut held, 4).await;
    assert_eq!(counts(&held), [4, 4, 4], "all of them where there is room");
    drop(held);
    rig.stop().await;
}

#[tokio::test]
async fn random_policies_leave_nobody_out() {
    let mut rig = Rig::start(2, Config::default());
    let endpoints = [naming_endpoint().await, naming_endpoint().await, naming_endpoint().await];
    for policy in [Policy::Random, Policy::P2c] {
        let name = policy.to_string();
        let port = free_port().await;
        let update = app(&name, &[(Protocol::Tcp, port)], &endpoints);
        rig.apply(|c| c.replace(labelled(update, &[("WAYMARK_VIP_POLICY", &name)]))).await;
        let vip = rig.address(&name, port);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..300 {
            *counts.entry(answer(vip).await).or_default() += 1;
        }
        // 100 each; of random picks, fewer than 60 happen once in a million runs. Connect times differ by chance.
        let least = if policy == Policy::Random { 60 } else { 1 };
        assert!(counts.len() == 3 && counts.values().all(|n| *n >= least), "{policy}: {counts:?}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn with_affinity_a_client_stays_until_it_was_away_for_too_long() {
    let mut rig = Rig::start(2, Config::default());
    let endpoints = [naming_endpoint().await, naming_endpoint().await, naming_endpoint().await];
    let port = free_port().await;
    let update = app("affinity", &[(Protocol::Tcp, port)], &endpoints);
    rig.apply(|c| c.replace(labelled(update, &[("WAYMARK_0_VIP_AFFINITY", "1s")]))).await;
    let vip = rig.address("affinity", port);
    let first = answer_to(1, vip).await;
    for _ in 0..9 {
        assert_eq!(answer_to(1, vip).await, first);
        answer_to(2, vip).await;
    }
    assert_eq!(rig.plane.vips()[0].affinity_seconds, Some(1));
    // Its time counts whole seconds, so it may last one longer; then turns are taken anew.
    soon("a new turn", async {
        loop {
            tokio::time::sleep(Duration::from_millis(2100)).await;
            if answer_to(1, vip).await != first {
                break;
            }
        }
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn a_label_that_cannot_be_read_is_told_and_the_default_applies() {
    let mut rig = Rig::start(1, Config { policy: Policy::LeastConn, ..Config::default() });
    let port = free_port().await;
    let update = || app("unread", &[(Protocol::Tcp, port)], &[]);
    rig.apply(|c| c.replace(labelled(update(), &[("WAYMARK_0_VIP_POLICY", "best")]))).await;
    let problems = rig.plane.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].at, "labels.WAYMARK_0_VIP_POLICY");
    assert_eq!(rig.plane.vips()[0].policy, Policy::LeastConn);
    rig.apply(|c| c.replace(labelled(update(), &[("WAYMARK_0_VIP_POLICY", "p2c")]))).await;
    assert!(rig.plane.problems().is_empty());
    assert_eq!(rig.plane.vips()[0].policy, Policy::P2c);
    rig.apply(|c| c.remove(&AppId::new("unread"))).await;
    rig.stop().await;
}

#[tokio::test]
async fn connect_times_are_measured_where_the_policy_goes_by_them() {
    let mut rig = Rig::start(1, Config { policy: Policy::P2c, ..Config::default() });
    let vip = rig.serve("measured", &[naming_endpoint().await, naming_endpoint().await]).await;
    for _ in 0..20 {
        answer(vip).await;
    }
    let measured = rig.plane.vips()[0].endpoints.iter().filter_map(|e| e.connect_time_seconds).count();
    assert_eq!(measured, 2);
    rig.stop().await;
}

#[tokio::test]
async fn idle_connections_are_cut_only_when_that_is_asked_for() {
    let tcp_idle = Some(Duration::from_millis(200));
    let mut rig = Rig::start(1, Config { tcp_idle, ..Config::default() });
    let (listener, address) = endpoint().await;
    let vip = rig.serve("idle", &[address]).await;
    let (mut client, mut server) = through(vip, &listener).await;
    for _ in 0..10 {
        exchange(&mut client, &mut server).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(read_to_error(&mut client).await, ErrorKind::ConnectionReset);
    assert_eq!(rig.plane.vips()[0].counters.n_idle, 1);
    rig.stop().await;
}
