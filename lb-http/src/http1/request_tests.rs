//! What is a request and what is refused, line by line.

use super::*;

fn parsed(head: &str) -> Result<(String, Framing), u16> {
    let mut fields = Vec::new();
    let request = Request::parse(head.as_bytes(), &mut fields).map_err(Refusal::status)?;
    let (slash, rest) = request.path_and_query();
    let target = slash.into_iter().chain(rest.iter().copied()).map(char::from).collect();
    Ok((target, request.framing))
}

#[test]
fn first_lines() {
    for (line, expect) in [
        ("GET / HTTP/1.1", Ok("/")),
        ("get /a?b=%zz HTTP/1.1", Ok("/a?b=%zz")),
        ("GET //a//b HTTP/1.0", Ok("//a//b")),
        ("GET /%2e%2e HTTP/1.1", Ok("/%2e%2e")),
        ("GET http://a.test/x?y HTTP/1.1", Ok("/x?y")),
        ("GET HTTP://A.test HTTP/1.1", Ok("/")),
        ("GET http://a.test?q HTTP/1.1", Ok("/?q")),
        ("OPTIONS http://a.test HTTP/1.1", Ok("*")),
        ("OPTIONS * HTTP/1.1", Ok("*")),
        ("GET * HTTP/1.1", Err(400)),
        ("GET admin HTTP/1.1", Err(400)),
        ("GET a.test:80 HTTP/1.1", Err(400)),
        ("GET ftp://a.test/ HTTP/1.1", Err(400)),
        ("GET http:///x HTTP/1.1", Err(400)),
        ("GET http://u@a.test/ HTTP/1.1", Err(400)),
        ("GET http://b.test/ HTTP/1.1", Err(400)),
        ("GET /%zz HTTP/1.1", Err(400)),
        ("GET /# HTTP/1.1", Err(400)),
        ("GET /\u{7f} HTTP/1.1", Err(400)),
        ("GET /\u{e9} HTTP/1.1", Err(400)),
        ("GET  / HTTP/1.1", Err(400)),
        ("GET / HTTP/1.1 ", Err(400)),
        (" GET / HTTP/1.1", Err(400)),
        ("GET /a b HTTP/1.1", Err(400)),
        ("GET\t/\tHTTP/1.1", Err(400)),
        ("GET /", Err(400)),
        ("GET / http/1.1", Err(400)),
        ("GET / HTTP/1.10", Err(400)),
        ("GET / HTTP/2.0", Err(505)),
        ("GET / HTTP/1.2", Err(505)),
        ("G\"T / HTTP/1.1", Err(400)),
        ("CONNECT a.test:80 HTTP/1.1", Err(405)),
        ("TRACE / HTTP/1.1", Err(405)),
        ("MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM / HTTP/1.1", Err(501)),
    ] {
        let head = format!("{line}\r\nHost: a.test\r\n\r\n");
        assert_eq!(parsed(&head).map(|(target, _)| target), expect.map(str::to_owned), "{line:?}");
        let first_line = check_first_line(format!("{line}\r\n").as_bytes());
        assert!(first_line.is_ok() || expect.is_err(), "{line:?} is judged early as it is judged late");
    }
}

#[test]
fn framings_and_hosts() {
    const HOST: &str = "Host: a.test\r\n";
    for (fields, expect) in [
        ("", Ok(Framing::None)),
        ("Content-Length: 5\r\n", Ok(Framing::Length(5))),
        ("Content-Length: 010\r\n", Ok(Framing::Length(10))),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", Err(400)),
        ("Content-Length: 5, 5\r\n", Err(400)),
        ("Content-Length:\r\n", Err(400)),
        ("Content-Length: 9223372036854775808\r\n", Err(400)),
        ("Transfer-Encoding: Chunked\r\n", Ok(Framing::Chunked)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(400)),
        ("Transfer-Encoding: chunked, chunked\r\n", Err(400)),
        ("Transfer-Encoding: ,chunked\r\n", Err(400)),
        ("Transfer-Encoding: identity\r\n", Err(400)),
        ("Transfer-Encoding:\r\n", Err(400)),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Err(400)),
        ("Transfer_Encoding: chunked\r\n", Err(400)),
        ("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", Err(400)),
        ("Connection: content-length\r\nContent-Length: 5\r\n", Ok(Framing::Length(5))),
        ("Host: a.test\r\n", Err(400)),
        ("Expect: 100-Continue\r\n", Ok(Framing::None)),
        ("Expect: tea\r\n", Err(417)),
        (" folded: 1\r\n", Err(400)),
        ("a: 1\r\n folded\r\n", Err(400)),
    ] {
        let head = format!("POST / HTTP/1.1\r\n{HOST}{fields}\r\n");
        assert_eq!(parsed(&head).map(|(_, framing)| framing), expect, "{fields:?}");
    }
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(parsed(old).unwrap_err(), 400);
    for (host, expect) in [("", Err(400)), ("Host: \r\n", Ok(())), ("Host: a,b\r\n", Err(400))] {
        assert_eq!(parsed(&format!("GET / HTTP/1.1\r\n{host}\r\n")).map(|_| ()), expect, "{host:?}");
    }
    assert!(parsed("GET / HTTP/1.0\r\n\r\n").is_ok(), "HTTP/1.0 knows no Host");
    let many = format!("GET / HTTP/1.1\r\n{HOST}Connection: {}\r\n\r\n", "a,".repeat(MOST_OPTIONS));
    assert_eq!(parsed(&many).unwrap_err(), 400);
}

#[test]
fn what_connections_become() {
    use Persistence::{Close, Keep};
    for (version, fields, persistence, wants_websocket) in [
        ("1.1", "", Keep, false),
        ("1.1", "Connection: CLOSE\r\n", Close, false),
        ("1.1", "Connection: keep-alive, close\r\n", Close, false),
        ("1.0", "", Close, false),
        ("1.0", "Connection: keep-alive\r\n", Keep, false),
        ("1.1", "Connection: x, Upgrade\r\nUpgrade: WebSocket\r\n", Keep, true),
        ("1.1", "Upgrade: websocket\r\n", Keep, false),
        ("1.1", "Connection: upgrade\r\nUpgrade: h2c\r\n", Keep, false),
        ("1.1", "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n", Keep, false),
        ("1.1", "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n", Keep, false),
        ("1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", Close, false),
    ] {
        let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let mut all = Vec::new();
        let request = Request::parse(head.as_bytes(), &mut all).unwrap();
        assert_eq!(
            (request.persistence, request.wants_websocket),
            (persistence, wants_websocket),
            "{version} {fields:?}"
        );
    }
}
