//! The one mark that says what *every* plane has applied, and with it whether this process is ready.
//!
//! Ready is a state, not a moment: it can be asked for at any time and waited for without missing it.

use event_watcher::catalog::Generation;
use event_watcher::publish::{Applied, applied};
use futures_util::future::try_join_all;

/// Follows all `planes` and marks the lowest of their generations. Ends with the planes.
pub fn of_all(planes: Vec<Applied>) -> Applied {
    let (mark, all) = applied();
    tokio::spawn(async move {
        let mut reached = Generation::UNSYNCED;
        loop {
            let Some(next) = planes.iter().map(Applied::generation).min() else { return };
            if next > reached {
                reached = next;
                mark.set(reached);
            }
            // All planes must pass what is reached before the lowest can move; one that ends never will.
            let beyond = Generation(reached.0 + 1);
            let mut waiting = planes.clone();
            if try_join_all(waiting.iter_mut().map(|plane| plane.reached(beyond))).await.is_err() {
                return;
            }
        }
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_slowest_plane_decides() {
        let (fast, fast_applied) = applied();
        let (slow, slow_applied) = applied();
        let mut all = of_all(vec![fast_applied, slow_applied]);
        fast.set(Generation(3));
        slow.set(Generation(1));
        assert_eq!(all.changed().await, Ok(Generation(1)));
        slow.set(Generation(2));
        assert_eq!(all.changed().await, Ok(Generation(2)));
        fast.set(Generation(9));
        slow.set(Generation(9));
        assert!(all.reached(Generation(9)).await.is_ok());
        drop(slow);
        assert!(all.reached(Generation(10)).await.is_err(), "nobody will ever apply it");
    }
}
