//! Who may send a request to a service, and what is answered instead: networks, passwords, redirects.
//!
//! [`Admission::admit`] is a pure decision over [`RequestFacts`]; it holds on every way to the service. Writing the
//! answer down is the message path's. Checking a password takes milliseconds, so that is handed out as a
//! [`Verification`] to be run aside.

mod networks;
mod passwords;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use http::StatusCode;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

pub use networks::{BadNetwork, Network};
pub use passwords::{BadHash, PasswordHash};

/// How a request came to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ServicePort,
    /// By virtual host.
    Hosts,
    /// By `X-Marathon-App-Id`.
    AppIds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// What the decisions look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    pub way: Way,
    pub scheme: Scheme,
    pub client: IpAddr,
    /// As sent, with its port.
    pub host: &'a str,
    /// Path and query.
    pub target: &'a str,
    pub authorization: Option<&'a [u8]>,
    pub forwarded_proto: Option<&'a [u8]>,
}

#[derive(Debug)]
pub enum Admit {
    Continue,
    Redirect {
        status: StatusCode,
        location: String,
    },
    /// 403: the client's address is not let in.
    Deny,
    /// 401, with this `WWW-Authenticate`.
    Challenge(Arc<str>),
    /// Continue when it verifies, otherwise challenge.
    Verify(Verification),
}

/// What one service asks of its requests. Empty: everything continues.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// Empty: everybody.
    pub allow: Vec<Network>,
    pub deny: Vec<Network>,
    pub login: Option<Login>,
    pub to_https: Option<ToHttps>,
    pub root: Option<RootRedirect>,
}

/// `redirect scheme https`.
#[derive(Clone, Debug, PartialEq)]
pub struct ToHttps {
    pub status: StatusCode,
    pub ways: Ways,
    pub proxied: Proxied,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    All,
    /// Only requests by virtual host.
    Hosts,
}

/// A request with `X-Forwarded-Proto: https`, which a balancer in front of this one has decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// Counts as sent over TLS.
    Trusted,
    Ignored,
}

/// `GET /` of one of these hosts goes elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct RootRedirect {
    pub location: Arc<str>,
    /// Lower case, without port. Empty: any.
    pub hosts: Vec<Arc<str>>,
}

impl Admission {
    pub fn is_open(&self) -> bool {
        self.allow.is_empty()
            && self.deny.is_empty()
            && self.login.is_none()
            && self.to_https.is_none()
            && self.root.is_none()
    }

    /// Whether a client may connect at all; the only question in mode tcp.
    pub fn lets_in(&self, client: IpAddr) -> bool {
        (self.allow.is_empty() || self.allow.iter().any(|n| n.contains(client)))
            && !self.deny.iter().any(|n| n.contains(client))
    }

    pub fn admit(&self, facts: &RequestFacts<'_>) -> Admit {
        if self.is_open() {
            return Admit::Continue;
        }
        if !self.lets_in(facts.client) {
            return Admit::Deny;
        }
        // Before the password is asked for: it is not to be sent in the clear.
        if let Some(redirect) = self.to_https.as_ref().and_then(|r| r.of(facts)) {
            return redirect;
        }
        let answer = self.login.as_ref().map_or(Admit::Continue, |login| login.admit(facts));
        match (&answer, &self.root) {
            (Admit::Continue, Some(root)) => root.of(facts).unwrap_or(answer),
            _ => answer,
        }
    }
}

impl ToHttps {
    fn of(&self, facts: &RequestFacts<'_>) -> Option<Admit> {
        let is_proxied = self.proxied == Proxied::Trusted
            && facts.forwarded_proto.is_some_and(|p| p.trim_ascii().eq_ignore_ascii_case(b"https"));
        let is_its_way = self.ways == Ways::All || facts.way == Way::Hosts;
        if facts.scheme == Scheme::Https || is_proxied || !is_its_way {
            return None;
        }
        let host = crate::route::without_port(facts.host);
        Some(Admit::Redirect { status: self.status, location: format!("https://{host}{}", facts.target) })
    }
}

impl RootRedirect {
    fn of(&self, facts: &RequestFacts<'_>) -> Option<Admit> {
        let host = crate::route::without_port(facts.host);
        let is_its_host = self.hosts.is_empty() || self.hosts.iter().any(|h| h.eq_ignore_ascii_case(host));
        let path = facts.target.split('?').next();
        (is_its_host && path == Some("/")).then(|| Admit::Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            location: (*self.location).to_owned(),
        })
    }
}

