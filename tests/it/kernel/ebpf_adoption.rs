//! The eBPF plane and time: its process ends and another adopts what it left; somebody takes links or pins away.

use std::net::TcpStream;
use std::time::Duration;

use event_watcher::catalog::Protocol;
use l4_vip::kernel::KernelPlane;
use l4_vip::kernel::ebpf::Ebpf;
use tests::cgroup::Cgroup;
use tests::netns::is_root;

use super::ebpf::{echoes, open, reached, tcp_backend};
use super::peers::{frontend, service};

#[test]
fn the_programs_outlive_the_process_and_are_adopted() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let vip = frontend(Protocol::Tcp, "127.210.6.1:64080");
    let backend = tcp_backend("127.0.0.1:0")?;
    let all = [service(vip, &[(backend, 1)])];
    let mut plane = open(&cgroup)?;
    assert!(plane.reconcile(&all)? > 0);
    let second = open(&cgroup).expect_err("one process at a time");
    assert!(format!("{second:#}").contains("another waymark"), "{second:#}");
    let (mut kept, _) = cgroup.run(|| reached(vip.address))?;
    drop(plane);

    let (mut made_meanwhile, _) = cgroup.run(|| reached(vip.address))?;
    let mut plane = open(&cgroup)?;
    let (mut before_reconcile, _) = cgroup.run(|| reached(vip.address))?;
    let n_differed = plane.reconcile(&all)?;
    assert_eq!(n_differed, 9, "only the programs were replaced");
    assert_eq!(plane.reconcile(&all)?, 0);
    assert_eq!(plane.count()?.frontends[0].1.n_connections, 3, "counters go on");
    for stream in [&mut kept, &mut made_meanwhile, &mut before_reconcile] {
        assert!(echoes(stream));
        assert_eq!(stream.peer_addr()?, vip.address);
    }
    plane.flush()?;
    assert!(
        cgroup.run(|| TcpStream::connect_timeout(&vip.address, Duration::from_secs(1)).is_err()),
        "nothing is left"
    );
    assert!(echoes(&mut kept), "what is established stays");
    assert_eq!(Ebpf::remove_left_over(&|frontend| *frontend == vip)?, 0, "nothing is pinned any more");
    Ok(())
}

#[test]
fn what_others_took_away_comes_back() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let vip = frontend(Protocol::Tcp, "127.210.7.1:80");
    let backend = tcp_backend("127.0.0.1:0")?;
    let all = [service(vip, &[(backend, 1)])];
    let mut plane = open(&cgroup)?;
    plane.reconcile(&all)?;
    assert!(!plane.was_changed_by_others()?);
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(cgroup.path())?);
    let pins = std::path::PathBuf::from(format!("/sys/fs/bpf/waymark/{id}"));
    std::fs::remove_file(pins.join("link_connect4"))?;
    std::fs::remove_file(pins.join("services_4"))?;
    assert!(plane.was_changed_by_others()?);
    assert!(plane.reconcile(&all)? > 0);
    assert!(!plane.was_changed_by_others()?);
    cgroup.run(|| reached(vip.address))?;
    drop(plane);
    cgroup.run(|| reached(vip.address))?;
    open(&cgroup)?.flush()?;
    Ok(())
}
