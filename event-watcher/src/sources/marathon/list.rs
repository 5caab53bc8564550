//! Answers with one or all apps and pods: each is read on its own, so that a bad one never hides a good one, and one
//! whose text is the same as in the last list is not read at all. From here on a pod is an app like any other.
//!
//! It applies nothing: the watcher says afterwards which texts it now holds. A list is read on a thread of its own,
//! from copies that cost nothing, while everything else goes on.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;

use super::split::{ShapeError, Splitter};
use super::translate::{self, Context};
use super::wire;
use super::words::Words;
use crate::catalog::{AppId, AppUpdate, Apps, Problem};
use crate::resolver::Names;

/// What a text defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    App,
    Pod,
}

/// An answer that is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

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

/// What an answer says, and what it could not say yet.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub entries: Vec<Entry>,
    /// What is wrong with the answer beyond single apps that have an id.
    pub problems: Vec<Problem>,
    /// Host names to look up before the answer is applied.
    pub unasked_hosts: Vec<String>,
    /// Apps with instances on such hosts, with their place among the entries.
    waiting: Vec<(usize, Kind, Box<str>)>,
    pub n_tasks_skipped: u64,
    /// Running tasks of apps with health checks, and how many of them have any result.
    pub n_checked: usize,
    pub n_with_results: usize,
}

/// The texts of the last list. A copy shares everything with the original until one of them changes, and then nearly
/// everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts {
    hasher: RandomState,
    apps: imbl::HashMap<TextHash, AppId>,
    texts: imbl::HashMap<AppId, TextHash>,
}

impl Texts {
    /// What is held now is what this text says.
    pub(crate) fn remember(&mut self, id: &AppId, text: Option<TextHash>) {
        self.forget(id);
        if let Some(text) = text {
            self.apps.insert(text, id.clone());
            self.texts.insert(id.clone(), text);
        }
    }

    /// What is held is no longer what the last list said.
    pub(crate) fn forget(&mut self, id: &AppId) {
        if let Some(text) = self.texts.remove(id) {
            self.apps.remove(&text);
        }
    }

    /// The same text means something else from now on.
    pub(crate) fn forget_all(&mut self) {
        *self = Self::default();
    }
}

/// Everything beside the text that the meaning of an answer depends on.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub framework: Arc<str>,
    pub names: Names,
    pub moment: Instant,
    pub previous: Apps,
    pub texts: Texts,
}

/// Reads one list as it arrives.
#[derive(Debug)]
pub(crate) struct ListReader {
    around: Surroundings,
    splitter: Splitter,
    answer: Answer,
    known: BTreeSet<AppId>,
    words: Words,
}

impl ListReader {
    pub(crate) fn new(around: Surroundings) -> Self {
        Self {
            around,
            splitter: Splitter::new(),
            answer: Answer::default(),
            known: BTreeSet::new(),
            words: Words::default(),
        }
    }

    /// An error means that the answer as a whole is none.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let Self { around, splitter, answer, known, words } = self;
        splitter.push(bytes, |text| {
            let mut entry = match around.entry(Kind::App, text_of(text)?, answer) {
                Ok(entry) => entry,
                Err(error) => {
                    not_broken(text)?;
                    answer.has_unreadable(format!("apps[{}]", answer.n_apps()), &error);
                    return Ok(());
                }
            };
            if let Entry::Rejected(..) = entry {
                not_broken(text)?;
            }
            if let Entry::Read { update, .. } = &mut entry {
                words.share(&mut update.app);
            }
            let at = || format!("apps[{}].id", answer.n_apps());
            match known.insert(entry.id().clone()) {
                true => answer.entries.push(entry),
                false => answer.problems.push(listed_twice(entry.id(), at())),
            }
            Ok(())
        })
    }

    pub(crate) fn finish(self) -> Result<Answer, Malformed> {
        self.splitter.finish()?;
        Ok(self.answer)
    }
}

