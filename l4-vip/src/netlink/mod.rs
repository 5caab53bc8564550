//! Netlink (netlink(7)): how nftables, connection tracking, routes, addresses and sockets are asked and changed.
//!
//! It knows the format and the sockets, and no message of any subsystem.

mod message;
mod socket;

pub use message::Writer;
pub(crate) use message::{Attributes, Message, be, text};
pub use socket::Socket;
pub(crate) use socket::{Event, netfilter_attributes, netfilter_header};
