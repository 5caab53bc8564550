//! What an app's labels ask of the VIPs that its services feed.
//!
//! Lookup order: `WAYMARK_{n}_KEY`, `WAYMARK_KEY`. A value that does not parse is a [`Problem`] and the default
//! applies. The `VIP_…` labels themselves are read where all planes share them: in the catalog.

use std::time::Duration;

use event_watcher::catalog::{App, Problem};

use crate::policy::{KNOWN, Policy};

/// As HAProxy has it.
const MAX_WEIGHT: u16 = 256;

/// What one service says. `None`: nothing, so another service of the VIP, or the configuration, decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VipLabels {
    pub(crate) policy: Option<Policy>,
    /// Zero: none, whatever the configuration says.
    pub(crate) affinity: Option<Duration>,
    pub(crate) udp_idle: Option<Duration>,
    /// Of each endpoint of the service.
    pub(crate) weight: u16,
}

pub(crate) fn read(app: &App, port_index: usize, problems: &mut Vec<Problem>) -> VipLabels {
    let mut labels = Reader { app, port_index, problems };
    VipLabels {
        policy: labels.parsed("VIP_POLICY", &format!("one of {KNOWN}"), |text| text.parse().ok()),
        affinity: labels.parsed("VIP_AFFINITY", "a time like 3h, or 0", |text| match text {
            "none" | "off" => Some(Duration::ZERO),
            text => duration(text),
        }),
        udp_idle: labels
            .parsed("UDP_IDLE", "a time like 60s", |text| duration(text).filter(|time| !time.is_zero())),
        weight: labels
            .parsed("WEIGHT", "a whole number from 0 to 256", |text| {
                text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT)
            })
            .unwrap_or(1),
    }
}

/// A bare number is seconds.
fn duration(text: &str) -> Option<Duration> {
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    }
}

struct Reader<'a> {
    app: &'a App,
    port_index: usize,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn parsed<T>(&mut self, key: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let names = [format!("WAYMARK_{}_{key}", self.port_index), format!("WAYMARK_{key}")];
        let (name, text) = names.into_iter().find_map(|name| {
            let text = self.app.label(&name)?.to_owned();
            Some((name, text))
        })?;
        let value = parse(text.trim());
        if value.is_none() {
            self.problems.push(Problem {
                app: Some(self.app.id.clone()),
                at: format!("labels.{name}"),
                what: format!("{text:?} is not {wanted}"),
                hint: "the default applies".into(),
            });
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use event_watcher::catalog::AppId;

    use super::*;

    fn app(labels: &[(&str, &str)]) -> App {
        App {
            id: AppId::new("/a"),
            version: "".into(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            n_instances_wanted: 1,
            services: vec![],
            health_checks: vec![],
            instances: vec![],
            deployments: vec![],
        }
    }

    #[test]
    fn the_ports_own_label_comes_first_and_nothing_said_is_the_default() {
        let app = app(&[
            ("WAYMARK_VIP_POLICY", "maglev"),
            ("WAYMARK_1_VIP_POLICY", "LeastConn"),
            ("WAYMARK_1_VIP_AFFINITY", "3h"),
            ("WAYMARK_0_VIP_AFFINITY", "90"),
            ("WAYMARK_1_WEIGHT", "20"),
            ("WAYMARK_2_UDP_IDLE", "250ms"),
            ("WAYMARK_2_VIP_AFFINITY", "off"),
        ]);
        let mut problems = Vec::new();
        let seconds = |n| Some(Duration::from_secs(n));
        for (index, policy, affinity, udp_idle, weight) in [
            (0, Policy::Maglev, seconds(90), None, 1),
            (1, Policy::LeastConn, seconds(3 * 3600), None, 20),
            (2, Policy::Maglev, seconds(0), Some(Duration::from_millis(250)), 1),
        ] {
            let expect = VipLabels { policy: Some(policy), affinity, udp_idle, weight };
            assert_eq!(read(&app, index, &mut problems), expect, "port {index}");
        }
        assert!(problems.is_empty(), "{problems:?}");
        let nothing = VipLabels { policy: None, affinity: None, udp_idle: None, weight: 1 };
        assert_eq!(read(&super::tests::app(&[]), 0, &mut problems), nothing);
    }

    #[test]
    fn a_wrong_value_is_told_and_the_default_applies() {
        for (name, value) in [
            ("WAYMARK_0_VIP_POLICY", "best"),
            ("WAYMARK_VIP_AFFINITY", "often"),
            ("WAYMARK_0_UDP_IDLE", "0"),
            ("WAYMARK_0_WEIGHT", "257"),
            ("WAYMARK_0_WEIGHT", "-1"),
        ] {
            let mut problems = Vec::new();
            let labels = read(&app(&[(name, value)]), 0, &mut problems);
            assert_eq!(labels, VipLabels { policy: None, affinity: None, udp_idle: None, weight: 1 });
            assert_eq!(problems.len(), 1, "{name}");
            assert_eq!(problems[0].at, format!("labels.{name}"));
        }
    }
}
