//! The corpus of packets (`cases/*.jsonl`): each is sent over a real socket to a server that knows a few apps, and its
//! answer must be as the case says. After each, the server must still answer.
//!
//! `WAYMARK_DNS_CASES=FILE` runs another file of the same form.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod harness;

use std::collections::BTreeMap;
use std::io::Write;

use dns::Config;
use event_watcher::catalog::Protocols;
use harness::{Server, app, framed, instances, port, query, receive};
use hickory_server::proto::op::{Message, ResponseCode};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    group: String,
    about: String,
    /// Where it is written that it must be so.
    #[allow(dead_code, reason = "for readers of the corpus")]
    rule: String,
    transport: Transport,
    /// What the server knows.
    #[serde(default)]
    state: State,
    packet: Option<Hex>,
    #[serde(default)]
    packets: Vec<Hex>,
    /// Bytes for a TCP connection as they are.
    stream: Option<Hex>,
    #[serde(default)]
    half_close: bool,
    /// A byte at a time.
    #[serde(default)]
    pieces: bool,
    expect: Expect,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Transport {
    Udp,
    Tcp,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    #[default]
    #[serde(rename = "running")]
    Running,
    #[serde(rename = "scaled to 0")]
    ScaledToZero,
    #[serde(rename = "unsynced")]
    Unsynced,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Expect {
    silent: bool,
    silent_ok: bool,
    close: bool,
    /// Either the connection is closed or the answer has one of these codes.
    close_or_rcode: Vec<String>,
    rcode: Vec<String>,
    extended_rcode: Option<u16>,
    opcode: Option<u8>,
    aa: Option<bool>,
    tc: Option<bool>,
    z0: bool,
    answers: Option<usize>,
    answers_min: Option<usize>,
    additionals_min: Option<usize>,
    soa: bool,
    opt: Option<bool>,
    dnssec_ok: Option<bool>,
    same_question: bool,
    max_bytes: Option<usize>,
    max_amplification: Option<usize>,
    present: Option<Hex>,
    absent: Option<Hex>,
    /// Every query of the case has its answer.
    all: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Hex(Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap_or("?"), 16);
        (0..text.len())
            .step_by(2)
            .map(digits)
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|e| format!("{text}: {e}"))
    }
}

