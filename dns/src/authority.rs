//! The zones that this server answers for, and the other names that they go by.
//!
//! It holds no records (`zone`) and reads no scheduler: what is served follows from the configuration alone.

use std::collections::HashMap;
use std::net::IpAddr;

use event_watcher::catalog::VipPool;
use foldhash::fast::FixedState;

use crate::config::{Compat, Config};
use crate::names::{MAX_NAME, WireName, suffixes};
use crate::records::{DCOS, L4LB, MESOS, reverse_label};

/// Mesos-DNS gives every answer so long.
const MESOS_DNS_TTL: u32 = 60;

/// The top of a zone that this server answers for.
#[derive(Debug)]
pub(crate) struct Apex {
    pub name: WireName,
    /// Which of [`Authority::zone_labels`] it is counted as.
    pub counted_as: usize,
    /// Of the records below it, in seconds.
    pub ttl: u32,
    pub name_server: WireName,
    pub contact: WireName,
    pub times: SoaTimes,
    pub before_sync: BeforeSync,
    pub manner: Manner,
}

/// The fixed numbers of an SOA record, in seconds (RFC 1035 section 3.3.13).
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoaTimes {
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    /// How long "there is no such name" may be remembered (RFC 2308 section 4).
    pub minimum: u32,
}

/// DC/OS's; names come with the next deployment, so their absence is not worth remembering.
const SOA_TIMES: SoaTimes = SoaTimes { refresh: 60, retry: 180, expire: 86_400, minimum: 1 };
const MESOS_DNS_SOA_TIMES: SoaTimes = SoaTimes { refresh: 60, retry: 600, expire: 86_400, minimum: 60 };

/// What an apex's names answer while nothing has been heard from the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeforeSync {
    Fail,
    Answer,
}

/// By whose rules the names of a zone are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// RFC 1035, 2308 and 8020.
    Standard,
    /// Mesos-DNS's, for clients that have come to rely on them.
    MesosDns,
}

/// A suffix that stands for another one: an apex, or a name above all apexes that it serves.
#[derive(Debug)]
pub(crate) struct Alias {
    pub alias: WireName,
    pub stands_for: WireName,
    /// Of names asked for by the alias; `None`: as under their own name.
    ttl: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Authority {
    pub apexes: Vec<Apex>,
    /// Longest first.
    aliases: Vec<Alias>,
    by_name: HashMap<WireName, usize, FixedState>,
    zone_labels: Vec<String>,
}

const LOCALHOST: &str = "localhost";

/// What all reverse zones are counted as: there may be many, and few care.
const REVERSE: &str = "reverse";

impl Authority {
    pub fn new(config: &Config) -> Self {
        let ttl = u32::try_from(config.ttl.as_secs()).unwrap_or(u32::MAX);
        let manner = match config.compat {
            Compat::None => Manner::Standard,
            Compat::MesosDns => Manner::MesosDns,
        };
        let mesos_ttl = match config.compat {
            Compat::None => u32::try_from(config.mesos_ttl.as_secs()).unwrap_or(u32::MAX),
            Compat::MesosDns => MESOS_DNS_TTL,
        };
        let mut zone_labels: Vec<String> = Vec::new();
        let mut apex = |zone: &str, label: &str, ns: &str, before_sync| Apex {
            name: constant(zone),
            counted_as: zone_labels.iter().position(|known| known == label).unwrap_or_else(|| {
                zone_labels.push(label.to_owned());
                zone_labels.len() - 1
            }),
            ttl,
            name_server: constant(ns),
            contact: constant(&format!("root.{ns}")),
            times: SOA_TIMES,
            before_sync,
            manner: Manner::Standard,
        };
        let mut apexes = vec![Apex {
            ttl: mesos_ttl,
            manner,
            times: if manner == Manner::MesosDns { MESOS_DNS_SOA_TIMES } else { SOA_TIMES },
            ..apex(MESOS, MESOS, "ns1.mesos", BeforeSync::Fail)
        }];
        let mut small = |zone: &str, before_sync| apex(zone, zone, "ns.spartan", before_sync);
        apexes.extend([
            small(L4LB, BeforeSync::Fail),
            small(DCOS, BeforeSync::Fail),
            // Ours as a whole, so that a name of the cluster is never asked for outside.
            small("thisdcos.directory", BeforeSync::Fail),
            small("spartan", BeforeSync::Fail),
            small(LOCALHOST, BeforeSync::Answer),
        ]);
        if !config.masters.is_empty() {
            apexes.push(small("zk", BeforeSync::Answer));
        }
        let reverse = config.vip_pools.iter().flat_map(reverse_zones);
        apexes.extend(reverse.map(|zone| apex(&zone, REVERSE, "ns.spartan", BeforeSync::Fail)));
        let by_name = apexes.iter().enumerate().map(|(at, apex)| (apex.name.clone(), at)).collect();
        Self { apexes, aliases: aliases(config, ttl), by_name, zone_labels }
    }

