//! Who the watcher says it is: the `Authorization` value, and how to get a new one when it is refused.
//!
//! Nothing secret is in an error, a `Debug` text or a log line. To whom it is sent is the client's business.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use reqwest::header::HeaderValue;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::config::Credentials;
use crate::error::ConfigError;

/// A login that brings a token that is refused, too, is not repeated sooner.
const LOGIN_INTERVAL: Duration = Duration::from_secs(10);
const LOGIN_DEADLINE: Duration = Duration::from_secs(5);
/// The login token only has to live as long as the login.
const LOGIN_TOKEN_LIFE: Duration = Duration::from_secs(300);

/// No valid credentials could be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("cannot read {path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{path} is not a DC/OS service account (uid, private_key, login_endpoint)")]
    NotAnAccount { path: String },
    #[error("{path} holds no token that a header could carry")]
    NotAToken { path: String },
    #[error("the private key in {path} cannot sign")]
    Key { path: String },
    #[error("the login at {at} failed: {why}")]
    Login { at: String, why: String },
    #[error("the last login was less than {LOGIN_INTERVAL:?} ago")]
    TooSoon,
}

pub(crate) struct Auth {
    http: reqwest::Client,
    credentials: Credentials,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    value: Option<HeaderValue>,
    last_login: Option<Instant>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

/// As DC/OS writes it for `dcos security org service-accounts`.
#[derive(Deserialize)]
struct Account {
    uid: String,
    private_key: String,
    login_endpoint: String,
}

#[derive(Deserialize)]
struct LoggedIn {
    token: String,
}

impl Auth {
    pub(crate) fn new(http: reqwest::Client, credentials: Credentials) -> Result<Self, ConfigError> {
        let value = match &credentials {
            Credentials::Basic { user, password } => {
                let text =
                    format!("Basic {}", base64(format!("{user}:{password}").as_bytes(), STANDARD, true));
                Some(secret(&text).ok_or(ConfigError::Credentials)?)
            }
            Credentials::Token(token) => {
                Some(secret(&format!("token={token}")).ok_or(ConfigError::Credentials)?)
            }
            Credentials::TokenFile(_) | Credentials::ServiceAccountFile(_) => None,
        };
        Ok(Self { http, credentials, current: Mutex::new(Current { value, last_login: None }) })
    }

    /// The value to send; the first one is fetched.
    pub(crate) async fn value(&self) -> Result<HeaderValue, AuthError> {
        let mut current = self.current.lock().await;
        if let Some(value) = &current.value {
            return Ok(value.clone());
        }
        let value = self.obtain(&mut current).await?;
        current.value = Some(value.clone());
        Ok(value)
    }

    /// Another value than the one that was refused. `None`: there is no other.
    pub(crate) async fn instead_of(&self, refused: &HeaderValue) -> Result<Option<HeaderValue>, AuthError> {
        let mut current = self.current.lock().await;
        if let Some(value) = current.value.as_ref().filter(|value| *value != refused) {
            return Ok(Some(value.clone()));
        }
        if matches!(self.credentials, Credentials::Basic { .. } | Credentials::Token(_)) {
            return Ok(None);
        }
        let value = self.obtain(&mut current).await?;
        current.value = Some(value.clone());
        Ok(Some(value).filter(|value| value != refused))
    }

    async fn obtain(&self, current: &mut Current) -> Result<HeaderValue, AuthError> {
        match &self.credentials {
            Credentials::TokenFile(path) => {
                let text = read(path)?;
                secret(&format!("token={}", text.trim()))
                    .ok_or_else(|| AuthError::NotAToken { path: path.display().to_string() })
            }
            Credentials::ServiceAccountFile(path) => {
                let now = crate::watcher::now();
                if current.last_login.is_some_and(|last| now.duration_since(last) < LOGIN_INTERVAL) {
                    return Err(AuthError::TooSoon);
                }
                current.last_login = Some(now);
                self.log_in(path).await
            }
            // Both have their value from the start.
            Credentials::Basic { .. } | Credentials::Token(_) => Err(AuthError::TooSoon),
        }
    }

