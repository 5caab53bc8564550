//! The arithmetic of a rolling upgrade (Marathon's TaskReplaceActor.computeRestartStrategy).
//!
//! Not here: which instance is killed (`select`), nor the killing.

use crate::scheduler::app::UpgradeStrategy;

/// What a restart may do, decided once when its step starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Old instances killed at once, before any new one is up.
    pub kill_now: usize,
    /// Old and new instances that may exist together.
    pub max_capacity: usize,
}

impl Rollout {
    /// `target`: instances wanted; `n_old`, `n_old_up`: old instances, and those of them that are healthy.
    pub fn plan(target: usize, strategy: UpgradeStrategy, n_old: usize, n_old_up: usize) -> Self {
        let min_up = (target as f64 * strategy.minimum_health_capacity).ceil() as usize;
        let mut max_capacity = (target as f64 * (1.0 + strategy.maximum_over_capacity)).floor() as usize;
        let mut kill_now = n_old_up.saturating_sub(min_up);
        if min_up == max_capacity && max_capacity <= n_old_up {
            // Neither fewer nor more is allowed: without one more, nothing could ever move.
            max_capacity += 1;
        }
        if target < n_old {
            kill_now = kill_now.max(n_old - target);
        }
        Self { kill_now, max_capacity }
    }

    /// New instances to start, given the old ones still there and the new ones already started.
    pub fn n_to_start(&self, target: usize, n_old: usize, n_new: usize) -> usize {
        target.saturating_sub(n_new).min(self.max_capacity.saturating_sub(n_old + n_new))
    }

    /// Old instances that may have been killed in total once `n_new_up` new ones are up.
    pub fn n_kills_allowed(&self, n_new_up: usize) -> usize {
        self.kill_now + n_new_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strategy(minimum_health_capacity: f64, maximum_over_capacity: f64) -> UpgradeStrategy {
        UpgradeStrategy { minimum_health_capacity, maximum_over_capacity }
    }

    #[test]
    fn marathons_cases() {
        for (target, min, over, n_old, n_old_up, kill_now, max_capacity) in [
            (10, 1.0, 1.0, 10, 10, 0, 20),
            (10, 0.5, 0.0, 10, 10, 5, 10),
            (10, 1.0, 0.0, 10, 10, 0, 11),
            (10, 0.0, 0.0, 10, 10, 10, 10),
            (2, 1.0, 1.0, 10, 10, 8, 4),
            (10, 1.0, 0.3, 10, 10, 0, 13),
            (5, 0.5, 0.5, 10, 0, 5, 7),
            (3, 1.0, 0.0, 3, 1, 0, 3),
        ] {
            let plan = Rollout::plan(target, strategy(min, over), n_old, n_old_up);
            assert_eq!(plan, Rollout { kill_now, max_capacity }, "{target} {min} {over} {n_old} {n_old_up}");
        }
    }

    #[test]
    fn every_rollout_ends_within_its_limits() {
        for target in 0..8 {
            for n_old in 0..8 {
                for (min, over) in [(1.0, 1.0), (1.0, 0.0), (0.5, 0.0), (0.0, 0.0), (0.3, 0.4)] {
                    let plan = Rollout::plan(target, strategy(min, over), n_old, n_old);
                    let (mut old, mut new, mut killed) = (n_old, 0, 0);
                    for _ in 0..50 {
                        let kill = plan.n_kills_allowed(new).saturating_sub(killed).min(old);
                        (old, killed) = (old - kill, killed + kill);
                        new += plan.n_to_start(target, old, new);
                        assert!(old + new <= plan.max_capacity.max(n_old));
                    }
                    assert_eq!((old, new), (0, target), "target {target}, old {n_old}, {min}/{over}");
                }
            }
        }
    }
}
