//! Connected UDP sockets whose backend is gone: what they send runs through no program, so they are told by an error.
//!
//! Their next call fails with ECONNABORTED, or EDESTADDRREQ when it sends, and programs make a new socket.
//! Only sockets in this process's network namespace are found. TCP connections are left alone: they end by themselves.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use event_watcher::catalog::Protocol;

use super::layout;
use super::maps::Maps;
use super::tables::Gone;
use crate::netlink::Socket;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NETLINK_SOCK_DIAG: libc::c_int = 4;
/// `struct inet_diag_req_v2`
const REQUEST_BYTES: usize = 56;
/// Where `struct inet_diag_sockid` begins, in a request and in an answer.
const ID: usize = REQUEST_BYTES - ID_BYTES;
const ANSWERED_ID: usize = 4;
const ID_BYTES: usize = 48;

/// Ends the connected UDP sockets that still send to one of the backends. Returns how many there were.
pub fn end_connected(gone: &[Gone], maps: &Maps) -> io::Result<usize> {
    let gone: Vec<&Gone> = gone.iter().filter(|gone| gone.frontend.protocol == Protocol::Udp).collect();
    if gone.is_empty() {
        return Ok(0);
    }
    let mut socket = Socket::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let dump = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        socket.ask(
            SOCK_DIAG_BY_FAMILY,
            dump,
            &request(family, None),
            |_| {},
            |message| {
                let Some(id) = message.body.get(ANSWERED_ID..ANSWERED_ID + ID_BYTES) else { return };
                let (peer, cookie) = (peer(family, id), cookie(id));
                found.extend(gone.iter().filter(|gone| gone.backend.address == peer).map(|gone| {
                    (family, <[u8; ID_BYTES]>::try_from(id).unwrap_or([0; ID_BYTES]), cookie, **gone)
                }));
            },
        )?;
    }
    let mut n_ended = 0;
    for (family, id, cookie, gone) in found {
        let key = layout::flow_key(cookie, &layout::frontend_key(&gone.frontend));
        // Whoever named the backend itself, and no VIP, is left alone.
        let flow = maps.flows.lookup_all_cpus(&key)?;
        if flow.is_some_and(|backend| layout::word(&backend, 0) == gone.backend.id) {
            match socket.request(SOCK_DESTROY, libc::NLM_F_REQUEST, &request(family, Some(&id)), |_| {}) {
                Ok(()) => n_ended += 1,
                // It was closed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(n_ended)
}

/// For one socket, or for all in any state.
fn request(family: libc::c_int, id: Option<&[u8; ID_BYTES]>) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    request[0] = family as u8;
    request[1] = layout::UDP as u8;
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    if let Some(id) = id {
        request[ID..].copy_from_slice(id);
    }
    request
}

/// Source port, destination port, source address, destination address, interface, cookie.
fn peer(family: libc::c_int, id: &[u8]) -> SocketAddr {
    let port = u16::from_be_bytes([id[2], id[3]]);
    let ip = match family {
        libc::AF_INET => IpAddr::from([id[20], id[21], id[22], id[23]]),
        _ => {
            let octets: [u8; 16] = id[20..36].try_into().unwrap_or_default();
            Ipv6Addr::from(octets).to_canonical()
        }
    };
    SocketAddr::new(ip, port)
}

/// Two words, the lower one first.
fn cookie(id: &[u8]) -> u64 {
    u64::from(layout::word(id, 40)) | u64::from(layout::word(id, 44)) << 32
}
