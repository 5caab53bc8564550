//! The packets of DNS: `query` reads one, `reply` writes one, `edns` has the terms that both may carry.
//!
//! No zone is known here. Messages of upstreams, which have every kind of record, are read with hickory in `forward`.

mod edns;
mod query;
mod reply;

pub(crate) use edns::{CookieOption, Edns, Opt};
pub(crate) use query::{EMPTY_NAME_SPACE, Head, Query, Rejected};
pub(crate) use reply::{Full, Reply, Section, empty_and_truncate, reject};

pub(crate) const HEADER: usize = 12;
/// Every client takes a UDP answer of this size (RFC 1035 section 2.3.4).
pub(crate) const UDP_BYTES_WITHOUT_EDNS: usize = 512;
