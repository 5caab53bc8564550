//! The integration tests: one binary, one module for each behaviour, everything from outside.

mod architecture;
mod bad_input;
mod browser;
mod changes_under_load;
mod compat_clients;
mod compat_deploy;
mod compat_documents;
mod compat_endpoints;
mod compat_marathon_lb;
mod dev_together;
mod dns;
mod exec;
mod failover;
mod https;
mod kernel;
mod kernel_dns;
mod kernel_resolvers;
mod live_view;
mod pods;
mod random_faults;
mod restart;
mod scheduler_away;
mod scheduler_model;
mod scheduler_rights;
mod scheduler_runs;
mod scheduler_slow_stream;
mod sources;
mod tutorial;
mod vip_descriptors;
mod vip_refused;
mod vip_udp;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_waymark-under-test");
/// The demo app of `waymark dev`.
const APP: &str = "/dcos-101/app2";
/// The name of its VIP.
const VIP_NAME: &str = "dcos-101app2.marathon.l4lb.thisdcos.directory";
