//! What the probes of one server come to: up or down, since how many answers, and the last answer.
//!
//! One task writes it; whoever compiles and shows servers reads it. It belongs to the server for as long as its
//! endpoint lives, whatever else of the app changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::labels::CheckSpec;

/// A server that is new is up.
#[derive(Debug, Default)]
pub struct CheckState {
    is_down: AtomicBool,
    is_judged: AtomicBool,
    /// Answers in a row that speak against the present verdict.
    n_against: AtomicU32,
    n_failures: AtomicU64,
    last: ArcSwapOption<Report>,
}

/// One answer, or what came instead of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub result: CheckResult,
    /// Of the HTTP response.
    pub code: Option<u16>,
    pub took: Duration,
    /// For people.
    pub detail: String,
}

/// As HAProxy tells results apart: by the layer at which the check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    Connected,
    NotConnected,
    ConnectTimeout,
    HandshakeFailed,
    HandshakeTimeout,
    Answered,
    /// A response with a status that is neither 2xx nor 3xx.
    BadStatus,
    BadResponse,
    ResponseTimeout,
}

impl CheckResult {
    pub fn is_success(self) -> bool {
        matches!(self, Self::Connected | Self::Answered)
    }

    /// HAProxy's `check_status`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connected => "L4OK",
            Self::NotConnected => "L4CON",
            Self::ConnectTimeout => "L4TOUT",
            Self::HandshakeFailed => "L6RSP",
            Self::HandshakeTimeout => "L6TOUT",
            Self::Answered => "L7OK",
            Self::BadStatus => "L7STS",
            Self::BadResponse => "L7RSP",
            Self::ResponseTimeout => "L7TOUT",
        }
    }

    /// HAProxy's `check_desc`.
    pub fn description(self) -> &'static str {
        match self {
            Self::Connected => "Layer4 check passed",
            Self::NotConnected => "Layer4 connection problem",
            Self::ConnectTimeout => "Layer4 timeout",
            Self::HandshakeFailed => "Layer6 invalid response",
            Self::HandshakeTimeout => "Layer6 timeout",
            Self::Answered => "Layer7 check passed",
            Self::BadStatus => "Layer7 wrong status",
            Self::BadResponse => "Layer7 invalid response",
            Self::ResponseTimeout => "Layer7 timeout",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    Yes,
    /// The instance has just been started.
    NotYet,
}

/// Whether an answer turned the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Yes,
    No,
}

impl CheckState {
    pub fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }

    /// Since the server is known.
    pub fn n_failures(&self) -> u64 {
        self.n_failures.load(Relaxed)
    }

    /// `None`: it has not been probed yet.
    pub fn last(&self) -> Option<Arc<Report>> {
        self.last.load_full()
    }

    /// HAProxy's `check_health`: from 0 to `rise` - 1 it is down, up to `rise` + `fall` - 1 it is up.
    pub fn health(&self, spec: &CheckSpec) -> u32 {
        let n_against = self.n_against.load(Relaxed);
        if self.is_down() { n_against } else { (spec.rise + spec.fall - 1).saturating_sub(n_against) }
    }

    /// Whether the scheduler has a verdict about the server.
    pub(crate) fn set_judged(&self, judged: Judged) {
        self.is_judged.store(judged == Judged::Yes, Relaxed);
    }

    /// `age`: how long the server has been probed.
    pub(crate) fn note(&self, report: Report, spec: &CheckSpec, age: Duration) -> Change {
        let is_success = report.result.is_success();
        self.last.store(Some(Arc::new(report)));
        self.n_failures.fetch_add(u64::from(!is_success), Relaxed);
        let is_down = self.is_down();
        let is_excused = !self.is_judged.load(Relaxed) && age < spec.grace;
        if is_success != is_down || is_excused && !is_success {
            self.n_against.store(0, Relaxed);
            return Change::No;
        }
        let n_against = self.n_against.load(Relaxed) + 1;
        let enough = if is_down { spec.rise } else { spec.fall };
        if n_against < enough {
            self.n_against.store(n_against, Relaxed);
            return Change::No;
        }
        self.n_against.store(0, Relaxed);
        self.is_down.store(!is_down, Relaxed);
        Change::Yes
    }

    /// Nothing is known of it any more; what was counted stays.
    pub(super) fn reset(&self) {
        self.is_down.store(false, Relaxed);
        self.n_against.store(0, Relaxed);
        self.last.store(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::{CheckKind, CheckPort};

    #[test]
    fn answers_in_a_row_turn_the_verdict() {
        let spec = CheckSpec {
            kind: CheckKind::Tcp,
            port: CheckPort::Own,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            grace: Duration::from_secs(300),
        };
        let state = CheckState::default();
        let report = |result| Report { result, code: None, took: Duration::ZERO, detail: String::new() };
        let young = Duration::from_secs(299);
        for _ in 0..9 {
            assert_eq!(state.note(report(CheckResult::NotConnected), &spec, young), Change::No);
        }
        assert_eq!((state.is_down(), state.health(&spec), state.n_failures()), (false, 4, 9), "it starts");
        state.set_judged(Judged::Yes);
        let mut seen = String::new();
        for answer in "--+---+-++-".chars() {
            let result = if answer == '+' { CheckResult::Connected } else { CheckResult::NotConnected };
            let changed = state.note(report(result), &spec, young) == Change::Yes;
            seen.push(match (changed, state.is_down()) {
                (true, true) => 'D',
                (true, false) => 'U',
                (false, true) => 'd',
                (false, false) => 'u',
            });
        }
        assert_eq!(seen, "uuuuuDdddUu");
        assert_eq!((state.n_failures(), state.health(&spec)), (9 + 7, 3));
        state.reset();
        assert_eq!((state.health(&spec), state.last()), (4, None));
        state.set_judged(Judged::NotYet);
        for expect in [Change::No, Change::No, Change::Yes] {
            assert_eq!(
                state.note(report(CheckResult::BadStatus), &spec, spec.grace),
                expect,
                "its grace is over"
            );
        }
    }
}
