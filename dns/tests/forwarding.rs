//! Names of other zones: which upstream is asked, how often, what is believed, what is kept, and what happens when
//! nobody answers. Over real sockets, against upstreams of our own.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod harness;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dns::Config;
use harness::{Server, framed, query, receive, wire_name};
use hickory_server::proto::op::{Message, ResponseCode};

const A: u16 = 1;
const REFUSED: u8 = 5;

/// An upstream that answers each query as `answer` says.
fn upstream(answer: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    upstream_on(UdpSocket::bind("127.0.0.1:0").unwrap(), answer)
}

fn upstream_on(socket: UdpSocket, answer: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, client)) = socket.recv_from(&mut buffer) {
            for reply in answer(Message::from_vec(&buffer[..n]).unwrap()) {
                socket.send_to(&reply, client).unwrap();
            }
        }
    });
    address
}

fn reply_with(mut query: Message, code: ResponseCode, n_answers: u8) -> Message {
    use hickory_server::proto::rr::{RData, Record, rdata};
    let name = query.queries[0].name().clone();
    for i in 0..n_answers {
        query.add_answer(Record::from_rdata(name.clone(), 60, RData::A(rdata::A::new(192, 0, 2, i))));
    }
    query.metadata.response_code = code;
    query.into_response()
}

fn forwarding(upstreams: Vec<SocketAddr>, config: Config) -> Server {
    let mut server = Server::unsynced(Config { upstreams: Some(upstreams), ..config }, None);
    server.apply(vec![]);
    server
}

#[test]
fn names_of_other_zones_are_forwarded_and_our_own_never() {
    let good = upstream(|query| {
        assert!(
            !query.queries[0].name().to_string().to_lowercase().ends_with("mesos."),
            "a served name left the server"
        );
        let mut forged = reply_with(query.clone(), ResponseCode::NoError, 9);
        forged.metadata.id ^= 1;
        let mut other = reply_with(query.clone(), ResponseCode::NoError, 9);
        other.queries[0].set_name("example.net.".parse().unwrap());
        let real = reply_with(query, ResponseCode::NoError, 1);
        [forged, other, real].map(|m| m.to_vec().unwrap()).into()
    });
    let failing = upstream(|query| vec![reply_with(query, ResponseCode::ServFail, 0).to_vec().unwrap()]);
    let server = forwarding(vec![failing, good], Config::default());
    let reply = server.tcp(&query(0x4242, "WWW.example.com", A));
    assert_eq!(reply[..2], [0x42, 0x42]);
    assert_eq!(reply[12..][..17], *wire_name("WWW.example.com"));
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.answers.len(), 1, "only the answer to our question, under our id, counts");
    assert!(message.metadata.recursion_available && message.edns.is_none());
    assert_eq!(server.ask("nothing.marathon.mesos", A).0, "NXDomain");

    let mut no_recursion = query(1, "www.example.com", A);
    no_recursion[2] = 0;
    assert_eq!(server.udp(&no_recursion).unwrap()[3] & 0x0f, REFUSED);
    assert_eq!(server.plane.statistics().n_forwarded["answered"], 1);
}

#[test]
fn forwarding_over_udp_cuts_and_falls_back_to_tcp() {
    // A free port of one transport may be taken for the other.
    let pair = || {
        let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
        Some((UdpSocket::bind(tcp.local_addr().ok()?).ok()?, tcp))
    };
    let (udp, tcp) = (0..100).find_map(|_| pair()).unwrap();
    let udp = upstream_on(udp, |query| {
        let mut reply = reply_with(query, ResponseCode::NoError, 0);
        reply.metadata.truncation = true;
        vec![reply.to_vec().unwrap()]
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            while let Some(query) = receive(&mut stream) {
                let reply = reply_with(Message::from_vec(&query).unwrap(), ResponseCode::NoError, 100);
                stream.write_all(&framed(&reply.to_vec().unwrap())).unwrap();
            }
        }
    });
    let server = forwarding(vec![udp], Config::default());
    let message = Message::from_vec(&server.tcp(&query(1, "example.com", A))).unwrap();
    assert_eq!(message.answers.len(), 100);

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(harness::DEADLINE)).unwrap();
    socket.send_to(&query(1, "example.com", A), server.address).unwrap();
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).unwrap();
    let message = Message::from_vec(&buffer[..n]).unwrap();
    assert!(n <= 512 && message.metadata.truncation);
}

