//! The certificate of DNS over HTTPS: the given one, or one that is made at the start.
//!
//! Nothing is written to disk: clients that need to trust the certificate are given one of their own.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;
use crate::error::{Error, TlsError};

/// Names that a client on this host may ask by.
const NAMES: [&str; 4] = ["localhost", "127.0.0.1", "::1", "leader.mesos"];

pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, Error> {
    let (chain, key) = match tls {
        Tls::SelfSigned => self_signed()?,
        Tls::Given { certificate, key } => given(certificate, key)?,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn self_signed() -> Result<Identity, TlsError> {
    let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}

fn given(certificate: &[u8], key: &[u8]) -> Result<Identity, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>()?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok((chain, PrivateKeyDer::from_pem_slice(key)?))
}