    /// DC/OS's identity and access manager: `POST {uid, token}` with a token signed by the account's key.
    async fn log_in(&self, path: &Path) -> Result<HeaderValue, AuthError> {
        let shown = path.display().to_string();
        let account: Account = serde_json::from_str(&read(path)?)
            .map_err(|_| AuthError::NotAnAccount { path: shown.clone() })?;
        let token = login_token(&account).ok_or(AuthError::Key { path: shown.clone() })?;
        let url = url::Url::parse(&account.login_endpoint)
            .map_err(|_| AuthError::NotAnAccount { path: shown.clone() })?;
        let at = url.origin().ascii_serialization();
        let failed = |why: String| AuthError::Login { at: at.clone(), why };
        let body = serde_json::json!({"uid": account.uid, "token": token});
        let asking = async {
            let sent = self.http.post(url).json(&body).send().await;
            let response = sent.map_err(|e| failed(crate::error::chain(&e.without_url())))?;
            if !response.status().is_success() {
                return Err(failed(format!("it answered {}", response.status())));
            }
            let answer: LoggedIn =
                response.json().await.map_err(|_| failed("no token in its answer".into()))?;
            secret(&format!("token={}", answer.token)).ok_or(AuthError::NotAToken { path: shown })
        };
        match tokio::time::timeout(LOGIN_DEADLINE, asking).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failed(format!("no answer within {LOGIN_DEADLINE:?}"))),
        }
    }
}

fn read(path: &Path) -> Result<String, AuthError> {
    let failed = |source| AuthError::File { path: path.display().to_string(), source };
    std::fs::read_to_string(path).map_err(failed)
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A JSON Web Token (RFC 7519) signed with RS256 (RFC 7518 section 3.3).
fn login_token(account: &Account) -> Option<String> {
    let key = match PrivateKeyDer::from_pem_slice(account.private_key.as_bytes()).ok()? {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()?,
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok()?,
        _ => return None,
    };
    // The receiver compares it with its own clock; nothing here depends on it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let head = serde_json::json!({"alg": "RS256", "typ": "JWT"});
    let claims = serde_json::json!({"uid": account.uid, "exp": (now + LOGIN_TOKEN_LIFE).as_secs()});
    let part = |value: &serde_json::Value| base64(value.to_string().as_bytes(), URL_SAFE, false);
    let signed = format!("{}.{}", part(&head), part(&claims));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
    Some(format!("{signed}.{}", base64(&signature, URL_SAFE, false)))
}

/// RFC 4648 section 4.
const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// RFC 4648 section 5.
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn base64(bytes: &[u8], alphabet: &[u8; 64], padded: bool) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0, |group, n| (group << 8) | u32::from(chunk.get(n).copied().unwrap_or(0)));
        for n in 0..4 {
            let digit = alphabet[(group >> (18 - 6 * n)) as usize & 63];
            match n <= chunk.len() {
                true => text.push(digit as char),
                false if padded => text.push('='),
                false => {}
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_rfc() {
        for (text, padded, bare) in [
            ("", "", ""),
            ("f", "Zg==", "Zg"),
            ("fo", "Zm8=", "Zm8"),
            ("foo", "Zm9v", "Zm9v"),
            ("None:None", "Tm9uZTpOb25l", "Tm9uZTpOb25l"),
            ("\u{3ff}\u{3ff}", "z7/Pvw==", "z7_Pvw"),
        ] {
            assert_eq!(base64(text.as_bytes(), STANDARD, true), padded);
            assert_eq!(base64(text.as_bytes(), URL_SAFE, false), bare);
        }
    }

    #[tokio::test]
    async fn a_token_file_is_read_again_when_its_token_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\n").unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let auth = Auth::new(http, Credentials::TokenFile(file.path().to_owned())).unwrap();
        let first = auth.value().await.unwrap();
        assert_eq!(first, "token=first");
        assert_eq!(auth.instead_of(&first).await.unwrap(), None, "the same one again is no help");
        std::fs::write(file.path(), "second\n").unwrap();
        assert_eq!(auth.value().await.unwrap(), "token=first", "only a refusal makes it look");
        assert_eq!(auth.instead_of(&first).await.unwrap().unwrap(), "token=second");
        assert_eq!(
            auth.instead_of(&first).await.unwrap().unwrap(),
            "token=second",
            "somebody else has looked"
        );
        std::fs::remove_file(file.path()).unwrap();
        let error = auth.instead_of(&auth.value().await.unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("cannot read") && !error.contains("second"), "{error}");
        assert!(!format!("{auth:?}").contains("second"));
    }
}
