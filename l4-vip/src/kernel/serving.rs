//! The kernel's part of the VIP plane: what the follower of snapshots tells it, and what it tells about itself.
//!
//! With the userspace plane there is no driver, and all that is left to do is to take over from an earlier run that
//! used the kernel. It neither follows snapshots nor opens sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use event_watcher::catalog::{Problem, Protocol};
use serde::Serialize;
use tokio::time::Instant;

use super::choice::Others;
use super::driver::{Counted, Driver, Ticked};
use super::{Chosen, Frontend, OnExit, PlaneChoice, Rejection, Service};
use crate::plane::not_served;
use crate::stats::{Counts, PlaneKind, VipView};
use crate::table::VipState;

/// Which plane serves, why no better one does, and how it fares.
#[derive(Clone, Debug, Serialize)]
pub struct ChoiceView {
    pub wanted: PlaneChoice,
    pub active: PlaneKind,
    pub why_not: Vec<Rejection>,
    /// The last call to the kernel failed; what was in force before is in force still, and it is tried again.
    pub failure: Option<String>,
    /// Elements in the kernel that somebody else had changed and that were put right.
    pub n_repaired: u64,
}

/// What others see of the kernel's part.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) choice: ChoiceView,
    /// Of TCP VIPs, then of UDP ones.
    counts: [Counts; 2],
    pub(crate) served: Arc<BTreeSet<Frontend>>,
    pub(crate) refused: Arc<BTreeMap<Frontend, String>>,
    pub(crate) counted: Arc<Counted>,
}

impl Told {
    /// Connections that the kernel counted at one of the VIP's addresses.
    pub(crate) fn n_connections(&self, frontend: &Frontend) -> u64 {
        self.counted.frontends.get(frontend).map_or(0, |counted| counted.n_connections)
    }

    /// What the kernel counted at one of the VIP's addresses.
    pub(crate) fn add_counters(&self, view: &mut VipView, frontend: &Frontend) {
        let Some(counted) = self.counted.frontends.get(frontend) else { return };
        view.counters.n_connections += counted.n_connections;
        view.counters.n_no_endpoint += counted.n_refused;
        view.counters.n_connect_failures += counted.n_connect_failures;
        view.counters.bytes_in += counted.bytes_in;
        view.counters.bytes_out += counted.bytes_out;
        for endpoint in &mut view.endpoints {
            if let Some(counted) = self.counted.backends.get(&(*frontend, endpoint.address)) {
                endpoint.n_picked += counted.n_connections;
                endpoint.n_connect_failures += counted.n_connect_failures;
                endpoint.bytes_in += counted.bytes_in;
                endpoint.bytes_out += counted.bytes_out;
            }
        }
    }

    pub(crate) fn counts(&self, protocol: Protocol) -> Counts {
        match protocol {
            Protocol::Tcp => self.counts[0],
            Protocol::Udp => self.counts[1],
        }
    }
}

#[derive(Debug)]
pub(crate) struct Serving {
    driver: Option<Driver>,
    on_exit: OnExit,
    /// It has been said once what should be served.
    is_told: bool,
    others: Others,
    /// The VIPs were taken away from planes of earlier runs.
    has_taken_over: bool,
    /// Why they were not.
    not_taken: Option<Problem>,
    told: Arc<ArcSwap<Told>>,
}

impl Serving {
    pub(crate) fn new(chosen: Chosen, on_exit: OnExit) -> Self {
        let choice = ChoiceView {
            wanted: chosen.wanted,
            active: chosen.kind(),
            why_not: chosen.why_not.clone(),
            failure: None,
            n_repaired: 0,
        };
        let told = Told {
            choice,
            counts: [Protocol::Tcp, Protocol::Udp].map(|protocol| chosen.counts(protocol)),
            served: Arc::default(),
            refused: Arc::default(),
            counted: Arc::default(),
        };
        Self {
            others: chosen.others(),
            has_taken_over: false,
            not_taken: None,
            driver: chosen.kernel.map(Driver::new),
            on_exit,
            is_told: false,
            told: Arc::new(ArcSwap::from_pointee(told)),
        }
    }

    pub(crate) fn told(&self) -> Arc<ArcSwap<Told>> {
        Arc::clone(&self.told)
    }

    /// The kernel serves, so nobody listens.
    pub(crate) fn is_kernel(&self) -> bool {
        self.driver.is_some()
    }

    /// Makes the kernel serve `services` and nothing in `gone`. Answers whether something that is told, beside
    /// endpoints, has changed.
    pub(crate) async fn set(&mut self, services: Vec<Service>, gone: Vec<Frontend>) -> Ticked {
        let Some(driver) = &mut self.driver else { return Ticked::Same };
        let outcome = driver.set(services, gone).await;
        self.is_told = true;
        if outcome == Ticked::Differs {
            self.tell();
        }
        outcome
    }

