//! TLS towards servers: what a label asks of it, and the handshake.
//!
//! A certificate is verified unless the label says otherwise. A server whose authorities cannot be read is not spoken
//! to. Health checks have their own, lesser wants: they share the verifier that believes everybody.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::policy::MinVersion;
use super::table::{Contents, PolicyError};

/// TLS as a label asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    pub verify: Verify,
    /// What is asked for in the handshake (RFC 6066 section 3), and what the certificate must be for. `None`: the
    /// server's address, which cannot be asked for.
    pub name: Option<ServerName<'static>>,
}

/// Who must have signed a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verify {
    /// An authority that this machine trusts.
    System,
    /// One of a PEM file.
    Authorities(PathBuf),
    /// Nobody: whoever answers is believed.
    None,
}

impl fmt::Display for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_ref().map_or("its address".into(), ServerName::to_str);
        match &self.verify {
            Verify::System => {
                write!(f, "TLS, its certificate verified for {name} by this machine's authorities")
            }
            Verify::Authorities(path) => {
                write!(f, "TLS, its certificate verified for {name} by the authorities of {}", path.display())
            }
            Verify::None => {
                f.write_str("TLS, its certificate NOT verified (verify none): whoever answers is believed")
            }
        }
    }
}

pub(super) fn config(verify: &Verify, contents: &Contents) -> Result<Arc<ClientConfig>, PolicyError> {
    let mut roots = RootCertStore::empty();
    match verify {
        Verify::None => return Ok(Arc::clone(&UNVERIFIED)),
        Verify::System => {
            let found = rustls_native_certs::load_native_certs();
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                return Err(PolicyError::NoSystemAuthority);
            }
        }
        Verify::Authorities(path) => {
            let authorities = contents.authorities.get(path).cloned().unwrap_or_default();
            if roots.add_parsable_certificates(authorities).0 == 0 {
                return Err(PolicyError::Authority { path: path.clone() });
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(MinVersion::Tls12.versions())?
        .with_root_certificates(roots);
    Ok(Arc::new(config.with_no_client_auth()))
}

/// Everything that a handshake with one server needs.
pub(crate) struct ToServer {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl ToServer {
    pub(super) fn new(config: &Arc<ClientConfig>, tls: &ServerTls, address: IpAddr) -> Self {
        let name = tls.name.clone().unwrap_or_else(|| ServerName::IpAddress(address.into()));
        Self { connector: Arc::clone(config).into(), name }
    }

    pub(crate) async fn greet(self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name, stream).await
    }
}

/// For those who do not mind whom they talk to.
pub(crate) static UNVERIFIED: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(MinVersion::Tls12.versions())
        .expect("the provider has the suites of TLS 1.2 and 1.3");
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
    Arc::new(config.with_no_client_auth())
});

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
