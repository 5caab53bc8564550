//! Addresses of instances on a container network: each has one of its own in the loopback network, so that two
//! of them may listen on the same port.
//!
//! Not here: containers that an engine runs, which bring the engine's addresses.

use std::collections::HashSet;
use std::net::Ipv4Addr;

/// 127.128.0.0/10: clear of the names' usual loopback addresses and of the default VIP pool.
const FIRST: u32 = u32::from_be_bytes([127, 128, 0, 0]);
const N_ADDRESSES: u32 = 1 << 22;

#[derive(Debug)]
pub struct OwnAddresses {
    taken: HashSet<u32>,
    next: u32,
}

impl Default for OwnAddresses {
    /// Starts anywhere, so that two schedulers on one machine rarely meet.
    fn default() -> Self {
        Self { taken: HashSet::new(), next: rand::random_range(0..N_ADDRESSES) }
    }
}

impl OwnAddresses {
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        for _ in 0..N_ADDRESSES {
            let candidate = self.next;
            self.next = (self.next + 1) % N_ADDRESSES;
            // The ends of each /24 look like network and broadcast addresses.
            if !matches!(candidate & 0xff, 0 | 0xff) && self.taken.insert(candidate) {
                return Some(Ipv4Addr::from(FIRST + candidate));
            }
        }
        None
    }

    pub fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&(u32::from(address).wrapping_sub(FIRST)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_handed_out_once() {
        let mut addresses = OwnAddresses::default();
        let all: HashSet<Ipv4Addr> = (0..1000).filter_map(|_| addresses.take()).collect();
        assert_eq!(all.len(), 1000);
        assert!(all.iter().all(|address| address.is_loopback() && address.octets()[1] & 0xc0 == 128));
        let one = *all.iter().next().expect("there are some");
        addresses.give_back(one);
        assert!(!addresses.taken.contains(&(u32::from(one) - FIRST)));
    }
}
