//! Marathon's launch back-off (RateLimiter): the delay grows with each failure of one configuration.
//!
//! Not here: which ends of a task count as failures.

use std::time::Duration;

use tokio::time::Instant;

use crate::scheduler::app::App;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    delay: Duration,
    until: Instant,
    last_failure: Instant,
}

impl Backoff {
    /// The state after one more failure: first `min(backoffSeconds, max)`, then times `backoffFactor`.
    pub fn after_failure(previous: Option<Self>, app: &App, now: Instant) -> Self {
        let max = app.max_launch_delay();
        let delay = match previous.filter(|p| !p.expired(app, now)) {
            None => app.backoff().min(max),
            Some(previous) => {
                let grown = previous.delay.as_secs_f64() * app.backoff_factor;
                Duration::from_secs_f64(grown.min(max.as_secs_f64()))
            }
        };
        Self { delay, until: now + delay, last_failure: now }
    }

    /// Forgotten once the app ran for the longest delay without failing.
    fn expired(&self, app: &App, now: Instant) -> bool {
        now >= self.last_failure + app.max_launch_delay().max(self.delay)
    }

    /// When the next instance may start, `None`: now.
    pub fn waits_until(&self, now: Instant) -> Option<Instant> {
        (self.until > now).then_some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::id::AppId;
    use crate::scheduler::timestamp::Timestamp;

    #[test]
    fn grows_to_the_maximum_and_is_forgotten_after_it() {
        let mut app = App::with_defaults(AppId::parse("/a").expect("valid"), Timestamp::now());
        app.backoff_factor = 2.0;
        app.max_launch_delay_seconds = 5.0;
        let start = Instant::now();
        let mut backoff = None;
        for expect in [1, 2, 4, 5, 5] {
            let next = Backoff::after_failure(backoff, &app, start);
            assert_eq!(next.waits_until(start), Some(start + Duration::from_secs(expect)));
            backoff = Some(next);
        }
        let later = start + Duration::from_secs(5);
        let next = Backoff::after_failure(backoff, &app, later);
        assert_eq!(next.waits_until(later), Some(later + Duration::from_secs(1)));
        assert_eq!(next.waits_until(later + Duration::from_secs(1)), None);
    }
}
