//! `waymark serve --vip-plane …` as a whole: what people see of the plane, what lives on when the agent does not, and
//! how one plane takes over from another.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cgroup::Cgroup;
use tests::client::{DEADLINE, Response};
use tests::netns::{Netns, is_root};
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;

use crate::PROGRAM;

const APP: &str = "/web";

/// Echoes on every connection, for as long as the test runs.
fn backend() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

fn instance(task_id: &str, address: SocketAddr) -> ScriptedInstance {
    ScriptedInstance { task_id: task_id.into(), port: address.port() }
}

/// A connection to the VIP, from inside the group, that has carried something.
fn connect(cgroup: &Cgroup, vip: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = cgroup.run(|| TcpStream::connect(vip))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    exchange(&mut stream)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut answer = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut answer)?;
    Ok(())
}

async fn vip(waymark: &Waymark) -> anyhow::Result<(Value, SocketAddr)> {
    let vips = waymark.stats("/api/vips").await?.json()?;
    let ip = vips["vips"][0]["addresses"][0].as_str().unwrap_or_default().parse()?;
    Ok((vips, SocketAddr::new(ip, 80)))
}

#[tokio::test(flavor = "multi_thread")]
async fn ebpf_outlives_the_agent_and_is_shown() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let flag = cgroup.flag();
    let scheduler = ScriptedScheduler::start().await?;
    let own = instance("web.1", backend()?);
    scheduler.set_app(APP, 0, json!({}), std::slice::from_ref(&own));
    let pool = "127.211.0.0/20";
    let flags = ["--planes", "vip,dns", "--vip-plane", "ebpf", "--vip-cgroup", &flag, "--vip-pool", pool];
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
    let (vips, address) = vip(&waymark).await?;
    assert_eq!((&vips["plane"]["active"], &vips["vips"][0]["plane"]), (&json!("ebpf"), &json!("ebpf")));
    assert_eq!(vips["vips"][0]["served"], vips["vips"][0]["addresses"]);
    let mut kept = connect(&cgroup, address)?;
    assert!(TcpStream::connect(address).is_err(), "nobody listens: only the group reaches the VIP");
    waymark
        .until("/api/vips", "the connection is counted", |vips| {
            vips.json().is_ok_and(|vips| {
                vips["vips"][0]["n_connections"] == 1 && vips["vips"][0]["backends"][0]["n_connections"] == 1
            })
        })
        .await?;
    drop(connect(&cgroup, address)?);
    waymark
        .until("/api/vips", "its bytes are counted when a connection ends", |vips| {
            vips.json().is_ok_and(|vips| {
                let backend = &vips["vips"][0]["backends"][0];
                [&vips["vips"][0], backend].iter().all(|counted| {
                    counted["bytes_in"].as_u64() >= Some(4) && counted["bytes_out"].as_u64() >= Some(4)
                }) && backend["n_connect_failures"] == 0
            })
        })
        .await?;
    let shown = waymark.ok(&["vip", "show", "web.marathon"]).await?;
    for part in ["plane    ebpf", "WEIGHT", &format!("127.0.0.1:{}", own.port)] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(waymark.ok(&["vip", "list"]).await?.contains("ebpf"));
    assert!(waymark.ok(&["status"]).await?.contains("VIP plane   ebpf"));
    assert!(waymark.stats("/").await?.text().contains("Served by <b>ebpf</b>"));
    assert!(waymark.stats("/metrics").await?.text().contains("active=\"ebpf\"} 1"));
    let dcos = waymark.stats("/v1/vips").await?;
    let expect = json!([{
        "vip": "web.marathon.l4lb.thisdcos.directory:80", "protocol": "tcp",
        "backend": [{"ip": "127.0.0.1", "port": own.port}],
    }]);
    assert_eq!(dcos.json()?, expect);

    waymark.signal(libc::SIGKILL);
    let deadline = Instant::now() + DEADLINE;
    while TcpStream::connect(waymark.address("stats")).is_ok() {
        assert!(Instant::now() < deadline, "the agent does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    exchange(&mut kept)?;
    let mut made_without_agent = connect(&cgroup, address)?;

    // The next run adopts what it finds; connections are made all the while, and none fails.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (n_made, waymark) = thread::scope(|scope| {
        let making = scope.spawn(|| {
            let mut n_made = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                connect(&cgroup, address).map(|_| n_made += 1)?;
            }
            std::io::Result::Ok(n_made)
        });
        let started = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
                scheduler.set_app(APP, 0, json!({}), &[]);
                scheduler.status_update(APP, &own, "TASK_KILLED")?;
                anyhow::Ok(waymark)
            })
        });
        // The last instance went: from then on connections are refused, at once.
        let refused = making.join().expect("the thread does not panic");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        anyhow::Ok((refused, started?))
    })?;
    assert_eq!(n_made.err().and_then(|e| e.raw_os_error()), Some(libc::ECONNREFUSED));
    assert_eq!(vip(&waymark).await?.1, address, "a VIP without instances keeps its name and address");
    waymark
        .until("/api/vips", "counters go on", |vips| {
            vips.json().is_ok_and(|vips| vips["vips"][0]["n_connections"].as_u64() > Some(2))
        })
        .await?;
    exchange(&mut kept)?;
    exchange(&mut made_without_agent)?;

    assert_eq!(waymark.stop().await?, Some(0));
    let error = cgroup.run(|| TcpStream::connect(address)).expect_err("it has no backend");
    assert_eq!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED),
        "the programs stay after an orderly stop, too"
    );

    scheduler.set_app(APP, 0, json!({}), std::slice::from_ref(&own));
    let flushing: Vec<&str> = flags.iter().copied().chain(["--flush-on-exit"]).collect();
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &flushing).await?;
    connect(&cgroup, address)?;
    assert_eq!(waymark.stop().await?, Some(0));
    assert!(connect(&cgroup, address).is_err(), "everything is removed");
    exchange(&mut kept)?;
    Ok(())
}

