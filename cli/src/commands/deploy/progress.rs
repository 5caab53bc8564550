//! What the balancer says about a deployment group: which instances are up, which are out of use and idle.
//!
//! Read from `/api/routes`; nothing is decided here.

use serde_json::Value;

use crate::commands::stats::StatsClient;
use crate::failure::Failure;

/// The servers of the group's backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// Instances that get requests.
    pub up: Vec<String>,
    /// Out of use, with nothing in flight.
    pub drained: Vec<String>,
    /// Out of use, with something in flight.
    pub draining: Vec<String>,
}

impl Servers {
    pub async fn of_group(stats: &StatsClient, group: &str) -> Result<Self, Failure> {
        Ok(Self::read(&stats.get("api/routes").await?, group))
    }

    fn read(routes: &Value, group: &str) -> Self {
        let app = format!("/{}", group.trim_matches('/'));
        let mut servers = Self::default();
        let backends = routes["backends"].as_array().into_iter().flatten();
        for server in
            backends.filter(|b| b["app"] == *app).take(1).flat_map(|b| b["servers"].as_array()).flatten()
        {
            let Some(instance) = server["instance"].as_str() else { continue };
            let list = match (server["rotation"].as_str(), server["n_in_flight"].as_u64()) {
                (Some("in"), _) => &mut servers.up,
                (_, Some(0)) => &mut servers.drained,
                _ => &mut servers.draining,
            };
            list.push(instance.to_owned());
        }
        servers
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_first_port_of_the_group_counts() {
        let server = |instance: &str, rotation: &str, n_in_flight: u64| json!({"instance": instance, "rotation": rotation, "n_in_flight": n_in_flight});
        let routes = json!({"backends": [
            {"app": "/other", "servers": [server("x", "in", 0)]},
            {"app": "/shop", "servers": [server("a", "in", 3), server("b", "draining", 0), server("c", "draining", 1)]},
            {"app": "/shop", "servers": [server("y", "in", 0)]},
        ]});
        let servers = Servers::read(&routes, "shop");
        assert_eq!(
            (servers.up, servers.drained, servers.draining),
            (vec!["a".into()], vec!["b".into()], vec!["c".into()])
        );
    }
}
