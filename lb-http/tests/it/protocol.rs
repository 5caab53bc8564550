//! What goes over the wire: headers, bodies, upgrades, refusals.

use std::io::Write;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[tokio::test]
async fn hop_by_hop_headers_go_and_forwarded_ones_come() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::with(|_, request| {
        let mut answer = b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nX-End: 1\r\n".to_vec();
        answer.extend(format!("Content-Length: {}\r\n\r\n{}", request.head.len(), request.head).bytes());
        Reply::Bytes(answer)
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client
        .send(
            "GET /path?q=1 HTTP/1.1\r\nHost: a.test:80\r\nConnection: X-Gone\r\nX-Gone: 1\r\nTE: trailers\r\nKeep-Alive: 1\r\nUpgrade: h2c\r\n\
             Proxy-Connection: keep-alive\r\nX-Kept: 1\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Port: 1\r\n\r\n",
        )
        .await;
    let response = client.response().await;
    for gone in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(response.header(gone), None, "{}", response.head);
    }
    assert_eq!(response.header("x-end"), Some("1"));
    let mut lines: Vec<&str> = response.body.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /path?q=1 HTTP/1.1");
    let id = lines.pop_if(|line| line.starts_with("X-Request-Id: ")).expect("an id, last");
    assert_eq!(id.len(), "X-Request-Id: ".len() + 32);
    let port = format!("X-Forwarded-Port: {}", app.port);
    assert_eq!(
        lines,
        [
            "Host: a.test:80",
            "X-Kept: 1",
            "X-Forwarded-For: 1.2.3.4",
            "X-Forwarded-For: 127.0.0.1",
            &port,
            "Via: 1.1 waymark",
            "X-Forwarded-Proto: http",
        ]
    );
    cluster.stop().await;
}

#[tokio::test]
async fn refused_requests_never_reach_an_instance() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(17 * 1024));
    let fat = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(50 * 1024));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(100));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
        ("GET / HTTP/1.1\r\nHost: a\r\nX y: 1\r\n\r\n", 400),
        (&long, 414),
        (&fat, 431),
        (&many, 431),
    ] {
        let mut client = Client::connect(app.address()).await;
        client.send(request).await;
        let response = client.response().await;
        assert_eq!(response.status(), status, "{}", &request[..request.len().min(80)]);
        assert_eq!(response.header("connection"), Some("close"));
    }
    assert_eq!(backend.n_connections(), 0);
    let mut client = Client::connect(app.address()).await;
    client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 200);
    client.send("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n").await;
    assert!(client.response().await.body.contains("Max-Forwards: 2\r\n"));
    cluster.stop().await;
}

