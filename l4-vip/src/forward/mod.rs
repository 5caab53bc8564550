//! Moves bytes between a client and the endpoint that a pool picked for it.
//!
//! It opens no addresses. Its TCP side knows no VIPs either: whoever accepts a connection (a VIP here, a service port
//! in the HTTP balancer's `mode tcp`) hands it over with the pool to pick from.

pub mod descriptors;
mod direction;
mod pipe;
pub mod tcp;
pub(crate) mod udp;

/// Endpoints tried for one connection or flow.
const MAX_TRIES: usize = 3;

/// This host ran out of something: descriptors, ports to that endpoint, memory.
fn is_local(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL | libc::ENOBUFS | libc::ENOMEM)
    )
}