/// One user's name and password for a realm (RFC 7617).
#[derive(Clone)]
pub struct Login {
    challenge: Arc<str>,
    ways: Ways,
    user: Option<Arc<User>>,
}

struct User {
    name: Box<[u8]>,
    hash: PasswordHash,
    /// What verified last, keyed and hashed, so that a client that asks again costs no second look.
    verified: ArcSwapOption<[u8; 32]>,
}

/// The key of [`User::verified`], of this process alone.
static KEY: LazyLock<[u8; 32]> = LazyLock::new(rand::random);

impl Login {
    pub fn new(realm: &str, user: &str, hash: PasswordHash, ways: Ways) -> Self {
        let user = User { name: user.as_bytes().into(), hash, verified: ArcSwapOption::empty() };
        Self { challenge: challenge(realm), ways, user: Some(Arc::new(user)) }
    }

    /// Lets nobody in: what a login that cannot be read comes to, because letting everybody in would be worse.
    pub fn nobody(ways: Ways) -> Self {
        Self { challenge: challenge("restricted"), ways, user: None }
    }

    fn admit(&self, facts: &RequestFacts<'_>) -> Admit {
        if self.ways == Ways::Hosts && facts.way != Way::Hosts {
            return Admit::Continue;
        }
        let challenge = || Admit::Challenge(Arc::clone(&self.challenge));
        let Some(user) = &self.user else { return challenge() };
        let Some(credentials) = facts.authorization.and_then(basic_credentials) else { return challenge() };
        let Some(colon) = credentials.iter().position(|b| *b == b':') else { return challenge() };
        let (name, password) = (&credentials[..colon], &credentials[colon + 1..]);
        if *name != *user.name || password.len() > MOST_PASSWORD_BYTES {
            return challenge();
        }
        if user.verified.load().as_deref() == Some(&keyed(password)) {
            return Admit::Continue;
        }
        Admit::Verify(Verification {
            user: Arc::clone(user),
            password: password.into(),
            challenge: Arc::clone(&self.challenge),
        })
    }
}

/// Hashing takes time in proportion.
const MOST_PASSWORD_BYTES: usize = 1024;

fn keyed(password: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(*KEY).chain_update(password).finalize().into()
}

fn challenge(realm: &str) -> Arc<str> {
    let is_plain = |c: &char| (' '..='~').contains(c) && !matches!(c, '"' | '\\');
    format!("Basic realm=\"{}\"", realm.chars().filter(is_plain).collect::<String>()).into()
}

/// `Basic dXNlcjpwYXNz` → `user:pass`.
fn basic_credentials(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, encoded) = value.trim_ascii().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    decode_base64(encoded.trim_ascii())
}

/// RFC 4648 section 4; padding may be left out.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for quad in text.chunks(4) {
        let mut value = 0_u32;
        for letter in quad {
            let sextet = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            value = value << 6 | u32::from(sextet);
        }
        let n_bytes = quad.len().checked_sub(1).filter(|n| *n > 0)?;
        value <<= 6 * (4 - quad.len());
        bytes.extend_from_slice(&value.to_be_bytes()[1..=n_bytes]);
    }
    Some(bytes)
}

impl PartialEq for Login {
    fn eq(&self, other: &Self) -> bool {
        let user = |login: &Self| login.user.as_ref().map(|u| (u.name.clone(), u.hash.clone()));
        self.challenge == other.challenge && self.ways == other.ways && user(self) == user(other)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({:?}, {:?})", self.challenge, self.ways)
    }
}

/// A password that has to be looked at.
pub struct Verification {
    user: Arc<User>,
    password: Box<[u8]>,
    challenge: Arc<str>,
}

/// Passwords looked at side by side, over all workers: whoever guesses keeps at most this many threads busy.
const MOST_VERIFICATIONS: usize = 2;
static VERIFICATIONS: Semaphore = Semaphore::const_new(MOST_VERIFICATIONS);

impl Verification {
    /// Looks aside, on a blocking thread, and answers what is to be done now: continue or challenge.
    pub async fn run(self) -> Admit {
        let Self { user, password, challenge } = self;
        // Never closed. Clients wait in turn, and each connection has one request here at most.
        let _permit = VERIFICATIONS.acquire().await;
        let look = tokio::task::spawn_blocking(move || {
            let is_right = user.hash.verifies(&password);
            if is_right {
                user.verified.store(Some(Arc::new(keyed(&password))));
            }
            is_right
        });
        match look.await {
            Ok(true) => Admit::Continue,
            Ok(false) | Err(_) => Admit::Challenge(challenge),
        }
    }
}

impl fmt::Debug for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verification")
    }
}

#[cfg(test)]
mod tests;
