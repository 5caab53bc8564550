//! TLS: towards clients, certificates, which of them a server name gets, and the handshake; towards servers, whom to
//! believe.
//!
//! Reading order: [`certificate`] (a chain, its key and the names it is for), `store` (server name → certificate),
//! [`policy`] (what a host asks of its clients), `table` (server name → configuration, what the handshake looks up),
//! `files` (reads them, sees that they changed), `follow` (keeps the table true), `handshake`, `hello` (the server name
//! of a connection whose TLS is not ended here), `servers` (TLS that the balancer itself begins). Nothing here knows
//! HTTP.

pub mod certificate;
mod files;
mod follow;
mod handshake;
pub(crate) mod hello;
pub mod policy;
mod servers;
mod store;
mod table;

pub(crate) use follow::Follower;
pub(crate) use handshake::{Protocol, accept};
pub use policy::{Alpn, ClientAuth, HostPolicy, MinVersion, Need};
pub use servers::{ServerTls, Verify};
pub(crate) use servers::{ToServer, UNVERIFIED};
pub(crate) use table::{Policies, TlsTable};
