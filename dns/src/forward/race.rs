//! Which upstreams are asked when: the best first, the second best after a head start, the next two when both take too
//! long; the first good answer counts.
//!
//! It neither caches nor counts clients' queries.

use std::sync::Arc;
use std::time::Duration;

use hickory_server::proto::op::{Message, ResponseCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::exchange::{AskError, ask};
use super::question::Spelled;
use super::upstream::Upstream;

/// How much longer than usual the best upstream may take before the second is asked as well, within these bounds: less
/// would ask everybody everything, more would be felt.
const HEAD_START: std::ops::RangeInclusive<Duration> = Duration::from_millis(15)..=Duration::from_millis(300);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// How long one pair of upstreams is waited for.
    pub pair: Duration,
    pub total: Duration,
}

/// Whether somebody else may know better. FORMERR and NOTIMP say that an upstream does not understand a question that
/// is as it should be.
pub(crate) fn is_refusal(code: ResponseCode) -> bool {
    use ResponseCode::{FormErr, NotImp, Refused, ServFail};
    matches!(code, ServFail | Refused | FormErr | NotImp)
}

/// The first good answer. Failing that a refusal, or nothing.
pub(crate) async fn race(
    upstreams: &[Arc<Upstream>],
    spelled: Arc<Spelled>,
    timeouts: Timeouts,
) -> Option<Message> {
    let deadline = Instant::now() + timeouts.total;
    let mut race = Race { spelled, timeouts, deadline, left: upstreams.to_vec(), asks: JoinSet::new() };
    race.left.sort_by_key(|upstream| upstream.cost());
    let mut refusal = None;
    let mut turn = 0;
    let mut next_at = race.start(turn);
    loop {
        tokio::select! {
            Some(asked) = race.asks.join_next() => {
                let Ok((upstream, answer)) = asked else { continue };
                match answer {
                    Ok(message) if is_refusal(message.metadata.response_code) => {
                        upstream.refused();
                        refusal = Some(message);
                    }
                    Ok(message) => return Some(message),
                    // It may only be slow, and is asked again when all others have been.
                    Err(AskError::Elapsed(_)) => continue,
                    Err(_) => {}
                }
                // It will say nothing else. Somebody else has their turn at once.
                race.left.retain(|other| !Arc::ptr_eq(other, &upstream));
                if race.left.is_empty() && race.asks.is_empty() {
                    return refusal;
                }
                if race.asks.is_empty() {
                    turn += 1;
                    next_at = race.start(turn);
                }
            }
            () = sleep_until(next_at.min(deadline)) => {
                if Instant::now() >= deadline || race.left.is_empty() {
                    return refusal;
                }
                turn += 1;
                next_at = race.start(turn);
            }
        }
    }
}

struct Race {
    spelled: Arc<Spelled>,
    timeouts: Timeouts,
    deadline: Instant,
    /// Who may still do better, the best first.
    left: Vec<Arc<Upstream>>,
    asks: JoinSet<(Arc<Upstream>, Result<Message, AskError>)>,
}

impl Race {
    /// Asks the upstream whose turn it is, and tells when the next one is to be asked.
    fn start(&mut self, turn: usize) -> Instant {
        let now = Instant::now();
        let n_left = self.left.len();
        let Some(upstream) = self.left.get(turn % n_left.max(1)) else { return self.deadline };
        let until = self.deadline.min(now + self.timeouts.pair);
        let (upstream, spelled) = (Arc::clone(upstream), Arc::clone(&self.spelled));
        let usual = upstream.latency();
        self.asks.spawn(async move {
            let answer = ask(&spelled, &upstream, until).await;
            match &answer {
                Ok(message) if is_refusal(message.metadata.response_code) => {}
                Ok(_) => upstream.answered(now.elapsed()),
                Err(error) => {
                    tracing::debug!(upstream = %upstream.address, error = error as &dyn std::error::Error, "no answer");
                    upstream.gave_no_answer(error);
                }
            }
            (upstream, answer)
        });
        // A pair has a head start between its two; a lone upstream is its own second.
        if n_left > 1 && turn.is_multiple_of(2) {
            now + (usual * 2).clamp(*HEAD_START.start(), *HEAD_START.end())
        } else {
            until
        }
    }
}
