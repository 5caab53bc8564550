//! Moves bytes between a client and the endpoint that a pool picked for it.
//!
//! It listens nowhere and knows no VIPs: whoever accepts a connection (a VIP here, a service port in the HTTP
//! balancer's `mode tcp`) hands it over with the pool to pick from.

mod direction;
mod pipe;
pub mod tcp;
