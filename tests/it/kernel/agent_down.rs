//! The agent is killed and stays away for a while: the kernel planes serve on without it, and the next run adopts what
//! it finds.
//!
//! Away for 5 s, or for as many seconds as `WAYMARK_TEST_AGENT_DOWN_SECS` says.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tests::netns::is_root;
use tests::scheduler::ScriptedScheduler;
use tests::waymark::Waymark;

use super::host::Host;
use super::peers::{Connection, serve_tcp};
use super::program::{announce, app, flags, on_host};
use crate::PROGRAM;

const N_KEPT: usize = 50;
/// Between two connections, so that a client's ports, which TCP holds for a minute, do for any time away.
const PAUSE: Duration = Duration::from_millis(5);

fn away() -> Duration {
    let said = std::env::var("WAYMARK_TEST_AGENT_DOWN_SECS").ok();
    Duration::from_secs(said.map_or(5, |seconds| seconds.parse().expect("it is a number of seconds")))
}

/// Makes connections one after the other, and says something on each of the kept ones in turn, until it is over.
fn talk(vip: SocketAddr, mut kept: Vec<Connection>, is_over: &AtomicBool) -> anyhow::Result<u64> {
    let mut n_made = 0;
    while !is_over.load(Relaxed) {
        Connection::open_here(vip)?.ping()?;
        n_made += 1;
        let nth = n_made as usize % kept.len();
        kept[nth].ping()?;
        std::thread::park_timeout(PAUSE);
    }
    kept.iter_mut().try_for_each(Connection::ping)?;
    Ok(n_made)
}

#[allow(clippy::print_stdout, reason = "how long it was, and what was made meanwhile, is what it shows")]
fn serves_on_without_the_agent(plane: &str, pool: &str) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new()?;
    let flags = flags(&host, plane, pool);
    let flags = flags.each_ref().map(String::as_str);
    on_host(&host, async {
        let scheduler = ScriptedScheduler::start().await?;
        let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
        let backend = serve_tcp(TcpListener::bind("127.0.0.1:0")?, b'b')?;
        let vip = announce(&waymark, &scheduler, "web", app("web", "tcp", 80, Some(backend))).await?;
        let kept = host
            .run(|| (0..N_KEPT).map(|_| Connection::open_here(vip)).collect::<std::io::Result<Vec<_>>>())?;
        let is_over = AtomicBool::new(false);
        let n_made = std::thread::scope(|scope| {
            let talking = scope.spawn(|| host.run(|| talk(vip, kept, &is_over)));
            let adopted = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    waymark.signal(libc::SIGKILL);
                    drop(waymark);
                    tokio::time::sleep(away()).await;
                    let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
                    let counts_on = |response: &tests::client::Response| {
                        response
                            .json()
                            .is_ok_and(|vips| vips["vips"][0]["n_connections"].as_u64() > Some(N_KEPT as u64))
                    };
                    waymark.until("/api/vips", "what was counted without it is known", counts_on).await?;
                    waymark.stop().await
                })
            });
            is_over.store(true, Relaxed);
            let n_made = talking.join().expect("the thread does not panic")?;
            adopted?;
            anyhow::Ok(n_made)
        })?;
        println!("{plane}: away for {:?}; {n_made} connections made, {N_KEPT} kept, none failed", away());
        assert!(n_made > 100, "{n_made}");
        let flushing: Vec<&str> = flags.into_iter().chain(["--flush-on-exit"]).collect();
        Waymark::serve(PROGRAM, scheduler.address, &flushing).await?.stop().await?;
        assert!(host.run(|| Connection::open_here(vip)).is_err(), "nothing is left");
        Ok(())
    })
}

#[test]
fn ebpf_serves_on_without_the_agent() -> anyhow::Result<()> {
    // What is pinned is the whole machine's: a pool that no other test takes over.
    serves_on_without_the_agent("ebpf", "127.214.0.0/20")
}

#[test]
fn nft_serves_on_without_the_agent() -> anyhow::Result<()> {
    serves_on_without_the_agent("nft", "11.0.0.0/20")
}
