//! DC/OS's resolver addresses on `lo`, for as long as this process runs.
//!
//! The kernel gives them a lifetime that is renewed: after a crash they go by themselves. Addresses that somebody else
//! has configured are left alone.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

use crate::config::DCOS_RESOLVERS;

/// How long an address outlives a crash.
const LIFETIME: Duration = Duration::from_secs(60);
const RENEWAL: Duration = Duration::from_secs(20);
/// The kernel answers at once.
const TIMEOUT: Duration = Duration::from_secs(1);

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
/// Usable at once: nobody else can have it on a loopback.
const IFA_F_NODAD: u8 = 2;
const SCOPE_HOST: u8 = 254;
const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;

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
    let socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(&request(kind, ip, index))?;
    let mut answer = [std::mem::MaybeUninit::uninit(); 1024];
    let n = socket.recv(&mut answer)?;
    // SAFETY: the kernel has written the first `n` bytes.
    let answer: Vec<u8> = answer[..n].iter().map(|byte| unsafe { byte.assume_init() }).collect();
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let code = answer.get(HEADER_BYTES..).and_then(|rest| rest.first_chunk::<4>());
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(code)) => match -i32::from_ne_bytes(*code) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        _ => Err(io::Error::other("the kernel did not confirm")),
    }
}

fn request(kind: u16, ip: IpAddr, index: u32) -> Vec<u8> {
    let (family, octets): (_, Vec<u8>) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().into()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().into()),
    };
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut message = vec![0; HEADER_BYTES];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    message.extend_from_slice(&[family as u8, 8 * octets.len() as u8, IFA_F_NODAD, SCOPE_HOST]);
    message.extend_from_slice(&index.to_ne_bytes());
    let mut attribute = |kind: u16, value: &[u8]| {
        message.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(value);
    };
    attribute(IFA_LOCAL, &octets);
    attribute(IFA_ADDRESS, &octets);
    if kind == RTM_NEWADDR {
        // Preferred and valid seconds, then two times that only the kernel writes.
        let seconds = LIFETIME.as_secs() as u32;
        attribute(IFA_CACHEINFO, [seconds, seconds, 0, 0].map(u32::to_ne_bytes).as_flattened());
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}
