//! Any bytes as an upstream's answer: no panic, and what the client gets is within its limit and under its id.

use std::cell::RefCell;

use dns::{Config, Fate, Offline, Question, Transport};
use event_watcher::catalog::Snapshot;

thread_local! {
    static QUESTION: RefCell<Question> = RefCell::new(question());
}

/// `Example.com A`, over UDP without EDNS.
fn question() -> Question {
    let upstreams = Some(vec![([127, 0, 0, 1], 53).into()]);
    let mut server = Offline::new(&Config { upstreams, ..Config::default() }, &Snapshot::default());
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07Example\x03com\0\0\x01\0\x01";
    match server.answer(query, Transport::Udp, [127, 0, 0, 1].into(), &mut Vec::new()) {
        Fate::Forward(question) => question,
        other => unreachable!("{other:?}"),
    }
}

pub fn run(answer: &[u8]) {
    let mut reply = Vec::new();
    if QUESTION.with_borrow(|question| question.relay(answer, &mut reply)) {
        assert!(reply.len() <= 512);
        assert_eq!(reply[..2], [0x12, 0x34]);
        assert_eq!(reply[12..25], *b"\x07Example\x03com\0");
    } else {
        assert!(reply.is_empty());
    }
}
