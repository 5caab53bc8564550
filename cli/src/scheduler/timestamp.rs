//! Marathon's timestamps: UTC, always three decimals; an app's version is one of these.
//!
//! Not here: durations and timers, which use `std::time` and `tokio::time`.

use std::fmt;

use serde::{Serialize, Serializer};

/// Milliseconds since the Unix epoch, written as `2018-03-01T10:00:09.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0) as f64 / 1000.0
    }

    /// Reads any ISO-8601 instant with an offset; digits beyond milliseconds are cut off.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|t| Self(t.as_millisecond()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp = jiff::Timestamp::from_millisecond(self.0).map_err(|_| fmt::Error)?;
        write!(f, "{timestamp:.3}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Hands out versions that never repeat and never go back, even when the machine's clock does.
#[derive(Debug)]
pub struct VersionClock {
    last: Timestamp,
}

impl VersionClock {
    /// Every version handed out is later than `newest_known`.
    pub fn after(newest_known: Timestamp) -> Self {
        Self { last: newest_known }
    }

    pub fn next_version(&mut self) -> Timestamp {
        self.last = Timestamp::now().max(Timestamp(self.last.0 + 1));
        self.last
    }

    /// The newest version handed out so far.
    pub fn newest(&self) -> Timestamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_it_reads() {
        for (text, expect) in [
            ("2018-03-01T10:00:09.123Z", "2018-03-01T10:00:09.123Z"),
            ("2018-03-01T10:00:09Z", "2018-03-01T10:00:09.000Z"),
            ("2015-09-17T09:32:42.598421Z", "2015-09-17T09:32:42.598Z"),
            ("2024-02-29T23:59:59.999+01:00", "2024-02-29T22:59:59.999Z"),
            ("1969-12-31T23:59:59.001Z", "1969-12-31T23:59:59.001Z"),
            ("2000-12-31T00:00:00.000Z", "2000-12-31T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp::parse(text).map(|t| t.to_string()).as_deref(), Some(expect), "{text}");
        }
        for bad in ["20:39:32.972Z", "", "yesterday", "2018-03-01"] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn versions_only_rise() {
        let far_ahead = Timestamp(Timestamp::now().0 + 60_000);
        let mut clock = VersionClock::after(far_ahead);
        let first = clock.next_version();
        assert!(first > far_ahead && clock.next_version() > first);
    }
}
