//! Connection tracking's entries (linux/netfilter/nfnetlink_conntrack.h): read, heard of, removed.
//!
//! What becomes of them is decided elsewhere.

use std::io;
use std::net::{IpAddr, SocketAddr};

use event_watcher::catalog::Protocol;

use super::elements::{octets, protocol_number};
use crate::kernel::Frontend;
use crate::netlink::{
    Attributes, Event, Message, Socket, Writer, be, netfilter_attributes, netfilter_header,
};

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
const CTA_STATUS_MASK: u16 = 26;
const CTA_COUNTERS_BYTES: u16 = 2;
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

/// One direction of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// From the client to the frontend.
    pub(super) original: Tuple,
    /// Where answers come from; the frontend itself if nothing was translated.
    pub(super) backend: SocketAddr,
    /// Mostly another one for each that has the same addresses.
    pub(super) id: u32,
    pub(super) status: Status,
    /// Of IP packets, headers included: from the client and to it. None: it began when nobody wanted to know.
    pub(super) bytes: Option<[u64; 2]>,
}

/// Bits of an entry's state, linux/netfilter/nf_conntrack_common.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(u32);

impl Status {
    pub(super) const ANY: Self = Self(0);
    /// Packets have gone both ways; of TCP, that the connection was established.
    pub(super) const ASSURED: Self = Self(1 << 2);
    pub(super) const TRANSLATED: Self = Self(1 << 5);
    /// Its end has been told.
    pub(super) const DYING: Self = Self(1 << 9);

    pub(super) fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }
}

/// Those that have `status`.
pub(super) fn dump(socket: &mut Socket, status: Status, mut each: impl FnMut(Flow)) -> io::Result<()> {
    let asked = socket.ask(
        kind(IPCTNL_MSG_CT_GET),
        libc::NLM_F_DUMP,
        &netfilter_header(libc::AF_UNSPEC),
        |w| {
            // Kernels before 6.0 do not know it, and tell of all.
            if status != Status::ANY {
                w.be32(CTA_STATUS, status.0);
                w.be32(CTA_STATUS_MASK, status.0);
            }
        },
        |message| {
            if let Some(flow) = Flow::read(message).filter(|flow| flow.status.has(status)) {
                each(flow);
            }
        },
    );
    match asked {
        // The table changes all the time; what is missing here is found the next time.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        asked => asked,
    }
}

/// Whether there was such an entry still.
pub(super) fn remove(socket: &mut Socket, original: Tuple) -> io::Result<bool> {
    let family = if original.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let asked = socket.request(kind(IPCTNL_MSG_CT_DELETE), 0, &netfilter_header(family), |w| {
        w.nest(CTA_TUPLE_ORIG, |w| original.write(w));
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        asked => asked.map(|()| true),
    }
}

/// To be told by this socket's events what ends from now on.
pub(super) fn hear_ends(socket: &Socket) -> io::Result<()> {
    socket.join(libc::NFNLGRP_CONNTRACK_DESTROY as u32)
}

/// What has ended since the last call. Returns whether the kernel had to leave some out.
pub(super) fn ended(socket: &mut Socket, mut each: impl FnMut(Flow)) -> io::Result<bool> {
    let mut has_lost = false;
    socket.events(|event| match event {
        Event::Message(message) => Flow::read(message).into_iter().for_each(&mut each),
        Event::Lost => has_lost = true,
    })?;
    Ok(has_lost)
}

fn kind(message: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_CTNETLINK << 8 | message) as u16
}

impl Flow {
    fn read(message: Message<'_>) -> Option<Self> {
        let attributes = netfilter_attributes(message);
        let number = |kind| attributes.find(kind).map_or(0, be) as u32;
        let bytes = |kind| attributes.nest(kind).find(CTA_COUNTERS_BYTES).map(be);
        Some(Self {
            original: Tuple::read(attributes.nest(CTA_TUPLE_ORIG))?,
            backend: Tuple::read(attributes.nest(CTA_TUPLE_REPLY))?.source,
            id: number(CTA_ID),
            status: Status(number(CTA_STATUS)),
            bytes: bytes(CTA_COUNTERS_ORIG).zip(bytes(CTA_COUNTERS_REPLY)).map(<[u64; 2]>::from),
        })
    }

    pub(super) fn frontend(&self) -> Frontend {
        Frontend { protocol: self.original.protocol, address: self.original.destination }
    }

    pub(super) fn is_translated(&self) -> bool {
        self.backend != self.original.destination
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
