//! What of an app the table of VIPs depends on.
//!
//! What follows from it is `register`'s affair.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Family, VipKey, VipTarget};
use crate::catalog::app::{App, ServiceId};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// Services with VIPs, with the families that their endpoints have.
    pub services: Vec<(ServiceId, Vec<VipKey>, BTreeSet<Family>)>,
    /// Agents of its instances. No VIP may have an agent's address.
    pub agents: BTreeSet<IpAddr>,
}

impl Claims {
    pub(super) fn of(app: &App) -> Self {
        let services = app.services.iter().filter(|service| !service.vips.is_empty());
        let services = services.map(|service| {
            let index = service.id.port_index;
            let endpoints = app.instances.iter().flat_map(|i| &i.endpoints).filter(|e| e.port_index == index);
            let families = endpoints.map(|endpoint| Family::of(endpoint.address.ip())).collect();
            (service.id.clone(), service.vips.clone(), families)
        });
        let agents = app.instances.iter().filter_map(|instance| instance.host_address).collect();
        Self { services: services.collect(), agents }
    }

    /// Which service feeds which VIP.
    pub(super) fn feeds(&self) -> BTreeSet<(&VipKey, &ServiceId)> {
        self.services
            .iter()
            .flat_map(|(service, keys, _)| keys.iter().map(move |key| (key, service)))
            .collect()
    }

    /// The families that its endpoints have, for each service and VIP that it feeds.
    pub(super) fn families(&self) -> Vec<(&VipTarget, Family)> {
        let mut found = Vec::new();
        for (_, keys, families) in &self.services {
            let targets: BTreeSet<&VipTarget> = keys.iter().map(|key| &key.target).collect();
            for target in targets {
                found.extend(families.iter().map(|family| (target, *family)));
            }
        }
        found
    }
}