#[tokio::test]
async fn upgraded_connections_carry_bytes_both_ways() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::with(|_, request| {
        assert!(request.head.contains("\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"));
        Reply::Echo(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello".to_vec())
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client
        .send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n\r\nearly")
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("Sec-WebSocket-Accept: x\r\n"), "{head}");
    assert!(head.contains("\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"), "{head}");
    let mut got = client.read_exactly(10).await;
    got.sort_unstable();
    let mut expect = b"helloearly".to_vec();
    expect.sort_unstable();
    assert_eq!(got, expect);
    let piece = "x".repeat(300_000);
    client.send(&piece[..1000]).await;
    assert_eq!(client.read_exactly(1000).await, piece.as_bytes()[..1000]);
    assert_eq!(cluster.plane.backends()[0].servers[0].n_in_flight, 1, "a tunnel is in flight");
    client.stream.shutdown().await.unwrap();
    assert!(client.is_closed().await, "the end of one side is passed on, and comes back");
    let gone = async {
        while cluster.plane.backends()[0].servers[0].n_in_flight > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the tunnel is gone", gone).await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_upgrade_nobody_asked_for_is_a_bad_response() {
    let mut cluster = Cluster::start().await;
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let backend = Backend::with(|_, _| Reply::Bytes(switch.to_vec())).await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    assert_eq!(get(app.address(), "").await.status(), 502);
    cluster.stop().await;
}

#[tokio::test]
async fn a_response_that_is_framed_twice_is_a_bad_response() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::with(|_, request| {
        let framing = match request.head.split(' ').nth(1) {
            Some("/both") => "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            Some("/twice") => "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Some("/list") => "Transfer-Encoding: chunked, chunked\r\n",
            _ => "Transfer-Encoding: gzip\r\n",
        };
        Reply::Last(format!("HTTP/1.1 200 OK\r\n{framing}\r\n3\r\nabc\r\n0\r\n\r\n").into_bytes())
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    for path in ["/both", "/twice", "/list", "/other"] {
        let mut client = Client::connect(app.address()).await;
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(client.response().await.status(), 502, "{path}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn large_bodies_stream_both_ways_at_once() {
    const SIZE: usize = 20 << 20;
    let mut cluster = Cluster::start().await;
    // Sends each piece back as soon as it has come: this stands still unless both directions move.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let mut reader = tokio::io::BufReader::new(&mut reader);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut line).await.unwrap();
        }
        writer
            .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let app = AppSpec::new("/a").instance(port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    let sent: Vec<u8> = (0..SIZE).map(|i| (i / 7 % 251) as u8).collect();
    assert!(
        client.head().await.starts_with("HTTP/1.1 200"),
        "the response begins before the request has ended"
    );
    let expect = sent.clone();
    let (mut reader, mut writer) = client.stream.split();
    let both = async {
        let send = async { writer.write_all(&sent).await.unwrap() };
        let receive = async {
            let mut got = vec![0; SIZE];
            tokio::io::AsyncReadExt::read_exact(&mut reader, &mut got).await.unwrap();
            got
        };
        tokio::join!(send, receive).1
    };
    assert!(soon("the body comes back", both).await == expect);
    cluster.stop().await;
}

#[tokio::test]
async fn a_large_body_that_comes_in_pieces_is_not_held_back() {
    // The balancer waits for much of a quick source; each of these must come through before the next is sent.
    const PIECES: [usize; 4] = [100 << 10, 700 << 10, 1, 50 << 10];
    let mut cluster = Cluster::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (go_on, mut may_go_on) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.split();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(reader));
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("GET /large") {
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PIECES.iter().sum::<usize>());
                writer.write_all(head.as_bytes()).await.unwrap();
                for n in PIECES {
                    writer.write_all(&vec![b'x'; n]).await.unwrap();
                    may_go_on.recv().await.unwrap();
                }
            } else if line.starts_with("GET /small") {
                writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    });
    let app = AppSpec::new("/a").instance(port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    for n in PIECES {
        assert_eq!(client.read_exactly(n).await.len(), n);
        go_on.send(()).await.unwrap();
    }
    // On the same connection, which again has to be woken for little.
    client.send("GET /small HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.body, "ok");
    cluster.stop().await;
}

#[tokio::test]
async fn chunked_bodies_are_framed_anew() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::with(|_, request| {
        let body = String::from_utf8(request.body).unwrap();
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        answer.extend(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).bytes());
        Reply::Bytes(answer)
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    for method in ["POST", "GET"] {
        client.send(&format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!(
            (response.header("transfer-encoding"), &*response.body),
            (Some("chunked"), "abcde"),
            "{method}"
        );
    }
    client.send("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("Transfer-Encoding"), "{head}");
    assert_eq!(client.read_exactly(2).await, b"hi", "HTTP/1.0 knows no chunks");
    assert!(client.is_closed().await);
    cluster.stop().await;
}

#[tokio::test]
async fn head_no_content_and_expect_continue() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::with(|_, request| {
        Reply::Bytes(match request.head.split(' ').next() {
            Some("HEAD") => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec(),
            Some("DELETE") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            _ => ok(&format!("{}{}", request.head, String::from_utf8_lossy(&request.body))),
        })
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.head().await.contains("Content-Length: 1000\r\n"));
    client.send("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 204") && !head.contains("Transfer-Encoding"), "{head}");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 100 "));
    client.send("hi").await;
    let response = client.response().await;
    assert!(
        response.body.ends_with("hi") && response.body.contains("Expect: 100-continue"),
        "{}",
        response.body
    );
    cluster.stop().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::with(|_, request| Reply::Bytes(ok(request.head.split(' ').nth(1).unwrap()))).await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    let requests: String = (0..10).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&requests).await;
    for i in 0..10 {
        assert_eq!(client.response().await.body, format!("/{i}"));
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_closes_idle_connections() {
    let mut cluster = Cluster::start().await;
    let release = tokio_util::sync::CancellationToken::new();
    let held = release.clone();
    let backend = Backend::with(move |_, _| Reply::Held(held.clone(), ok("late"))).await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut busy = Client::connect(app.address()).await;
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let reached = async {
        while backend.n_connections() == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("in flight", reached).await;
    let mut idle = Client::connect(app.address()).await;
    let stopping = tokio::spawn(cluster.stop());
    assert!(idle.is_closed().await);
    let refused = async { while tokio::net::TcpStream::connect(app.address()).await.is_ok() {} };
    soon("nobody listens any more", refused).await;
    release.cancel();
    let last = busy.response().await;
    assert_eq!((&*last.body, last.header("connection")), ("late", Some("close")));
    stopping.await.unwrap();
}

#[tokio::test]
async fn who_asked_before_a_stop_is_answered() {
    let backend = Backend::named().await;
    for _ in 0..16 {
        let mut cluster = Cluster::start().await;
        let app = AppSpec::new("/a").instance(backend.port);
        cluster.put(&app).await;
        // Nothing else runs on this thread until the stop: workers may not even have taken the new port.
        let ask = || {
            let mut client = std::net::TcpStream::connect(app.address()).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            client.set_nonblocking(true).unwrap();
            tokio::net::TcpStream::from_std(client).unwrap()
        };
        let clients: Vec<_> = (0..8).map(|_| ask()).collect();
        let stopping = tokio::spawn(cluster.stop());
        for mut client in clients {
            let mut answer = String::new();
            soon("answer", client.read_to_string(&mut answer)).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        }
        stopping.await.unwrap();
    }
}
