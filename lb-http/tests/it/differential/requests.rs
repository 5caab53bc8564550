//! Connections of clients.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lb_http::http1::Framing;
use lb_http::http1::refusal::Refusal;
use lb_http::http1::request::{Persistence, Request};
use lb_http::http1::scan::{Scan, Scanned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A connection's requests, each with the place where its body begins.
#[derive(Default)]
struct Connection {
    requests: Vec<(Message, usize)>,
    /// Why and where there was none after them; `None` when the input ended.
    refused: Option<(Refusal, usize)>,
}

fn by_us(mut input: &[u8]) -> Connection {
    let (mut connection, n) = (Connection::default(), input.len());
    while !input.is_empty() {
        let start = n - input.len();
        let (message, n_head, persistence) = match one_by_us(&mut input) {
            Ok(read) => read,
            Err(refusal) => {
                connection.refused = Some((refusal, start));
                break;
            }
        };
        let goes_on = persistence == Persistence::Keep && message.body.end == End::Whole;
        connection.requests.push((message, start + n_head));
        if !goes_on {
            break;
        }
    }
    connection
}

fn one_by_us(input: &mut &[u8]) -> Result<(Message, usize, Persistence), Refusal> {
    let mut scan = Scan::default();
    let n = loop {
        match scan.advance(input, &LIMITS)? {
            Scanned::FirstLine(_) => {}
            // hyper waits for the rest, too.
            Scanned::Partial => return Err(Refusal::HeadTime),
            Scanned::Head(n) => break n,
        }
    };
    let (head, rest) = input.split_at(n);
    let mut fields = Vec::new();
    let request = Request::parse(head, &mut fields)?;
    let (framing, persistence) = (request.framing, request.persistence);
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let first_line =
        line.split(|b| *b == b' ').map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let (body, n_body) = match framing {
        Framing::None | Framing::UntilClose => (BodyRead::default(), 0),
        Framing::Length(length) => {
            let n = rest.len().min(length as usize);
            let end = if n as u64 == length { End::Whole } else { End::Bad };
            (BodyRead { bytes: rest[..n].to_vec(), end, ..BodyRead::default() }, n)
        }
        Framing::Chunked => our_chunks(rest),
    };
    let message = Message { first_line, fields: super::ours(head, &fields), body };
    *input = &rest[n_body..];
    Ok((message, n, persistence))
}

fn by_hyper(input: &[u8]) -> Vec<Message> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without IO");
    let messages = Rc::new(RefCell::new(Vec::new()));
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client.write_all(input).await.expect("the pipe has room");
        client.shutdown().await.expect("the pipe is open");
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let messages = Rc::clone(&messages);
            async move {
                let (head, body) = request.into_parts();
                let first_line =
                    vec![head.method.to_string(), head.uri.to_string(), format!("{:?}", head.version)];
                let fields = hypers(&head.headers);
                let body = hypers_body(body).await;
                messages.borrow_mut().push(Message { first_line, fields, body });
                Ok::<_, Infallible>(hyper::Response::new(String::new()))
            }
        });
        let connection =
            http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
        // How it ends says nothing beyond what the service was given.
        let _ = connection.await;
        let mut said = Vec::new();
        // What it answered is not looked at.
        let _ = client.read_to_end(&mut said).await;
    });
    messages.take()
}

/// A URI of hyper's has a path.
fn same_line(ours: &[String], theirs: &[String]) -> bool {
    let [our_target, their_target] = [ours, theirs].map(|line| &line[1]);
    let is_same_target = our_target == their_target
        || our_target.contains("://") && their_target.eq_ignore_ascii_case(&with_path(our_target));
    ours[0] == theirs[0] && ours[2] == theirs[2] && is_same_target
}

fn with_path(target: &str) -> String {
    let authority = target.find("://").map_or(0, |at| at + 3);
    match target[authority..].find(['/', '?']) {
        None => format!("{target}/"),
        Some(at) if target[authority + at..].starts_with('?') => {
            format!("{}/{}", &target[..authority + at], &target[authority + at..])
        }
        Some(_) => target.to_owned(),
    }
}

/// Targets that a URI type cannot hold though no rule of RFC 9112 forbids their bytes.
fn is_no_uri(target: &str) -> bool {
    target.bytes().any(|b| b"\\^`|<>\"{}[]".contains(&b)) || target.starts_with("//")
}