    /// The names below which nobody else is to be asked, without those that are below another of them, and without
    /// `localhost`, which every resolver knows (RFC 6761 section 6.3).
    pub fn zones(&self) -> Vec<String> {
        let names = self.apexes.iter().map(|apex| &apex.name).chain(self.aliases.iter().map(|a| &a.alias));
        let names: Vec<&WireName> = names.collect();
        let is_below = |name: &WireName| {
            suffixes(name.as_bytes()).skip(1).any(|above| names.iter().any(|known| known.as_bytes() == above))
        };
        let tops = names.iter().filter(|name| !is_below(name));
        let texts = tops.map(|name| name.to_string().trim_end_matches('.').to_owned());
        texts.filter(|zone| zone != LOCALHOST).collect()
    }

    /// What the zones are called in counters.
    pub fn zone_labels(&self) -> &[String] {
        &self.zone_labels
    }

    /// The closest apex at or above a name.
    pub fn apex_of(&self, name: &[u8]) -> Option<usize> {
        suffixes(name).find_map(|suffix| self.by_name.get(suffix).copied())
    }

    /// The longest alias at or above a name.
    pub fn alias_of(&self, name: &[u8]) -> Option<&Alias> {
        suffixes(name).find_map(|suffix| self.aliases.iter().find(|a| a.alias.as_bytes() == suffix))
    }
}

impl Alias {
    /// The name that `name`, which ends in the alias, stands for. A name that would be too long cannot exist: it is
    /// cut, and will not be found.
    pub fn canonical<'s>(&self, name: &[u8], space: &'s mut [u8; MAX_NAME]) -> &'s [u8] {
        let own = name.len() - self.alias.as_bytes().len();
        let length = (own + self.stands_for.as_bytes().len()).min(MAX_NAME);
        space[..own].copy_from_slice(&name[..own]);
        space[own..length].copy_from_slice(&self.stands_for.as_bytes()[..length - own]);
        &space[..length]
    }

    pub fn ttl(&self) -> Option<u32> {
        self.ttl
    }
}

fn constant(text: &str) -> WireName {
    WireName::parse(text).expect("a constant name is well-formed")
}

/// DC/OS's other spellings, and those of the cluster's own id.
fn aliases(config: &Config, ttl: u32) -> Vec<Alias> {
    let mut names = vec![
        ("mesos.thisdcos.directory".to_owned(), MESOS),
        ("dclb.thisdcos.directory".to_owned(), L4LB),
        ("mesos.thisdcos.global".to_owned(), MESOS),
        ("dclb.thisdcos.global".to_owned(), L4LB),
        ("thisdcos.global".to_owned(), "thisdcos.directory"),
    ];
    for id in &config.cluster_ids {
        let zone = format!("{id}.dcos.directory");
        names.push((format!("mesos.{zone}"), MESOS));
        names.push((format!("dclb.{zone}"), L4LB));
        names.push((zone, "thisdcos.directory"));
    }
    let alias = |(alias, stands_for): (String, &'static str)| {
        Some(Alias { alias: WireName::parse(&alias)?, stands_for: constant(stands_for), ttl: Some(ttl) })
    };
    let mut aliases: Vec<Alias> = names.into_iter().filter_map(alias).collect();
    aliases.sort_by_key(|alias| std::cmp::Reverse(alias.alias.as_bytes().len()));
    aliases
}

