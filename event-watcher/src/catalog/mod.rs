//! The words every data plane shares: apps, instances, services, endpoints, VIPs, problems, snapshots.
//!
//! Pure values: no IO, no clock, no runtime, no HTTP client. What only one plane needs (HTTP labels, DNS names,
//! live endpoint state) lives in that plane.

mod app;
mod delta;
mod holding;
mod instance;
mod problem;
mod snapshot;
mod vip;

#[cfg(test)]
mod tests;

pub use app::{App, AppId, HealthCheck, HealthCheckProtocol, Protocols, Service, ServiceId};
pub use delta::{Delta, VipsChanged};
pub use holding::{Apps, Changes, Holding, ProblemsChanged};
pub use instance::{Endpoint, Health, Instance, InstanceId, InstanceState, Readiness, Rotation};
pub use problem::Problem;
pub use snapshot::{AppUpdate, Catalog, CatalogConfig, Frameworks, Generation, Leaders, Snapshot};
pub use vip::{
    Family, Protocol, Reserved, Vip, VipKey, VipLabel, VipLabelError, VipName, VipPool, VipPoolError,
    VipTarget, Vips, dns_label, phash2,
};
