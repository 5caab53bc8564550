//! Responses of endpoints.

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lb_http::http1::Framing;
use lb_http::http1::request::Method;
use lb_http::http1::response::{BadResponse, Response};
use lb_http::http1::scan::{Scan, Scanned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// The response proper, which interim ones may go before, and its body as it came.
fn by_us(mut input: &[u8], method: Method) -> Result<(Message, &[u8]), BadResponse> {
    loop {
        let mut scan = Scan::default();
        let n = loop {
            match scan.advance(input, &LIMITS)? {
                Scanned::FirstLine(_) => {}
                Scanned::Partial => return Err(BadResponse::StatusLine),
                Scanned::Head(n) => break n,
            }
        };
        let (head, rest) = input.split_at(n);
        let response = Response::parse(head, method, Vec::new())?;
        if response.is_interim() {
            input = rest;
            continue;
        }
        let body = match response.framing {
            Framing::None => BodyRead::default(),
            Framing::UntilClose => BodyRead { bytes: rest.to_vec(), ..BodyRead::default() },
            Framing::Length(length) => {
                let bytes = rest[..rest.len().min(length as usize)].to_vec();
                let end = if bytes.len() as u64 == length { End::Whole } else { End::Bad };
                BodyRead { bytes, end, ..BodyRead::default() }
            }
            Framing::Chunked => our_chunks(rest).0,
        };
        let version = String::from_utf8_lossy(&head[..8]).into_owned();
        let first_line = vec![version, response.status.to_string()];
        return Ok((Message { first_line, fields: super::ours(head, &response.fields), body }, rest));
    }
}

fn by_hyper(input: &[u8], method: Method) -> Option<Message> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without IO");
    runtime.block_on(async {
        let (client, mut server) = tokio::io::duplex(64 * 1024);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(client)).await.expect("nothing is said yet");
        tokio::spawn(connection);
        let method = if method == Method::Head { "HEAD" } else { "GET" };
        let request =
            hyper::Request::builder().method(method).uri("/").body(String::new()).expect("a request");
        let answer = async {
            let mut asked = [0; 1024];
            // The client may have given up.
            let _ = server.read(&mut asked).await;
            let _ = server.write_all(input).await;
            let _ = server.shutdown().await;
        };
        let (response, ()) = tokio::join!(sender.send_request(request), answer);
        let (head, body) = response.ok()?.into_parts();
        let first_line = vec![format!("{:?}", head.version), head.status.as_u16().to_string()];
        Some(Message { first_line, fields: hypers(&head.headers), body: hypers_body(body).await })
    })
}

/// What is wrong with a response that hyper takes and we refuse. `text` begins with its head.
fn explains(bad: BadResponse, text: &str, theirs: &Message) -> bool {
    let [version, status] = &theirs.first_line[..] else { return false };
    let encodings = theirs.values("transfer-encoding");
    let lengths = theirs.values("content-length");
    match bad {
        // RFC 9110 section 15.
        BadResponse::StatusLine => status.parse::<u16>().is_ok_and(|status| status >= 600),
        BadResponse::LineEnd => head_lines(text).iter().any(is_ended_badly),
        BadResponse::Framing => {
            encodings.len() > 1
                || encodings.iter().any(|value| !value.eq_ignore_ascii_case(b"chunked"))
                || !encodings.is_empty() && (version == "HTTP/1.0" || !lengths.is_empty())
                || lengths.iter().any(|value| *value != lengths[0] || !is_length(value))
        }
        _ => false,
    }
}

fn responses() -> impl Strategy<Value = String> {
    let status = prop_oneof![
        8 => Just("200 OK"), 1 => Just("204 No Content"), 1 => Just("304 Not Modified"), 1 => Just("404"), 1 => Just("500 "),
        1 => Just("599 \u{e9}"), 1 => Just("600 x"), 1 => Just("099 x"), 1 => Just("20 x"), 1 => Just("2000 x"), 1 => Just("200 a\tb"),
        1 => Just(" 200 OK"),
    ];
    let version = prop_oneof![12 => Just("HTTP/1.1"), 2 => Just("HTTP/1.0"), 1 => Just("HTTP/2.0"), 1 => Just("http/1.1")];
    let interim = prop_oneof![
        6 => Just(""), 1 => Just("HTTP/1.1 100 Continue\r\n\r\n"), 1 => Just("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"),
    ];
    (interim, version, status, fields(), framed())
        .prop_map(|(i, v, s, f, (line, body))| format!("{i}{v} {s}\r\n{}{line}\r\n{body}", f.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_disagreement_with_hyper_about_responses_has_a_rule(text in responses(), is_head in any::<bool>()) {
        let method = if is_head { Method::Head } else { Method::Get };
        match (by_us(text.as_bytes(), method), by_hyper(text.as_bytes(), method)) {
            (Ok((our, body)), Some(their)) => {
                prop_assert_eq!(&our.first_line, &their.first_line, "{:?}", &text);
                prop_assert_eq!(&our.fields, &their.fields, "{:?}", &text);
                if !same_body(&our.body, &their.body) {
                    let is_strict = is_strictly_chunked(body);
                    prop_assert!(!is_strict && our.body.end == End::Bad, "{text:?}: {our:?} and {their:?}");
                }
            }
            (Err(bad), Some(their)) => {
                // Interim ones are as they should be here.
                let begin = if text.starts_with("HTTP/1.1 1") { text.find("\r\n\r\n").map_or(0, |at| at + 4) } else { 0 };
                prop_assert!(explains(bad, &text[begin..], &their), "{bad:?}, but hyper takes {their:?} of {text:?}");
            }
            (Ok((our, _)), None) => prop_assert!(false, "hyper does not take {our:?} of {text:?}"),
            (Err(_), None) => {}
        }
    }
}
