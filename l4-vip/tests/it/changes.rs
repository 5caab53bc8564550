//! What snapshots change while connections are open: endpoints, VIPs, addresses, the plane's own end.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use event_watcher::catalog::{AppId, InstanceId, InstanceState, Protocol, VipTarget};
use l4_vip::Config;
use l4_vip::kernel::Frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::*;

fn tcp(address: std::net::SocketAddr) -> Frontend {
    Frontend { protocol: Protocol::Tcp, address }
}

#[tokio::test]
async fn established_connections_outlive_their_endpoint_and_their_vip() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, old) = endpoint().await;
    let new = naming_endpoint().await;
    let vip = rig.serve("drain", &[old]).await;
    let key = [(Protocol::Tcp, vip.port())];
    let (mut client, mut server) = through(vip, &listener).await;
    exchange(&mut client, &mut server).await;

    rig.apply(|catalog| catalog.replace(app("drain", &key, &[old, new]))).await;
    rig.apply(|catalog| {
        catalog.retire(
            &AppId::new("drain"),
            &InstanceId::new(&format!("drain.{old}")),
            InstanceState::Killing,
        );
    })
    .await;
    for _ in 0..4 {
        assert_eq!(answer(vip).await, new.port().to_string(), "draining: nothing new");
    }
    exchange(&mut client, &mut server).await;

    rig.apply(|catalog| catalog.replace(app("drain", &key, &[new]))).await;
    exchange(&mut client, &mut server).await;
    let view = &rig.plane.vips()[0];
    let leaving: Vec<u32> =
        view.endpoints.iter().filter(|e| e.address == old).map(|e| e.n_in_flight).collect();
    assert_eq!(leaving, [1], "shown until its last connection ends");
    assert_eq!(view.counters.n_connections, 5, "counters survive changes");

    rig.apply(|catalog| catalog.remove(&AppId::new("drain"))).await;
    exchange(&mut client, &mut server).await;
    client.shutdown().await.unwrap();
    let mut nothing = Vec::new();
    soon("end", server.read_to_end(&mut nothing)).await.unwrap();
    drop((client, server));
    rig.stop().await;
}

#[tokio::test]
async fn the_listener_goes_with_its_vip_and_stays_without_endpoints() {
    let mut rig = Rig::start(2, Config::default());
    let vip = rig.serve("goes", &[naming_endpoint().await]).await;
    answer(vip).await;
    rig.apply(|catalog| catalog.replace(app("goes", &[(Protocol::Tcp, vip.port())], &[]))).await;
    assert_eq!(rig.plane.listening(), [tcp(vip)]);
    rig.apply(|catalog| catalog.remove(&AppId::new("goes"))).await;
    assert!(rig.plane.listening().is_empty());
    until_refused(vip).await;
    rig.stop().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_a_problem_of_its_own() {
    let mut rig = Rig::start(1, Config::default());
    let good = naming_endpoint().await;
    let first = rig.serve("taken", &[good]).await;
    let ip: IpAddr = first.ip();
    let squatter = TcpListener::bind((ip, 0)).await.unwrap();
    let taken = squatter.local_addr().unwrap();
    let ports = [(Protocol::Tcp, first.port()), (Protocol::Tcp, taken.port())];
    rig.apply(|catalog| catalog.replace(app("taken", &ports, &[good]))).await;
    let problems = rig.plane.problems();
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(
        said.iter().any(|p| p.contains(&taken.to_string()) && p.contains("another program")),
        "{said:#?}"
    );
    assert_eq!(problems[0].app, Some(AppId::new("taken")));
    assert_eq!(rig.plane.listening(), [tcp(first)]);
    assert_eq!(answer(first).await, good.port().to_string());

    drop(squatter);
    rig.apply(|catalog| catalog.replace(app("another", &[], &[]))).await;
    assert!(rig.plane.problems().is_empty());
    assert_eq!(answer(taken).await, good.port().to_string());
    rig.stop().await;
}

#[tokio::test]
async fn a_stopping_plane_finishes_what_it_has_and_cuts_what_does_not_end() {
    for (drain_timeout, cut) in [(DEADLINE, false), (Duration::ZERO, true)] {
        let mut rig = Rig::start(1, Config { drain_timeout, ..Config::default() });
        let (listener, address) = endpoint().await;
        let vip = rig.serve("stop", &[address]).await;
        let (mut client, mut server) = through(vip, &listener).await;
        exchange(&mut client, &mut server).await;
        rig.cancel.cancel();
        if cut {
            assert_eq!(read_to_error(&mut client).await, ErrorKind::ConnectionReset);
            assert_eq!(read_to_error(&mut server).await, ErrorKind::ConnectionReset);
        } else {
            until_refused(vip).await;
            exchange(&mut client, &mut server).await;
            drop((client, server));
        }
        // Connections that came in the last moment wait here for somebody to accept them.
        drop(listener);
        rig.stop().await;
    }
}

/// Its name is gone at once, but somebody may have looked it up just before.
#[tokio::test]
async fn a_vip_that_is_gone_takes_connections_for_as_long_as_its_name_may_be_remembered() {
    let overlap = Duration::from_secs(2);
    let mut rig = Rig::start(1, Config { removal_overlap: overlap, ..Config::default() });
    let [stays, reused] = [naming_endpoint().await, naming_endpoint().await];
    let vip = rig.serve("gone", &[stays, reused]).await;
    rig.apply(|catalog| catalog.remove(&AppId::new("gone"))).await;
    assert!(rig.plane.vips().is_empty(), "listed no more");
    assert_eq!(rig.plane.listening(), [tcp(vip)]);
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        seen.insert(answer(vip).await);
    }
    assert_eq!(seen, [stays, reused].map(|at| at.port().to_string()).into());

    // Another app's instance where one of its own was.
    rig.apply(|catalog| catalog.replace(app("new", &[], &[reused]))).await;
    for _ in 0..4 {
        assert_eq!(answer(vip).await, stays.port().to_string());
    }

    // It comes back with what it had counted, and goes for good.
    rig.apply(|catalog| catalog.replace(app("gone", &[(Protocol::Tcp, vip.port())], &[stays]))).await;
    assert_eq!(rig.plane.vips()[0].counters.n_connections, 8);
    assert_eq!(answer(vip).await, stays.port().to_string());
    rig.apply(|catalog| catalog.remove(&AppId::new("gone"))).await;
    answer(vip).await;
    until_refused(vip).await;
    assert!(rig.plane.listening().is_empty());
    rig.stop().await;
}