/// Runs `work` in a network namespace of the test's own, where nftables may be changed at will.
fn in_namespace<F: Future<Output = anyhow::Result<()>>>(
    role: &str,
    work: impl FnOnce() -> F + Send,
) -> anyhow::Result<()> {
    Netns::new(role)?.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })
}

#[test]
fn a_change_of_the_plane_moves_new_connections_and_cuts_no_old_one() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    in_namespace("change", || async {
        let flag = cgroup.flag();
        let scheduler = ScriptedScheduler::start().await?;
        scheduler.set_app(APP, 0, json!({}), &[instance("web.1", backend()?)]);
        let mut kept: Vec<(&str, TcpStream)> = Vec::new();
        for plane in ["nft", "ebpf", "nft", "userspace", "ebpf", "userspace"] {
            let flags = [
                "--planes",
                "vip,dns",
                "--vip-plane",
                plane,
                "--vip-cgroup",
                &flag,
                "--vip-pool",
                "11.0.0.0/8",
            ];
            let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
            let (vips, address) = vip(&waymark).await?;
            assert_eq!(vips["plane"]["active"], plane);
            let n_before = vips["vips"][0]["n_connections"].as_u64();
            let made = connect(&cgroup, address)?;
            let counted = waymark.until("/api/vips", plane, |vips| {
                vips.json().is_ok_and(|vips| vips["vips"][0]["n_connections"].as_u64() > n_before)
            });
            counted.await?;
            for (plane, stream) in &mut kept {
                exchange(stream).map_err(|e| anyhow::anyhow!("made by {plane}: {e}"))?;
            }
            match plane {
                // It goes through the process, which ends.
                "userspace" => drop(made),
                _ => kept.push((plane, made)),
            }
            waymark.stop().await?;
        }
        for (plane, stream) in &mut kept {
            exchange(stream).map_err(|e| anyhow::anyhow!("made by {plane}: {e}"))?;
        }
        Ok(())
    })
}

