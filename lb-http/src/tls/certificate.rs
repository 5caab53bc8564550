//! A certificate chain with its private key, and the names it may be shown for.
//!
//! Reads PEM as HAProxy's `crt` files have it: chain and key in one text, the key optionally beside it in `FILE.key`.
//! It does not check validity or trust: that is the client's business, and an expired certificate is still served.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

#[derive(Clone, Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    /// Lower case, of its subject alternative names; of its common name when it has none. `*.a.test` is one of them.
    pub names: Vec<Box<str>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("no certificate in {origin}")]
    NoCertificate { origin: String },
    #[error("no private key in {origin}")]
    NoKey { origin: String },
    #[error("bad PEM in {origin}")]
    Pem { origin: String, source: rustls::pki_types::pem::Error },
    #[error("certificate and key in {origin} cannot be used together")]
    Pair { origin: String, source: rustls::Error },
    #[error("the certificate in {origin} cannot be read")]
    Certificate { origin: String },
    #[error("no self-signed certificate could be made")]
    SelfSigned(#[from] rcgen::Error),
}

impl Certificate {
    /// `origin` is what errors call it.
    pub fn from_pem(pem: &[u8], origin: &str) -> Result<Self, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|source| CertificateError::Pem { origin: origin.to_owned(), source })?;
        let leaf =
            chain.first().ok_or_else(|| CertificateError::NoCertificate { origin: origin.to_owned() })?;
        let names = names(leaf).ok_or_else(|| CertificateError::Certificate { origin: origin.to_owned() })?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                CertificateError::NoKey { origin: origin.to_owned() }
            }
            source => CertificateError::Pem { origin: origin.to_owned(), source },
        })?;
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|source| CertificateError::Pair { origin: origin.to_owned(), source })?;
        Ok(Self { key: Arc::new(key), names })
    }

    /// The certificates of a file, or of every `*.pem`, `*.crt` and `*.cert` of a directory, by name.
    pub fn from_path(path: &Path) -> Result<Vec<Self>, CertificateError> {
        files_of(path)?
            .into_iter()
            .map(|file| {
                let mut pem = read(&file)?;
                let beside = PathBuf::from(format!("{}.key", file.display()));
                if beside.exists() {
                    pem.push(b'\n');
                    pem.extend(read(&beside)?);
                }
                Self::from_pem(&pem, &file.display().to_string())
            })
            .collect()
    }

    /// For a balancer that nobody gave a certificate, as Marathon-LB makes one.
    pub fn self_signed() -> Result<Self, CertificateError> {
        let names = ["*", "localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        let made = rcgen::generate_simple_self_signed(names)?;
        let pem = made.cert.pem() + &made.signing_key.serialize_pem();
        Self::from_pem(pem.as_bytes(), "the self-signed certificate")
    }
}

/// What is read for a path: the file, or the certificate files of the directory.
pub(crate) fn files_of(path: &Path) -> Result<Vec<PathBuf>, CertificateError> {
    let failed = |source| CertificateError::Read { path: path.to_owned(), source };
    if !path.metadata().map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let is_certificate = file
            .extension()
            .is_some_and(|extension| ["pem", "crt", "cert"].iter().any(|known| extension == *known));
        if is_certificate && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source })
}

/// RFC 6125 section 6.4.4: the common name counts only when there is no DNS name beside it.
fn names(leaf: &CertificateDer<'_>) -> Option<Vec<Box<str>>> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let mut names: Vec<Box<str>> = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        names.extend(common.map(|name| Box::from(name.to_ascii_lowercase())));
    }
    Some(names)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A certificate and key for `names` as one PEM text.
    pub(crate) fn pem(names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        made.cert.pem() + &made.signing_key.serialize_pem()
    }

    #[test]
    fn names_are_the_alternative_names() {
        let certificate = Certificate::from_pem(pem(&["A.test", "*.b.test"]).as_bytes(), "x").unwrap();
        assert_eq!(certificate.names.iter().map(|n| &**n).collect::<Vec<_>>(), ["a.test", "*.b.test"]);
    }

    #[test]
    fn the_common_name_counts_without_alternative_names() {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "Only.test");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem() + &key.serialize_pem();
        let certificate = Certificate::from_pem(pem.as_bytes(), "x").unwrap();
        assert_eq!(certificate.names.iter().map(|n| &**n).collect::<Vec<_>>(), ["only.test"]);
    }

    #[test]
    fn what_is_missing_is_said() {
        let whole = pem(&["a.test"]);
        let key_at = whole.find("-----BEGIN PRIVATE").unwrap();
        let other = pem(&["b.test"]);
        let other_key = &other[other.find("-----BEGIN PRIVATE").unwrap()..];
        let mixed = format!("{}{other_key}", &whole[..key_at]);
        for (text, expect) in [
            ("", "no certificate in x"),
            (&whole[..key_at], "no private key in x"),
            (&whole[key_at..], "no certificate in x"),
            (&mixed, "certificate and key in x cannot be used together"),
        ] {
            let error = Certificate::from_pem(text.as_bytes(), "x").unwrap_err();
            assert_eq!(error.to_string(), expect);
        }
    }

    #[test]
    fn directories_and_keys_beside_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let whole = pem(&["b.test"]);
        let key_at = whole.find("-----BEGIN PRIVATE").unwrap();
        std::fs::write(directory.path().join("b.crt"), &whole[..key_at]).unwrap();
        std::fs::write(directory.path().join("b.crt.key"), &whole[key_at..]).unwrap();
        std::fs::write(directory.path().join("a.pem"), pem(&["a.test"])).unwrap();
        std::fs::write(directory.path().join("notes.txt"), "nothing").unwrap();
        let certificates = Certificate::from_path(directory.path()).unwrap();
        let names: Vec<_> = certificates.iter().map(|c| &*c.names[0]).collect();
        assert_eq!(names, ["a.test", "b.test"]);
    }

    #[test]
    fn a_self_signed_one_can_be_made() {
        assert!(Certificate::self_signed().unwrap().names.iter().any(|name| &**name == "localhost"));
    }
}
