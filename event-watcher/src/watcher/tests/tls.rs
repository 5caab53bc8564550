//! Certificates: what is refused, and that the right one is not.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn acceptor(&self, name: &str, valid_until: i32) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(valid_until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Ends TLS in front of a member; where it listens.
async fn terminate(acceptor: TlsAcceptor, member: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that refuses the certificate hangs up.
                let Ok(mut inside) = acceptor.accept(stream).await else { return };
                let Ok(mut outside) = TcpStream::connect(member).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn w22_certificates_are_verified_and_nothing_falls_back() {
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    let (authority, stranger) = (Authority::new("ours"), Authority::new("a stranger"));
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("ca.pem");
    std::fs::write(&pem, authority.0.pem()).unwrap();
    for (what, acceptor, ca, expect) in [
        ("good", authority.acceptor("127.0.0.1", 2090), Some(pem.clone()), ""),
        ("expired", authority.acceptor("127.0.0.1", 2020), Some(pem.clone()), "xpired"),
        (
            "of another host",
            authority.acceptor("other.example", 2090),
            Some(pem.clone()),
            "not valid for name",
        ),
        ("of an unknown authority", stranger.acceptor("127.0.0.1", 2090), Some(pem.clone()), "UnknownIssuer"),
        ("not in the system's store", authority.acceptor("127.0.0.1", 2090), None, "UnknownIssuer"),
    ] {
        let address = terminate(acceptor, member.address).await;
        let mut config = Marathon::new(vec![format!("https://{address}").parse().unwrap()]);
        config.ca_file = ca;
        let n_requests = member.requests().len();
        let mut watch = watch(config);
        if expect.is_empty() {
            watch.live().await;
            assert_eq!(ids(&watch.subscriber.latest()), ["/a"]);
            continue;
        }
        let refused = watch.freshness(what, |f| format!("{f:?}").contains("certificate")).await;
        assert!(
            matches!(&refused, Freshness::Unsynced { reason } if reason.contains(expect)),
            "{what}: {refused:?}"
        );
        assert_eq!(member.requests().len(), n_requests, "{what}: not a byte was sent");
    }
    let missing = Marathon { ca_file: Some(folder.path().join("none")), ..config(&[&member]) };
    let (publisher, _subscriber) = publish::channel();
    let error = start(Config::of_one(missing), publisher, CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains("certificates"), "{error}");
}