impl Answer {
    /// Adds the pods of `/v2/pods/::status`.
    pub(crate) fn add_pods(&mut self, body: &[u8], around: &Surroundings) -> Result<(), Malformed> {
        let pods: Vec<&RawValue> = serde_json::from_slice(body)?;
        let mut known: BTreeSet<AppId> = self.entries.iter().map(|entry| entry.id().clone()).collect();
        for (index, pod) in pods.iter().enumerate() {
            match around.entry(Kind::Pod, pod.get(), self) {
                Ok(entry) if known.insert(entry.id().clone()) => self.entries.push(entry),
                Ok(entry) => self.problems.push(listed_twice(entry.id(), format!("pods[{index}].id"))),
                Err(error) => self.has_unreadable(format!("pods[{index}]"), &error),
            }
        }
        Ok(())
    }

    fn has_unreadable(&mut self, at: String, error: &serde_json::Error) {
        let hint = "it is left out; the others are served".into();
        self.problems.push(Problem { app: None, at, what: error.to_string(), hint });
    }

    /// Reads again what waited for addresses. Hosts that are still unknown cost their instances the address.
    pub(crate) fn look_again(&mut self, around: &Surroundings) -> Result<(), serde_json::Error> {
        for (at, kind, text) in std::mem::take(&mut self.waiting) {
            let entry = around.entry(kind, &text, &mut Self::default())?;
            if let Some(known) = self.entries.get_mut(at).filter(|known| known.id() == entry.id()) {
                *known = entry;
            }
        }
        self.unasked_hosts.clear();
        Ok(())
    }

    /// Apps that were looked at so far.
    fn n_apps(&self) -> usize {
        self.entries.len() + self.problems.len()
    }
}

impl Surroundings {
    /// Reads `{"app": {…}}`, or a pod's status.
    pub(crate) fn single(&self, kind: Kind, body: &[u8]) -> Result<Answer, serde_json::Error> {
        let text: &RawValue = match kind {
            Kind::App => serde_json::from_slice::<wire::SingleApp<'_>>(body)?.app,
            Kind::Pod => serde_json::from_slice(body)?,
        };
        let mut answer = Answer::default();
        let entry = match self.entry(kind, text.get(), &mut answer)? {
            // A single answer has other fields than a list's; its text says nothing about the next list.
            Entry::Read { update, .. } => Entry::Read { update, text: None },
            entry => entry,
        };
        answer.entries.push(entry);
        Ok(answer)
    }

    fn entry(&self, kind: Kind, raw: &str, answer: &mut Answer) -> Result<Entry, serde_json::Error> {
        let text = TextHash(self.texts.hasher.hash_one(raw));
        if let Some(id) = self.texts.apps.get(&text) {
            return Ok(Entry::Same(id.clone()));
        }
        // Without a readable id there is no last good version to keep either.
        let id = serde_json::from_str(raw).map(|wire::IdOnly { id }| AppId::new(&id))?;
        let context = Context {
            framework: &self.framework,
            resolve: &|host| self.names.resolve(host, self.moment),
            previous: self.previous.get(&id).map(|app| &**app),
        };
        let translated = match kind {
            Kind::App => translate::app(raw, &context),
            Kind::Pod => translate::pod(raw, &context),
        };
        match translated {
            Ok(translated) => {
                let text = translated.hosts_known().then_some(text);
                if !translated.unasked_hosts.is_empty() {
                    answer.waiting.push((answer.entries.len(), kind, raw.into()));
                }
                for host in translated.unasked_hosts {
                    if !answer.unasked_hosts.contains(&host) {
                        answer.unasked_hosts.push(host);
                    }
                }
                answer.n_tasks_skipped += translated.n_tasks_skipped;
                answer.n_checked += translated.n_checked;
                answer.n_with_results += translated.n_with_results;
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

fn listed_twice(id: &AppId, at: String) -> Problem {
    let what = "it is listed twice".into();
    Problem { app: Some(id.clone()), at, what, hint: "the first one counts".into() }
}

fn text_of(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::Json(serde::de::Error::custom("it is not UTF-8")))
}

/// An app that is wrong is its own problem; a text that is no JSON means that the whole answer is broken.
fn not_broken(text: &[u8]) -> Result<(), Malformed> {
    serde_json::from_slice::<&RawValue>(text)?;
    Ok(())
}
