//! Makes the addresses of VIPs local to this host, by routes of our own in the table `local` (rtnetlink(7)).
//!
//! One route holds a whole pool; a VIP outside of every pool has one for itself. It touches no route that another
//! program made: one that is there already serves as well.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use event_watcher::catalog::VipPool;

use super::elements::octets;
use super::family::Family;
use crate::netlink::Socket;
use crate::netlink::{Message, Writer};

/// The maker of a route, as `ip route` shows it (`proto 87`): no routing program of iproute2's list has it.
const OUR_PROTOCOL: u8 = 87;

/// Fails if there is one already.
const CREATE: libc::c_int = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

const ROUTE_HEADER_BYTES: usize = 12;
const ADDRESS_HEADER_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    first: IpAddr,
    bits: u8,
}

#[derive(Debug)]
pub(super) struct Routes {
    socket: Socket,
    /// Of the interface `lo`.
    loopback: u32,
    pools: Vec<VipPool>,
    /// VIPs outside of the pools.
    outside: BTreeSet<IpAddr>,
}

impl Routes {
    pub(super) fn open(pools: Vec<VipPool>) -> io::Result<Self> {
        // SAFETY: the name is a literal with a zero byte at its end.
        let loopback = unsafe { libc::if_nametoindex(c"lo".as_ptr()) };
        if loopback == 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = Socket::open(libc::NETLINK_ROUTE)?;
        Ok(Self { socket, loopback, pools, outside: BTreeSet::new() })
    }

    /// The name of our socket in events.
    pub(super) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes the routes that are missing, and our own anew if the host's address has changed. Returns how many.
    pub(super) fn ensure(&mut self) -> io::Result<usize> {
        let wanted: Vec<Prefix> = self
            .pools
            .iter()
            .map(|pool| Prefix { first: pool.first(), bits: pool.prefix_bits() })
            .chain(self.outside.iter().map(|address| Prefix::only(*address)))
            .filter(|prefix| !prefix.first.is_loopback())
            .collect();
        let mut n_made = 0;
        for family in Family::ALL {
            let wanted = wanted.iter().filter(|prefix| Family::of(prefix.first) == family);
            let (source, present) = (self.host_address(family)?, self.local_routes(family)?);
            for prefix in wanted {
                let how = match present.iter().find(|route| route.to == *prefix) {
                    None => CREATE,
                    Some(route) if route.is_ours && route.source != source => libc::NLM_F_REPLACE,
                    Some(_) => continue,
                };
                self.change(libc::RTM_NEWROUTE, how, *prefix, source)?;
                n_made += 1;
            }
        }
        Ok(n_made)
    }

    /// A VIP that may be outside of the pools comes.
    pub(super) fn hold(&mut self, address: IpAddr) -> io::Result<()> {
        if self.needs_route(address) && !self.outside.contains(&address) {
            let source = self.host_address(Family::of(address))?;
            match self.change(libc::RTM_NEWROUTE, CREATE, Prefix::only(address), source) {
                // Somebody else's does as well.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                made => made?,
            }
            self.outside.insert(address);
        }
        Ok(())
    }

    /// Only these VIPs are left.
    pub(super) fn keep_only(&mut self, addresses: &BTreeSet<IpAddr>) {
        let gone: Vec<IpAddr> = self.outside.difference(addresses).copied().collect();
        for address in gone {
            self.outside.remove(&address);
            let prefix = Prefix::only(address);
            if let Err(error) = self.remove_ours(|route| route.to == prefix) {
                tracing::warn!(%address, %error, "cannot remove the route to a VIP that is gone");
            }
        }
    }

