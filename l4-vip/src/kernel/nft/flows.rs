//! The end of flows that lead to a backend that is gone.
//!
//! A translated flow keeps its backend for as long as its entry lives, and a UDP client that goes on sending keeps it
//! alive for ever. So UDP entries go when their backend leaves the frontend. TCP connections may outlive that: theirs
//! go only if the backend takes no connections any more, and the next packet of the client is then answered by a reset
//! instead of by nothing. It decides nothing about new connections.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use event_watcher::catalog::Protocol;

use super::conntrack::{self, Flow, Status};
use crate::kernel::Frontend;
use crate::netlink::Socket;

/// How long a backend has to answer the question whether it still lives. Its host is in the same cluster.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);
/// Probes at a time, each a socket.
const N_PROBES: usize = 128;

/// The frontends to look at, with all the backends that they have, draining ones too.
pub(super) type Members = HashMap<Frontend, Box<[SocketAddr]>>;

/// Removes what leads nowhere; returns the number of entries removed.
pub(super) fn sweep(socket: &mut Socket, members: &Members) -> io::Result<usize> {
    let mut strays = Vec::new();
    conntrack::dump(socket, Status::ANY, |flow| {
        if members.get(&flow.frontend()).is_some_and(|backends| !backends.contains(&flow.backend)) {
            strays.push(flow);
        }
    })?;
    let (datagrams, connections): (Vec<Flow>, Vec<Flow>) =
        strays.into_iter().partition(|flow| flow.original.protocol == Protocol::Udp);
    let mut n_removed = 0;
    for flow in datagrams {
        n_removed += usize::from(conntrack::remove(socket, flow.original)?);
    }
    // What was not translated is another plane's on this host.
    let translated = connections.iter().filter(|flow| flow.is_translated());
    let backends: HashSet<SocketAddr> = translated.map(|flow| flow.backend).collect();
    let dead = without_listener(&backends.into_iter().collect::<Vec<_>>());
    for flow in connections.iter().filter(|flow| dead.contains(&flow.backend)) {
        n_removed += usize::from(conntrack::remove(socket, flow.original)?);
    }
    Ok(n_removed)
}

/// Those that refuse a connection or do not answer.
fn without_listener(backends: &[SocketAddr]) -> HashSet<SocketAddr> {
    let mut dead = HashSet::new();
    for group in backends.chunks(N_PROBES) {
        dead.extend(std::thread::scope(|scope| {
            let probes: Vec<_> = group
                .iter()
                .map(|backend| {
                    scope.spawn(move || std::net::TcpStream::connect_timeout(backend, PROBE_TIMEOUT).is_err())
                })
                .collect();
            let answers = probes.into_iter().map(|probe| probe.join().unwrap_or(false));
            group.iter().zip(answers).filter_map(|(b, is_dead)| is_dead.then_some(*b)).collect::<Vec<_>>()
        }));
    }
    dead
}
