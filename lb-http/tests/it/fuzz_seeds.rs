//! The bodies of the fuzz targets (tests/fuzz) on right messages and on a few thousand mutations of them: the same in
//! every run, so that a target neither rots nor has to be built to be checked. `FUZZ_ROUNDS` makes it longer.

#[path = "../../../tests/fuzz/bodies/http_balancer.rs"]
mod http_balancer;
#[path = "../../../tests/fuzz/bodies/http_chunked.rs"]
mod http_chunked;
#[path = "../../../tests/fuzz/bodies/http_connection.rs"]
mod http_connection;
#[path = "../../../tests/fuzz/bodies/http_exchange.rs"]
mod http_exchange;
#[path = "../../../tests/fuzz/bodies/http_request.rs"]
mod http_request;
#[path = "../../../tests/fuzz/bodies/http_response.rs"]
mod http_response;
#[path = "../../../tests/fuzz/bodies/mutations.rs"]
mod mutations;

/// The messages of the raw cases; characters are bytes there.
fn seeds(key: &str) -> Vec<Vec<u8>> {
    let text = include_str!("../fixtures/http_cases.jsonl");
    let of_line = |line: &str| {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let parts = case[key].as_array().cloned().unwrap_or_default();
        let bytes: Vec<u8> =
            parts.iter().filter_map(|part| part.as_str()).flat_map(str::chars).map(|c| c as u8).collect();
        (!bytes.is_empty() && bytes.len() < 2000).then_some(bytes)
    };
    let seeds: Vec<Vec<u8>> = text.lines().filter_map(of_line).collect();
    assert!(seeds.len() > 20, "there are cases with {key}");
    seeds
}

fn check(seeds: &[Vec<u8>], n_rounds: usize, body: fn(&[u8])) {
    const TELLING: [&[u8]; 14] = [
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"\0",
        b"\x80",
        b"0",
        b"f",
        b"-1",
    ];
    mutations::check(seeds, &TELLING, n_rounds, body);
}

#[test]
fn requests() {
    check(&seeds("send"), 20_000, http_request::run);
}

/// Responses of which a proxy must make something, for whoever parses them.
const RESPONSES: [&str; 9] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.0 404 Not Found\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 200 OK\r\nConnection: X-A\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\r\nhello",
];

#[test]
fn responses() {
    check(&RESPONSES.map(|s| s.as_bytes().to_vec()), 20_000, http_response::run);
}

#[test]
fn chunks() {
    let seeds = [
        "5\r\nhello\r\n0\r\n\r\n",
        "a;name=\"value\\\"\"\r\n0123456789\r\n0\r\nX-A: 1\r\n\r\n",
        "ffffffffffffffff\r\n",
        "0005;x\r\nhello\r\n000\r\n\r\nGET / HTTP/1.1\r\n",
    ];
    check(&seeds.map(|s| s.as_bytes().to_vec()), 20_000, http_chunked::run);
}

#[test]
fn connections() {
    check(&seeds("send"), 3000, http_connection::run);
}

#[test]
fn exchanges() {
    check(&RESPONSES.map(|s| s.as_bytes().to_vec()), 200, http_exchange::run);
}
