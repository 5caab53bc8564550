//! HTTP/1.1 on the wire: how bytes become messages, messages bytes, and a connection a sequence of exchanges.
//!
//! Reading order: [`request`] and [`response`] (the typed heads: nothing else can be sent on), [`chunked`],
//! [`refusal`]; `serialize` (heads written as ranges of what came, with edits); `flow` (a body on its way);
//! `connection` (a client's connection from its first byte to its last). Parsing stands on [`grammar`], [`fields`] and
//! [`scan`].
//!
//! The parsers are public for whoever explains or fuzzes them. What a request is for, who may have it and which
//! endpoint gets it is not decided here but in `proxy` and `failover`.

pub(crate) mod buffer;
pub mod chunked;
pub(crate) mod client_socket;
pub(crate) mod connection;
pub mod fields;
pub(crate) mod flow;
mod front;
pub mod grammar;
pub mod refusal;
pub mod request;
pub mod response;
pub mod scan;
pub(crate) mod serialize;
pub(crate) mod side;
pub(crate) mod socket;
mod splice;
mod tunnel;

/// How a message says where its body ends. There is exactly one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    Length(u64),
    Chunked,
    /// With the connection; of responses only.
    UntilClose,
}