/// A name loses its address to an app that chose it: the name moves, and programs that still have the old answer of DNS
/// are served there for a while.
#[tokio::test]
async fn a_vip_that_moves_is_served_at_both_addresses_for_a_while() {
    let mut rig = Rig::start(1, Config { move_overlap: Duration::from_secs(2), ..Config::default() });
    let [mine, theirs] = [naming_endpoint().await, naming_endpoint().await];
    let old = rig.serve("moves", &[mine]).await;
    assert_eq!(answer(old).await, mine.port().to_string());
    // The VIP's own port is free on the address that free ports are looked for on.
    let other_port = loop {
        let port = free_port().await;
        if port != old.port() {
            break port;
        }
    };
    let mut chosen = app("chosen", &[(Protocol::Tcp, other_port)], &[theirs]);
    chosen.app.services[0].vips[0].target = VipTarget::Ip(old.ip());
    rig.apply(|catalog| catalog.replace(chosen)).await;

    let new = rig.address("moves", old.port());
    assert_ne!(new.ip(), old.ip());
    assert_eq!(answer(new).await, mine.port().to_string());
    assert_eq!(answer((old.ip(), other_port).into()).await, theirs.port().to_string());
    assert_eq!(answer(old).await, mine.port().to_string(), "the old address");
    assert_eq!(rig.plane.totals().n_moved, 1);
    let problems: Vec<String> = rig.plane.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(&old.ip().to_string()) && problems[0].contains(&new.ip().to_string()));

    until_refused(old).await;
    assert_eq!(answer(new).await, mine.port().to_string());
    soon("its problem goes", async {
        while !rig.plane.problems().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.stop().await;
}

/// The last VIP of all goes and comes back: with it nothing is listened on in between.
#[tokio::test]
async fn fifty_long_connections_outlive_the_last_vip_and_it_comes_back() {
    let mut rig = Rig::start(2, Config::default());
    let endpoint = echo_endpoint().await;
    let vip = rig.serve("last", &[endpoint]).await;
    let mut long = Vec::new();
    for _ in 0..50 {
        let mut client = soon("connect", TcpStream::connect(vip)).await.unwrap();
        soon("exchange", echo(&mut client)).await.unwrap();
        long.push(client);
    }
    rig.apply(|catalog| catalog.remove(&AppId::new("last"))).await;
    until_refused(vip).await;
    for client in &mut long {
        soon("exchange without the VIP", echo(client)).await.unwrap();
    }
    rig.apply(|catalog| catalog.replace(app("last", &[(Protocol::Tcp, vip.port())], &[endpoint]))).await;
    let mut client = soon("connect", TcpStream::connect(vip)).await.unwrap();
    soon("exchange", echo(&mut client)).await.unwrap();
    for client in &mut long {
        soon("exchange after it", echo(client)).await.unwrap();
    }
    drop((client, long));
    rig.stop().await;
}

/// An address and port that change hands: clients are served by the one or the other, and none is turned away.
#[tokio::test]
async fn an_address_that_changes_hands_turns_nobody_away() {
    let mut rig = Rig::start(2, Config::default());
    let [mine, theirs] = [naming_endpoint().await, naming_endpoint().await];
    let vip = rig.serve("had", &[mine]).await;
    let chosen = || {
        let mut chosen = app("chosen", &[(Protocol::Tcp, vip.port())], &[theirs]);
        chosen.app.services[0].vips[0].target = VipTarget::Ip(vip.ip());
        chosen
    };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut seen = BTreeSet::new();
                while !*stopped.borrow() {
                    seen.insert(answer(vip).await);
                }
                seen
            })
        })
        .collect();
    for _ in 0..100 {
        rig.apply(|catalog| catalog.replace(chosen())).await;
        assert_eq!(answer(vip).await, theirs.port().to_string());
        rig.apply(|catalog| catalog.remove(&AppId::new("chosen"))).await;
        assert_eq!(answer(vip).await, mine.port().to_string());
    }
    stop.send_replace(true);
    let mut seen = BTreeSet::new();
    for client in clients {
        seen.extend(soon("client", client).await.unwrap());
    }
    assert_eq!(seen, [mine, theirs].map(|endpoint| endpoint.port().to_string()).into());
    rig.stop().await;
}

