//! Whether a list that has lost much may be believed: a scheduler that has just elected a leader may answer before it
//! knows what it runs.
//!
//! Sans-io: it counts nothing itself and knows no list, only what the caller found missing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::catalog::AppId;

/// How long after a leader change, a reconnect or the first list a loss is suspicious.
const WINDOW: Duration = Duration::from_secs(60);
/// A held loss is believed when this many lists in a row agree, over at least [`CONFIRM_FOR`].
const CONFIRMATIONS: usize = 3;
const CONFIRM_FOR: Duration = Duration::from_secs(10);
/// How often a held loss is looked at again.
pub(crate) const CONFIRM_EVERY: Duration = Duration::from_secs(1);
/// A few apps may end together; a confused scheduler forgets more.
const MIN_APPS: usize = 3;
/// How long an event, or the operator, explains that an app has fewer instances.
const EXPLAINED_FOR: Duration = Duration::from_secs(60);
/// Beyond, the oldest explanations are dropped; the operator or the confirmation decides then.
const MAX_EXPLAINED: usize = 100_000;

/// What a list lacks, compared with what is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Instances held that have not ended.
    pub n_before: usize,
    /// Instances missing, by app.
    pub lost: BTreeMap<AppId, usize>,
    /// The list has no app at all.
    pub contents: Contents,
    /// Who the answer says is leader.
    pub leader: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Contents {
    #[default]
    Apps,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Believe,
    /// The lost instances stay until this is confirmed.
    Hold,
}

#[derive(Debug, Default)]
pub(crate) struct Guard {
    suspicious_until: Option<Instant>,
    leader: Option<String>,
    explained: BTreeMap<AppId, Instant>,
    held: Option<Held>,
    /// The operator said so until then; what is read much later is not what was looked at.
    believe_until: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    survey: Survey,
    since: Instant,
    n_seen: usize,
}

impl Guard {
    /// From now on, for a while, a large loss may be a mistake. What confirmed one before may have been the same
    /// mistake.
    pub(crate) fn arm(&mut self, now: Instant) {
        self.suspicious_until = Some(now + WINDOW);
        if let Some(held) = &mut self.held {
            (held.since, held.n_seen) = (now, 0);
        }
    }

    /// An event said that this app is being changed or has ended.
    pub(crate) fn explain(&mut self, now: Instant, app: AppId) {
        if self.explained.len() >= MAX_EXPLAINED {
            self.explained.retain(|_, at| now.duration_since(*at) < EXPLAINED_FOR);
        }
        if self.explained.len() < MAX_EXPLAINED {
            self.explained.insert(app, now);
        }
    }

    /// The operator says that the next list is right.
    pub(crate) fn believe_next(&mut self, now: Instant) {
        self.believe_until = Some(now + EXPLAINED_FOR);
    }

    /// Instances held back, by app.
    pub(crate) fn held(&self) -> Option<&BTreeMap<AppId, usize>> {
        self.held.as_ref().map(|held| &held.survey.lost)
    }

    /// Whether one answer that an app is gone is too little to believe it.
    pub(crate) fn doubts(&self, now: Instant, app: &AppId) -> bool {
        let is_explained = self.explained.get(app).is_some_and(|at| now.duration_since(*at) < EXPLAINED_FOR);
        self.is_watchful(now) && !is_explained
    }

    fn is_watchful(&self, now: Instant) -> bool {
        self.suspicious_until.is_some_and(|until| now < until) || self.held.is_some()
    }

    pub(crate) fn judge(&mut self, now: Instant, mut survey: Survey) -> Verdict {
        if survey.leader.is_some() && self.leader != survey.leader {
            // The first leader that is heard of is no change; the caller arms for the first list.
            if self.leader.is_some() {
                self.arm(now);
            }
            self.leader.clone_from(&survey.leader);
        }
        self.explained.retain(|_, at| now.duration_since(*at) < EXPLAINED_FOR);
        survey.lost.retain(|app, _| !self.explained.contains_key(app));
        let is_told = self.believe_until.take().is_some_and(|until| now < until);
        let believe = is_told || !self.is_suspicious(now, &survey);
        if believe {
            self.held = None;
            return Verdict::Believe;
        }
        match &mut self.held {
            Some(held) if held.survey == survey => {
                held.n_seen += 1;
                if held.n_seen >= CONFIRMATIONS && now.duration_since(held.since) >= CONFIRM_FOR {
                    self.held = None;
                    return Verdict::Believe;
                }
            }
            _ => self.held = Some(Held { survey, since: now, n_seen: 1 }),
        }
        Verdict::Hold
    }

    fn is_suspicious(&self, now: Instant, survey: &Survey) -> bool {
        let n_lost: usize = survey.lost.values().sum();
        let is_large = 2 * n_lost >= survey.n_before && survey.lost.len() >= MIN_APPS;
        self.is_watchful(now) && n_lost > 0 && (is_large || survey.contents == Contents::Nothing)
    }
}