    pub(crate) fn is_applied(&self) -> bool {
        self.driver.as_ref().is_none_or(Driver::is_applied)
    }

    /// When [`Self::tick`] wants to be called. Never for userspace; for the kernel, not before it was told what to
    /// serve: until then what an earlier run left must stay as it is.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.driver.as_ref().filter(|_| self.is_told).map(Driver::next)
    }

    pub(crate) async fn tick(&mut self) -> Ticked {
        let Some(driver) = &mut self.driver else { return Ticked::Same };
        let ticked = driver.tick().await;
        match ticked {
            Ticked::Differs => self.tell(),
            Ticked::Same => self.tell_counters(),
        }
        ticked
    }

    /// What could not be done, for people.
    pub(crate) fn problems(&self, frontends: &BTreeMap<Frontend, Arc<VipState>>) -> Vec<Problem> {
        let told = self.told.load();
        let failure = told.choice.failure.iter().map(|what| Problem {
            app: None,
            at: format!("{} VIP plane", told.choice.active.as_str()),
            what: what.clone(),
            hint: "what was in force stays in force; it is tried again every few seconds".into(),
        });
        let refused = told.refused.iter().filter_map(|(frontend, reason)| {
            let hint = "remove VIPs that nobody needs, or choose another --vip-plane";
            Some(not_served(frontends.get(frontend)?, frontend.address, reason.clone(), hint.into()))
        });
        failure.chain(refused).chain(self.not_taken.clone()).collect()
    }

    /// Every frontend that should be served, as it was told last.
    pub(crate) fn frontends(&self) -> Vec<Frontend> {
        self.driver.iter().flat_map(Driver::wanted).copied().collect()
    }

    /// It was tried, and is to be tried again.
    pub(crate) fn is_taking_over(&self) -> bool {
        self.not_taken.is_some()
    }

    /// Takes the VIPs away from planes of earlier runs, once, when `served` are served by this one. Answers whether
    /// something that is told has changed.
    pub(crate) async fn take_over(&mut self, served: &BTreeMap<Frontend, Arc<VipState>>) -> Ticked {
        if self.has_taken_over {
            return Ticked::Same;
        }
        let (served, others): (Vec<Frontend>, Others) =
            (served.keys().copied().collect(), self.others.clone());
        match tokio::task::spawn_blocking(move || others.take_over(&served)).await {
            Ok(Ok(())) => {
                self.has_taken_over = true;
                match self.not_taken.take() {
                    Some(_) => Ticked::Differs,
                    None => Ticked::Same,
                }
            }
            Ok(Err(error)) => {
                let problem = Problem {
                    app: None,
                    at: "VIP plane of an earlier run".into(),
                    what: format!("it may still serve VIPs: {error}: {}", error.source),
                    hint: error.hint,
                };
                if self.not_taken.as_ref() == Some(&problem) {
                    return Ticked::Same;
                }
                tracing::warn!(problem.what, problem.hint, "cannot take over from another VIP plane");
                self.not_taken = Some(problem);
                Ticked::Differs
            }
            Err(error) => {
                tracing::error!(%error, "taking over from another plane did not end");
                Ticked::Same
            }
        }
    }

    /// Leaves the kernel as the configuration says.
    pub(crate) async fn stop(mut self) {
        if self.on_exit == OnExit::Keep {
            return;
        }
        if let Some(driver) = &mut self.driver
            && let Err(error) = driver.flush().await
        {
            tracing::error!(%error, "the VIPs could not be removed from the kernel");
        }
        let others = self.others;
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || others.flush()).await {
            tracing::error!(%error, hint = error.hint, "something of an earlier plane is left in the kernel");
        }
    }

    fn tell(&self) {
        let Some(driver) = &self.driver else { return };
        let known = self.told.load();
        let failure = driver.failed().map(|failed| failed.what.clone());
        let refused = driver.refused().map(|(frontend, reason)| (*frontend, reason.to_owned()));
        self.told.store(Arc::new(Told {
            choice: ChoiceView { failure, n_repaired: driver.n_repaired, ..known.choice.clone() },
            counts: known.counts,
            served: driver.served(),
            refused: Arc::new(refused.collect()),
            counted: Arc::clone(&driver.counted),
        }));
    }

    fn tell_counters(&self) {
        let Some(driver) = &self.driver else { return };
        let known = self.told.load();
        if !Arc::ptr_eq(&known.counted, &driver.counted) {
            let counted = Arc::clone(&driver.counted);
            self.told.store(Arc::new(Told { counted, ..Told::clone(&known) }));
        }
    }
}
