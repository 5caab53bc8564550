//! The one allocation from names to addresses: free of order, so free of history.
//!
//! It knows neither apps nor protocols, and what an address is taken for is not its affair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::address_pool::VipPool;
use super::hash::sha1;
use super::name::VipName;

#[derive(Debug)]
struct Claim {
    distance: u64,
    digest: [u8; 20],
    name: VipName,
    home: u64,
}

/// Who has the smaller one keeps an address. No two names have the same.
type Rank<'a> = (u64, &'a [u8; 20], &'a VipName);

impl Claim {
    fn rank(&self) -> Rank<'_> {
        (self.distance, &self.digest, &self.name)
    }
}

/// Who has which address of one pool. Every name wants its home, then home + 1, …; an address keeps the claimant with
/// the smaller (distance, SHA-1, name). Both sides rank a name at an address by the same number, the distance, so one
/// allocation alone is stable, and it is this one, whatever came and went before, in whatever order. A name that comes
/// pushes those behind it on, one that goes lets them move up: either costs the length of the run of addresses in use
/// that it is in. The first and the last address of the pool are nobody's.
#[derive(Debug)]
pub(super) struct Allocation {
    pool: VipPool,
    /// Offsets that no name may have.
    taken: BTreeSet<u64>,
    owners: BTreeMap<u64, Claim>,
    offsets: BTreeMap<VipName, u64>,
    /// Those that found the pool full, as they were asked for.
    left_out: BTreeMap<VipName, Claim>,
    /// Names whose address is another than when somebody last asked.
    moved: BTreeSet<VipName>,
}

impl Allocation {
    pub(super) fn new(pool: VipPool) -> Self {
        Self {
            pool,
            taken: [0, pool.span()].into(),
            owners: BTreeMap::new(),
            offsets: BTreeMap::new(),
            left_out: BTreeMap::new(),
            moved: BTreeSet::new(),
        }
    }

    /// `None`: the pool is full, or nobody asked for the name.
    pub(super) fn address(&self, name: &VipName) -> Option<IpAddr> {
        self.offsets.get(name).map(|offset| self.pool.address(*offset))
    }

    /// Gives a name that has none an address.
    pub(super) fn add(&mut self, name: &VipName) {
        let digest = sha1(name.as_str().as_bytes());
        self.place(Claim { distance: 0, digest, name: name.clone(), home: self.pool.home(name) });
    }

    pub(super) fn remove(&mut self, name: &VipName) {
        self.left_out.remove(name);
        if let Some(offset) = self.offsets.remove(name) {
            self.owners.remove(&offset);
            self.moved.insert(name.clone());
            self.fill(offset);
        }
    }

    /// No name may have this address any more.
    pub(super) fn take(&mut self, address: IpAddr) {
        let Some(offset) = self.pool.offset(address).filter(|offset| !self.is_edge(*offset)) else { return };
        self.taken.insert(offset);
        if let Some(claim) = self.owners.remove(&offset) {
            self.offsets.remove(&claim.name);
            self.place(claim);
        }
    }

    /// Names may have this address again.
    pub(super) fn give_back(&mut self, address: IpAddr) {
        let Some(offset) = self.pool.offset(address).filter(|offset| !self.is_edge(*offset)) else { return };
        self.taken.remove(&offset);
        self.fill(offset);
    }

    /// Names whose address may be another than when this was last called.
    pub(super) fn take_moved(&mut self) -> BTreeSet<VipName> {
        std::mem::take(&mut self.moved)
    }

    fn is_edge(&self, offset: u64) -> bool {
        offset == 0 || offset == self.pool.span()
    }

    /// Finds an address from the claim's distance on; whoever gives way to it moves on in turn.
    fn place(&mut self, mut claim: Claim) {
        loop {
            let offset = self.pool.probe(claim.home, claim.distance);
            if !self.taken.contains(&offset) {
                match self.owners.get_mut(&offset) {
                    None => {
                        self.settle(offset, claim);
                        return;
                    }
                    Some(owner) if claim.rank() < owner.rank() => {
                        self.moved.insert(claim.name.clone());
                        self.offsets.insert(claim.name.clone(), offset);
                        std::mem::swap(owner, &mut claim);
                        self.offsets.remove(&claim.name);
                    }
                    Some(_) => {}
                }
            }
            if claim.distance == self.pool.span() {
                self.moved.insert(claim.name.clone());
                self.left_out.insert(claim.name.clone(), claim);
                return;
            }
            claim.distance += 1;
        }
    }

    fn settle(&mut self, offset: u64, claim: Claim) {
        self.moved.insert(claim.name.clone());
        self.offsets.insert(claim.name.clone(), offset);
        self.owners.insert(offset, claim);
    }

    /// An address is free: of those that would rather have it than theirs, the one that ranks first moves there, and
    /// leaves its own to the others.
    fn fill(&mut self, mut free: u64) {
        while let Some(mut claim) = self.first_wanting(free) {
            let left = self.offsets.remove(&claim.name);
            claim.distance = self.distance(claim.home, free);
            self.settle(free, claim);
            // Nobody had to go without while there was another address to be left.
            let Some(left) = left else { return };
            free = left;
        }
    }

    /// Takes it out of where it is now.
    fn first_wanting(&mut self, free: u64) -> Option<Claim> {
        let rank_there =
            |claim: &'_ Claim| (self.distance(claim.home, free), claim.digest, claim.name.clone());
        let without = self.left_out.values().map(|claim| (rank_there(claim), None));
        let behind = self
            .run_behind(free)
            .filter(|(_, owner)| self.distance(owner.home, free) < owner.distance)
            .map(|(offset, owner)| (rank_there(owner), Some(offset)));
        let ((_, _, name), at) = without.chain(behind).min()?;
        match at {
            Some(offset) => self.owners.remove(&offset),
            None => self.left_out.remove(&name),
        }
    }

