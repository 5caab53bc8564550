//! The programs in C, `tests/ebpf/wm.bpf.c`, against those that Waymark assembles.

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use event_watcher::catalog::Protocol;
use l4_vip::kernel::ebpf::Ebpf;
use l4_vip::kernel::{KernelPlane, Service};
use tests::cgroup::Cgroup;
use tests::netns::is_root;

use super::ebpf::{errno, open, reached, tcp_backend};
use super::peers::{eventually, frontend, service};

/// The C twin, loaded on the same maps and attached to another group, gives the answers that our programs give.
#[test]
fn the_c_twin_agrees() -> anyhow::Result<()> {
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !is_root() || !is_there("clang-14") || !is_there("bpftool") {
        return Ok(());
    }
    let (ours, twins) = (Cgroup::new()?, Cgroup::new()?);
    let mut plane = open(&ours)?;
    let vip = frontend(Protocol::Tcp, "127.210.10.1:80");
    let (empty, sticky) =
        (frontend(Protocol::Tcp, "127.210.10.2:80"), frontend(Protocol::Tcp, "127.210.10.3:80"));
    let (light, heavy) = (tcp_backend("127.0.0.1:0")?, tcp_backend("127.0.0.1:0")?);
    let both = [(light, 1), (heavy, 3)];
    let with_affinity = Service { affinity: Some(Duration::from_secs(60)), ..service(sticky, &both) };
    let dead = frontend(Protocol::Tcp, "127.210.10.4:80");
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    plane.reconcile(&[
        service(vip, &both),
        service(empty, &[]),
        with_affinity,
        service(dead, &[(nobody, 1)]),
    ])?;

    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(ours.path())?);
    let pins = format!("/sys/fs/bpf/waymark/{id}");
    let (object, programs) = (tempfile::NamedTempFile::new()?, format!("{pins}/twin"));
    let object = object.path().to_string_lossy().into_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/wm.bpf.c");
    run(
        "clang-14",
        &[
            "-O2",
            "-g",
            "-target",
            "bpf",
            "-mcpu=v3",
            "-I/usr/include/x86_64-linux-gnu",
            "-c",
            source,
            "-o",
            &object,
        ],
    )?;
    let maps = ["services", "slots", "backends", "counters", "peers", "affinity"];
    let maps: Vec<[String; 5]> = maps
        .iter()
        .map(|map| ["map", "name", map, "pinned", &format!("{pins}/{map}_4")].map(str::to_owned))
        .collect();
    let load = ["prog", "loadall", &object, &programs];
    run("bpftool", &load.into_iter().chain(maps.iter().flatten().map(String::as_str)).collect::<Vec<_>>())?;
    let attached = [
        ("sock_ops", "cgroup_sock_ops"),
        ("connect4", "cgroup_inet4_connect"),
        ("getpeername4", "cgroup_inet4_getpeername"),
    ];
    for (program, call) in attached {
        let pinned = format!("{programs}/{program}");
        run("bpftool", &["cgroup", "attach", &twins.flag(), call, "pinned", &pinned])?;
    }
    for (nth, cgroup) in [&ours, &twins].into_iter().enumerate() {
        cgroup.run(|| {
            let mut n_heavy = 0;
            for _ in 0..400 {
                let (stream, port) = reached(vip.address)?;
                anyhow::ensure!(stream.peer_addr()? == vip.address, "the VIP is what the client sees");
                n_heavy += u32::from(port == heavy.port());
            }
            assert!((240..=360).contains(&n_heavy), "{n_heavy} of 400");
            for refused in [empty, dead] {
                assert_eq!(errno(TcpStream::connect(refused.address)), Some(libc::ECONNREFUSED));
            }
            anyhow::Ok(())
        })?;
        // Each connection was greeted with 13 bytes, and its end may count as one in each direction.
        let n = 400 * (nth as u64 + 1);
        let of = |plane: &mut Ebpf, vip| {
            let counters = plane.count()?.frontends.into_iter().find(|(frontend, _)| *frontend == vip);
            anyhow::Ok(counters.map(|(_, counters)| counters).unwrap_or_default())
        };
        eventually(|| Ok(of(&mut plane, vip)?.bytes_out >= 13 * n))?;
        let counted = of(&mut plane, vip)?;
        assert!(counted.bytes_out <= 14 * n && counted.bytes_in <= n, "{counted:?}");
        assert_eq!(
            (counted.n_connect_failures, of(&mut plane, dead)?.n_connect_failures),
            (0, nth as u64 + 1)
        );
    }
    let clients = [&ours, &twins, &ours, &twins];
    let kept: Vec<u16> = clients
        .iter()
        .map(|cgroup| cgroup.run(|| reached(sticky.address).map(|(_, port)| port)))
        .collect::<std::io::Result<_>>()?;
    assert!(kept.iter().all(|port| *port == kept[0]), "one client, whoever picks: {kept:?}");
    let total: u64 = plane.count()?.frontends.iter().map(|(_, c)| c.n_connections + c.n_refused).sum();
    assert_eq!(total, 808, "both count in the same place");
    for (program, _) in attached {
        std::fs::remove_file(format!("{programs}/{program}"))?;
    }
    std::fs::remove_dir(&programs)?;
    plane.flush()?;
    Ok(())
}

fn run(program: &str, words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(words).output()?;
    anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