#[test]
fn silent_upstreams_end_in_servfail_and_too_many_queries_in_refused() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let quick = Config { upstream_timeout: Duration::from_millis(20), ..Config::default() };
    let server = forwarding(vec![silent], quick);
    assert_eq!(server.ask("example.com", A).0, "ServFail");

    let server = forwarding(vec![silent], Config { n_forwards_max: 0, ..Config::default() });
    assert_eq!(server.ask("example.com", A).0, "Refused");
    assert_eq!(server.plane.statistics().n_forwarded["full"], 1);
}

/// Counts what it is asked, and answers after `delay` with so long a TTL.
fn counting(ttl: u32, delay: Duration) -> (SocketAddr, Arc<AtomicU32>) {
    let n_asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&n_asked);
    let address = upstream(move |query| {
        counter.fetch_add(1, Ordering::Relaxed);
        #[allow(clippy::disallowed_methods, reason = "an upstream that is slow")]
        std::thread::sleep(delay);
        let mut reply = reply_with(query, ResponseCode::NoError, 1);
        reply.answers[0].ttl = ttl;
        vec![reply.to_vec().unwrap()]
    });
    (address, n_asked)
}

fn ttl_of(reply: &[u8]) -> u32 {
    Message::from_vec(reply).unwrap().answers[0].ttl
}

#[test]
fn answers_are_kept_for_as_long_as_they_say_and_questions_are_merged() {
    let (address, n_asked) = counting(60, Duration::from_millis(50));
    let server = forwarding(vec![address], Config::default());
    let mut stream = server.connect();
    for id in 0..20 {
        stream.write_all(&framed(&query(id, "www.example.com", A))).unwrap();
    }
    for _ in 0..20 {
        assert_eq!(ttl_of(&receive(&mut stream).unwrap()), 60);
    }
    assert_eq!(n_asked.load(Ordering::Relaxed), 1, "twenty clients, one question");
    let reply = server.udp(&query(1, "WWW.EXAMPLE.COM", A)).unwrap();
    assert!(ttl_of(&reply) <= 60);
    assert_eq!(Message::from_vec(&reply).unwrap().answers[0].name.to_string(), "WWW.EXAMPLE.COM.");
    assert_eq!(n_asked.load(Ordering::Relaxed), 1);
    let statistics = server.plane.statistics();
    assert_eq!((statistics.n_answers_by_source["cache"], statistics.n_forwarded["merged"]), (1, 19));
    assert_eq!(statistics.n_cached, 1);

    let (address, n_asked) = counting(0, Duration::ZERO);
    let server = forwarding(vec![address], Config::default());
    for _ in 0..3 {
        server.tcp(&query(1, "www.example.com", A));
    }
    assert_eq!(n_asked.load(Ordering::Relaxed), 3, "an answer of no lifetime is not kept");
}

#[test]
fn missing_names_are_kept_by_their_soa_and_failures_are_not() {
    use hickory_server::proto::rr::{RData, Record, rdata};
    let n_asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&n_asked);
    let address = upstream(move |query| {
        counter.fetch_add(1, Ordering::Relaxed);
        if query.queries[0].name().to_string().to_lowercase().starts_with("fail") {
            return vec![reply_with(query, ResponseCode::ServFail, 0).to_vec().unwrap()];
        }
        let mut reply = reply_with(query, ResponseCode::NXDomain, 0);
        let soa = rdata::SOA::new("ns.test.".parse().unwrap(), "x.test.".parse().unwrap(), 1, 60, 60, 60, 30);
        reply.authorities.push(Record::from_rdata("test.".parse().unwrap(), 3600, RData::SOA(soa)));
        vec![reply.to_vec().unwrap()]
    });
    let server = forwarding(vec![address], Config::default());
    for _ in 0..3 {
        assert_eq!(server.ask("no.test", A).0, "NXDomain");
    }
    assert_eq!(n_asked.load(Ordering::Relaxed), 1);
    for _ in 0..2 {
        assert_eq!(server.ask("fail.test", A).0, "ServFail");
    }
    assert_eq!(n_asked.load(Ordering::Relaxed), 3);
}

