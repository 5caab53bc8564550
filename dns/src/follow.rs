//! Follows the published snapshots: what goes, goes at once; a new VIP's name comes when the VIP itself is served.
//!
//! It compiles nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use event_watcher::catalog::{Generation, Snapshot};
use event_watcher::publish::{Applied, AppliedMark, Pauses, Retired, StillHeld, Subscriber};
use tokio::time::timeout;

use crate::compile::{Compiler, NewVips};
use crate::zone::Zone;

/// Until a zone that was replaced is looked at again.
const LONGEST_ANSWER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Follow {
    pub compiler: Compiler,
    pub zone: Arc<ArcSwap<Zone>>,
    pub mark: AppliedMark,
    pub vips_applied: Option<Applied>,
    pub vip_wait: Duration,
    pub n_vip_waits_expired: Arc<AtomicU64>,
    pub retired: Retired<Zone>,
}

impl Follow {
    pub async fn run(mut self, mut subscriber: Subscriber) {
        let latest = subscriber.latest();
        if latest.is_synced() {
            self.apply(&latest).await;
        }
        loop {
            // Readers hold a zone for the time of one answer.
            let left = self.retired.free() == StillHeld::Yes;
            let changed = tokio::select! {
                changed = subscriber.changed() => changed,
                () = tokio::time::sleep(LONGEST_ANSWER), if left => continue,
            };
            match changed {
                Ok(snapshot) if snapshot.is_synced() => self.apply(&snapshot).await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    async fn apply(&mut self, snapshot: &Snapshot) {
        let mut pauses = Pauses::default();
        for app in self.compiler.begin(snapshot) {
            self.compiler.apply_app(snapshot, &app);
            pauses.if_due().await;
        }
        if self.compiler.end(snapshot) == NewVips::Yes {
            if self.zone.load().is_synced() {
                self.publish();
            }
            self.wait_for_vips(snapshot.generation).await;
            self.compiler.apply_new_vips();
        }
        self.publish();
        self.mark.set(snapshot.generation);
    }

    fn publish(&mut self) {
        self.retired.keep(self.zone.swap(Arc::new(self.compiler.zone())));
    }

    async fn wait_for_vips(&mut self, generation: Generation) {
        let Some(vips_applied) = &mut self.vips_applied else { return };
        match timeout(self.vip_wait, vips_applied.reached(generation)).await {
            Ok(Ok(())) => {}
            // The plane has stopped: nobody will ever say more.
            Ok(Err(_)) => self.vips_applied = None,
            Err(_) => {
                self.n_vip_waits_expired.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%generation, "the VIP plane is behind; new VIP names are answered all the same");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use event_watcher::catalog::{
        App, AppId, AppUpdate, Catalog, CatalogConfig, Health, Instance, InstanceId, InstanceState, Readiness,
    };
    use event_watcher::publish::applied;

    use super::*;
    use crate::config::Config;

    fn app(number: usize) -> App {
        let host: IpAddr = [10, 0, (number >> 8) as u8, number as u8].into();
        let instance = Instance {
            id: InstanceId::new(&format!("{number}.1")),
            host: host.to_string().into(),
            host_address: Some(host),
            agent: Some("x-S1".into()),
            version: "v".into(),
            state: InstanceState::Running,
            health: Health::Healthy,
            readiness: Readiness::Unchecked,
            started_at: None,
            addresses: vec![host],
            endpoints: vec![],
        };
        App {
            id: AppId::new(&format!("/group/app{number}")),
            version: "v".into(),
            labels: [].into(),
            n_instances_wanted: 1,
            services: vec![],
            health_checks: vec![],
            instances: vec![Arc::new(instance)],
            deployments: vec![],
        }
    }

    #[tokio::test]
    async fn other_tasks_go_on_while_a_large_cluster_is_compiled() {
        let mut catalog = Catalog::new(CatalogConfig { framework: "marathon".into(), vip_pools: vec![] });
        (0..2_000).for_each(|n| catalog.replace(AppUpdate { app: app(n), problems: vec![] }));
        let snapshot = catalog.snapshot().unwrap();
        let mut compiler = Compiler::new(&Config::default());
        let (mark, applied) = applied();
        let mut follow = Follow {
            zone: Arc::new(ArcSwap::from_pointee(compiler.zone())),
            compiler,
            mark,
            vips_applied: None,
            vip_wait: Duration::ZERO,
            n_vip_waits_expired: Arc::default(),
            retired: Retired::default(),
        };
        let other = tokio::spawn(async {});
        follow.apply(&snapshot).await;
        assert_eq!(applied.generation(), snapshot.generation);
        assert!(other.is_finished());
    }
}
