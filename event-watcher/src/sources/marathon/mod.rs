//! Marathon as a source: its HTTP client, its event stream, its JSON, and what all of it means in catalog words.
//!
//! Reading order: [`wire`] (a lenient reader's view of the JSON), [`translate`] (one app into catalog words), [`list`]
//! (answers with one or all apps), [`events`] (what an event asks for), [`sse`] (framing), [`stream`] (reading on), [`client`] (HTTP).

pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod list;
pub mod sse;
pub(crate) mod stream;
pub(crate) mod translate;
pub(crate) mod wire;
