//! Mode tcp by server name: TLS that the balancer does not end, to instances that do.

use std::sync::Arc;
use std::time::Duration;

use lb_http::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::*;

/// An instance that ends TLS itself, with a certificate of its own: answers each piece with its name and the piece.
struct TlsInstance {
    port: u16,
    certificate: CertificateDer<'static>,
}

/// `announced`: so many bytes come in front of the handshake, and are told in the answer.
async fn tls_instance(name: &'static str, hosts: &[&str], announced: usize) -> TlsInstance {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(hosts).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = ServerConfig::builder().with_no_client_auth();
    let acceptor =
        TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate.clone()], key).unwrap()));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut header = vec![0; announced];
                stream.read_exact(&mut header).await?;
                let mut stream = acceptor.accept(stream).await?;
                let mut piece = [0; 1024];
                loop {
                    let n = stream.read(&mut piece).await?;
                    if n == 0 {
                        return stream.shutdown().await;
                    }
                    stream.write_all(&[name.as_bytes(), b" ", &header, &piece[..n]].concat()).await?;
                }
            });
        }
    });
    TlsInstance { port, certificate }
}

async fn with_https(change: impl FnOnce(&mut Config)) -> Cluster {
    Cluster::with(|config| {
        config.https_listen = Some(([127, 0, 0, 1], 0).into());
        change(config);
    })
    .await
}

fn passed(id: &'static str, hosts: &str) -> AppSpec {
    AppSpec::new(id).label("WAYMARK_0_MODE", "tcp").label("HAPROXY_0_VHOST", hosts)
}

fn trusting(certificate: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// A client that trusts this certificate alone. `None`: the handshake fails.
async fn connect(
    address: std::net::SocketAddr,
    host: &str,
    certificate: &CertificateDer<'static>,
) -> Option<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    soon("handshake", TlsConnector::from(trusting(certificate)).connect(name, stream)).await.ok()
}

