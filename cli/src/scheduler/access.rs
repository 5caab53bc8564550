//! Who may use the API: a token, or a user with a password.
//!
//! Not here: for whom a request is meant and which page sent it (`api::request`).

use std::fmt;

use http::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest as _, Sha256};

/// What a request must bring; any of those that are set will do.
#[derive(Clone, Default)]
pub struct Access {
    /// Sent as `Authorization: token=…` (as DC/OS does) or `Authorization: Bearer …`.
    pub token: Option<String>,
    /// Sent as `Authorization: Basic …`; a user and a password.
    pub credentials: Option<(String, String)>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_open() { "Access(open)" } else { "Access(…)" })
    }
}

impl Access {
    pub fn is_open(&self) -> bool {
        self.token.is_none() && self.credentials.is_none()
    }

    /// Whether the request may pass. Without anything set, an `Authorization` is not looked at.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        if self.is_open() {
            return true;
        }
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (scheme, rest) = given.split_once([' ', '=']).unwrap_or((given, ""));
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("token") || scheme.eq_ignore_ascii_case("bearer") {
            return self.token.as_ref().is_some_and(|token| same(token.as_bytes(), rest.as_bytes()));
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = decode_base64(rest).unwrap_or_default();
            return self
                .credentials
                .as_ref()
                .is_some_and(|(user, password)| same(format!("{user}:{password}").as_bytes(), &pair));
        }
        false
    }
}

/// Compares digests, so that the time it takes tells nothing about the secret.
fn same(secret: &[u8], given: &[u8]) -> bool {
    Sha256::digest(secret) == Sha256::digest(given)
}

/// RFC 4648 section 4, with or without padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut n_bits) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            decoded.push((bits >> n_bits) as u8);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_credentials() {
        let access =
            Access { token: Some("secret".into()), credentials: Some(("ann".into(), "pässword".into())) };
        for (given, expect) in [
            ("token=secret", true),
            ("Bearer secret", true),
            ("bearer secret", true),
            ("token=secre", false),
            ("token=", false),
            ("Bearer", false),
            ("Basic YW5uOnDDpHNzd29yZA==", true),
            ("Basic YW5uOnDDpHNzd29yZA", true),
            ("Basic Tm9uZTpOb25l", false),
            ("Basic !", false),
            ("secret", false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, given.parse().expect("a value"))]);
            assert_eq!(access.admits(&headers), expect, "{given}");
            assert!(Access::default().admits(&headers), "{given} where nothing is asked for");
        }
        assert!(!access.admits(&HeaderMap::new()));
        assert!(!format!("{access:?}").contains("secret"));
    }
}
