//! Time-outs and limits, with short ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(300);

/// Not before the time-out, and not long after.
async fn takes_short<T>(future: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let value = future.await;
    let took = began.elapsed();
    assert!(took >= SHORT - Duration::from_millis(120) && took < SHORT * 8, "{took:?}");
    value
}

#[tokio::test]
async fn an_instance_that_does_not_answer_is_a_504() {
    let mut cluster = Cluster::with(|c| c.timeouts.server_head = SHORT).await;
    let never = tokio_util::sync::CancellationToken::new();
    let backend = Backend::with(move |_, _| Reply::Held(never.clone(), vec![])).await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    let response = takes_short(client.get("")).await;
    assert_eq!((response.status(), response.header("waymark-reason")), (504, Some("response-timeout")));
    assert_eq!(backend.n_connections(), 1, "not tried again");
    cluster.stop().await;
}

#[tokio::test]
async fn an_instance_that_does_not_accept_is_a_503() {
    let mut cluster = Cluster::with(|c| c.timeouts.connect = SHORT).await;
    // A listener whose backlog is full drops what comes.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _filling: Vec<_> = (0..4).map(|_| tokio::spawn(tokio::net::TcpStream::connect(address))).collect();
    let mut connected = tokio::net::TcpStream::connect(address).await;
    let is_full = async {
        while connected.is_ok() {
            let next = tokio::time::timeout(SHORT, tokio::net::TcpStream::connect(address)).await;
            connected = next.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        }
    };
    soon("the backlog is full", is_full).await;
    let app = AppSpec::new("/a").instance(address.port());
    cluster.put(&app).await;
    let response = takes_short(get(app.address(), "")).await;
    assert_eq!((response.status(), response.header("waymark-reason")), (503, Some("connect-failed")));
    cluster.stop().await;
}