async fn ask(stream: &mut TlsStream<TcpStream>, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let n = soon("answer", stream.read(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[tokio::test]
async fn a_host_of_mode_tcp_ends_its_tls_itself() {
    let mut cluster = with_https(|_| {}).await;
    let https = cluster.plane.https_address().unwrap();
    let one = tls_instance("one", &["one.test", "a.wild.test", "web.wild.test"], 0).await;
    let two = tls_instance("two", &["two.test"], 0).await;
    let web = Backend::named().await;
    let of_one = passed("/one", "one.test,*.wild.test").instance(one.port);
    cluster.put(&of_one).await;
    cluster.put(&passed("/two", "two.test").instance(two.port)).await;
    cluster.put(&AppSpec::new("/web").label("HAPROXY_0_VHOST", "web.wild.test").instance(web.port)).await;
    assert!(cluster.plane.problems().is_empty(), "{:?}", cluster.plane.problems());

    for (host, instance, name) in
        [("one.test", &one, "one"), ("A.Wild.test", &one, "one"), ("two.test", &two, "two")]
    {
        let mut stream = connect(https, host, &instance.certificate).await.expect(host);
        assert_eq!(ask(&mut stream, "hello").await, format!("{name} hello"));
        assert_eq!(ask(&mut stream, "again").await, format!("{name} again"));
    }
    // The same TLS by service port, where no name is asked for.
    let mut by_port = connect(of_one.address(), "one.test", &one.certificate).await.unwrap();
    assert_eq!(ask(&mut by_port, "hello").await, "one hello");
    // A more exact host of mode http is ended here, with another certificate; so is what nobody has.
    for host in ["web.wild.test", "nobody.test"] {
        assert!(connect(https, host, &one.certificate).await.is_none(), "{host}");
    }
    // By name, plain text does not lead there.
    let plain = get(cluster.plane.http_address().unwrap(), "Host: one.test\r\n").await;
    assert!(matches!(plain.status(), 400 | 503), "{plain:?}");

    drop(by_port);
    let until_counted = async {
        let row = || cluster.csv_row("marathon_https_in", "FRONTEND");
        while row()["bin"].parse::<u64>().unwrap() < 600 || row()["ereq"] != "2" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("bytes are counted when connections end", until_counted).await;
    let name = format!("one_{}", of_one.port);
    let (backend, port) = (cluster.csv_row(&name, "BACKEND"), cluster.csv_row(&name, "FRONTEND"));
    assert_eq!((&*backend["stot"], &*port["stot"]), ("3", "1"));
    let bytes = |row: &std::collections::BTreeMap<String, String>| row["bout"].parse::<u64>().unwrap();
    assert!(bytes(&backend) > bytes(&port), "{backend:?} {port:?}");
    let row = cluster.csv_row("marathon_https_in", "FRONTEND");
    assert_eq!((&*row["stot"], &*row["ereq"]), ("5", "2"), "two clients did not like the certificate");
    cluster.stop().await;
}

#[tokio::test]
async fn who_is_not_let_in_gets_no_handshake_and_instances_are_told_who_asks() {
    let mut cluster = with_https(|_| {}).await;
    let https = cluster.plane.https_address().unwrap();
    const V1: &str = "PROXY TCP4 127.0.0.1 127.0.0.1 ";
    let told = tls_instance("told", &["told.test"], V1.len() + "12345 12345\r\n".len()).await;
    let closed = tls_instance("closed", &["closed.test"], 0).await;
    cluster.put(&passed("/told", "told.test").label("WAYMARK_0_SEND_PROXY", "v1").instance(told.port)).await;
    let denying = passed("/closed", "closed.test").label("WAYMARK_0_DENY", "127.0.0.0/8");
    cluster.put(&denying.clone().instance(closed.port)).await;

    // Ports have five digits here, by far most of the time; another connection has another port.
    let mut answer = None;
    while answer.is_none() {
        let stream = TcpStream::connect(https).await.unwrap();
        let from = stream.local_addr().unwrap();
        if from.port() < 10000 || https.port() < 10000 {
            continue;
        }
        let name = ServerName::try_from("told.test").unwrap();
        let connected = TlsConnector::from(trusting(&told.certificate)).connect(name, stream);
        let mut stream = soon("handshake", connected).await.unwrap();
        answer = Some((ask(&mut stream, "hello").await, from));
    }
    let (answer, from) = answer.unwrap();
    assert_eq!(answer, format!("told {V1}{} {}\r\nhello", from.port(), https.port()));

    assert!(connect(https, "closed.test", &closed.certificate).await.is_none());
    let name = format!("closed_{}", denying.port);
    assert_eq!(cluster.csv_row(&name, "BACKEND")["dreq"], "1");
    assert_eq!(cluster.csv_row("marathon_https_in", "FRONTEND")["dreq"], "1");
    cluster.stop().await;
}

#[tokio::test]
async fn a_balancer_in_front_tells_whose_connections_it_brings() {
    let mut cluster = with_https(|c| c.accept_proxy = lb_http::AcceptProxy::Required).await;
    let (https, http) = (cluster.plane.https_address().unwrap(), cluster.plane.http_address().unwrap());
    let instance = tls_instance("one", &["one.test"], 28).await;
    let web = Backend::named().await;
    cluster
        .put(
            &passed("/one", "one.test")
                .label("WAYMARK_0_ALLOW", "10.9.8.0/24")
                .label("WAYMARK_0_SEND_PROXY", "v2")
                .instance(instance.port),
        )
        .await;
    cluster.put(&AppSpec::new("/web").label("HAPROXY_0_VHOST", "web.test").instance(web.port)).await;
    for (header, is_let_in) in [
        (&b"PROXY TCP4 10.9.8.7 10.0.0.1 12345 443\r\n"[..], true),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x09\x08\x07\x0a\0\0\x01\x30\x39\x01\xbb", true),
        (b"PROXY TCP4 10.9.9.7 10.0.0.1 12345 443\r\n", false),
        (b"", false),
    ] {
        let mut stream = TcpStream::connect(https).await.unwrap();
        stream.write_all(header).await.unwrap();
        let name = ServerName::try_from("one.test").unwrap();
        let connected = TlsConnector::from(trusting(&instance.certificate)).connect(name, stream);
        let connected = soon("handshake", connected).await;
        assert_eq!(connected.is_ok(), is_let_in, "{header:?}");
        if let Ok(mut stream) = connected {
            stream.write_all(b"hello").await.unwrap();
            let mut answer = vec![0; 4 + 28 + 5];
            soon("answer", stream.read_exact(&mut answer)).await.unwrap();
            // The client's address stands behind the sixteen bytes of the head.
            assert_eq!((&answer[..4], &answer[4 + 16..4 + 20]), (&b"one "[..], &[10, 9, 8, 7][..]));
        }
    }
    let mut client = Client::connect(http).await;
    client.send("PROXY TCP4 10.9.8.7 10.0.0.1 12345 80\r\nGET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    let response = client.response().await;
    assert!(response.body.to_ascii_lowercase().contains("x-forwarded-for: 10.9.8.7"), "{response:?}");
    let mut without = Client::connect(http).await;
    without.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    assert!(without.try_response().await.is_none());
    cluster.stop().await;
}

/// The first bytes of a client's TLS.
fn hello(host: &str, certificate: &CertificateDer<'static>) -> Vec<u8> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(trusting(certificate), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// The same message in records of one byte.
fn crumbs(hello: &[u8]) -> Vec<u8> {
    hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect()
}

#[tokio::test]
async fn hellos_come_in_pieces_or_are_refused() {
    let mut cluster = with_https(|c| c.timeouts.client_header = Duration::from_millis(500)).await;
    let https = cluster.plane.https_address().unwrap();
    let instance = tls_instance("one", &["one.test"], 0).await;
    cluster.put(&passed("/one", "one.test").instance(instance.port)).await;
    let whole = hello("one.test", &instance.certificate);
    const SERVER_HELLO: [u8; 2] = [22, 3];

    // However it is cut, the instance answers with its ServerHello.
    for (pieces, of_one_record) in [
        (vec![&whole[..1], &whole[1..5], &whole[5..60], &whole[60..]], "pieces"),
        (vec![&crumbs(&whole)[..]], "records"),
    ] {
        let mut client = TcpStream::connect(https).await.unwrap();
        client.set_nodelay(true).unwrap();
        for piece in pieces {
            client.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut answer = [0; 2];
        soon("ServerHello", client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, SERVER_HELLO, "{of_one_record}");
    }
    let ereq = |cluster: &Cluster| -> u64 {
        cluster.csv_row("marathon_https_in", "FRONTEND")["ereq"].parse().unwrap()
    };
    assert_eq!(ereq(&cluster), 0);
    // Half of it and the end; half of it and silence; no end in sight; no TLS.
    let endless = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 9]].concat();
    let too_long = [22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    let mut n_refused = 0;
    for (bytes, then_end) in [
        (&whole[..whole.len() / 2], true),
        (&whole[..whole.len() / 2], false),
        (&endless, false),
        (&too_long, false),
        (b"GET / HTTP/1.1\r\n\r\n", false),
    ] {
        let mut client = Client::connect(https).await;
        client.stream.write_all(bytes).await.unwrap();
        if then_end {
            client.stream.shutdown().await.unwrap();
        }
        let mut rest = Vec::new();
        // A reset is as good an end as any.
        let _ = soon("it is closed", client.stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty() || rest[0] == 21, "nothing but an alert: {rest:?}");
        n_refused += 1;
        let counted = async {
            while ereq(&cluster) < n_refused {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("it is counted", counted).await;
    }
    assert_eq!(ereq(&cluster), n_refused);
    let metrics = {
        let mut text = String::new();
        cluster.plane.metrics(&mut text);
        text
    };
    assert!(metrics.contains("waymark_http_tls_failures_total{proxy=\"marathon_https_in\"} 5"), "{metrics}");
    cluster.stop().await;
}

#[tokio::test]
async fn tls_of_one_host_is_one_services_and_the_other_is_told() {
    let mut cluster = with_https(|_| {}).await;
    cluster.put(&AppSpec::new("/web").label("HAPROXY_0_VHOST", "a.test,b.test")).await;
    cluster.put(&passed("/late", "a.test")).await;
    cluster.put(&passed("/paths", "c.test").label("HAPROXY_0_PATH", "/x")).await;
    cluster.put(&AppSpec::new("/all").label("WAYMARK_0_MODE", "tcp").label("HAPROXY_0_PATH", "/x")).await;
    let problems = cluster.plane.problems();
    let told: Vec<(&str, &str)> =
        problems.iter().map(|p| (p.app.as_ref().unwrap().as_str(), &*p.what)).collect();
    assert_eq!(
        told,
        [
            ("/all", "paths need mode http; this service is mode tcp"),
            ("/paths", "paths need mode http; this service is mode tcp"),
            ("/late", "TLS of the virtual host a.test is taken by /web"),
        ]
    );
    let table = cluster.plane.table();
    let of = |name| table.routes.of_server_name(name).map(|i| table.backends[i].service.app.to_string());
    for (name, expect) in [
        (Some("a.test"), None),
        (Some("b.test"), None),
        (Some("c.test"), Some("/paths")),
        (Some("d.test"), None),
        (None, None),
    ] {
        assert_eq!(of(name).as_deref(), expect, "{name:?}");
    }
    // Without the one that had it first, the other gets it; `*` is for whoever names nobody, too.
    cluster.remove("/web").await;
    cluster.put(&passed("/rest", "*")).await;
    let table = cluster.plane.table();
    let of = |name| table.routes.of_server_name(name).map(|i| table.backends[i].service.app.to_string());
    assert_eq!(of(Some("a.test")).as_deref(), Some("/late"));
    assert_eq!(of(Some("x.test")).as_deref(), Some("/rest"));
    assert_eq!(of(None).as_deref(), Some("/rest"));
    cluster.stop().await;
}

#[tokio::test]
async fn a_certificate_of_the_service_ends_tls_for_mode_tcp_too() {
    let scratch = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["mqtt.test".to_owned()]).unwrap();
    let file = scratch.path().join("mqtt.pem");
    std::fs::write(&file, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    // An instance that speaks plain text: first it is told who asks, then it echoes until the client ends.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut cluster = Cluster::start().await;
    let app = AppSpec::new("/mqtt")
        .label("WAYMARK_0_MODE", "tcp")
        .label("WAYMARK_0_SEND_PROXY", "v1")
        .label("HAPROXY_0_SSL_CERT", file.to_str().unwrap())
        .instance(listener.local_addr().unwrap().port());
    cluster.put(&app).await;
    assert!(cluster.plane.problems().is_empty(), "{:?}", cluster.plane.problems());
    let echoing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let mut config = Arc::unwrap_or_clone(trusting(made.cert.der()));
    // Nothing is offered in return, so whatever is spoken inside is fine.
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    let stream = TcpStream::connect(app.address()).await.unwrap();
    let from = stream.local_addr().unwrap().port();
    let name = ServerName::try_from("mqtt.test").unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = soon("handshake", connected).await.unwrap();
    let payload = vec![b'x'; 200_000];
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let send = async {
        writer.write_all(&payload).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut answer = Vec::new();
    let (_, read) = soon("echo", async { tokio::join!(send, reader.read_to_end(&mut answer)) }).await;
    read.expect("it ends as TLS ends");
    let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {}\r\n", app.port);
    assert_eq!(answer.len(), header.len() + payload.len());
    assert!(answer.starts_with(header.as_bytes()));
    soon("instance", echoing).await.unwrap();

    let mut plain = Client::connect(app.address()).await;
    plain.send("CONNECT of something that is not TLS\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = soon("closed", plain.stream.read_to_end(&mut rest)).await;
    let row = || cluster.csv_row(&format!("mqtt_{}", app.port), "FRONTEND");
    let counted = async {
        while row()["ereq"] != "1" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("counted", counted).await;
    assert_eq!(row()["bin"], "200000");
    cluster.stop().await;
}
