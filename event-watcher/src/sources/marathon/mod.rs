//! Marathon as a source: its HTTP client, its event stream, its JSON, and what all of it means in catalog words.
//!
//! Reading order: [`wire`] (a lenient reader's view of the JSON), [`translate`] (one app into catalog words), [`list`]
//! (answers with one or all apps), [`events`] (what an event asks for), [`sse`] (framing), [`stream`] (reading on), [`client`] (HTTP).

pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod list;
pub(crate) mod sse;
pub(crate) mod stream;
pub(crate) mod translate;
pub(crate) mod wire;

use crate::catalog::AppUpdate;

/// Reads one app definition as a file has it, with or without what a scheduler adds to it. Hosts of tasks that are no
/// addresses are not looked up.
pub fn read_definition(json: &str, framework: &str) -> Result<AppUpdate, serde_json::Error> {
    let context = translate::Context { framework, resolve: &|_| translate::Resolved::Failed, previous: None };
    translate::app(json, &context).map(|translated| translated.update)
}
