//! Maglev's consistent hashing (Eisenbud and others, NSDI 2016, section 3.4) with weights.
//!
//! A table is a function of the endpoints' addresses and weights alone, so every node sends a client to the same
//! endpoint.

use std::net::{IpAddr, SocketAddr};

/// The size of the table: a prime, and over 100 times as many as endpoints there usually are, which keeps shares within
/// 1 % of each other and moves hardly anybody needlessly.
pub(crate) const M: usize = 65_537;

/// Which endpoint, by position, each hash belongs to.
#[derive(Debug)]
pub(crate) struct Maglev(Box<[u16]>);

impl Maglev {
    /// `endpoints` with their weights (at least 1), not empty. Those beyond 65,535 get no share.
    pub(crate) fn new(endpoints: &[(SocketAddr, u16)]) -> Self {
        const FREE: u16 = u16::MAX;
        struct Walk {
            at: usize,
            skip: usize,
            weight: u64,
            /// It takes a turn in the first round whose number times its weight reaches this.
            due: u64,
        }
        let mut walks: Vec<Walk> = endpoints
            .iter()
            .take(usize::from(FREE))
            .map(|(address, weight)| Walk {
                at: (hash(*address, 0) % M as u64) as usize,
                skip: (hash(*address, 1) % (M as u64 - 1)) as usize + 1,
                weight: u64::from(*weight),
                due: 0,
            })
            .collect();
        let heaviest = walks.iter().map(|walk| walk.weight).max().unwrap_or(1);
        let mut table = vec![FREE; M];
        let mut n_free = if walks.is_empty() { 0 } else { M };
        for round in 1_u64.. {
            for (position, walk) in (0_u16..).zip(&mut walks) {
                if n_free == 0 {
                    return Self(table.into());
                }
                if round * walk.weight < walk.due {
                    continue;
                }
                walk.due += heaviest;
                // M is a prime, so the walk meets every slot, also a free one.
                while table[walk.at] != FREE {
                    walk.at = (walk.at + walk.skip) % M;
                }
                table[walk.at] = position;
                n_free -= 1;
            }
            if n_free == 0 {
                break;
            }
        }
        Self(table.into())
    }

    /// The position of the endpoint that a hash belongs to.
    pub(crate) fn position(&self, hash: u64) -> usize {
        usize::from(self.0[(hash % M as u64) as usize])
    }
}

/// FNV-1a over the address, then SplitMix64's finaliser: the same on every machine, unlike `Hash`.
fn hash(address: SocketAddr, seed: u64) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut take = |bytes: &[u8]| {
        for byte in bytes {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match address.ip() {
        IpAddr::V4(v4) => take(&v4.octets()),
        IpAddr::V6(v6) => take(&v6.octets()),
    }
    take(&address.port().to_be_bytes());
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(n: u16) -> Vec<(SocketAddr, u16)> {
        (0..n)
            .map(|i| (SocketAddr::from(([10, 0, (i / 200) as u8, (i % 200) as u8], 31_000 + i)), 1))
            .collect()
    }

    fn shares(endpoints: &[(SocketAddr, u16)]) -> Vec<usize> {
        let table = Maglev::new(endpoints);
        let mut shares = vec![0; endpoints.len()];
        for slot in 0..M as u64 {
            shares[table.position(slot)] += 1;
        }
        shares
    }

    #[test]
    fn shares_are_even() {
        for n in [1, 3, 10, 100, 500] {
            let shares = shares(&endpoints(n));
            let mean = M as f64 / f64::from(n);
            let most = *shares.iter().max().unwrap() as f64;
            assert!(most / mean <= 1.01, "{n}: {most} of {mean}");
        }
    }

    #[test]
    fn shares_follow_weights() {
        let mut weighted = endpoints(4);
        for (endpoint, weight) in weighted.iter_mut().zip([1, 2, 3, 10]) {
            endpoint.1 = weight;
        }
        for (share, weight) in shares(&weighted).into_iter().zip([1.0, 2.0, 3.0, 10.0]) {
            let due = M as f64 * weight / 16.0;
            assert!((share as f64 / due - 1.0).abs() < 0.01, "{share} of {due}");
        }
    }

    /// Of the clients of the endpoints that stay, at most 1 % move when one goes or comes.
    #[test]
    fn hardly_anybody_moves_needlessly() {
        for n in [3, 10, 50, 100, 500] {
            let all = endpoints(n);
            for gone in [0, usize::from(n) / 2, usize::from(n) - 1] {
                let mut rest = all.clone();
                rest.remove(gone);
                let (before, after) = (Maglev::new(&all), Maglev::new(&rest));
                let (mut n_stayed, mut n_moved) = (0, 0);
                for slot in 0..M as u64 {
                    let old = all[before.position(slot)].0;
                    if old == all[gone].0 {
                        continue;
                    }
                    if rest[after.position(slot)].0 == old { n_stayed += 1 } else { n_moved += 1 }
                }
                let share = f64::from(n_moved) / f64::from(n_moved + n_stayed);
                assert!(share <= 0.01, "{n} less number {gone}: {:.2} % moved", share * 100.0);
            }
        }
    }

    #[test]
    fn the_table_is_the_same_on_every_node() {
        let table = Maglev::new(&endpoints(5));
        let first: Vec<usize> = (0..12).map(|slot| table.position(slot)).collect();
        assert_eq!(first, FIRST_TWELVE_OF_FIVE);
    }

    /// Changing these moves every client of every `maglev` VIP during a rolling upgrade.
    const FIRST_TWELVE_OF_FIVE: [usize; 12] = [2, 2, 2, 2, 0, 4, 3, 0, 1, 3, 3, 1];
}