    /// Who is behind an address without another free one between. Nobody behind that wants what is before it.
    fn run_behind(&self, free: u64) -> impl Iterator<Item = (u64, &Claim)> {
        let behind = (1..=self.pool.span()).map(move |distance| self.pool.probe(free, distance));
        let held = behind.filter(|offset| !self.taken.contains(offset));
        held.map_while(|offset| Some((offset, self.owners.get(&offset)?)))
    }

    fn distance(&self, home: u64, offset: u64) -> u64 {
        // The number of addresses is a power of two.
        offset.wrapping_sub(home) & self.pool.span()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> VipName {
        VipName::new(text, "marathon").unwrap()
    }

    /// The whole table at once, by deferred acceptance.
    fn settle(names: &[VipName], taken: &BTreeSet<IpAddr>, pool: &VipPool) -> BTreeMap<VipName, IpAddr> {
        let reserved: BTreeSet<u64> =
            taken.iter().filter_map(|ip| pool.offset(*ip)).chain([0, pool.span()]).collect();
        let mut owners: BTreeMap<u64, (u64, [u8; 20], &VipName)> = BTreeMap::new();
        for name in names {
            let mut claim = (0, sha1(name.as_str().as_bytes()), name);
            while claim.0 <= pool.span() {
                let offset = pool.probe(pool.home(claim.2), claim.0);
                if !reserved.contains(&offset) {
                    match owners.get_mut(&offset) {
                        None => {
                            owners.insert(offset, claim);
                            break;
                        }
                        Some(owner) if claim < *owner => std::mem::swap(owner, &mut claim),
                        Some(_) => {}
                    }
                }
                claim.0 += 1;
            }
        }
        owners.into_iter().map(|(offset, (_, _, name))| (name.clone(), pool.address(offset))).collect()
    }

    fn settled(pool: &str, names: &[VipName], taken: &[&str]) -> BTreeMap<VipName, IpAddr> {
        let mut allocation = Allocation::new(pool.parse().unwrap());
        taken.iter().for_each(|ip| allocation.take(ip.parse().unwrap()));
        names.iter().for_each(|name| allocation.add(name));
        names.iter().filter_map(|name| Some((name.clone(), allocation.address(name)?))).collect()
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
            let taken_text: Vec<String> = taken.iter().map(ToString::to_string).collect();
            let taken_text: Vec<&str> = taken_text.iter().map(String::as_str).collect();
            let table = settled(&pool.to_string(), &names, &taken_text);
            prop_assert_eq!(&settle(&names, &taken, &pool), &table);
            let mut shuffled = names.clone();
            let mut state = shuffle | 1;
            for i in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                shuffled.swap(i, (state >> 33) as usize % (i + 1));
            }
            prop_assert_eq!(&settled(&pool.to_string(), &shuffled, &taken_text), &table);

            let n_free = 254 - taken.iter().filter(|ip| !matches!(pool.offset(**ip), Some(0 | 255))).count();
            prop_assert_eq!(table.len(), names.len().min(n_free));
            prop_assert_eq!(table.values().collect::<BTreeSet<_>>().len(), table.len());
            prop_assert!(table.values().all(|ip| !taken.contains(ip)));
        }

        /// Names and taken addresses that come and go leave nothing behind: after each step the table is the one that
        /// is made of what is there, and whoever got another address is told.
        #[test]
        fn the_table_does_not_depend_on_what_was_before(
            steps in proptest::collection::vec((any::<bool>(), 0_u16..60), 1..120),
            size in 0_usize..3,
            ipv4 in any::<bool>(),
        ) {
            let networks = match ipv4 {
                true => ["127.11.0.0/27", "127.11.0.0/26", "127.11.0.0/24"],
                false => ["fd01:c::/123", "fd01:c::/122", "fd01:c::/64"],
            };
            let pool: VipPool = networks[size].parse().unwrap();
            let mut allocation = Allocation::new(pool);
            let (mut names, mut taken) = (BTreeSet::new(), BTreeSet::new());
            let mut known = BTreeMap::new();
            for (is_name, which) in steps {
                if is_name {
                    let name = name(&format!("app{which}"));
                    match names.remove(&name) {
                        true => allocation.remove(&name),
                        false => {
                            allocation.add(&name);
                            names.insert(name);
                        }
                    }
                } else {
                    let address = pool.address(u64::from(which % 32));
                    match taken.remove(&address) {
                        true => allocation.give_back(address),
                        false => {
                            allocation.take(address);
                            taken.insert(address);
                        }
                    }
                }
                for name in allocation.take_moved() {
                    match allocation.address(&name) {
                        Some(address) => known.insert(name, address),
                        None => known.remove(&name),
                    };
                }
                let all: Vec<VipName> = names.iter().cloned().collect();
                prop_assert_eq!(&known, &settle(&all, &taken, &pool));
            }
        }

        /// Nobody between a name's home and its address would give way to it.
        #[test]
        fn the_table_is_stable(names in proptest::collection::btree_set(0_u16..2000, 1..150)) {
            let pool: VipPool = "127.11.0.0/24".parse().unwrap();
            let names: Vec<VipName> = names.into_iter().map(|i| name(&format!("app{i}"))).collect();
            let table = settled("127.11.0.0/24", &names, &[]);
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