#[test]
fn every_packet_is_answered_as_its_case_says() {
    let file = std::env::var("WAYMARK_DNS_CASES")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/packets.jsonl").to_owned());
    let text = std::fs::read_to_string(&file).unwrap();
    let cases: Vec<Case> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let servers: BTreeMap<State, Server> =
        [State::Running, State::ScaledToZero, State::Unsynced].map(|state| (state, server(state))).into();
    let mut failures = Vec::new();
    for case in &cases {
        let server = &servers[&case.state];
        let faults = run(case, server);
        let alive = server.udp(&query(0x0a11, "localhost", 1)).is_some();
        if !faults.is_empty() || !alive {
            failures.push(format!("{} ({}: {}): {faults:?} alive: {alive}", case.id, case.group, case.about));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases fail:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    assert!(!cases.is_empty());
}

fn server(state: State) -> Server {
    let config = Config {
        upstreams: Some(vec![]),
        nsid: "node-1".into(),
        vip_pools: vec!["127.11.0.0/16".parse().unwrap()],
        ..Config::default()
    };
    let mut server = Server::unsynced(config, None);
    let n_of_web = match state {
        State::Unsynced => return server,
        State::ScaledToZero => 0,
        State::Running => 1,
    };
    let web = instances(port(app("/web"), None, Protocols::TCP, Some("/web:80")), n_of_web);
    server.apply(vec![web, instances(port(app("/big"), None, Protocols::TCP, None), 100)]);
    server
}

/// What is not as it must be.
fn run(case: &Case, server: &Server) -> Vec<String> {
    let queries: Vec<&[u8]> = case.packet.iter().chain(&case.packets).map(|hex| &*hex.0).collect();
    let (replies, closed) = match case.transport {
        Transport::Udp => (queries.iter().filter_map(|query| server.udp(query)).collect(), false),
        Transport::Tcp => over_tcp(case, &queries, server),
    };
    let expect = &case.expect;
    let mut faults = Vec::new();
    if expect.close || !expect.close_or_rcode.is_empty() {
        let code = replies.first().map(|reply| code_of(reply));
        let is_right =
            (closed && replies.is_empty()) || code.is_some_and(|c| expect.close_or_rcode.contains(&c));
        if !is_right {
            faults.push(format!("closed: {closed}, answers: {}", replies.len()));
        }
        return faults;
    }
    if expect.silent {
        return replies.iter().map(|reply| format!("answered {reply:x?}")).collect();
    }
    if replies.is_empty() && !expect.silent_ok {
        faults.push("no answer".into());
    }
    if expect.all && replies.len() != queries.len() {
        faults.push(format!("{} answers to {} queries", replies.len(), queries.len()));
    }
    for reply in &replies {
        let query = queries.iter().find(|query| query.get(..2) == reply.get(..2));
        match query {
            Some(query) => check(expect, query, reply, &mut faults),
            None => faults.push("an id that nobody asked under".into()),
        }
    }
    faults
}

fn over_tcp(case: &Case, queries: &[&[u8]], server: &Server) -> (Vec<Vec<u8>>, bool) {
    let mut stream = server.connect();
    let bytes = match &case.stream {
        Some(bytes) => bytes.0.clone(),
        None => queries.iter().flat_map(|query| framed(query)).collect(),
    };
    if case.pieces {
        bytes.iter().for_each(|byte| stream.write_all(&[*byte]).unwrap());
    } else {
        stream.write_all(&bytes).unwrap();
    }
    if case.half_close {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let n_expected = queries.len().max(1);
    let replies: Vec<Vec<u8>> = (0..n_expected).map_while(|_| receive(&mut stream)).collect();
    let closed = replies.len() < n_expected;
    (replies, closed)
}

fn code_of(reply: &[u8]) -> String {
    let code = reply.get(3).map_or(0, |byte| byte & 0x0f);
    let name = match ResponseCode::from_low(code) {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        _ => return code.to_string(),
    };
    name.to_owned()
}

fn check(expect: &Expect, query: &[u8], reply: &[u8], faults: &mut Vec<String>) {
    let message = match Message::from_vec(reply) {
        Ok(message) => message,
        Err(error) => return faults.push(format!("the answer is malformed: {error}")),
    };
    let mut expected = |what: &str, holds: bool| {
        if !holds {
            faults.push(format!("{what} ({} {message:?})", code_of(reply)));
        }
    };
    expected("QR", reply[2] & 0x80 != 0);
    expected("rcode", expect.rcode.is_empty() || expect.rcode.contains(&code_of(reply)));
    expected(
        "extended rcode",
        expect.extended_rcode.is_none_or(|code| u16::from(message.metadata.response_code) == code),
    );
    expected("opcode", expect.opcode.is_none_or(|opcode| reply[2] >> 3 & 0xf == opcode));
    expected("AA", expect.aa.is_none_or(|aa| message.metadata.authoritative == aa));
    expected("TC", expect.tc.is_none_or(|tc| message.metadata.truncation == tc));
    expected("Z", !expect.z0 || reply[3] & 0x40 == 0);
    expected("answers", expect.answers.is_none_or(|n| message.answers.len() == n));
    expected("enough answers", expect.answers_min.is_none_or(|n| message.answers.len() >= n));
    expected("additionals", expect.additionals_min.is_none_or(|n| message.additionals.len() >= n));
    let has_soa = message.authorities.iter().any(|record| u16::from(record.record_type()) == 6);
    expected("SOA", !expect.soa || has_soa);
    expected("OPT", expect.opt.is_none_or(|opt| message.edns.is_some() == opt));
    let dnssec_ok = message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    expected("DO", expect.dnssec_ok.is_none_or(|wanted| dnssec_ok == wanted));
    let question = &query[12.min(query.len())..];
    expected("the question", !expect.same_question || reply[12..].starts_with(question));
    expected("size", expect.max_bytes.is_none_or(|max| reply.len() <= max));
    expected("amplification", expect.max_amplification.is_none_or(|max| reply.len() <= max * query.len()));
    let has = |bytes: &Hex| reply.windows(bytes.0.len()).any(|window| window == bytes.0);
    expected("bytes that must be there", expect.present.as_ref().is_none_or(has));
    expected("bytes that must not be there", !expect.absent.as_ref().is_some_and(has));
}
