//! Any bytes as a query: no panic, and a reply that is within its limit and begins with the query's id, or none.

use std::cell::RefCell;

use dns::{Config, Fate, Offline, Transport};
use event_watcher::catalog::Snapshot;

thread_local! {
    static SERVER: RefCell<Offline> = RefCell::new(Offline::new(
        &Config {
            masters: vec!["10.0.0.8:8080".parse().expect("an address")],
            vip_pools: vec!["127.11.0.0/16".parse().expect("a pool")],
            nsid: "node-1".into(),
            ..Config::default()
        },
        &Snapshot { framework: "marathon".into(), ..Snapshot::default() },
    ));
}

pub fn run(packet: &[u8]) {
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        let mut reply = Vec::new();
        let fate = SERVER.with_borrow_mut(|server| {
            server.answer(packet, transport, [127, 0, 0, 1].into(), &mut reply)
        });
        match fate {
            Fate::Reply => {
                assert!(reply.len() >= 12 && reply.len() <= limit);
                assert_eq!(reply[..2], packet[..2]);
                assert_eq!(reply[2] & 0x80, 0x80);
            }
            Fate::Silence => assert!(reply.is_empty()),
            Fate::Forward(_) => unreachable!("there is nobody to forward to"),
        }
    }
}
