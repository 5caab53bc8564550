//! Messages of HTTP/2 on their way to endpoints and back: streamed, trailed, interim, early, cut and given up.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::http2_client::*;
use crate::support::*;

#[tokio::test]
async fn interim_responses_and_trailers_pass() {
    let (listener, port) = endpoint().await;
    let (cluster, mut client) = service(&AppSpec::new("/a").instance(port)).await;
    let (mut response, mut body) = client.begin("POST", "/", &[("expect", "100-continue")], false).await;
    let mut server = accept(&listener).await;
    let head = read_until(&mut server, "\r\n\r\n").await;
    assert!(
        head.contains("Transfer-Encoding: chunked\r\n") && head.contains("expect: 100-continue\r\n"),
        "{head}"
    );
    server
        .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    for (status, link) in [(StatusCode::EARLY_HINTS, Some("</a>")), (StatusCode::CONTINUE, None)] {
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx));
        let interim = soon("an interim response", interim).await.unwrap().unwrap();
        assert_eq!(interim.status(), status);
        assert_eq!(interim.headers().get("link").map(|v| v.to_str().unwrap()), link);
    }
    body.send_data(Bytes::from_static(b"question"), false).unwrap();
    let mut trailer = HeaderMap::new();
    trailer.insert("x-sum", "1".parse().unwrap());
    // What frames or authenticates may not come so late.
    trailer.insert("authorization", "none".parse().unwrap());
    body.send_trailers(trailer).unwrap();
    let sent = read_until(&mut server, "0\r\nx-sum: 1\r\n\r\n").await;
    assert!(sent.starts_with("8\r\nquestion\r\n"), "{sent}");
    server
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nanswer\r\n0\r\nX-End: yes\r\nContent-Length: 1\r\n\r\n")
        .await
        .unwrap();
    let answer = answer(response).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "answer"));
    assert_eq!((answer.trailers.len(), &answer.trailers["x-end"]), (1, &"yes".parse().unwrap()));
    assert!(!answer.headers.contains_key("transfer-encoding"), "{answer:?}");
    drop(client);
    cluster.stop().await;
}

#[tokio::test]
async fn an_answer_may_come_before_the_upload_has_ended() {
    let (listener, port) = endpoint().await;
    let (cluster, mut client) = service(&AppSpec::new("/a").instance(port)).await;
    let (response, mut body) = client.begin("POST", "/", &[], false).await;
    body.send_data(Bytes::from_static(b"begin"), false).unwrap();
    let mut server = accept(&listener).await;
    read_until(&mut server, "\r\n\r\n5\r\nbegin\r\n").await;
    server.write_all(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    let answer = answer(response).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (413, "no"));
    // What the client sends on is taken, so that it could have looked at the answer later as well.
    soon("the rest", send_all(&mut body, Bytes::from(vec![b'x'; 2 << 20]))).await;
    // The endpoint has not read the request: nobody else gets its connection.
    let mut rest = Vec::new();
    soon("close", server.read_to_end(&mut rest)).await.ok();
    drop(client);
    cluster.stop().await;
}

#[tokio::test]
async fn a_reset_stream_ends_its_connection_to_the_endpoint_and_no_other() {
    let (listener, port) = endpoint().await;
    let (cluster, mut client) = service(&AppSpec::new("/a").instance(port)).await;
    for head in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin"] {
        let (response, mut stream) = client.begin("GET", "/", &[], true).await;
        let mut server = accept(&listener).await;
        read_until(&mut server, "\r\n\r\n").await;
        server.write_all(head.as_bytes()).await.unwrap();
        let response = match head {
            "" => Err(response),
            _ => Ok(soon("head", response).await.unwrap()),
        };
        stream.send_reset(Reason::CANCEL);
        assert_eq!(soon("close", server.read(&mut [0])).await.unwrap_or(0), 0, "{head:?}");
        drop(response);
    }
    // Of a request that has ended, it serves the next.
    let mut server = None;
    for _ in 0..3 {
        let (response, _) = client.begin("GET", "/", &[], true).await;
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(accept(&listener).await),
        };
        read_until(server, "\r\n\r\n").await;
        server.write_all(&ok("hello")).await.unwrap();
        assert_eq!(answer(response).await.unwrap().body, "hello");
    }
    // Whoever leaves altogether gives up all of its streams.
    let (response, _stream) = client.begin("GET", "/", &[], true).await;
    let mut server = server.expect("it has served three");
    read_until(&mut server, "\r\n\r\n").await;
    client.connection.abort();
    assert_eq!(soon("close", server.read(&mut [0])).await.unwrap_or(0), 0);
    drop(response);
    cluster.stop().await;
}

