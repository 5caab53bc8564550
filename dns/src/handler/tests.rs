//! Whatever bytes come in, what goes out is a well-formed reply about the same question, or nothing.

use std::cell::RefCell;
use std::sync::Arc;

use arc_swap::ArcSwap;
use event_watcher::catalog::{Catalog, CatalogConfig};
use hickory_server::proto::op::Message;
use proptest::prelude::*;

use super::Responder;
use crate::wire::HEADER;
use crate::{Config, Fate, Offline, Transport};

/// Knows the names of the cluster, which have every type of record.
fn offline() -> Offline {
    let masters = vec!["10.0.0.8:8080".parse().unwrap()];
    let catalog = CatalogConfig { framework: "marathon".into(), vip_pools: vec![] };
    let snapshot = Catalog::new(catalog).snapshot().expect("the first is always taken");
    Offline::new(&Config { masters, ..Config::default() }, &snapshot)
}

thread_local! {
    static SERVER: RefCell<Offline> = RefCell::new(offline());
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    let label = prop_oneof![
        Just(b"mesos".to_vec()),
        Just(b"thisdcos".to_vec()),
        Just(b"directory".to_vec()),
        Just(b"global".to_vec()),
        Just(b"l4lb".to_vec()),
        Just(b"dclb".to_vec()),
        Just(b"localhost".to_vec()),
        Just(b"leader".to_vec()),
        Just(b"*".to_vec()),
        proptest::collection::vec(any::<u8>(), 1..64),
    ];
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let name = proptest::collection::vec(label, 0..9);
    (name, any::<u16>(), any::<bool>(), edits, any::<prop::sample::Index>(), 0..20_u8).prop_map(
        |(name, record_type, edns, edits, cut, whether_cut)| {
            let mut packet = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
            for label in name {
                packet.push(label.len() as u8);
                packet.extend(label);
            }
            packet.push(0);
            packet.extend((record_type & 0xff).to_be_bytes());
            packet.extend([0, 1]);
            if edns {
                packet.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
            }
            for (at, byte) in edits {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            if whether_cut == 0 {
                packet.truncate(cut.index(packet.len()));
            }
            packet
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever comes in: no panic, and what goes out is whole, within its limit, and about the same question.
    #[test]
    fn every_reply_is_well_formed(packet in packet()) {
        let mut reply = Vec::new();
        let client = [127, 0, 0, 1].into();
        let fate = SERVER.with_borrow_mut(|server| server.answer(&packet, Transport::Udp, client, &mut reply));
        match fate {
            Fate::Reply => {
                prop_assert!(reply.len() <= 1232);
                prop_assert_eq!(&reply[..2], &packet[..2]);
                let message = Message::from_vec(&reply);
                prop_assert!(message.is_ok(), "{:?} {:x?}", message, reply);
                if reply[5] == 1 {
                    let question = &reply[HEADER..];
                    let n = question.len().min(packet.len() - HEADER);
                    let n = n.min(question.iter().position(|b| *b == 0).unwrap_or(0));
                    prop_assert_eq!(&question[..n], &packet[HEADER..][..n]);
                }
            }
            Fate::Silence => prop_assert!(reply.is_empty()),
            Fate::Forward(_) => prop_assert!(false, "there is nobody to forward to"),
        }
    }
}

/// What is remembered is what would be said anew.
#[test]
fn a_question_asked_again_is_answered_as_the_first_time() {
    let client = [127, 0, 0, 1].into();
    let ask = |server: &mut Offline, packet: &[u8]| {
        let mut reply = Vec::new();
        let fate = server.answer(packet, Transport::Udp, client, &mut reply);
        assert!(matches!(fate, Fate::Reply), "{packet:x?}");
        reply
    };
    let mut known = offline();
    // Of the same zone: its serial is the second in which it was compiled.
    let Responder { zone, counters, terms, .. } = &known.responder;
    let zone = Arc::new(ArcSwap::new(zone.arc_swap().load_full()));
    let (counters, terms) = (counters.clone(), terms.clone());
    let unasked = || Offline { responder: Responder::new(zone.clone(), counters.clone(), terms.clone()) };
    let query = |id: u8, name: &[&[u8]], record_type: u8, edns: bool| {
        let mut packet = vec![id, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name {
            packet.push(label.len() as u8);
            packet.extend(*label);
        }
        packet.extend([0, 0, record_type, 0, 1]);
        if edns {
            packet.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        packet
    };
    let names: [&[&[u8]]; 7] = [
        &[b"_leader", b"_tcp", b"mesos"],
        &[b"_leader", b"_tcp", b"mesos", b"thisdcos", b"global"],
        &[b"leader", b"mesos"],
        &[b"LeaDer", b"mesos"],
        &[b"localhost"],
        &[b"nobody", b"mesos"],
        &[b"example", b"test"],
    ];
    for name in names {
        for record_type in [1, 28, 33, 6] {
            for edns in [false, true] {
                ask(&mut known, &query(1, name, record_type, edns));
                let packet = query(9, name, record_type, edns);
                assert_eq!(ask(&mut known, &packet), ask(&mut unasked(), &packet), "{name:?} {record_type}");
            }
        }
    }
}
