//! What is sent on of what came, line by line.

use super::*;
use crate::http1::request::Method;

fn forwarded(head: &str, forwarding: &Forwarding<'_>) -> Vec<String> {
    let mut fields = Vec::new();
    let parsed = Request::parse(head.as_bytes(), &mut fields).unwrap();
    let mut out = Vec::new();
    request(&mut out, &parsed, forwarding);
    lines(out)
}

fn lines(out: Vec<u8>) -> Vec<String> {
    let text = String::from_utf8(out).unwrap();
    let head = text.strip_suffix("\r\n\r\n").expect("a head ends with an empty line");
    head.split("\r\n").map(str::to_owned).collect()
}

const PLAIN: Forwarding<'_> = Forwarding {
    proto: Proto::OfClient,
    lines: b"X-Ours: 1\r\n",
    request_id: b"0123456789abcdef0123456789abcdef",
    cookies: None,
    target: None,
    edits: Edits::NONE,
};
/// What every request of HTTP/1.1 gets.
const OURS: [&str; 4] = [
    "X-Ours: 1",
    "Via: 1.1 waymark",
    "X-Forwarded-Proto: http",
    "X-Request-Id: 0123456789abcdef0123456789abcdef",
];

#[test]
fn requests() {
    for (head, expect) in [
        ("GET /a?b HTTP/1.1\r\nHost: a\r\n", &["GET /a?b HTTP/1.1", "Host: a"][..]),
        ("GET http://a HTTP/1.1\r\nhOST:a\r\n", &["GET / HTTP/1.1", "hOST:a"]),
        (
            "GET / HTTP/1.1\r\nA: 1 \r\nHost: a\r\nB: \t2\r\nTE: trailers\r\nC: 3\r\nKeep-Alive: 1\r\n\
             Proxy-Connection: x\r\nProxy-Authorization: x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n",
            &["GET / HTTP/1.1", "A: 1", "Host: a", "B: \t2", "C: 3"],
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-One, host,@\r\nConnection: x-two, cookie, x-forwarded-for\r\n\
             x-one: 1\r\nX-Two: 2\r\nX-Three: 3\r\nCookie: a=1\r\nX-Forwarded-For: 1.2.3.4\r\n",
            &["GET / HTTP/1.1", "Host: a", "X-Three: 3", "Cookie: a=1", "X-Forwarded-For: 1.2.3.4"],
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX_Real_IP: 1\r\nForwarded: for=1\r\nX-Forwarded-Port: 1\r\nExpect: 100-continue\r\n",
            &["GET / HTTP/1.1", "Host: a"],
        ),
    ] {
        let mut expect: Vec<&str> = expect.to_vec();
        expect.extend(OURS);
        assert_eq!(forwarded(&format!("{head}\r\n"), &PLAIN), expect, "{head:?}");
    }
}

#[test]
fn requests_whose_last_lines_are_ours() {
    for (head, last) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0010\r\n", &["Content-Length: 10"][..]),
        ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: CHUNKED\r\n", &["Transfer-Encoding: chunked"]),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: UPGRADE\r\nUpgrade: WebSocket\r\n",
            &["Connection: upgrade", "Upgrade: websocket"],
        ),
    ] {
        let lines = forwarded(&format!("{head}\r\n"), &PLAIN);
        assert_eq!(lines[lines.len() - last.len()..], *last, "{head:?}");
    }
    let options = forwarded("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n", &PLAIN);
    assert!(options.contains(&"Max-Forwards: 2".to_owned()) && options[0] == "OPTIONS * HTTP/1.1");
    let old = forwarded("GET / HTTP/1.0\r\n\r\n", &PLAIN);
    assert_eq!(old[..2], ["GET / HTTP/1.1", "Host: "], "HTTP/1.1 wants one");
    assert!(old.contains(&"Via: 1.0 waymark".to_owned()));
    let kept = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: theirs\r\nX-Forwarded-Proto: https\r\n\r\n";
    let kept = forwarded(kept, &PLAIN);
    assert!(
        !kept
            .iter()
            .any(|l| l == "X-Request-Id: 0123456789abcdef0123456789abcdef" || l == "X-Forwarded-Proto: http"),
        "{kept:?}"
    );
    let edits = Edits { remove: vec![b"x-gone"[..].into()], add: b"X-New: 1\r\n".to_vec() };
    let edited = Forwarding { cookies: Some(b"Cookie: b=2\r\n"), edits: &edits, ..PLAIN };
    let lines = forwarded("GET / HTTP/1.1\r\nHost: a\r\nX-Gone: 1\r\nCookie: a=1\r\n\r\n", &edited);
    assert_eq!(lines[1..3], ["Host: a", "Cookie: b=2"]);
    assert_eq!(lines.last().map(String::as_str), Some("X-New: 1"));
}

#[test]
fn responses() {
    for (head, method, coding, expect) in [
        (
            "HTTP/1.0 200 OK\r\nA: 1\r\n",
            Method::Get,
            Coding::Chunked,
            &["HTTP/1.1 200 OK", "A: 1", "L: 1", "Transfer-Encoding: chunked"][..],
        ),
        (
            "HTTP/1.1 200\r\nContent-Length: 05\r\nContent-Length: 5\r\n",
            Method::Get,
            Coding::Plain,
            &["HTTP/1.1 200 ", "L: 1", "Content-Length: 5"],
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-hop, close, set-cookie\r\nX-Hop: 1\r\nSet-Cookie: a=1\r\nKeep-Alive: x\r\n",
            Method::Get,
            Coding::Plain,
            &["HTTP/1.1 200 OK", "Set-Cookie: a=1", "L: 1"],
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n",
            Method::Head,
            Coding::Plain,
            &["HTTP/1.1 200 OK", "Content-Length: 7", "L: 1"],
        ),
        (
            "HTTP/1.1 204 No\r\nContent-Length: 7\r\n",
            Method::Get,
            Coding::Plain,
            &["HTTP/1.1 204 No", "L: 1"],
        ),
        (
            "HTTP/1.1 304 No\r\nContent-Length: 7\r\nETag: x\r\n",
            Method::Get,
            Coding::Plain,
            &["HTTP/1.1 304 No", "Content-Length: 7", "ETag: x", "L: 1"],
        ),
    ] {
        let bytes = format!("{head}\r\n");
        let parsed = Response::parse(bytes.as_bytes(), method, Vec::new()).unwrap();
        let mut out = Vec::new();
        let delivery = Delivery { coding, connection: b"", lines: &[b"L: ", b"1\r\n"], edits: Edits::NONE };
        response(&mut out, &parsed, bytes.as_bytes(), &delivery);
        assert_eq!(lines(out), expect, "{head:?}");
    }
}
