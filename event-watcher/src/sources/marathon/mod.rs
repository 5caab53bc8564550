//! Marathon as a source: its HTTP client, its event stream, its JSON, and what all of it means in catalog words.
//!
//! Reading order: [`watch`] (the task), [`client`] (HTTP), [`auth`] (who it says it is), [`stream`] (reading on),
//! [`sse`] (framing), [`events`] (what an event asks for), [`list`] (answers with one or all apps), [`split`] (cutting
//! a list), [`translate`] (one app into catalog words), [`grace`] (who may do without a verdict), [`words`] (what
//! instances have in common), [`wire`] (a lenient reader's view of the JSON).

pub(crate) mod auth;
pub(crate) mod client;
mod events;
mod grace;
pub(crate) mod list;
pub(crate) mod split;
pub(crate) mod sse;
pub(crate) mod stream;
pub(crate) mod translate;
pub(crate) mod watch;
pub(crate) mod wire;
mod words;

use crate::catalog::AppUpdate;

/// Reads one app definition as a file has it, with or without what a scheduler adds to it. Hosts of tasks that are no
/// addresses are not looked up.
pub fn read_definition(json: &str, framework: &str) -> Result<AppUpdate, serde_json::Error> {
    let context = translate::Context { framework, resolve: &|_| translate::Resolved::Failed, previous: None };
    translate::app(json, &context).map(|translated| translated.update)
}