/// The pool, and now and then the whole table, changes 600 times under load: no new connection fails, none that is open
/// breaks.
#[tokio::test]
async fn six_hundred_changes_harm_no_connection() {
    const N_CHANGES: usize = 600;
    const N_LONG: usize = 50;
    let mut rig = Rig::start(2, Config::default());
    let endpoints = [echo_endpoint().await, echo_endpoint().await, echo_endpoint().await];
    let vip = rig.serve("changing", &endpoints).await;
    let key = [(Protocol::Tcp, vip.port())];
    let mut long = Vec::new();
    for _ in 0..N_LONG {
        long.push(soon("connect", TcpStream::connect(vip)).await.unwrap());
    }
    let (stop, _) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stopped = stop.subscribe();
            tokio::spawn(async move {
                let mut n_served = 0_u32;
                while !*stopped.borrow() {
                    let mut client = TcpStream::connect(vip).await?;
                    echo(&mut client).await?;
                    n_served += 1;
                }
                std::io::Result::Ok(n_served)
            })
        })
        .collect();
    let other_port = free_port().await;
    for change in 0..N_CHANGES {
        let left: Vec<_> =
            (0..3).filter(|i| *i != change % 3).map(|i| endpoints[i]).take(1 + change % 2).collect();
        let is_there = change % 20 < 10;
        rig.apply(|catalog| {
            catalog.replace(app("changing", &key, &left));
            if is_there {
                catalog.replace(app("comes-and-goes", &[(Protocol::Tcp, other_port)], &left));
            } else {
                catalog.remove(&AppId::new("comes-and-goes"));
            }
        })
        .await;
        let some = &mut long[change % N_LONG];
        soon("exchange", echo(some)).await.unwrap();
        tokio::task::yield_now().await;
    }
    stop.send_replace(true);
    let mut n_served = 0;
    for client in clients {
        n_served += soon("client", client).await.unwrap().unwrap();
    }
    for open in &mut long {
        soon("exchange", echo(open)).await.unwrap();
    }
    assert!(n_served > 100, "only {n_served} connections during {N_CHANGES} changes");
    let counters = rig.plane.vips().into_iter().find(|v| v.port == vip.port()).unwrap().counters;
    assert_eq!((counters.n_no_endpoint, counters.n_unreachable), (0, 0));
    drop(long);
    rig.stop().await;
}

async fn echo_endpoint() -> std::net::SocketAddr {
    let (listener, address) = endpoint().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

async fn echo(client: &mut TcpStream) -> std::io::Result<()> {
    client.write_all(b"ping").await?;
    let mut buffer = [0; 4];
    client.read_exact(&mut buffer).await?;
    assert_eq!(&buffer, b"ping");
    Ok(())
}