#[test]
fn an_answer_that_is_out_of_date_is_better_than_none() {
    let is_silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let silent = Arc::clone(&is_silent);
    let address = upstream(move |query| {
        if silent.load(Ordering::Relaxed) {
            return vec![];
        }
        let mut reply = reply_with(query, ResponseCode::NoError, 1);
        reply.answers[0].ttl = 1;
        vec![reply.to_vec().unwrap()]
    });
    let quick = Config {
        upstream_timeout: Duration::from_millis(100),
        forward_timeout: Duration::from_millis(200),
        ..Config::default()
    };
    let server = forwarding(vec![address], quick);
    assert_eq!(server.ask("www.example.com", A).1, ["192.0.2.0"]);
    is_silent.store(true, Ordering::Relaxed);
    let deadline = std::time::Instant::now() + harness::DEADLINE;
    let stale = loop {
        let reply = server.tcp(&query(1, "www.example.com", A));
        if server.plane.statistics().n_answers_by_source["stale"] > 0 {
            break reply;
        }
        assert!(std::time::Instant::now() < deadline, "it never went out of date");
    };
    assert_eq!(ttl_of(&stale), 30);
    assert_eq!(server.ask("other.example.com", A).0, "ServFail");
    let upstream = &server.plane.statistics().upstreams[0];
    assert!(upstream.n_timeouts > 0 && upstream.n_answered == 1, "{upstream:?}");
}

#[test]
fn a_slow_or_failing_upstream_costs_a_head_start_at_most() {
    let (slow, n_slow) = counting(0, Duration::from_secs(1));
    let (good, n_good) = counting(0, Duration::ZERO);
    let server = forwarding(vec![slow, good], Config::default());
    let began = std::time::Instant::now();
    assert_eq!(server.ask("a.example.com", A).1, ["192.0.2.0"]);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!((n_slow.load(Ordering::Relaxed), n_good.load(Ordering::Relaxed)), (1, 1));
    // The one that answered is asked first from now on.
    assert_eq!(server.ask("b.example.com", A).1, ["192.0.2.0"]);
    assert_eq!(n_good.load(Ordering::Relaxed), 2);

    let refusing = upstream(|query| vec![reply_with(query, ResponseCode::Refused, 0).to_vec().unwrap()]);
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = forwarding(vec![refusing, nobody], Config::default());
    assert_eq!(server.ask("c.example.com", A).0, "Refused", "a refusal counts when nobody does better");
}

#[test]
fn zones_have_upstreams_of_their_own() {
    let (corp, n_corp) = counting(0, Duration::ZERO);
    let (others, n_others) = counting(0, Duration::ZERO);
    let config = Config {
        zone_upstreams: vec![("corp.example".into(), vec![corp]), ("secret.corp.example".into(), vec![])],
        ..Config::default()
    };
    let server = forwarding(vec![others], config);
    server.ask("a.CORP.example", A);
    server.ask("a.example", A);
    assert_eq!((n_corp.load(Ordering::Relaxed), n_others.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(server.ask("a.secret.corp.example", A).0, "Refused");
}

#[test]
fn our_own_question_that_comes_back_is_a_loop() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = socket.local_addr().unwrap();
    let server = forwarding(vec![upstream], Config::default());
    let address = server.address;
    // Forwards every query to whoever is to be its server, as a resolver does that has us as its upstream.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, client)) = socket.recv_from(&mut buffer) {
            let own = UdpSocket::bind("127.0.0.1:0").unwrap();
            own.send_to(&buffer[..n], address).unwrap();
            let n = own.recv(&mut buffer).unwrap();
            socket.send_to(&buffer[..n], client).unwrap();
        }
    });
    assert_eq!(server.ask("a-name-with-many-letters.example.com", A).0, "ServFail");
    let statistics = server.plane.statistics();
    assert!(statistics.n_loops > 0 && statistics.n_forwarded["looped"] > 0, "{statistics:?}");
}

#[test]
fn answers_in_another_spelling_are_asked_for_again_over_tcp() {
    let pair = || {
        let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
        Some((UdpSocket::bind(tcp.local_addr().ok()?).ok()?, tcp))
    };
    let (udp, tcp) = (0..100).find_map(|_| pair()).unwrap();
    let udp = upstream_on(udp, |query| {
        let mut reply = reply_with(query, ResponseCode::NoError, 9);
        let lower = reply.queries[0].name().to_lowercase();
        reply.queries[0].set_name(lower);
        vec![reply.to_vec().unwrap()]
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            while let Some(query) = receive(&mut stream) {
                let reply = reply_with(Message::from_vec(&query).unwrap(), ResponseCode::NoError, 2);
                stream.write_all(&framed(&reply.to_vec().unwrap())).unwrap();
            }
        }
    });
    let server = forwarding(vec![udp], Config::default());
    let (_, answers, _) = server.ask("a-name-with-many-letters.example.com", A);
    assert_eq!(answers.len(), 2, "a forger of UDP packets does not know the spelling");
}

