//! Drives a kernel plane: what should be in force, what is, what failed, and when to look again.
//!
//! Every call to the kernel runs on a thread of the runtime's blocking pool, one at a time, so the control thread
//! waits for none. It reads no snapshot: whoever follows them says which services there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{ApplyError, Change, Frontend, KernelCounters, KernelPlane, Service};

/// Whether somebody else changed the kernel's state is looked at this often: a foreign flush is mended within 1 s.
const LOOK: Duration = Duration::from_millis(500);
/// Everything is read back and compared this often, for what a look does not see.
const COMPARE: Duration = Duration::from_secs(30);
/// Whoever asks what was counted sees it as soon after the fact as a person can ask.
const COUNT: Duration = Duration::from_millis(250);
/// Of many VIPs that takes long: counting has a rest of this many times as long as it took.
const COUNT_REST: u32 = 50;
/// A reading that only waited for its turn must not make the next one late.
const LONGEST_COUNT_REST: Duration = Duration::from_secs(5);
/// A call that failed is tried again after this, then after twice as long, up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Counters as of the last reading.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) frontends: BTreeMap<Frontend, KernelCounters>,
    pub(crate) backends: BTreeMap<(Frontend, SocketAddr), KernelCounters>,
    pub(crate) n_unheard: u64,
}

/// A call to the kernel that failed; what was in force before is in force still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) what: String,
    pub(crate) n_times: u32,
    retry_at: Instant,
}

#[derive(Debug)]
pub(crate) struct Driver {
    /// `None` only while a call runs.
    plane: Option<Box<dyn KernelPlane>>,
    wanted: BTreeMap<Frontend, Service>,
    /// What the kernel took last.
    in_force: BTreeMap<Frontend, Service>,
    /// Its keys; copied only when one comes or goes.
    served: Arc<BTreeSet<Frontend>>,
    /// Frontends whose wanted state may not be in force.
    dirty: BTreeSet<Frontend>,
    /// What it cannot take, with its reason.
    refused: BTreeMap<Frontend, String>,
    failed: Option<Failed>,
    /// When everything is read back; at once until it has worked for the first time.
    compare_at: Instant,
    look_at: Instant,
    count_at: Instant,
    pub(crate) counted: Arc<Counted>,
    /// Elements that somebody else had changed and that were put right.
    pub(crate) n_repaired: u64,
    /// The kernel has been compared with what is wanted at least once.
    is_settled: bool,
}

impl Driver {
    pub(crate) fn new(plane: Box<dyn KernelPlane>) -> Self {
        let now = Instant::now();
        Self {
            plane: Some(plane),
            wanted: BTreeMap::new(),
            in_force: BTreeMap::new(),
            served: Arc::default(),
            dirty: BTreeSet::new(),
            refused: BTreeMap::new(),
            failed: None,
            compare_at: now,
            look_at: now + LOOK,
            count_at: now,
            counted: Arc::default(),
            n_repaired: 0,
            is_settled: false,
        }
    }

    /// Makes `services` what should be in force, and puts it in force. Frontends in `gone` are not served any more.
    /// Answers whether something that is told, beside endpoints, has changed.
    pub(crate) async fn set(&mut self, services: Vec<Service>, gone: Vec<Frontend>) -> Ticked {
        let (is_other_set, before) = (!gone.is_empty(), self.told());
        if !gone.is_empty() {
            // What goes may make room for what was refused.
            self.dirty.extend(std::mem::take(&mut self.refused).into_keys());
        }
        for frontend in gone {
            self.wanted.remove(&frontend);
            self.dirty.insert(frontend);
        }
        for service in services {
            self.refused.remove(&service.frontend);
            self.dirty.insert(service.frontend);
            self.wanted.insert(service.frontend, service);
        }
        self.work().await;
        if is_other_set || before != self.told() { Ticked::Differs } else { Ticked::Same }
    }

    fn told(&self) -> (Option<Failed>, BTreeMap<Frontend, String>, usize) {
        (self.failed.clone(), self.refused.clone(), self.in_force.len())
    }

    pub(crate) fn served(&self) -> Arc<BTreeSet<Frontend>> {
        Arc::clone(&self.served)
    }

    /// Everything that is wanted and not refused is in force.
    pub(crate) fn is_applied(&self) -> bool {
        self.is_settled && self.failed.is_none()
    }

    pub(crate) fn refused(&self) -> impl Iterator<Item = (&Frontend, &str)> {
        self.refused.iter().map(|(frontend, reason)| (frontend, reason.as_str()))
    }

    pub(crate) fn failed(&self) -> Option<&Failed> {
        self.failed.as_ref()
    }