#[tokio::test]
async fn what_an_endpoint_breaks_off_is_reset_and_never_ends_well() {
    let backend = Backend::with(|_, request| {
        let text = match request.head.split(' ').nth(1).unwrap_or_default() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin",
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n",
            "/bad" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\nx",
            "/head" => "HTTP/1.1 200 OK\r\nContent-Le",
            "/switch" => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            }
            _ => "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        };
        Reply::Last(text.into())
    })
    .await;
    let (cluster, mut client) = service(&AppSpec::new("/a").instance(backend.port)).await;
    for path in ["/length", "/chunks"] {
        let (response, _) = client.begin("GET", path, &[], true).await;
        let error = answer(response).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{path}");
    }
    for (path, reason) in [("/bad", "bad-response"), ("/head", "no-response"), ("/switch", "bad-response")] {
        let answer = client.get(path, &[]).await;
        assert_eq!(
            (answer.status, &answer.headers["waymark-reason"]),
            (502, &reason.parse().unwrap()),
            "{path}"
        );
    }
    assert_eq!(client.get("/", &[]).await.body, "until the end");
    drop(client);
    cluster.stop().await;
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let backend = Backend::with(|_, request| {
        Reply::Bytes(match request.head.split(' ').next() {
            Some("HEAD") => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec(),
            Some("PUT") => {
                b"HTTP/1.1 204 No Content\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\n".to_vec()
            }
            Some("POST") => ok(&request.head),
            _ => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"1\"\r\n\r\n".to_vec(),
        })
    })
    .await;
    let (cluster, mut client) = service(&AppSpec::new("/a").instance(backend.port)).await;
    for (method, status, length) in [("HEAD", 200, Some("5")), ("PUT", 204, None), ("GET", 304, Some("7"))] {
        let answer = client.ask(method, "/", &[]).await;
        assert_eq!((answer.status, &*answer.body), (status, ""), "{method}");
        let said = answer.headers.get("content-length").map(|v| v.to_str().unwrap());
        assert_eq!(said, length, "{method}");
        for name in ["connection", "keep-alive", "x-hop"] {
            assert!(!answer.headers.contains_key(name), "{answer:?}");
        }
    }
    let posted = client.ask("POST", "/", &[]).await;
    assert!(posted.body.contains("\r\nContent-Length: 0\r\n"), "{}", posted.body);
    assert_eq!(backend.n_connections(), 1, "every one of them leaves its connection to the next");
    drop(client);
    cluster.stop().await;
}

#[tokio::test]
async fn large_bodies_stream_both_ways_at_once() {
    const N_BYTES: usize = 4 << 20;
    let (listener, port) = endpoint().await;
    let (cluster, mut client) = service(&AppSpec::new("/a").instance(port)).await;
    let length = N_BYTES.to_string();
    let (response, mut body) = client.begin("POST", "/", &[("content-length", &length)], false).await;
    let mut server = accept(&listener).await;
    read_until(&mut server, "\r\n\r\n").await;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {N_BYTES}\r\n\r\n");
    server.write_all(head.as_bytes()).await.unwrap();
    // Everything that comes is sent back while it comes: who held one direction up would stop the other.
    let echo = tokio::spawn(async move {
        let (mut reader, mut writer) = server.split();
        tokio::io::copy(&mut reader, &mut writer).await
    });
    let sent: Bytes = (0..N_BYTES).map(|i| b'a' + (i / 1000 % 26) as u8).collect();
    let (got, ()) = tokio::join!(answer(response), send_all(&mut body, sent.clone()));
    assert!(got.unwrap().body.as_bytes() == &*sent, "what came back is what was sent");
    drop(client);
    echo.abort();
    cluster.stop().await;
}

/// Neither side may send without end what the other does not take.
#[tokio::test]
async fn nobody_is_sent_more_than_it_takes() {
    const N_BYTES: usize = 64 << 20;
    let (listener, port) = endpoint().await;
    let (cluster, mut client) = service(&AppSpec::new("/a").instance(port)).await;
    let (response, mut body) = client.begin("POST", "/", &[], false).await;
    let mut server = accept(&listener).await;
    let sending = tokio::spawn(async move { send_all(&mut body, Bytes::from(vec![b'x'; N_BYTES])).await });
    read_until(&mut server, "\r\n\r\n").await;
    server
        .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {N_BYTES}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let stuck = tokio::spawn(async move {
        let mut n_written = 0;
        let piece = vec![b'y'; 1 << 16];
        // The client reads nothing: once no write fits for a second, none will.
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), server.write(&piece)).await {
            n_written += written.unwrap();
        }
        (n_written, server)
    });
    let response = soon("head", response).await.unwrap();
    // Its connection stays open, or the client would be told that nobody takes its body.
    let (n_written, server) = soon("the endpoint is held up", stuck).await.unwrap();
    assert!(n_written < N_BYTES / 2, "{n_written} bytes were taken of the endpoint that nobody reads");
    assert!(!sending.is_finished(), "the endpoint reads nothing");
    drop((response, server));
    sending.abort();
    drop(client);
    cluster.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered() {
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    let mut cluster = Cluster::with(|c| {
        knows_http2(c);
        c.timeouts.client_body_idle = Duration::from_millis(300);
    })
    .await;
    cluster.put(&app).await;
    let mut client = Streams::connect(app.address()).await;
    let (response, mut body) = client.begin("POST", "/", &[], false).await;
    body.send_data(Bytes::from_static(b"begin"), false).unwrap();
    assert_eq!(answer(response).await.unwrap().status, 408);
    assert_eq!(client.get("/", &[]).await.status, 200, "the connection goes on");
    drop(client);
    cluster.stop().await;
}