    /// Removes every route of ours.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.outside.clear();
        self.remove_ours(|_| true)
    }

    pub(super) fn needs_route(&self, address: IpAddr) -> bool {
        !address.is_loopback() && !self.pools.iter().any(|pool| pool.contains(address))
    }

    fn remove_ours(&mut self, which: impl Fn(&Route) -> bool) -> io::Result<()> {
        for family in Family::ALL {
            for route in self.local_routes(family)?.into_iter().filter(|r| r.is_ours && which(r)) {
                self.change(libc::RTM_DELROUTE, 0, route.to, None)?;
            }
        }
        Ok(())
    }

    /// `source`: the address that this host's own connections to it come from.
    fn change(
        &mut self,
        message: u16,
        flags: libc::c_int,
        to: Prefix,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let header = route_header(Family::of(to.first), to.bits);
        let loopback = self.loopback;
        self.socket.request(message, flags, &header, |w| {
            w.attribute(libc::RTA_DST, &octets(to.first));
            w.attribute(libc::RTA_OIF, &loopback.to_ne_bytes());
            if let Some(source) = source {
                w.attribute(libc::RTA_PREFSRC, &octets(source));
            }
        })
    }

    fn local_routes(&mut self, family: Family) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        let header = route_header(family, 0);
        self.socket.ask(
            libc::RTM_GETROUTE,
            libc::NLM_F_DUMP,
            &header,
            |_| {},
            |message| {
                routes.extend(Route::read(message));
            },
        )?;
        Ok(routes)
    }

    /// The address that this host uses by default. IPv6 needs none: its own rules (RFC 6724) choose well for a local
    /// destination, where IPv4 would take the VIP itself.
    fn host_address(&mut self, family: Family) -> io::Result<Option<IpAddr>> {
        if family == Family::V6 {
            return Ok(None);
        }
        let mut by_default_route = None;
        let header = [libc::AF_INET as u8, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let somewhere = |w: &mut Writer| w.attribute(libc::RTA_DST, &DOCUMENTATION_ADDRESS.octets());
        let asked = self.socket.ask(libc::RTM_GETROUTE, 0, &header, somewhere, |message| {
            let source = message.attributes(ROUTE_HEADER_BYTES).find(libc::RTA_PREFSRC);
            by_default_route = source.and_then(read_ipv4);
        });
        if asked.is_ok() && by_default_route.is_some() {
            return Ok(by_default_route);
        }
        // No default route: the first address that other hosts can reach.
        let mut first = None;
        let header = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
        self.socket.ask(
            libc::RTM_GETADDR,
            libc::NLM_F_DUMP,
            &header,
            |_| {},
            |message| {
                let is_global = message.body.get(3) == Some(&libc::RT_SCOPE_UNIVERSE);
                let address = message.attributes(ADDRESS_HEADER_BYTES).find(libc::IFA_LOCAL);
                if is_global && first.is_none() {
                    first = address.and_then(read_ipv4);
                }
            },
        )?;
        Ok(first)
    }
}

/// Of TEST-NET-2 (RFC 5737): no host has a route to it but the default one. Nothing is sent there.
const DOCUMENTATION_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);

impl Prefix {
    fn only(address: IpAddr) -> Self {
        Self { first: address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

#[derive(Debug)]
struct Route {
    to: Prefix,
    source: Option<IpAddr>,
    is_ours: bool,
}

impl Route {
    /// A route of the table `local` to this host itself.
    fn read(message: Message<'_>) -> Option<Self> {
        let [family, bits, _, _, table, protocol, _, kind, ..] = *message.body else { return None };
        if table != libc::RT_TABLE_LOCAL || kind != libc::RTN_LOCAL {
            return None;
        }
        let attributes = message.attributes(ROUTE_HEADER_BYTES);
        let read = |kind| {
            let octets = attributes.find(kind)?;
            if libc::c_int::from(family) == libc::AF_INET { read_ipv4(octets) } else { read_ipv6(octets) }
        };
        Some(Self {
            to: Prefix { first: read(libc::RTA_DST)?, bits },
            source: read(libc::RTA_PREFSRC),
            is_ours: protocol == OUR_PROTOCOL,
        })
    }
}

/// `struct rtmsg`.
fn route_header(family: Family, bits: u8) -> [u8; ROUTE_HEADER_BYTES] {
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let table = libc::RT_TABLE_LOCAL;
    [family as u8, bits, 0, 0, table, OUR_PROTOCOL, libc::RT_SCOPE_HOST, libc::RTN_LOCAL, 0, 0, 0, 0]
}

fn read_ipv4(octets: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?))
}

fn read_ipv6(octets: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?))
}
