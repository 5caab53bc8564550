//! Host names of agents, to addresses: what was found is kept, so that a translation never waits for a name server.
//!
//! Who must wait is the answer that names a new host, and only for a while ([`LOOKUP_DEADLINE`]).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::sources::marathon::translate::Resolved;

/// An answer waits this long for the addresses of new hosts, then it is applied without them.
pub(crate) const LOOKUP_DEADLINE: Duration = Duration::from_secs(2);
/// An agent that moved is found again after this time.
const KEEP: Duration = Duration::from_secs(300);
const KEEP_FAILURE: Duration = Duration::from_secs(30);
/// More names than any cluster has agents: names are the scheduler's input, so there is a bound.
const MAX_NAMES: usize = 100_000;

/// What is known of host names. A copy costs nothing until something new is learnt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Arc<HashMap<String, Known>>);

#[derive(Clone, Debug)]
struct Known {
    address: Option<IpAddr>,
    until: Instant,
}

/// What a look-up brought, name by name.
pub(crate) type Lookups = Vec<(String, Option<IpAddr>)>;

impl Names {
    pub(crate) fn resolve(&self, host: &str, now: Instant) -> Resolved {
        match self.0.get(host) {
            Some(known) if known.until > now => known.address.map_or(Resolved::Failed, Resolved::Address),
            _ => Resolved::Unasked,
        }
    }

    /// Takes what a look-up brought, and says whether a known address changed. A name that fails keeps the address
    /// that it had.
    pub(crate) fn learn(&mut self, lookups: Lookups, now: Instant) -> Changed {
        let names = Arc::make_mut(&mut self.0);
        if names.len() + lookups.len() > MAX_NAMES {
            names.clear();
        }
        let mut changed = Changed::No;
        for (host, address) in lookups {
            let before = names.get(&host).and_then(|known| known.address);
            let (address, keep) = match address {
                Some(address) => (Some(address), KEEP),
                None => (before, KEEP_FAILURE),
            };
            if before != address {
                changed = Changed::Yes;
            }
            names.insert(host, Known { address, until: now + keep });
        }
        changed
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Yes,
    No,
}

/// Looks all names up at once. A name without an answer in time counts as failed.
pub(crate) async fn look_up(hosts: Vec<String>) -> Lookups {
    join_all(hosts.into_iter().map(|host| async move {
        let asking = tokio::net::lookup_host((host.clone(), 0));
        let found = tokio::time::timeout(LOOKUP_DEADLINE, asking).await;
        let found = found.ok().and_then(Result::ok);
        let addresses: Vec<IpAddr> = found.into_iter().flatten().map(|a| a.ip()).collect();
        // Agents are reached over IPv4 where they have it: that is what Marathon's ports are bound to by default.
        let address = addresses.iter().find(|a| a.is_ipv4()).or(addresses.first()).copied();
        (host, address)
    }))
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_and_a_failure_keeps_the_old_address() {
        let (mut resolver, now) = (Names::default(), Instant::now());
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(resolver.resolve("a", now), Resolved::Unasked);
        assert_eq!(resolver.learn(vec![("a".into(), Some(address)), ("b".into(), None)], now), Changed::Yes);
        assert_eq!(resolver.resolve("a", now), Resolved::Address(address));
        assert_eq!(resolver.resolve("b", now), Resolved::Failed);
        let later = now + KEEP;
        assert_eq!(resolver.resolve("a", later), Resolved::Unasked);
        assert_eq!(resolver.learn(vec![("a".into(), None)], later), Changed::No);
        assert_eq!(resolver.resolve("a", later), Resolved::Address(address));
    }

    #[tokio::test]
    async fn the_system_is_asked() {
        let found = look_up(vec!["localhost".into(), "no-such-host.invalid".into()]).await;
        assert!(found[0].1.is_some_and(|a| a.is_loopback()));
        assert_eq!(found[1], ("no-such-host.invalid".into(), None));
    }
}
