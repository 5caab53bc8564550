//! Connection tracking's entries of frontends, and the end of those that lead to a backend that is gone.
//!
//! A translated flow keeps its backend for as long as its entry lives, and a UDP client that goes on sending keeps it
//! alive for ever. So UDP entries go when their backend leaves the frontend. TCP connections may outlive that: theirs
//! go only if the backend takes no connections any more, and the next packet of the client is then answered by a reset
//! instead of by nothing. It decides nothing about new connections.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use event_watcher::catalog::Protocol;

use super::elements::{octets, protocol_number};
use crate::kernel::Frontend;
use crate::netlink::{Attributes, Message, Writer, be};
use crate::netlink::{Socket, netfilter_attributes, netfilter_header};

/// How long a backend has to answer the question whether it still lives. Its host is in the same cluster.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);
/// Probes at a time, each a socket.
const N_PROBES: usize = 128;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPCTNL_MSG_CT_GET: libc::c_int = 1;
const IPCTNL_MSG_CT_DELETE: libc::c_int = 2;

/// The frontends to look at, with all the backends that they have, draining ones too.
pub(super) type Members = HashMap<Frontend, Box<[SocketAddr]>>;

/// One direction of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    /// From the client to the frontend.
    original: Tuple,
    /// Where answers come from; the frontend itself if nothing was translated.
    backend: SocketAddr,
}

/// Removes what leads nowhere; returns the number of entries removed.
pub(super) fn sweep(socket: &mut Socket, members: &Members) -> io::Result<usize> {
    let mut strays = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(socket, family, |flow| {
            let frontend = Frontend { protocol: flow.original.protocol, address: flow.original.destination };
            if members.get(&frontend).is_some_and(|backends| !backends.contains(&flow.backend)) {
                strays.push(flow);
            }
        })?;
    }
    let (datagrams, connections): (Vec<Flow>, Vec<Flow>) =
        strays.into_iter().partition(|flow| flow.original.protocol == Protocol::Udp);
    let mut n_removed = 0;
    for flow in datagrams {
        n_removed += usize::from(remove(socket, flow.original)?);
    }
    // What was not translated is another plane's on this host.
    let translated = connections.iter().filter(|flow| flow.backend != flow.original.destination);
    let backends: HashSet<SocketAddr> = translated.map(|flow| flow.backend).collect();
    let dead = without_listener(&backends.into_iter().collect::<Vec<_>>());
    for flow in connections.iter().filter(|flow| dead.contains(&flow.backend)) {
        n_removed += usize::from(remove(socket, flow.original)?);
    }
    Ok(n_removed)
}

fn dump(socket: &mut Socket, family: libc::c_int, mut each: impl FnMut(Flow)) -> io::Result<()> {
    let asked = socket.ask(
        kind(IPCTNL_MSG_CT_GET),
        libc::NLM_F_DUMP,
        &netfilter_header(family),
        |_| {},
        |message| {
            if let Some(flow) = Flow::read(message) {
                each(flow);
            }
        },
    );
    match asked {
        // The table changes all the time; what is missing here is found by the next sweep.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        asked => asked,
    }
}

/// Whether there was such an entry still.
fn remove(socket: &mut Socket, original: Tuple) -> io::Result<bool> {
    let family = if original.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let asked = socket.request(kind(IPCTNL_MSG_CT_DELETE), 0, &netfilter_header(family), |w| {
        w.nest(CTA_TUPLE_ORIG, |w| original.write(w));
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        asked => asked.map(|()| true),
    }
}

fn kind(message: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_CTNETLINK << 8 | message) as u16
}

impl Flow {
    fn read(message: Message<'_>) -> Option<Self> {
        let attributes = netfilter_attributes(message);
        let original = Tuple::read(attributes.nest(CTA_TUPLE_ORIG))?;
        Some(Self { original, backend: Tuple::read(attributes.nest(CTA_TUPLE_REPLY))?.source })
    }
}

impl Tuple {
    fn read(tuple: Attributes<'_>) -> Option<Self> {
        let (ip, proto) = (tuple.nest(CTA_TUPLE_IP), tuple.nest(CTA_TUPLE_PROTO));
        let protocol = match libc::c_int::from(*proto.find(CTA_PROTO_NUM)?.first()?) {
            libc::IPPROTO_TCP => Protocol::Tcp,
            libc::IPPROTO_UDP => Protocol::Udp,
            _ => return None,
        };
        let address = |v4, v6| match (ip.find(v4), ip.find(v6)) {
            (Some(octets), _) => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
            (_, Some(octets)) => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)),
            _ => None,
        };
        let end = |address, port| Some(SocketAddr::new(address?, be(proto.find(port)?) as u16));
        Some(Self {
            protocol,
            source: end(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC), CTA_PROTO_SRC_PORT)?,
            destination: end(address(CTA_IP_V4_DST, CTA_IP_V6_DST), CTA_PROTO_DST_PORT)?,
        })
    }

    fn write(&self, writer: &mut Writer) {
        let [source, destination] = match self.source {
            SocketAddr::V4(_) => [CTA_IP_V4_SRC, CTA_IP_V4_DST],
            SocketAddr::V6(_) => [CTA_IP_V6_SRC, CTA_IP_V6_DST],
        };
        writer.nest(CTA_TUPLE_IP, |w| {
            w.attribute(source, &octets(self.source.ip()));
            w.attribute(destination, &octets(self.destination.ip()));
        });
        writer.nest(CTA_TUPLE_PROTO, |w| {
            w.attribute(CTA_PROTO_NUM, &[protocol_number(self.protocol)]);
            w.attribute(CTA_PROTO_SRC_PORT, &self.source.port().to_be_bytes());
            w.attribute(CTA_PROTO_DST_PORT, &self.destination.port().to_be_bytes());
        });
    }
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
