//! DC/OS's resolver addresses on `lo`, for as long as this process runs.
//!
//! The kernel gives them a lifetime that is renewed: after a crash they go by themselves. Addresses that somebody else
//! has configured are left alone.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use l4_vip::netlink::Socket;
use tokio_util::sync::CancellationToken;

use crate::config::DCOS_RESOLVERS;

/// How long an address outlives a crash.
const LIFETIME: Duration = Duration::from_secs(60);
const RENEWAL: Duration = Duration::from_secs(20);

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
/// Usable at once: nobody else can have it on a loopback.
const IFA_F_NODAD: u8 = 2;
const SCOPE_HOST: u8 = 254;

/// Addresses that this process has given to `lo`.
#[derive(Debug, Default)]
pub struct Loopback {
    own: Vec<IpAddr>,
}

impl Loopback {
    /// Adds those of `wanted` that are DC/OS's resolver addresses and are not on this host. What cannot be added is
    /// returned with the reason: it takes CAP_NET_ADMIN.
    pub fn add(wanted: impl Iterator<Item = IpAddr>) -> (Self, Vec<(IpAddr, io::Error)>) {
        let mut loopback = Self::default();
        let mut refused = Vec::new();
        for ip in wanted.filter(|ip| DCOS_RESOLVERS.contains(ip)) {
            let is_absent =
                UdpSocket::bind((ip, 0)).is_err_and(|e| e.kind() == io::ErrorKind::AddrNotAvailable);
            if !is_absent {
                continue;
            }
            match change(RTM_NEWADDR, ip) {
                Ok(()) => loopback.own.push(ip),
                Err(error) => refused.push((ip, error)),
            }
        }
        (loopback, refused)
    }

    /// Renews the addresses until cancelled, and then removes them.
    pub async fn keep(self, cancel: CancellationToken) {
        if self.own.is_empty() {
            return;
        }
        let mut ticks = tokio::time::interval(RENEWAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.change_all(RTM_NEWADDR),
                () = cancel.cancelled() => break,
            }
        }
        self.change_all(RTM_DELADDR);
    }

    fn change_all(&self, kind: u16) {
        for ip in &self.own {
            if let Err(error) = change(kind, *ip) {
                tracing::warn!(%ip, %error, "cannot renew or remove a resolver address on lo");
            }
        }
    }
}

/// One rtnetlink request and its answer (rtnetlink(7)).
fn change(kind: u16, ip: IpAddr) -> io::Result<()> {
    // SAFETY: the name is a string that ends with NUL.
    let index = unsafe { libc::if_nametoindex(c"lo".as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let (family, octets): (_, Vec<u8>) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().into()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().into()),
    };
    // `struct ifaddrmsg`
    let mut header = [family as u8, 8 * octets.len() as u8, IFA_F_NODAD, SCOPE_HOST, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    Socket::open(libc::NETLINK_ROUTE)?.request(kind, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &header, |w| {
        w.attribute(IFA_LOCAL, &octets);
        w.attribute(IFA_ADDRESS, &octets);
        if kind == RTM_NEWADDR {
            // Preferred and valid seconds, then two times that only the kernel writes.
            let seconds = LIFETIME.as_secs() as u32;
            w.attribute(IFA_CACHEINFO, [seconds, seconds, 0, 0].map(u32::to_ne_bytes).as_flattened());
        }
    })
}