#[test]
fn auto_goes_on_to_nft_and_flushing_leaves_nothing() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    in_namespace("auto", || async {
        let scheduler = ScriptedScheduler::start().await?;
        scheduler.set_app(APP, 0, json!({}), &[instance("web.1", backend()?)]);
        let flags = [
            "--planes",
            "vip,dns",
            "--vip-plane",
            "auto",
            "--vip-cgroup",
            "/proc",
            "--vip-pool",
            "11.0.0.0/8",
            "--flush-on-exit",
        ];
        let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
        let (vips, address) = vip(&waymark).await?;
        assert_eq!(vips["plane"]["active"], "nft");
        assert_eq!(vips["plane"]["why_not"][0]["plane"], "ebpf");
        let mut stream = TcpStream::connect(address)?;
        exchange(&mut stream)?;
        waymark
            .until("/api/vips", "the connection and its bytes are counted", |vips| {
                vips.json().is_ok_and(|vips| {
                    let backend = &vips["vips"][0]["backends"][0];
                    backend["n_connections"] == 1 && backend["bytes_in"].as_u64() >= Some(4)
                })
            })
            .await?;
        let counted = &vip(&waymark).await?.0["vips"][0];
        for known in [&counted["n_connect_failures"], &counted["backends"][0]["n_connect_failures"]] {
            assert_eq!(*known, 0, "{counted}");
        }
        for way in ["bytes_in", "bytes_out"] {
            assert!(counted[way].as_u64() >= Some(4), "{way}: {counted}");
            assert_eq!(counted[way], counted["backends"][0][way]);
        }
        let metrics = waymark.stats("/metrics").await?.text();
        assert!(metrics.contains("waymark_vip_bytes_in_total{"), "{metrics}");
        assert!(metrics.contains("waymark_vip_connect_failures_total{"), "{metrics}");
        let shown: serde_json::Value =
            serde_json::from_str(&waymark.ok(&["vip", "show", "web", "--json"]).await?)?;
        assert!(shown[0]["backends"][0]["bytes_in"].as_u64() >= Some(4), "{shown}");
        let listed = waymark.ok(&["vip", "list"]).await?;
        assert!(listed.contains("not ebpf: ") && listed.contains("BYTES IN"), "{listed}");
        waymark.stop().await?;
        assert!(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err(), "nothing is left");
        Ok(())
    })
}

#[test]
fn a_plane_that_still_runs_is_shown_and_taken_over_when_it_has_stopped() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    in_namespace("two", || async {
        let flag = cgroup.flag();
        let scheduler = ScriptedScheduler::start().await?;
        scheduler.set_app(APP, 0, json!({}), &[instance("web.1", backend()?)]);
        let flags = |plane| {
            let common = ["--planes", "vip,dns", "--vip-cgroup", &flag, "--vip-pool", "11.0.0.0/8"];
            [&common[..], &["--vip-plane", plane]].concat()
        };
        let earlier = Waymark::serve(PROGRAM, scheduler.address, &flags("nft")).await?;
        let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags("ebpf")).await?;
        let is_told = |page: &Response| page.text().contains("VIP plane of an earlier run");
        waymark.until("/", "the other is told of", is_told).await?;
        earlier.stop().await?;
        waymark.until("/", "it is taken over", |page| !is_told(page)).await?;
        let (_, address) = vip(&waymark).await?;
        connect(&cgroup, address)?;
        waymark.stop().await?;
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plane_that_was_asked_for_and_cannot_be_used_ends_the_start() -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    let backend = backend()?;
    scheduler.set_app(APP, 0, json!({}), &[instance("web.1", backend)]);
    // A directory that is no control group: eBPF cannot be used, whoever runs this.
    let flags = ["--planes", "vip,dns", "--vip-cgroup", "/proc"];
    let explicit: Vec<&str> = flags.iter().copied().chain(["--vip-plane", "ebpf"]).collect();
    let error =
        Waymark::serve(PROGRAM, scheduler.address, &explicit).await.expect_err("it is no control group");
    assert!(format!("{error:#}").contains("--vip-cgroup names a directory"), "{error:#}");

    Ok(())
}