#[test]
fn a_name_of_ours_behind_a_slow_foreign_one_does_not_wait() {
    let (slow, _) = counting(0, Duration::from_millis(500));
    let server = forwarding(vec![slow], Config::default());
    let mut stream = server.connect();
    stream.write_all(&framed(&query(1, "www.example.com", A))).unwrap();
    stream.write_all(&framed(&query(2, "localhost", A))).unwrap();
    assert_eq!(receive(&mut stream).unwrap()[..2], [0, 2]);
    assert_eq!(receive(&mut stream).unwrap()[..2], [0, 1]);
}

#[derive(Clone, Copy, Debug)]
enum WithoutEdns {
    Refuses(ResponseCode),
    /// It answers with a header alone, as who cannot read the rest does.
    RefusesInShort,
    Drops,
    /// It does not understand the question in any form.
    NeverUnderstands,
}

/// Keeps to RFC 1035, and counts questions with and without EDNS.
fn old_upstream(manner: WithoutEdns) -> (SocketAddr, Arc<[AtomicU32; 2]>) {
    let n_asked: Arc<[AtomicU32; 2]> = Arc::default();
    let counters = Arc::clone(&n_asked);
    let address = upstream(move |mut query| {
        let has_edns = query.edns.take().is_some();
        counters[usize::from(!has_edns)].fetch_add(1, Ordering::Relaxed);
        let refusal = match manner {
            WithoutEdns::NeverUnderstands => Some(ResponseCode::FormErr),
            WithoutEdns::Refuses(code) if has_edns => Some(code),
            WithoutEdns::RefusesInShort if has_edns => {
                query.queries.clear();
                Some(ResponseCode::FormErr)
            }
            WithoutEdns::Drops if has_edns => return vec![],
            _ => None,
        };
        let reply = match refusal {
            Some(code) if query.queries.is_empty() => {
                query.metadata.response_code = code;
                query.into_response()
            }
            Some(code) => reply_with(query, code, 0),
            None => reply_with(query, ResponseCode::NoError, 1),
        };
        vec![reply.to_vec().unwrap()]
    });
    (address, n_asked)
}

#[test]
fn upstreams_that_do_not_take_edns_are_asked_without_it() {
    use WithoutEdns::*;
    // With EDNS until it is known that they do not take it, which several silences have to show.
    for (manner, answer, n_with, n_without) in [
        (Refuses(ResponseCode::FormErr), "192.0.2.0", 1, 5),
        (Refuses(ResponseCode::NotImp), "192.0.2.0", 1, 5),
        (RefusesInShort, "192.0.2.0", 1, 5),
        (Drops, "192.0.2.0", 3, 5),
        (NeverUnderstands, "FormErr", 5, 5),
    ] {
        let (address, n_asked) = old_upstream(manner);
        let quick = Config { upstream_timeout: Duration::from_millis(200), ..Config::default() };
        let server = forwarding(vec![address], quick);
        for i in 0..5 {
            let (code, answers, _) = server.ask(&format!("www{i}.example.com"), A);
            assert_eq!(answers.first().unwrap_or(&code), answer, "{manner:?}");
        }
        let n_asked = n_asked.each_ref().map(|n| n.load(Ordering::Relaxed));
        assert_eq!(n_asked, [n_with, n_without], "{manner:?}");
        let upstream = &server.plane.statistics().upstreams[0];
        assert_eq!(upstream.n_edns_fallbacks, u64::from(n_with), "{manner:?}");
    }
}

#[test]
fn who_took_edns_is_not_asked_without_it_when_silent() {
    let is_silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let silent = Arc::clone(&is_silent);
    let address = upstream(move |query| {
        assert!(query.edns.is_some());
        match silent.load(Ordering::Relaxed) {
            true => vec![],
            false => vec![reply_with(query, ResponseCode::NoError, 1).to_vec().unwrap()],
        }
    });
    let quick = Config { upstream_timeout: Duration::from_millis(20), ..Config::default() };
    let server = forwarding(vec![address], quick);
    assert_eq!(server.ask("a.example.com", A).1, ["192.0.2.0"]);
    is_silent.store(true, Ordering::Relaxed);
    assert_eq!(server.ask("b.example.com", A).0, "ServFail");
    assert_eq!(server.plane.statistics().upstreams[0].n_edns_fallbacks, 0);
}
