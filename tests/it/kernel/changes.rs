//! Six hundred changes of a VIP while it is used: the same measure for both kernel planes.
//!
//! What a single change does belongs to the planes' own tests.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use event_watcher::catalog::Protocol::Tcp;
use l4_vip::kernel::{Change, KernelPlane};
use tests::netns::is_root;

use super::host::{EBPF, Host, NFT, Open};
use super::peers::{Connection, VIP, eventually, set, tcp_backend};

const N_CHANGES: usize = 600;

#[test]
fn six_hundred_changes_of_nft_under_load_fail_no_new_and_break_no_old_connection() -> anyhow::Result<()> {
    six_hundred_changes(NFT)
}

#[test]
fn six_hundred_changes_of_ebpf_under_load_fail_no_new_and_break_no_old_connection() -> anyhow::Result<()> {
    six_hundred_changes(EBPF)
}

fn six_hundred_changes(open: Open) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new()?;
    let backends: Vec<SocketAddr> = (b'a'..b'd')
        .map(|name| tcp_backend(&host.netns, "127.0.0.1:0", name))
        .collect::<anyhow::Result<_>>()?;
    let mut plane = open(&host)?;
    plane.reconcile(&[])?;
    plane.apply(&[set(Tcp, VIP, &[(backends[0], 1)])])?;
    let mut old = host.run(|| (0..50).map(|_| Connection::open_here(VIP)).collect::<io::Result<Vec<_>>>())?;
    let (is_over, n_tried) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = || {
        let mut results = BTreeMap::<Option<ErrorKind>, usize>::new();
        while !is_over.load(Relaxed) {
            let result = Connection::open_here(VIP).and_then(|mut connection| connection.ping());
            *results.entry(result.err().map(|error| error.kind())).or_default() += 1;
            n_tried.fetch_add(1, Relaxed);
        }
        results
    };
    let results = thread::scope(|scope| -> anyhow::Result<_> {
        let clients = [(); 4].map(|()| scope.spawn(|| host.run(load)));
        let changed = change(&mut *plane, &backends, &n_tried);
        is_over.store(true, Relaxed);
        changed?;
        Ok(clients.map(|client| client.join().expect("a client does not panic")))
    })?;
    for result in &results {
        assert!(result.get(&None).is_some_and(|n_served| *n_served > 0), "{results:?}");
        assert_eq!(result.len(), 1, "some failed: {results:?}");
    }
    for connection in &mut old {
        connection.ping()?;
    }
    plane.flush()?;
    Ok(())
}

/// One backend or two of three, one with twice the weight of the other: the number of slots goes up and down all the
/// time. There is a new connection for every change.
fn change(plane: &mut dyn KernelPlane, backends: &[SocketAddr], n_tried: &AtomicUsize) -> anyhow::Result<()> {
    for n in 0..N_CHANGES {
        eventually(|| Ok(n_tried.load(Relaxed) > n))?;
        let others = n % 3..=n % 3 + n % 2;
        let some: Vec<_> = others.map(|n| backends[n % 3]).zip([1, 2]).collect();
        let of_another: Change = set(Tcp, "11.7.7.7:7", &some[..n % 2]);
        plane.apply(&[set(Tcp, VIP, &some), of_another])?;
    }
    Ok(())
}