#[tokio::test]
async fn slow_senders_get_408_and_idle_ones_are_closed() {
    let mut cluster = Cluster::with(|c| {
        c.timeouts.client_header = SHORT;
        c.timeouts.client_body_idle = SHORT;
        c.timeouts.client_keepalive = SHORT;
    })
    .await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    for begin in ["G", "GET / HTTP/1.1\r\nHost: a\r\nX: "] {
        let mut client = Client::connect(app.address()).await;
        client.send(begin).await;
        let response = takes_short(client.response()).await;
        assert_eq!(response.status(), 408, "{begin:?}");
        assert!(client.is_closed().await);
    }
    let mut client = Client::connect(app.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbegin").await;
    let response = takes_short(client.response()).await;
    assert_eq!((response.status(), response.header("connection")), (408, Some("close")));

    let mut silent = Client::connect(app.address()).await;
    assert!(takes_short(silent.is_closed()).await);
    let mut idle = Client::connect(app.address()).await;
    idle.get("").await;
    assert!(takes_short(idle.is_closed()).await, "closed without a word");
    cluster.stop().await;
}

#[tokio::test]
async fn a_response_that_stands_still_is_cut() {
    let mut cluster = Cluster::with(|c| c.timeouts.server_body_idle = SHORT).await;
    let backend =
        Backend::with(|_, _| Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin".to_vec()))
            .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(takes_short(client.try_response()).await.is_none());
    cluster.stop().await;
}

#[tokio::test]
async fn chunk_extensions_and_interim_responses_are_limited_as_configured() {
    let mut cluster = Cluster::with(|c| {
        c.limits.chunk_extension_bytes = 4;
        c.limits.interim_responses = 1;
    })
    .await;
    let backend = Backend::with(|_, request| {
        let n_hints = usize::from(request.head.contains("/two")) + 1;
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".repeat(n_hints);
        Reply::Bytes([hints.as_bytes(), &ok("hello")].concat())
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    for (extension, status) in [(";a=1", 200), (";a=12", 400)] {
        let body = format!("1{extension}\r\nx\r\n0\r\n\r\n");
        let mut client = Client::connect(app.address()).await;
        client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
        assert_eq!(last_status(&mut client).await, status, "{extension}");
    }
    for (path, status) in [("/one", 200), ("/two", 502)] {
        let mut client = Client::connect(app.address()).await;
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(last_status(&mut client).await, status, "{path}");
    }
    cluster.stop().await;
}

/// Of the response after all interim ones.
async fn last_status(client: &mut Client) -> u16 {
    loop {
        let head = client.head().await;
        match head.split(' ').nth(1).and_then(|status| status.parse().ok()) {
            Some(103) => {}
            status => return status.expect("a status"),
        }
    }
}

/// Whose fault it was: the instance had said it all.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut_and_has_aborted() {
    let mut cluster = Cluster::with(|c| c.timeouts.server_body_idle = SHORT).await;
    let backend = Backend::with(|_, _| Reply::Bytes(ok(&"x".repeat(64 << 20)))).await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let row = || cluster.csv_row(&format!("a_{}", app.port), "BACKEND");
    soon("it is cut", async {
        while row()["cli_abrt"] != "1" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(row()["srv_abrt"], "0");
    cluster.stop().await;
}

/// TLS takes what the balancer itself says before it can be sent.
#[tokio::test]
async fn a_client_that_does_not_read_refusals_over_tls_is_closed() {
    let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    let cluster = Cluster::with(|c| {
        c.timeouts.server_body_idle = SHORT;
        c.https_listen = Some(([127, 0, 0, 1], 0).into());
        c.tls.inline_certificates = vec![made.cert.pem() + &made.signing_key.serialize_pem()];
    })
    .await;
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config =
        tokio_rustls::rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(cluster.plane.https_address().unwrap()).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = soon("handshake", connected).await.unwrap();
    let asking = tokio::spawn(async move {
        let requests = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".repeat(100);
        while stream.write_all(requests.as_bytes()).await.is_ok() {}
    });
    soon("the client is closed", asking).await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn a_silent_tunnel_is_closed() {
    let mut cluster = Cluster::with(|c| c.timeouts.tunnel_idle = SHORT).await;
    let backend = Backend::with(|_, _| {
        Reply::Echo(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
        )
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    client.head().await;
    assert!(takes_short(client.is_closed()).await);
    cluster.stop().await;
}

#[tokio::test]
async fn a_client_has_only_so_many_connections() {
    let mut cluster = Cluster::with(|c| c.limits.connections_per_client = 2).await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let (mut first, mut second) =
        (Client::connect(app.address()).await, Client::connect(app.address()).await);
    first.get("").await;
    second.get("").await;
    assert!(Client::connect(app.address()).await.is_closed().await);
    assert_eq!(cluster.csv_row(&format!("a_{}", app.port), "FRONTEND")["dcon"], "1");
    drop(first);
    let again = async {
        loop {
            let mut client = Client::connect(app.address()).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            if client.try_response().await.is_some() {
                break;
            }
        }
    };
    soon("the place is free again", again).await;
    cluster.stop().await;
}

/// Before it is known which protocol is spoken: silence, a preface that does not go on, a handshake that does not
/// begin.
#[tokio::test]
async fn who_does_not_say_what_is_spoken_is_closed_in_time() {
    let any = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut cluster = Cluster::with(|c| {
        c.timeouts.client_header = SHORT;
        c.http2 = lb_http::Http2::WithPriorKnowledge;
        c.https_listen = any;
    })
    .await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let https = cluster.plane.https_address().unwrap();
    for (address, begin) in [
        (app.address(), &b""[..]),
        (app.address(), b"P"),
        (app.address(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n"),
        (https, b""),
        // A ClientHello that says how long it is, and is not.
        (https, b"\x16\x03\x01\x02\x00\x01"),
    ] {
        let mut client = Client::connect(address).await;
        client.send_bytes(begin).await;
        assert!(takes_short(client.is_closed()).await, "{begin:?}");
    }
    let counted = async {
        let line = "waymark_http_tls_failures_total{proxy=\"marathon_https_in\"} 2";
        let mut metrics = String::new();
        while !metrics.lines().any(|l| l == line) {
            metrics.clear();
            cluster.plane.metrics(&mut metrics);
            tokio::task::yield_now().await;
        }
    };
    soon("both are counted", counted).await;
    let mut metrics = String::new();
    cluster.plane.metrics(&mut metrics);
    let silent =
        format!("waymark_http_refused_connections_total{{proxy=\"a_{}\",reason=\"silent\"}} 3", app.port);
    assert!(metrics.lines().any(|l| l == silent), "{metrics}");
    // What is HTTP/1.1 after all is told why.
    let mut client = Client::connect(app.address()).await;
    client.send("GET / HT").await;
    assert_eq!(takes_short(client.response()).await.status(), 408);
    cluster.stop().await;
}

#[tokio::test]
async fn a_listener_has_only_so_many_connections() {
    let mut cluster = Cluster::with(|c| c.limits.connections_per_listener = 1).await;
    let backend = Backend::named().await;
    let (app, other) = (AppSpec::new("/a").instance(backend.port), AppSpec::new("/b").instance(backend.port));
    cluster.put(&app).await;
    cluster.put(&other).await;
    let mut first = Client::connect(app.address()).await;
    first.get("").await;
    assert!(Client::connect(app.address()).await.is_closed().await);
    assert_eq!(get(other.address(), "").await.status(), 200, "another listener");
    let mut metrics = String::new();
    cluster.plane.metrics(&mut metrics);
    let line = format!("haproxy_frontend_denied_connections_total{{proxy=\"a_{}\"}} 1", app.port);
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
    cluster.stop().await;
}
