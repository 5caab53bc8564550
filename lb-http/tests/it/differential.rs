//! Our parser and hyper's, given the same generated heads: where they differ, a rule says why.
//!
//! hyper is the looser of the two; it must never refuse what we forward, but for the reasons listed.

use lb_http::http1::refusal::Refusal;
use lb_http::http1::request::Request;
use lb_http::http1::scan::{HeadLimits, Scan, Scanned};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

const LIMITS: HeadLimits = HeadLimits { line_bytes: 4096, field_bytes: 8192, n_fields: 50 };

fn ours(head: &[u8]) -> Result<(), Refusal> {
    let mut scan = Scan::default();
    loop {
        match scan.advance(head, &LIMITS)? {
            Scanned::FirstLine(_) => {}
            // hyper would wait for the rest, too.
            Scanned::Partial => return Err(Refusal::HeadTime),
            Scanned::Head(n) => return Request::parse(&head[..n], &mut Vec::new()).map(|_| ()),
        }
    }
}

/// Whether hyper gives the request to its service.
fn hypers(head: &[u8]) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without IO");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client.write_all(head).await.expect("the pipe has room");
        client.shutdown().await.expect("the pipe is open");
        let taken = std::cell::Cell::new(false);
        let service = hyper::service::service_fn(|_| {
            taken.set(true);
            async { Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new())) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(hyper_util::rt::TokioIo::new(server), service);
        // How it ends says nothing beyond whether the service was asked.
        let _ = connection.await;
        taken.get()
    })
}

/// Rules of RFC 9110 and 9112 that hyper leaves to its user (Host, targets, lists, hop-by-hop, methods), or where it is
/// lenient (line ends, Transfer-Encoding that ends in chunked, lengths beyond 2^63).
fn hyper_lets_pass(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::NoHost
            | Refusal::ManyHosts
            | Refusal::Host
            | Refusal::HostMismatch
            | Refusal::Target
            | Refusal::Method
            | Refusal::MethodLength
            | Refusal::LineEnd
            | Refusal::RequestLine
            | Refusal::TransferEncoding
            | Refusal::TwoFramings
            | Refusal::ContentLength
            | Refusal::Expectation
            | Refusal::Field
            | Refusal::LongTarget
            | Refusal::LongHead
            | Refusal::ManyFields
    )
}

/// Targets that a URI type cannot hold though no rule of RFC 9112 forbids their bytes.
fn is_no_uri(head: &str) -> bool {
    let target = head.split(' ').nth(1).unwrap_or_default();
    target.bytes().any(|b| b"\\^`|<>\"{}[]".contains(&b)) || target.starts_with("//")
}

fn heads() -> impl Strategy<Value = String> {
    let method =
        prop_oneof![Just("GET"), Just("POST"), Just("OPTIONS"), Just("X-Y"), Just("G T"), Just("CONNECT")];
    let target = prop_oneof![
        "/[a-z0-9%/?&=.~:@!$'()*+,;-]{0,20}",
        Just("*".to_owned()),
        Just("http://a.test/x".to_owned()),
        Just("http://b.test".to_owned()),
        Just("a.test:80".to_owned()),
        "[ -~]{0,12}",
    ];
    let version = prop_oneof![8 => Just("HTTP/1.1"), 2 => Just("HTTP/1.0"), 1 => Just("HTTP/2.0"), 1 => Just("http/1.1")];
    let name = prop_oneof![
        Just("Host"),
        Just("Content-Length"),
        Just("Transfer-Encoding"),
        Just("Connection"),
        Just("Expect"),
        Just("Upgrade"),
        Just("X-A"),
        Just("X_B"),
        Just("X A"),
        Just(""),
    ];
    let value = prop_oneof![
        Just("a.test".to_owned()),
        Just("5".to_owned()),
        Just("chunked".to_owned()),
        Just("gzip, chunked".to_owned()),
        Just("close".to_owned()),
        Just("100-continue".to_owned()),
        Just("9223372036854775808".to_owned()),
        "[ -~\t]{0,12}",
        "[\\x00-\\x1f]{1,2}",
    ];
    let end = prop_oneof![20 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r\r\n")];
    let field = (name, prop_oneof![9 => Just(": "), 1 => Just(" :"), 1 => Just("")], value, end)
        .prop_map(|(n, c, v, e)| format!("{n}{c}{v}{e}"));
    let host = prop_oneof![8 => Just("Host: a.test\r\n"), 1 => Just("")];
    (method, target, version, host, prop::collection::vec(field, 0..4))
        .prop_map(|(m, t, v, h, f)| format!("{m} {t} {v}\r\n{h}{}\r\n", f.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_disagreement_with_hyper_has_a_rule(head in heads()) {
        let (ours, hypers) = (ours(head.as_bytes()), hypers(head.as_bytes()));
        match (ours, hypers) {
            (Ok(()), false) => prop_assert!(is_no_uri(&head), "hyper refuses {head:?}"),
            (Err(refusal), true) => prop_assert!(hyper_lets_pass(refusal), "hyper takes {head:?}: {refusal:?}"),
            _ => {}
        }
    }
}
