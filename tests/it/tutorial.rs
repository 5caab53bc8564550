//! Part 8 of the DC/OS 101 tutorial as a newcomer does it: scale an app and watch traffic move.

use std::collections::BTreeMap;

use tests::client::{self, get};
use tests::load::{Connections, Load, Shape};
use tests::waymark::Waymark;

use crate::{APP, PROGRAM, VIP_NAME};

/// Asks an address several times over new connections and counts who answered.
async fn who_answers(
    address: std::net::SocketAddr,
    n: usize,
) -> anyhow::Result<(Vec<String>, BTreeMap<String, usize>)> {
    let mut order = Vec::new();
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        let answer = get(address, "/").await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *counts.entry(answer.text()).or_default() += 1;
        order.push(answer.text());
    }
    Ok((order, counts))
}

#[tokio::test]
async fn scale_an_app_and_watch_traffic_move() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    let service = waymark.service(10000);

    let list = waymark.ok(&["app", "list"]).await?;
    assert!(list.contains(APP), "{list}");
    let (_, one) = who_answers(service, 4).await?;
    assert_eq!(one.len(), 1, "{one:?}");
    let page = one.keys().next().expect("somebody answered");
    assert!(page.contains("dcos-101_app2.instance-"), "the answer names its instance: {page}");

    let kept =
        Load::start(service, "/", Shape { n_clients: 4, connections: Connections::Kept, rate: Some(200) });
    let new =
        Load::start(service, "/", Shape { n_clients: 4, connections: Connections::New, rate: Some(200) });

    waymark.ok(&["app", "update", APP, "instances=2", "--wait"]).await?;
    let vip: std::net::Ipv4Addr =
        waymark.ok(&["dns", "lookup", "--short", VIP_NAME]).await?.trim().parse()?;
    assert_eq!(vip.octets()[0], 127);
    waymark
        .until("/haproxy?stats;csv", "two servers", |csv| {
            csv.text().lines().filter(|l| l.starts_with("dcos-101_app2_10000,127_0_0_1_")).count() == 2
        })
        .await?;
    let (_, through_vip) = who_answers((vip, 10000).into(), 10).await?;
    assert_eq!(through_vip.len(), 2, "the VIP reaches both instances: {through_vip:?}");
    for load in [&kept, &new] {
        load.sends(50).await;
    }

    waymark.ok(&["app", "update", APP, "instances=1", "--wait"]).await?;
    let (_, back) = who_answers(service, 6).await?;
    assert_eq!(back.len(), 1, "{back:?}");
    let (_, back) = who_answers((vip, 10000).into(), 6).await?;
    assert_eq!(back.len(), 1, "{back:?}");

    for load in [kept, new] {
        let outcome = load.stop().await;
        assert!(outcome.n_ok > 50, "{outcome:?}");
        assert_eq!(outcome.n_failed, 0, "nobody saw an error: {:?}", outcome.reasons);
        assert_eq!(outcome.answers.len(), 2, "both instances served: {:?}", outcome.answers);
    }
    assert_eq!(waymark.stop().await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn two_instances_alternate() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let (order, counts) = who_answers(waymark.service(10000), 10).await?;
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [5, 5]);
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
    Ok(())
}

#[tokio::test]
async fn the_stats_page_shows_the_instances_and_moves() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    who_answers(waymark.service(10000), 6).await?;

    let apps = waymark.stats("/api/apps").await?.json()?;
    let text = apps.to_string();
    assert!(text.contains(APP), "{text}");
    let page = waymark.stats("/").await?;
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap_or_default().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe-inline"), "{policy}");
    assert!(page.text().contains(APP), "{}", page.text());

    let haproxy = waymark.stats("/haproxy?stats").await?;
    assert!(haproxy.text().contains("dcos-101_app2_10000"), "{}", haproxy.text());
    let total = |csv: &client::Response| -> u64 {
        let text = csv.text();
        let columns: Vec<&str> = text.lines().next().unwrap_or_default().split(',').collect();
        let stot = columns.iter().position(|c| *c == "stot").expect("a column stot");
        let servers = text.lines().filter(|l| l.starts_with("dcos-101_app2_10000,127_0_0_1_"));
        servers.filter_map(|l| l.split(',').nth(stot)?.parse::<u64>().ok()).sum()
    };
    let before = total(&waymark.stats("/haproxy?stats;csv").await?);
    who_answers(waymark.service(10000), 4).await?;
    waymark.until("/haproxy?stats;csv", "counters move", |csv| total(csv) == before + 4).await?;

    let metrics = waymark.stats("/metrics").await?.text();
    assert!(metrics.contains("haproxy_server_") && metrics.contains("waymark_"), "{metrics}");
    for path in ["/livez", "/readyz", "/_haproxy_health_check"] {
        assert_eq!(waymark.stats(path).await?.status, 200, "{path}");
    }
    Ok(())
}
