//! The nft plane and time: others change its table, it stops and starts again, its process is killed.
//!
//! What a packet meets while nothing of that happens is not its business.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol::Tcp;
use l4_vip::kernel::KernelPlane;
use l4_vip::kernel::nft::{Nft, NftConfig, Ownership};
use tests::client::get;
use tests::netns::{Netns, is_root};
use tests::waymark::Waymark;

use super::nft::{open, open_as};
use super::peers::{Connection, VIP, frontend, names, reached, service, tcp_backend};
use crate::{APP, PROGRAM, VIP_NAME};

#[test]
fn a_flush_of_all_rules_leaves_an_owned_table() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let a = tcp_backend(&host, "127.0.0.1:0", b'a')?;
    let mut nft = open(&host)?;
    let all = [service(frontend(Tcp, VIP), &[(a, 1)])];
    nft.reconcile(&all)?;
    let mut old = Connection::open(&host, VIP)?;
    host.output("nft", "flush ruleset")?;
    old.ping()?;
    assert_eq!(names(&reached(&host, VIP, 5)?), "a");
    assert!(!nft.was_changed_by_others()?);
    assert_eq!(nft.reconcile(&all)?, 0);
    Ok(())
}

#[test]
fn what_others_remove_is_found_and_repaired() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let a = tcp_backend(&host, "127.0.0.1:0", b'a')?;
    let mut nft = open_as(&host, Ownership::Shared)?;
    let all = [service(frontend(Tcp, VIP), &[(a, 1)]), service(frontend(Tcp, "1.2.3.4:80"), &[(a, 1)])];
    nft.reconcile(&all)?;
    assert!(!nft.was_changed_by_others()?, "own changes are not others'");
    let port = a.port();
    for damage in [
        "nft flush ruleset".to_owned(),
        "nft flush table inet waymark".to_owned(),
        "nft flush map inet waymark slots4".to_owned(),
        "nft flush set inet waymark connections4".to_owned(),
        format!("nft add element inet waymark slots4 {{ 0x0 . 11.9.9.9 . tcp . 80 : 127.0.0.1 . {port} }}"),
        "nft delete chain inet waymark prerouting".to_owned(),
        "ip route del local 11.0.0.0/8 dev lo table local".to_owned(),
        "ip route del local 1.2.3.4 dev lo table local".to_owned(),
    ] {
        let (program, words) = damage.split_once(' ').expect("a program and its words");
        host.output(program, words)?;
        let started = Instant::now();
        assert!(nft.was_changed_by_others()?, "{damage} was not noticed");
        nft.reconcile(&all)?;
        assert!(started.elapsed() < Duration::from_secs(1), "{damage}: {:?}", started.elapsed());
        for service in &all {
            let address = service.frontend.address.to_string();
            assert_eq!(names(&reached(&host, &address, 3)?), "a", "{address} after {damage}");
        }
        assert_eq!(nft.reconcile(&all)?, 0, "{damage} was not repaired as a whole");
    }
    Ok(())
}

#[test]
fn nothing_stops_while_the_plane_is_away() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let [a, b] = [tcp_backend(&host, "127.0.0.1:0", b'a')?, tcp_backend(&host, "127.0.0.1:0", b'b')?];
    let all = [service(frontend(Tcp, VIP), &[(a, 1), (b, 2)]), service(frontend(Tcp, "[fd01:c::7]:1"), &[])];
    let mut nft = open(&host)?;
    nft.reconcile(&all)?;
    let mut old = Connection::open(&host, VIP)?;
    drop(nft);
    old.ping()?;
    assert_eq!(names(&reached(&host, VIP, 40)?), "ab");
    let mut nft = open(&host)?;
    old.ping()?;
    assert_eq!(names(&reached(&host, VIP, 40)?), "ab");
    assert_eq!(nft.reconcile(&all)?, 0, "what stands there is adopted");
    assert_eq!(nft.count()?.frontends.iter().map(|(_, counters)| counters.n_connections).sum::<u64>(), 81);
    assert_eq!(nft.reconcile(&all[..1])?, 1, "what is not wanted any more goes");
    old.ping()?;
    let another = host.run(|| Nft::open(NftConfig { pools: vec![], ownership: Ownership::Exclusive }));
    let hint = another.err().map(|error| error.hint).unwrap_or_default();
    assert!(hint.contains("another"), "two planes at once: {hint:?}");
    nft.flush()?;
    assert!(!host.output("nft", "list ruleset")?.contains("waymark"));
    assert!(!host.ip("route show table local")?.contains("11.0.0.0/8"));
    Ok(())
}

#[test]
fn the_program_serves_by_nft_and_leaves_vips_behind_when_killed() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let pool = ["--vip-plane", "nft", "--vip-pool", "11.0.0.0/8"];
            let waymark = Waymark::dev(PROGRAM, &pool).await?;
            waymark.ok(&["app", "update", APP, "instances=2", "--wait"]).await?;
            let address = waymark.ok(&["dns", "lookup", "--short", VIP_NAME]).await?;
            let vip = SocketAddr::new(address.trim().parse()?, 10_000);
            let mut answers = BTreeSet::new();
            for _ in 0..20 {
                answers.insert(get(vip, "/").await?.text());
            }
            assert_eq!(answers.len(), 2, "both instances answer: {answers:?}");
            let vips = waymark.stats("/api/vips").await?.text();
            assert!(vips.contains(r#""plane":"nft""#), "{vips}");
            let elements = host.output("nft", "-s list map inet waymark slots4")?;
            host.output("nft", "flush ruleset")?;
            assert_eq!(get(vip, "/").await?.status, 200);
            waymark.signal(libc::SIGKILL);
            drop(waymark);
            assert_eq!(
                host.output("nft", "-s list map inet waymark slots4")?,
                elements,
                "it outlives its maker"
            );
            anyhow::Ok(())
        })
    })
}
