//! A VIP that loses its address to a name with the better claim, with each plane and the program as a whole: who still
//! has the old address is served there, and datagrams of a conversation go to nobody else.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tests::netns::is_root;
use tests::scheduler::ScriptedScheduler;
use tests::waymark::Waymark;

use super::host::Host;
use super::peers::{Connection, ask, eventually, serve_tcp, serve_udp, udp_client};
use super::program::{announce, app, flags, on_host};
use crate::PROGRAM;

/// Answers of DNS hold for 5 s.
const AN_ANSWER_HOLDS: Duration = Duration::from_secs(5);

/// In a /20, the two of a pair have the same home, and the second has the smaller SHA-1.
const STREAMS: [&str; 2] = ["name137", "name0"];
const DATAGRAMS: [&str; 2] = ["name1", "name407"];

fn moves(plane: &str, pool: &str) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new()?;
    on_host(&host, async {
        let scheduler = ScriptedScheduler::start().await?;
        let flags = flags(&host, plane, pool);
        let waymark =
            Waymark::serve(PROGRAM, scheduler.address, &flags.each_ref().map(String::as_str)).await?;
        let [mine, theirs] = [b'm', b't'].map(|name| serve_tcp(TcpListener::bind("127.0.0.1:0")?, name));
        let [my_datagrams, their_datagrams] =
            [b'm', b't'].map(|name| serve_udp(UdpSocket::bind("127.0.0.1:0")?, name));
        let (mine, theirs) = (mine?, theirs?);
        let (my_datagrams, their_datagrams) = (my_datagrams?, their_datagrams?);

        let old = announce(&waymark, &scheduler, STREAMS[0], app(STREAMS[0], "tcp", 80, Some(mine))).await?;
        let asked =
            announce(&waymark, &scheduler, DATAGRAMS[0], app(DATAGRAMS[0], "udp", 53, Some(my_datagrams)))
                .await?;
        let conversation = host.run(|| udp_client(&host.netns, &asked.to_string()))?;
        assert_eq!(ask(&conversation)?, b'm');

        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                host.run(|| {
                    let mut n_made = 0;
                    while !is_over.load(Relaxed) {
                        let connection = Connection::open_here(old)?;
                        anyhow::ensure!(connection.backend == b'm', "another app answered");
                        n_made += 1;
                    }
                    Ok(n_made)
                })
            });
            let moved = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let taken =
                        announce(&waymark, &scheduler, STREAMS[1], app(STREAMS[1], "tcp", 81, Some(theirs)))
                            .await?;
                    let moved_at = Instant::now();
                    assert_eq!(taken.ip(), old.ip(), "the name with the better claim has it");
                    let name = format!("{}.marathon.l4lb.thisdcos.directory", STREAMS[0]);
                    let told = waymark.ok(&["dns", "lookup", "--short", &name]).await?;
                    let new = SocketAddr::new(told.trim().parse()?, 80);
                    assert_ne!(new.ip(), old.ip());
                    assert_eq!(host.run(|| Connection::open_here(new))?.backend, b'm');
                    assert_eq!(host.run(|| Connection::open_here(taken))?.backend, b't');
                    let status = waymark.ok(&["status"]).await?;
                    assert!(
                        status.contains(&format!("it was at {} and is now at {}", old.ip(), new.ip())),
                        "{status}"
                    );
                    assert!(waymark.stats("/metrics").await?.text().contains("waymark_vip_moved_total 1"));

                    let handed = announce(
                        &waymark,
                        &scheduler,
                        DATAGRAMS[1],
                        app(DATAGRAMS[1], "udp", 53, Some(their_datagrams)),
                    )
                    .await?;
                    assert_eq!(handed, asked, "the same port, so nothing of it is served for the old owner");
                    let newcomer = host.run(|| udp_client(&host.netns, &asked.to_string()))?;
                    while moved_at.elapsed() < AN_ANSWER_HOLDS {
                        assert_eq!((ask(&conversation)?, ask(&newcomer)?), (b'm', b't'));
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    anyhow::Ok(())
                })
            });
            is_over.store(true, Relaxed);
            let n_made: anyhow::Result<u32> = connecting.join().expect("the thread does not panic");
            moved?;
            assert!(n_made? > 100, "clients of the old address");
            anyhow::Ok(())
        })?;

        // Its instance ends, and with it what it still had to say.
        announce(&waymark, &scheduler, DATAGRAMS[0], app(DATAGRAMS[0], "udp", 53, None)).await?;
        let after = eventually(|| Ok(ask(&conversation).map_or(true, |name| name == b't')))?;
        assert!(after < Duration::from_secs(1), "left after {after:?}");
        assert_eq!(ask(&host.run(|| udp_client(&host.netns, &asked.to_string()))?)?, b't');
        waymark.stop().await?;
        Ok(())
    })
}

#[test]
fn the_old_address_is_served_on_by_userspace() -> anyhow::Result<()> {
    moves("userspace", "127.213.0.0/20")
}

#[test]
fn the_old_address_is_served_on_by_nft() -> anyhow::Result<()> {
    moves("nft", "11.0.0.0/20")
}

#[test]
fn the_old_address_is_served_on_by_ebpf() -> anyhow::Result<()> {
    moves("ebpf", "127.215.0.0/20")
}
