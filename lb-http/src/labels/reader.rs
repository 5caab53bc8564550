//! How the labels of one service are looked up: which spelling wins, how values are read, how a wrong one is told.
//!
//! It knows no key; what a key means stands with whoever asks for it.

use std::time::Duration;

use event_watcher::catalog::{App, Problem};

use super::{Compat, Reading};

/// A label's name taken apart: `HAPROXY_0_VHOST`, `WAYMARK_BALANCE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LabelName<'a> {
    pub family: Family,
    /// `None`: for all ports of the app.
    pub index: Option<usize>,
    pub key: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    Waymark,
    Haproxy,
}

impl<'a> LabelName<'a> {
    /// `None`: not for a balancer.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (family, rest) = match name.strip_prefix("WAYMARK_") {
            Some(rest) => (Family::Waymark, rest),
            None => (Family::Haproxy, name.strip_prefix("HAPROXY_")?),
        };
        let indexed = rest.split_once('_').and_then(|(digits, key)| {
            let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            Some((is_number.then(|| digits.parse().ok()).flatten()?, key))
        });
        Some(match indexed {
            Some((index, key)) => Self { family, index: Some(index), key },
            None => Self { family, index: None, key: rest },
        })
    }
}

/// A label as the app spells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label<'a> {
    pub name: &'a str,
    pub value: &'a str,
    parsed: LabelName<'a>,
}

pub(super) struct Reader<'a> {
    app: &'a App,
    pub index: usize,
    pub reading: &'a Reading,
    /// Of this service, in the order in which they win.
    labels: Vec<Label<'a>>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub fn new(app: &'a App, index: usize, reading: &'a Reading, problems: &'a mut Vec<Problem>) -> Self {
        let labels = app.labels.iter().filter_map(|(name, value)| {
            let parsed = LabelName::parse(name)?;
            let is_heeded = match parsed.index {
                Some(i) => i == index,
                None => reading.heeds_app_wide(&parsed),
            };
            is_heeded.then_some(Label { name, value, parsed })
        });
        let mut labels: Vec<Label<'a>> = labels.collect();
        labels.sort_by_key(|label| (label.parsed.family, label.parsed.index.is_none()));
        Self { app, index, reading, labels, problems }
    }

    pub fn app(&self) -> &'a App {
        self.app
    }

    pub fn compat(&self) -> Compat {
        self.reading.compat
    }

    pub fn find(&self, key: &str) -> Option<Label<'a>> {
        self.labels.iter().find(|label| label.parsed.key == key).copied()
    }

    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.find(key).map(|label| label.value)
    }

    pub fn parsed<T>(&mut self, key: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let label = self.find(key)?;
        let value = parse(label.value.trim());
        if value.is_none() {
            self.problem(key, format!("{:?} is not {wanted}", label.value), "the default applies");
        }
        value
    }

    pub fn number<T: std::str::FromStr>(&mut self, key: &str) -> Option<T> {
        self.parsed(key, "a whole number", |text| text.parse().ok())
    }

    /// `250ms`, `5s`, `1m`; a bare number is of seconds.
    pub fn duration(&mut self, key: &str) -> Option<Duration> {
        self.parsed(key, "a duration such as 5s", |text| parse_duration(text, Duration::from_secs(1)))
    }

    /// Marathon-LB knows `true`, `t`, `yes` and `y`, and takes all else for false, `1` and `on` too. People mean what
    /// they write, so that is only so where it is asked for.
    pub fn boolean(&mut self, key: &str, default: bool) -> bool {
        let Some(label) = self.find(key) else { return default };
        let text = label.value.trim().to_ascii_lowercase();
        match (text.as_str(), self.compat()) {
            ("true" | "t" | "yes" | "y", _) => true,
            ("false" | "f" | "no" | "n", _) => false,
            (_, Compat::MarathonLb) if label.parsed.family == Family::Haproxy => {
                self.problem(
                    key,
                    format!("{:?} means false to Marathon-LB", label.value),
                    "write true or false",
                );
                false
            }
            ("1" | "on", _) => true,
            ("0" | "off", _) => false,
            _ => {
                self.problem(key, format!("{:?} is not true or false", label.value), "the default applies");
                default
            }
        }
    }

    pub fn problem(&mut self, key: &str, what: String, hint: &str) {
        let at = self.find(key).map_or(key, |label| label.name);
        let problem = Problem {
            app: Some(self.app.id.clone()),
            at: format!("labels.{at}"),
            what,
            hint: hint.to_owned(),
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// A bare number is in `unit`.
pub(super) fn parse_duration(text: &str, unit: Duration) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: u32 = number.parse().ok()?;
    let unit = match suffix {
        "" => unit,
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        "d" => Duration::from_secs(86400),
        _ => return None,
    };
    unit.checked_mul(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let name = |family, index, key| Some(LabelName { family, index, key });
        for (text, expect) in [
            ("HAPROXY_0_VHOST", name(Family::Haproxy, Some(0), "VHOST")),
            ("HAPROXY_12_BACKEND_WEIGHT", name(Family::Haproxy, Some(12), "BACKEND_WEIGHT")),
            ("HAPROXY_GROUP", name(Family::Haproxy, None, "GROUP")),
            ("HAPROXY_DEPLOYMENT_GROUP", name(Family::Haproxy, None, "DEPLOYMENT_GROUP")),
            ("WAYMARK_1_BALANCE", name(Family::Waymark, Some(1), "BALANCE")),
            ("WAYMARK_-1_X", name(Family::Waymark, None, "-1_X")),
            ("haproxy_0_VHOST", None),
            ("VIP_0", None),
        ] {
            assert_eq!(LabelName::parse(text), expect, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, expect) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("5", Some(Duration::from_secs(5))),
            ("1m", Some(Duration::from_secs(60))),
            ("2h", Some(Duration::from_secs(7200))),
            ("1d", Some(Duration::from_secs(86400))),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("99999999999s", None),
        ] {
            assert_eq!(parse_duration(text, Duration::from_secs(1)), expect, "{text:?}");
        }
    }
}
