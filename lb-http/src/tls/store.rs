//! Server name → certificate: the exact name, else the wildcard above it, else the first certificate.
//!
//! HAProxy's `crt` list without `strict-sni`. It does not decide what else a host asks of its clients.

use std::sync::Arc;

use foldhash::HashMap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;

#[derive(Debug, Default)]
pub(crate) struct Store {
    /// `*.a.test` is kept as `.a.test`. One name may have a certificate for each kind of key.
    by_name: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// For clients that name nobody, or nobody known.
    default: Vec<Arc<CertifiedKey>>,
}

impl Store {
    /// The first certificate is the default; so are the others of exactly its names, with other kinds of keys.
    pub(crate) fn new<'a>(certificates: impl IntoIterator<Item = &'a Certificate>) -> Self {
        let mut store = Self::default();
        let mut default_names: Option<&[Box<str>]> = None;
        for certificate in certificates {
            if **default_names.get_or_insert(&certificate.names) == *certificate.names {
                store.default.push(Arc::clone(&certificate.key));
            }
            for name in &certificate.names {
                let name = name.strip_prefix('*').unwrap_or(name);
                store.by_name.entry(name.into()).or_default().push(Arc::clone(&certificate.key));
            }
        }
        store
    }

    fn find(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let above = || name.find('.').and_then(|dot| self.by_name.get(&name[dot..]));
        self.by_name.get(name).or_else(above).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Store {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let keys = name.as_deref().map_or(&self.default[..], |name| self.find(name));
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        // None of them fits: the handshake will say so in the right words.
        keys.iter().find(fits).or(keys.first()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificate::tests::pem;
    use super::*;

    #[test]
    fn names_find_their_certificate() {
        let make = |names: &[&str]| Certificate::from_pem(pem(names).as_bytes(), "x").unwrap();
        let all = [make(&["default.test"]), make(&["*.a.test", "a.test"]), make(&["b.a.test"])];
        let store = Store::new(&all);
        for (name, expect) in [
            ("default.test", 0),
            ("a.test", 1),
            ("x.a.test", 1),
            ("b.a.test", 2),
            // A wildcard stands for one label (RFC 6125 section 6.4.3).
            ("y.x.a.test", 0),
            ("other.test", 0),
            ("test", 0),
        ] {
            assert!(Arc::ptr_eq(&store.find(name)[0], &all[expect].key), "{name}");
        }
        assert!(Store::new([]).find("a.test").is_empty());
    }
}