/// The zones under `in-addr.arpa` or `ip6.arpa` that hold a pool's addresses: one, or, for a prefix inside a label,
/// as many as there are labels.
fn reverse_zones(pool: &VipPool) -> Vec<String> {
    let (first, prefix_bits) = (pool.first(), u32::from(pool.prefix_bits()));
    let label_bits = if first.is_ipv4() { 8 } else { 4 };
    let n_labels = (prefix_bits.div_ceil(label_bits) as usize).max(1);
    let n_zones = 1_u128 << (n_labels as u32 * label_bits - prefix_bits);
    let zone = |step: u128| {
        let address = match first {
            IpAddr::V4(ip) => {
                IpAddr::V4((ip.to_bits() + ((step as u32) << (32 - 8 * n_labels as u32))).into())
            }
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + (step << (128 - 4 * n_labels as u32))).into()),
        };
        reverse_label(address, n_labels)
    };
    (0..n_zones).map(zone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_have_reverse_zones_at_label_boundaries() {
        for (pool, expect) in [
            ("127.11.0.0/16", &["11.127.in-addr.arpa"][..]),
            ("11.0.0.0/8", &["11.in-addr.arpa"]),
            ("10.1.4.0/23", &["4.1.10.in-addr.arpa", "5.1.10.in-addr.arpa"]),
            (
                "10.1.4.8/29",
                &[
                    "8.4.1.10.in-addr.arpa",
                    "9.4.1.10.in-addr.arpa",
                    "10.4.1.10.in-addr.arpa",
                    "11.4.1.10.in-addr.arpa",
                    "12.4.1.10.in-addr.arpa",
                    "13.4.1.10.in-addr.arpa",
                    "14.4.1.10.in-addr.arpa",
                    "15.4.1.10.in-addr.arpa",
                ],
            ),
            ("fd01:c::/64", &["0.0.0.0.0.0.0.0.c.0.0.0.1.0.d.f.ip6.arpa"]),
            (
                "fd01:c::/66",
                &[
                    "0.0.0.0.0.0.0.0.0.c.0.0.0.1.0.d.f.ip6.arpa",
                    "1.0.0.0.0.0.0.0.0.c.0.0.0.1.0.d.f.ip6.arpa",
                    "2.0.0.0.0.0.0.0.0.c.0.0.0.1.0.d.f.ip6.arpa",
                    "3.0.0.0.0.0.0.0.0.c.0.0.0.1.0.d.f.ip6.arpa",
                ],
            ),
        ] {
            assert_eq!(reverse_zones(&pool.parse().unwrap()), expect, "{pool}");
        }
    }

    #[test]
    fn zones_for_other_resolvers_are_the_highest_ones() {
        let config = Config {
            cluster_ids: vec!["abc".into()],
            vip_pools: vec!["11.0.0.0/8".parse().unwrap(), "fd01:c::/64".parse().unwrap()],
            ..Config::default()
        };
        let mut zones = Authority::new(&config).zones();
        zones.sort();
        let reverse = "0.0.0.0.0.0.0.0.c.0.0.0.1.0.d.f.ip6.arpa";
        let expect = [
            reverse,
            "11.in-addr.arpa",
            "abc.dcos.directory",
            "mesos",
            "spartan",
            "thisdcos.directory",
            "thisdcos.global",
        ];
        assert_eq!(zones, expect);
    }
}
