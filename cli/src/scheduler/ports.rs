//! The agent's host ports: which are handed out, and which of the rest are really free.
//!
//! Not here: service ports, which are only numbers in app definitions.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use socket2::{Domain, Socket, Type};

/// Tells whether a port that we have not handed out can be used now.
pub type Probe = fn(u16) -> bool;

/// Hands out ports of one range, next-fit: a port that was just given back is the last to be used again, so
/// that nobody who still holds an old table reaches a stranger on it.
#[derive(Debug)]
pub struct HostPorts {
    range: RangeInclusive<u16>,
    taken: HashSet<u16>,
    next: u16,
    probe: Probe,
}

impl HostPorts {
    pub fn new(range: RangeInclusive<u16>, probe: Probe) -> Self {
        let next = *range.start();
        Self { range, taken: HashSet::new(), next, probe }
    }

    /// Takes `n` free ports, or none at all.
    pub fn take(&mut self, n: usize) -> Option<Vec<u16>> {
        let mut found = Vec::with_capacity(n);
        let mut candidate = self.next;
        for _ in 0..self.range.len() {
            if found.len() == n {
                break;
            }
            if !self.taken.contains(&candidate) && (self.probe)(candidate) {
                found.push(candidate);
            }
            candidate = if candidate >= *self.range.end() { *self.range.start() } else { candidate + 1 };
        }
        if found.len() < n {
            return None;
        }
        self.next = candidate;
        self.taken.extend(&found);
        Some(found)
    }

    /// Takes exactly these ports (`requirePorts`), or none of them. They may lie outside the range.
    pub fn take_exactly(&mut self, ports: &[u16]) -> Option<Vec<u16>> {
        let mut distinct = HashSet::new();
        let free = |&port: &u16| port != 0 && !self.taken.contains(&port) && (self.probe)(port);
        if !ports.iter().all(|port| distinct.insert(*port) && free(port)) {
            return None;
        }
        self.taken.extend(ports);
        Some(ports.to_vec())
    }

    pub fn give_back(&mut self, ports: &[u16]) {
        for port in ports {
            self.taken.remove(port);
        }
    }
}

/// Binds the port for TCP and UDP on every address and lets go of it again. It never listens. The reuse
/// option passes over connections in TIME_WAIT, as the program that gets the port will.
pub fn bindable(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into();
    let tcp = Socket::new(Domain::IPV4, Type::STREAM, None)
        .and_then(|socket| socket.set_reuse_address(true).and_then(|()| socket.bind(&address)));
    tcp.is_ok() && Socket::new(Domain::IPV4, Type::DGRAM, None).and_then(|s| s.bind(&address)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_each_port_once_and_the_freed_one_last() {
        let mut ports = HostPorts::new(31000..=31003, |port| port != 31001);
        assert_eq!(ports.take(2), Some(vec![31000, 31002]));
        assert_eq!(ports.take(2), None);
        ports.give_back(&[31000]);
        assert_eq!(ports.take(1), Some(vec![31003]));
        assert_eq!(ports.take(1), Some(vec![31000]));
        assert_eq!(ports.take(1), None);
        assert_eq!(ports.take(0), Some(vec![]));
    }

    #[test]
    fn exact_ports_are_all_or_nothing() {
        let mut ports = HostPorts::new(31000..=31003, |port| port != 80);
        assert_eq!(ports.take_exactly(&[8080, 80]), None);
        assert_eq!(ports.take_exactly(&[8080, 8080]), None);
        assert_eq!(ports.take_exactly(&[8080, 8081]), Some(vec![8080, 8081]));
        assert_eq!(ports.take_exactly(&[8081]), None);
    }

    #[test]
    fn the_end_of_the_port_space_is_no_edge() {
        let mut ports = HostPorts::new(65534..=65535, |_| true);
        assert_eq!(ports.take(2), Some(vec![65534, 65535]));
        assert_eq!(ports.take(1), None);
    }

    #[test]
    fn a_listening_port_is_not_bindable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("bound").port();
        assert!(!bindable(port));
        drop(listener);
        assert!(bindable(port));
    }
}
