//! The one allocation from names to addresses: free of order, so free of history.
//!
//! It knows neither apps nor protocols, and what an address is taken for is not its affair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::address_pool::VipPool;
use super::hash::sha1;
use super::name::VipName;

struct Claim<'a> {
    distance: u64,
    digest: [u8; 20],
    name: &'a VipName,
    home: u64,
}

impl<'a> Claim<'a> {
    /// Who has the smaller one keeps an address. No two names have the same.
    fn rank(&self) -> (u64, &[u8; 20], &'a VipName) {
        (self.distance, &self.digest, self.name)
    }
}

/// Gives each name an address by deferred acceptance: every name proposes its home, home + 1, …; an address keeps
/// the claimant with the smaller (distance, SHA-1, name), and the loser moves on. The outcome is the only stable one,
/// whatever the order of the proposals. The first and the last address of the pool and those of `taken` are nobody's.
/// Names that found the pool full are absent.
pub(super) fn settle<'a>(
    names: impl IntoIterator<Item = &'a VipName>,
    taken: &BTreeSet<IpAddr>,
    pool: &VipPool,
) -> BTreeMap<VipName, IpAddr> {
    let reserved: BTreeSet<u64> =
        taken.iter().filter_map(|ip| pool.offset(*ip)).chain([0, pool.span()]).collect();
    let mut owners: BTreeMap<u64, Claim<'_>> = BTreeMap::new();
    for name in names {
        let digest = sha1(name.as_str().as_bytes());
        let mut claim = Claim { distance: 0, digest, name, home: pool.home(name) };
        loop {
            let offset = pool.probe(claim.home, claim.distance);
            if !reserved.contains(&offset) {
                match owners.get_mut(&offset) {
                    None => {
                        owners.insert(offset, claim);
                        break;
                    }
                    Some(owner) => {
                        if claim.rank() < owner.rank() {
                            std::mem::swap(owner, &mut claim);
                        }
                    }
                }
            }
            if claim.distance == pool.span() {
                break;
            }
            claim.distance += 1;
        }
    }
    owners.into_iter().map(|(offset, claim)| (claim.name.clone(), pool.address(offset))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> VipName {
        VipName::new(text, "marathon").unwrap()
    }

    fn settled(pool: &str, names: &[VipName], taken: &[&str]) -> BTreeMap<VipName, IpAddr> {
        settle(names, &taken.iter().map(|ip| ip.parse().unwrap()).collect(), &pool.parse().unwrap())
    }

    #[test]
    fn one_of_two_colliding_names_moves_by_one() {
        let table = settled("11.0.0.0/8", &["app1115", "app3307"].map(name), &[]);
        let got: BTreeSet<String> = table.values().map(ToString::to_string).collect();
        assert_eq!(got, ["11.16.7.113", "11.16.7.114"].map(String::from).into());
    }

    #[test]
    fn a_taken_address_is_stepped_over() {
        let table = settled("11.0.0.0/8", &[name("redis")], &["11.202.66.36", "11.202.66.37", "10.0.0.1"]);
        assert_eq!(table[&name("redis")].to_string(), "11.202.66.38");
    }

    #[test]
    fn a_full_pool_leaves_the_rest_without_an_address() {
        let names: Vec<VipName> = (0..9).map(|i| name(&format!("app{i}"))).collect();
        let table = settled("127.11.0.0/29", &names, &[]);
        assert_eq!(table.len(), 6, "8 addresses less the first and the last");
        assert_eq!(table.values().collect::<BTreeSet<_>>().len(), 6);
    }

    proptest! {
        /// Every node ends in the same table, in whatever order it meets the names and the taken addresses.
        #[test]
        fn the_table_does_not_depend_on_order(
            names in proptest::collection::btree_set(0_u16..2000, 1..200),
            taken in proptest::collection::btree_set(0_u8..=255, 0..40),
            shuffle in any::<u64>(),
            ipv4 in any::<bool>(),
        ) {
            let pool: VipPool = if ipv4 { "127.11.0.0/24" } else { "fd01:c::/120" }.parse().unwrap();
            let taken: BTreeSet<IpAddr> = taken.into_iter().map(|i| pool.address(u64::from(i))).collect();
            let names: Vec<VipName> = names.into_iter().map(|i| name(&format!("app{i}"))).collect();
            let table = settle(&names, &taken, &pool);
            let mut shuffled = names.clone();
            let mut state = shuffle | 1;
            for i in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                shuffled.swap(i, (state >> 33) as usize % (i + 1));
            }
            prop_assert_eq!(&settle(&shuffled, &taken, &pool), &table);

            let n_free = 254 - taken.iter().filter(|ip| !matches!(pool.offset(**ip), Some(0 | 255))).count();
            prop_assert_eq!(table.len(), names.len().min(n_free));
            prop_assert_eq!(table.values().collect::<BTreeSet<_>>().len(), table.len());
            prop_assert!(table.values().all(|ip| !taken.contains(ip)));
        }

        /// Nobody between a name's home and its address would give way to it.
        #[test]
        fn the_table_is_stable(names in proptest::collection::btree_set(0_u16..2000, 1..150)) {
            let pool: VipPool = "127.11.0.0/24".parse().unwrap();
            let names: Vec<VipName> = names.into_iter().map(|i| name(&format!("app{i}"))).collect();
            let table = settle(&names, &BTreeSet::new(), &pool);
            let owners: BTreeMap<IpAddr, &VipName> = table.iter().map(|(name, ip)| (*ip, name)).collect();
            let at = |name: &VipName, distance: u64| pool.address(pool.probe(pool.home(name), distance));
            for (name, address) in &table {
                for distance in (0..).take_while(|distance| at(name, *distance) != *address) {
                    let Some(owner) = owners.get(&at(name, distance)) else { continue };
                    let theirs = (0..).find(|d| at(owner, *d) == at(name, distance)).unwrap();
                    let rank = |distance: u64, name: &VipName| (distance, sha1(name.as_str().as_bytes()));
                    prop_assert!(rank(theirs, owner) < rank(distance, name));
                }
            }
        }
    }
}