    pub(crate) fn wanted(&self) -> impl Iterator<Item = &Frontend> {
        self.wanted.keys()
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn next(&self) -> Instant {
        let retry_at = self.failed.as_ref().map_or(self.compare_at, |failed| failed.retry_at);
        self.look_at.min(self.count_at).min(retry_at)
    }

    /// Looks, compares, counts and tries again, whatever is due. Answers whether something that is told has changed.
    pub(crate) async fn tick(&mut self) -> Ticked {
        let now = Instant::now();
        let before = (self.failed.clone(), self.n_repaired, self.in_force.len());
        if self.is_settled && now >= self.look_at {
            self.look_at = now + LOOK;
            match self.call(|plane| plane.was_changed_by_others()).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!("somebody changed the kernel state of the VIPs; it is put right");
                    self.compare_at = now;
                }
                Err(error) => self.fail(&error),
            }
        }
        let is_due = match &self.failed {
            Some(failed) => now >= failed.retry_at,
            None => now >= self.compare_at,
        };
        if is_due {
            // After a failure it is not known what the kernel holds.
            self.compare_at = now;
            self.work().await;
        }
        if now >= self.count_at {
            self.count().await;
        }
        let after = (self.failed.clone(), self.n_repaired, self.in_force.len());
        if before == after { Ticked::Same } else { Ticked::Differs }
    }

    /// Removes everything of ours from the kernel.
    pub(crate) async fn flush(&mut self) -> Result<(), ApplyError> {
        self.call(|plane| plane.flush()).await
    }

    /// Brings the kernel to what is wanted: by the difference, or by comparing everything when that is due.
    async fn work(&mut self) {
        loop {
            let outcome =
                if Instant::now() >= self.compare_at { self.compare().await } else { self.change().await };
            match outcome {
                Ok(()) => {
                    self.failed = None;
                    return;
                }
                // Without them, the rest may be taken.
                Err(ApplyError::Refused { frontends, reason }) if !frontends.is_empty() => {
                    tracing::warn!(n_refused = frontends.len(), reason, "VIP addresses are not served");
                    self.refused.extend(frontends.into_iter().map(|frontend| (frontend, reason.clone())));
                }
                Err(error) => return self.fail(&error),
            }
        }
    }

    async fn compare(&mut self) -> Result<(), ApplyError> {
        let services: Vec<Service> = self.acceptable().cloned().collect();
        let was_settled = self.is_settled;
        let n_differed = {
            let services = services.clone();
            self.call(move |plane| plane.reconcile(&services)).await?
        };
        if was_settled && n_differed > 0 && self.failed.is_none() {
            self.n_repaired += n_differed as u64;
        }
        self.in_force = services.into_iter().map(|service| (service.frontend, service)).collect();
        if !self.served.iter().eq(self.in_force.keys()) {
            self.served = Arc::new(self.in_force.keys().copied().collect());
        }
        self.dirty.clear();
        self.compare_at = Instant::now() + COMPARE;
        self.is_settled = true;
        Ok(())
    }

    async fn change(&mut self) -> Result<(), ApplyError> {
        let mut changes = Vec::new();
        for frontend in &self.dirty {
            let wanted = self.wanted.get(frontend).filter(|_| !self.refused.contains_key(frontend));
            match (wanted, self.in_force.get(frontend)) {
                (Some(wanted), Some(in_force)) if wanted == in_force => {}
                (Some(wanted), _) => changes.push(Change::Set(wanted.clone())),
                (None, Some(_)) => changes.push(Change::Remove(*frontend)),
                (None, None) => {}
            }
        }
        if !changes.is_empty() {
            let asked = changes.clone();
            self.call(move |plane| plane.apply(&asked)).await?;
        }
        self.dirty.clear();
        for change in changes {
            match change {
                Change::Set(service) => {
                    let frontend = service.frontend;
                    if self.in_force.insert(frontend, service).is_none() {
                        Arc::make_mut(&mut self.served).insert(frontend);
                    }
                }
                Change::Remove(frontend) => {
                    self.in_force.remove(&frontend);
                    Arc::make_mut(&mut self.served).remove(&frontend);
                }
            }
        }
        Ok(())
    }

    fn acceptable(&self) -> impl Iterator<Item = &Service> {
        self.wanted.values().filter(|service| !self.refused.contains_key(&service.frontend))
    }

    async fn count(&mut self) {
        let began = Instant::now();
        let counted = self.call(|plane| plane.count()).await;
        self.count_at = Instant::now() + (COUNT_REST * began.elapsed()).clamp(COUNT, LONGEST_COUNT_REST);
        match counted {
            Ok(super::Counted { frontends, backends, n_unheard }) => {
                self.counted = Arc::new(Counted {
                    frontends: frontends.into_iter().collect(),
                    backends: backends.into_iter().map(|(f, address, c)| ((f, address), c)).collect(),
                    n_unheard,
                });
            }
            Err(error) => tracing::warn!(%error, "the VIPs' counters cannot be read"),
        }
    }

    fn fail(&mut self, error: &ApplyError) {
        let what = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let n_times = self.failed.as_ref().map_or(0, |failed| failed.n_times) + 1;
        if n_times == 1 {
            tracing::error!(what, "a change of the VIPs was not made; what was in force stays");
        }
        let pause = FIRST_RETRY.saturating_mul(1 << (n_times - 1).min(16)).min(LONGEST_RETRY);
        self.failed = Some(Failed { what, n_times, retry_at: Instant::now() + pause });
    }

    async fn call<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn KernelPlane) -> Result<T, ApplyError> + Send + 'static,
    ) -> Result<T, ApplyError> {
        let mut plane = self.plane.take().expect("one call runs at a time, and each puts the plane back");
        let called = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut *plane);
            (plane, outcome)
        });
        match called.await {
            Ok((plane, outcome)) => {
                self.plane = Some(plane);
                outcome
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(ApplyError::kernel("call the kernel", std::io::Error::other(error))),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticked {
    Same,
    Differs,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use event_watcher::catalog::Protocol;

    use super::super::Backend;
    use super::*;
    use crate::stats::{Counts, PlaneKind};

    /// A kernel that fails when it is told to, and whose state others change when a test says so.
    #[derive(Clone, Debug, Default)]
    struct Kernel {
        n_failures: Arc<AtomicUsize>,
        is_changed: Arc<AtomicBool>,
        held: Arc<Mutex<BTreeMap<Frontend, Service>>>,
    }

    impl Kernel {
        fn try_to(&self, change: impl FnOnce(&mut BTreeMap<Frontend, Service>)) -> Result<(), ApplyError> {
            let one_less = |n: usize| n.checked_sub(1);
            if self.n_failures.fetch_update(Relaxed, Relaxed, one_less).is_ok() {
                return Err(ApplyError::kernel("change", std::io::Error::from_raw_os_error(libc::EBUSY)));
            }
            change(&mut self.held.lock().unwrap());
            Ok(())
        }

        fn holds(&self) -> Vec<Service> {
            self.held.lock().unwrap().values().cloned().collect()
        }
    }

    impl KernelPlane for Kernel {
        fn kind(&self) -> PlaneKind {
            PlaneKind::Nft
        }

        fn apply(&mut self, changes: &[Change]) -> Result<(), ApplyError> {
            self.try_to(|held| {
                for change in changes {
                    match change {
                        Change::Set(service) => held.insert(service.frontend, service.clone()),
                        Change::Remove(frontend) => held.remove(frontend),
                    };
                }
            })
        }

        fn reconcile(&mut self, all: &[Service]) -> Result<usize, ApplyError> {
            let before = self.holds();
            self.try_to(|held| *held = all.iter().map(|s| (s.frontend, s.clone())).collect())?;
            Ok(all.iter().filter(|service| !before.contains(service)).count())
        }

        fn was_changed_by_others(&mut self) -> Result<bool, ApplyError> {
            Ok(self.is_changed.swap(false, Relaxed))
        }

        fn counts(&self, _: Protocol) -> Counts {
            Counts::NONE
        }

        fn count(&mut self) -> Result<super::super::Counted, ApplyError> {
            Ok(super::super::Counted::default())
        }

        fn flush(&mut self) -> Result<(), ApplyError> {
            self.try_to(BTreeMap::clear)
        }
    }

    fn service(port: u16) -> Service {
        let frontend = Frontend { protocol: Protocol::Tcp, address: "11.0.0.1:80".parse().unwrap() };
        let backend = Backend { address: SocketAddr::from(([10, 0, 0, 1], port)), weight: 1 };
        Service { frontend, backends: vec![backend], affinity: None }
    }

    #[tokio::test]
    async fn what_fails_leaves_the_old_state_is_told_and_tried_again() {
        let kernel = Kernel::default();
        let mut driver = Driver::new(Box::new(kernel.clone()));
        driver.set(vec![service(1)], Vec::new()).await;
        assert!(driver.is_applied());
        kernel.n_failures.store(2, Relaxed);
        driver.set(vec![service(2)], Vec::new()).await;
        assert!(!driver.is_applied());
        assert_eq!(kernel.holds(), [service(1)], "the old state is in force");
        assert!(driver.failed().is_some_and(|failed| failed.what.contains("cannot change")));
        let failed_at = Instant::now();
        while !driver.is_applied() {
            assert!(failed_at.elapsed() < Duration::from_secs(5), "{:?}", driver.failed());
            tokio::time::sleep_until(driver.next()).await;
            driver.tick().await;
        }
        assert_eq!(kernel.holds(), [service(2)]);
        assert!(failed_at.elapsed() > FIRST_RETRY, "it is not tried all the time");
    }

    #[tokio::test]
    async fn what_others_change_is_put_right_within_a_second() {
        let kernel = Kernel::default();
        let mut driver = Driver::new(Box::new(kernel.clone()));
        driver.set(vec![service(1)], Vec::new()).await;
        kernel.held.lock().unwrap().clear();
        kernel.is_changed.store(true, Relaxed);
        let changed_at = Instant::now();
        while kernel.holds().is_empty() {
            tokio::time::sleep_until(driver.next()).await;
            driver.tick().await;
        }
        assert!(changed_at.elapsed() < Duration::from_secs(1), "{:?}", changed_at.elapsed());
        assert_eq!(driver.n_repaired, 1);
    }
}