/// What is wrong with a request that hyper takes and we refuse. `text` begins with its head.
fn explains(refusal: Refusal, text: &str, theirs: &Message) -> bool {
    let [method, _, version] = &theirs.first_line[..] else { return false };
    let head = head_lines(text);
    let target = head[0].split(' ').nth(1).unwrap_or_default();
    let is_11 = version == "HTTP/1.1";
    let hosts = theirs.values("host");
    let encodings = theirs.values("transfer-encoding");
    // hyper hides it beside a Transfer-Encoding.
    let lengths: Vec<&str> = head
        .iter()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim())
        .collect();
    match refusal {
        Refusal::NoHost => is_11 && hosts.is_empty(),
        Refusal::ManyHosts => hosts.len() > 1,
        Refusal::Host => hosts.iter().any(|host| *host != b"a.test"),
        Refusal::HostMismatch => authority(target).is_some_and(|a| hosts != [a.as_bytes()]),
        Refusal::Target => is_no_target(target, method),
        Refusal::Method => method == "CONNECT" || method == "TRACE",
        Refusal::LineEnd => head.iter().any(is_ended_badly),
        Refusal::TransferEncoding => {
            !is_11 && !encodings.is_empty()
                || encodings.len() > 1
                || encodings.iter().any(|value| !value.eq_ignore_ascii_case(b"chunked"))
        }
        Refusal::TwoFramings => !encodings.is_empty() && !lengths.is_empty(),
        Refusal::ContentLength => {
            lengths.len() > 1 || !lengths.iter().all(|value| is_length(value.as_bytes()))
        }
        Refusal::Expectation => {
            theirs.values("expect").iter().any(|value| !value.eq_ignore_ascii_case(b"100-continue"))
        }
        // A name that servers behind us may take for one that frames.
        Refusal::Field => !theirs.values("content_length").is_empty(),
        _ => false,
    }
}

/// Of a target in absolute form.
fn authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    let is_http = ["http", "https"].iter().any(|http| scheme.eq_ignore_ascii_case(http));
    is_http.then(|| rest.split(['/', '?']).next().unwrap_or_default())
}

/// None of the forms of RFC 9112 section 3.2 that are served here.
fn is_no_target(target: &str, method: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let is_form = match authority(target) {
        Some(authority) => ["a.test", "b.test"].contains(&authority),
        None => target.starts_with('/') || target == "*" && method == "OPTIONS",
    };
    let has_bad_percent = path.split('%').skip(1).any(|after| {
        let digits = after.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    !is_form || has_bad_percent || target.bytes().any(|b| !b.is_ascii_graphic() || b == b'#')
}

fn heads() -> impl Strategy<Value = String> {
    let method = prop_oneof![
        4 => Just("GET"), 4 => Just("POST"), 2 => Just("OPTIONS"), 1 => Just("X-Y"), 1 => Just("G T"), 1 => Just("CONNECT"),
        1 => Just("TRACE"), 1 => Just("get"),
    ];
    let target = prop_oneof![
        6 => "/[a-z0-9/?&=.~:@!$'()*+,;-]{0,20}",
        1 => "/[a-f0-9%/?]{0,12}",
        1 => Just("*".to_owned()),
        1 => Just("http://a.test/x".to_owned()),
        1 => Just("http://a.test".to_owned()),
        1 => Just("http://b.test?x".to_owned()),
        1 => Just("a.test:80".to_owned()),
        1 => "[ -~]{0,12}",
    ];
    let version = prop_oneof![12 => Just("HTTP/1.1"), 2 => Just("HTTP/1.0"), 1 => Just("HTTP/2.0"), 1 => Just("http/1.1")];
    let host = prop_oneof![12 => Just("Host: a.test\r\n"), 1 => Just("")];
    (method, target, version, host, fields())
        .prop_map(|(m, t, v, h, f)| format!("{m} {t} {v}\r\n{h}{}", f.concat()))
}

fn connections() -> impl Strategy<Value = String> {
    let request = (heads(), framed()).prop_map(|(head, (line, body))| format!("{head}{line}\r\n{body}"));
    prop::collection::vec(request, 1..4).prop_map(|requests| requests.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_disagreement_with_hyper_about_requests_has_a_rule(text in connections()) {
        let (Connection { requests: ours, refused }, theirs) = (by_us(text.as_bytes()), by_hyper(text.as_bytes()));
        for ((our, body_at), their) in ours.iter().zip(&theirs) {
            prop_assert!(same_line(&our.first_line, &their.first_line), "{text:?}: {our:?} and {their:?}");
            prop_assert_eq!(&our.fields, &their.fields, "{:?}", text);
            if !same_body(&our.body, &their.body) {
                let is_strict = is_strictly_chunked(&text.as_bytes()[*body_at..]);
                prop_assert!(!is_strict && our.body.end == End::Bad, "{text:?}: {our:?} and {their:?}");
                return Ok(());
            }
        }
        match (theirs.get(ours.len()), ours.get(theirs.len()), refused) {
            (Some(their), _, Some((refusal, at))) => {
                prop_assert!(explains(refusal, &text[at..], their), "{refusal:?}, but hyper takes {their:?} of {text:?}");
            }
            (Some(their), _, None) => prop_assert!(false, "hyper goes on with {their:?} in {text:?}"),
            (None, Some((our, _)), _) => prop_assert!(is_no_uri(&our.first_line[1]), "hyper does not take {our:?} of {text:?}"),
            (None, None, _) => {}
        }
    }
}
