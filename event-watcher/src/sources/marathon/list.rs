//! Answers with one or all apps: each app is read on its own, so that a bad one never hides a good one, and an app
//! whose text is the same as in the last list is not read at all.
//!
//! It applies nothing: the watcher says afterwards which texts the catalog now stands for.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use serde_json::value::RawValue;

use super::translate::{self, Context, Resolved};
use super::wire;
use crate::catalog::{App, AppId, AppUpdate, Problem};

/// What an answer says about one app.
#[derive(Debug)]
pub(crate) enum Entry {
    /// The same text as in the last list, and nothing happened to the app since.
    Same(AppId),
    Read {
        update: AppUpdate,
        text: Option<TextHash>,
    },
    /// It cannot be read; the last good version stays.
    Rejected(AppId, Problem),
}

impl Entry {
    pub(crate) fn id(&self) -> &AppId {
        match self {
            Self::Same(id) | Self::Rejected(id, _) => id,
            Self::Read { update, .. } => &update.app.id,
        }
    }
}

/// A keyed hash of an app's text; not for anything that an app's author could profit from guessing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TextHash(u64);

#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub entries: Vec<Entry>,
    /// What is wrong with the answer beyond single apps that have an id.
    pub problems: Vec<Problem>,
    /// Host names to look up before the answer is applied.
    pub unasked_hosts: Vec<String>,
    pub n_tasks_skipped: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Reader {
    hasher: RandomState,
    apps: HashMap<TextHash, AppId>,
    texts: HashMap<AppId, TextHash>,
}

/// Everything beside the text that the meaning of an answer depends on.
pub(crate) struct Surroundings<'a> {
    pub framework: &'a str,
    pub resolve: &'a dyn Fn(&str) -> Resolved,
    pub previous: &'a dyn Fn(&AppId) -> Option<&'a App>,
}

impl Reader {
    /// Reads `{"apps": […]}`. An error means that the answer as a whole is none.
    pub(crate) fn list(&self, body: &[u8], around: &Surroundings<'_>) -> Result<Answer, serde_json::Error> {
        let list: wire::AppList<'_> = serde_json::from_slice(body)?;
        let mut answer = Answer::default();
        let mut known = BTreeSet::new();
        for (index, raw) in list.apps.into_iter().enumerate() {
            let entry = match self.entry(raw, around, &mut answer) {
                Ok(entry) => entry,
                Err(error) => {
                    answer.problems.push(Problem {
                        app: None,
                        at: format!("apps[{index}]"),
                        what: error.to_string(),
                        hint: "it is left out; the others are served".into(),
                    });
                    continue;
                }
            };
            if known.insert(entry.id().clone()) {
                answer.entries.push(entry);
            } else {
                answer.problems.push(Problem {
                    app: Some(entry.id().clone()),
                    at: format!("apps[{index}].id"),
                    what: "the app is listed twice".into(),
                    hint: "the first one counts".into(),
                });
            }
        }
        Ok(answer)
    }

    /// Reads `{"app": {…}}`.
    pub(crate) fn single(&self, body: &[u8], around: &Surroundings<'_>) -> Result<Answer, serde_json::Error> {
        let single: wire::SingleApp<'_> = serde_json::from_slice(body)?;
        let mut answer = Answer::default();
        let entry = match self.entry(single.app, around, &mut answer)? {
            // A single answer has other fields than a list's; its text says nothing about the next list.
            Entry::Read { update, .. } => Entry::Read { update, text: None },
            entry => entry,
        };
        answer.entries.push(entry);
        Ok(answer)
    }

    /// The catalog now holds what this text says.
    pub(crate) fn remember(&mut self, id: &AppId, text: Option<TextHash>) {
        self.forget(id);
        if let Some(text) = text {
            self.apps.insert(text, id.clone());
            self.texts.insert(id.clone(), text);
        }
    }

    /// The catalog's app is no longer what the last list said.
    pub(crate) fn forget(&mut self, id: &AppId) {
        if let Some(text) = self.texts.remove(id) {
            self.apps.remove(&text);
        }
    }

    /// The same text means something else from now on.
    pub(crate) fn forget_all(&mut self) {
        self.apps.clear();
        self.texts.clear();
    }

    fn entry(
        &self,
        raw: &RawValue,
        around: &Surroundings<'_>,
        answer: &mut Answer,
    ) -> Result<Entry, serde_json::Error> {
        let text = TextHash(self.hasher.hash_one(raw.get()));
        if let Some(id) = self.apps.get(&text) {
            return Ok(Entry::Same(id.clone()));
        }
        // Without a readable id there is no last good version to keep either.
        let id = serde_json::from_str(raw.get()).map(|wire::IdOnly { id }| AppId::new(&id))?;
        let context = Context {
            framework: around.framework,
            resolve: around.resolve,
            previous: (around.previous)(&id),
        };
        match translate::app(raw.get(), &context) {
            Ok(translated) => {
                let text = translated.hosts_known().then_some(text);
                for host in translated.unasked_hosts {
                    if !answer.unasked_hosts.contains(&host) {
                        answer.unasked_hosts.push(host);
                    }
                }
                answer.n_tasks_skipped += translated.n_tasks_skipped;
                Ok(Entry::Read { update: translated.update, text })
            }
            Err(error) => {
                let problem = Problem {
                    app: Some(id.clone()),
                    at: "the app's definition".into(),
                    what: error.to_string(),
                    hint: "its last good version keeps serving; the other apps are not touched".into(),
                };
                Ok(Entry::Rejected(id, problem))
            }
        }
    }
}
