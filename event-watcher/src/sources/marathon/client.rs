//! HTTP to the members of one Marathon: whom to ask, redirects, credentials, deadlines and size limits.
//!
//! It decides nothing about when to ask, and reads no bodies but error messages. Answers are asked for uncompressed,
//! so no small answer can become a large one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Response, StatusCode, redirect};
use url::{Origin, Url};

use super::wire;
use crate::catalog::AppId;
use crate::config::{Config, Credentials};
use crate::error::{ConfigError, FetchError};

const MAX_REDIRECTS: usize = 3;
/// How long one member may think before the next one is asked as well (RFC 8305 section 5).
const NEXT_MEMBER_AFTER: Duration = Duration::from_millis(250);
/// An error message longer than this is not shown.
const MAX_ERROR_BYTES: usize = 4096;
/// How long one app may take to be answered; the list may take [`Shared::list_head_deadline`].
const APP_HEAD_DEADLINE: Duration = Duration::from_secs(5);
const LEADER_HEADER: &str = "x-marathon-leader";

#[derive(Clone, Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    members: Vec<Url>,
    authorization: Option<HeaderValue>,
    stream_head_deadline: Duration,
    /// A large cluster's list is computed for seconds before its first byte.
    list_head_deadline: Duration,
    request_deadline: Duration,
    max_answer_bytes: usize,
}

/// A stream that answered 200, and where reads that go with it should be sent.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub response: Response,
    pub base: Base,
}

/// The address to which reads go: the member behind the event stream, so that a read knows what an event told.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    url: Url,
    /// The configured member that it was found through; the next to ask when it fails.
    member: usize,
}

impl Base {
    pub(crate) fn host(&self) -> String {
        host(&self.url)
    }
}

/// What a read of one app brought.
#[derive(Debug)]
pub(crate) enum Found {
    Body(Vec<u8>),
    Gone,
}

impl Client {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut members = config.schedulers.clone();
        let mut credentials = config.credentials.clone();
        if members.is_empty() {
            return Err(ConfigError::NoScheduler);
        }
        for url in &mut members {
            if credentials.is_none() && !url.username().is_empty() {
                let (user, password) = (decoded(url.username()), decoded(url.password().unwrap_or_default()));
                credentials = Some(Credentials::Basic { user, password });
            }
            // Both fail only for URLs without a host, which are refused next. Nothing secret stays in what is shown.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
                return Err(ConfigError::NotHttp(url.to_string()));
            }
        }
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(config.connect_timeout)
            .tcp_keepalive(Duration::from_secs(5))
            .tcp_keepalive_interval(Duration::from_secs(5))
            .tcp_keepalive_retries(3)
            .user_agent(concat!("waymark/", env!("CARGO_PKG_VERSION")));
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else may be first; either way there is one afterwards.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        if members.iter().all(|url| url.scheme() == "http") {
            // No certificate will be looked at, so a machine without a certificate store must not be an error.
            builder = builder.tls_certs_only([]);
        }
        let shared = Shared {
            http: builder.build().map_err(ConfigError::Client)?,
            members,
            authorization: credentials.map(|c| authorization(&c)).transpose()?,
            stream_head_deadline: config.connect_timeout,
            list_head_deadline: config.request_deadline / 3,
            request_deadline: config.request_deadline,
            max_answer_bytes: config.max_answer_bytes,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn n_members(&self) -> usize {
        self.shared.members.len()
    }

    pub(crate) fn member(&self, index: usize) -> Base {
        let member = index % self.shared.members.len();
        Base { url: self.shared.members[member].clone(), member }
    }

    /// Opens the event stream at the first member that gives one. Members are asked in order from `first`, the next
    /// one as soon as the one before has failed or thought for a quarter of a second.
    pub(crate) async fn open_stream(&self, first: usize, kinds: &[&str]) -> Result<OpenStream, FetchError> {
        let mut waiting: std::collections::VecDeque<Base> =
            (0..self.n_members()).map(|n| self.member(first + n)).collect();
        let mut attempts = FuturesUnordered::new();
        let mut failure: Option<FetchError> = None;
        loop {
            if let Some(base) = waiting.pop_front() {
                attempts.push(self.open_stream_at(base, kinds));
            }
            let next = if waiting.is_empty() {
                attempts.next().await
            } else {
                match tokio::time::timeout(NEXT_MEMBER_AFTER, attempts.next()).await {
                    Ok(next) => next,
                    Err(_) => continue,
                }
            };
            match next {
                Some(Ok(stream)) => return Ok(stream),
                // An answer about credentials or a missing stream tells more than an unreachable member.
                Some(Err(error)) => match &failure {
                    Some(FetchError::Auth { .. } | FetchError::NoStream { .. }) => {}
                    _ => failure = Some(error),
                },
                // Every attempt is over, so the last one has left its failure.
                None => {
                    if let Some(failure) = failure.take() {
                        return Err(failure);
                    }
                }
            }
        }
    }

    async fn open_stream_at(&self, base: Base, kinds: &[&str]) -> Result<OpenStream, FetchError> {
        let mut url = endpoint(&base.url, ["v2", "events"]);
        url.query_pairs_mut()
            .append_pair("plan-format", "light")
            .extend_pairs(kinds.iter().map(|kind| ("event_type", kind)));
        let (response, url) =
            self.request(url, "text/event-stream", self.shared.stream_head_deadline).await?;
        let host = host(&url);
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_ACCEPTABLE => {
                return Err(FetchError::NoStream { host, why: response.status().to_string() });
            }
            _ => return Err(refusal(host, response).await),
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("text/event-stream")) {
            return Err(FetchError::NoStream { host, why: format!("it sent {kind:?}") });
        }
        // Reads go to the leader behind a redirect, unless that would mean to go there without credentials.
        let origin = url.origin();
        let reads_follow = origin != base.url.origin()
            && (self.shared.authorization.is_none() || self.is_configured(&origin));
        let base = if reads_follow { Base { url: with_origin(&base.url, &url), ..base } } else { base };
        Ok(OpenStream { response, base })
    }

    /// The whole list of apps.
    pub(crate) async fn list(&self, base: &Base) -> Result<Vec<u8>, FetchError> {
        let query = "embed=apps.tasks&embed=apps.deployments&embed=apps.readiness";
        let (response, host) =
            self.read(base, &["v2", "apps"], Some(query), self.shared.list_head_deadline).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(host, response).await);
        }
        self.body(response, host, self.shared.max_answer_bytes).await
    }

    pub(crate) async fn app(&self, base: &Base, id: &AppId) -> Result<Found, FetchError> {
        let path: Vec<&str> = ["v2", "apps"].into_iter().chain(id.segments()).collect();
        let (response, host) = self.read(base, &path, Some("embed=app.readiness"), APP_HEAD_DEADLINE).await?;
        match response.status() {
            StatusCode::OK => self.body(response, host, self.shared.max_answer_bytes).await.map(Found::Body),
            StatusCode::NOT_FOUND => {
                // Marathon's own 404 has a message; a proxy's page must not remove an app.
                let body = self.body(response, host.clone(), MAX_ERROR_BYTES).await?;
                match serde_json::from_slice::<wire::ErrorMessage>(&body) {
                    Ok(_) => Ok(Found::Gone),
                    Err(source) => Err(FetchError::Malformed { host, source }),
                }
            }
            _ => Err(refusal(host, response).await),
        }
    }

    /// The framework's name, when the scheduler tells one.
    pub(crate) async fn framework(&self, base: &Base) -> Result<Option<String>, FetchError> {
        let (response, host) = self.read(base, &["v2", "info"], None, APP_HEAD_DEADLINE).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(host, response).await);
        }
        let body = self.body(response, host.clone(), self.shared.max_answer_bytes).await?;
        let info: wire::Info =
            serde_json::from_slice(&body).map_err(|source| FetchError::Malformed { host, source })?;
        Ok(info.marathon_config.and_then(|c| c.framework_name))
    }

    /// Reads from `base`, or from the other members when it cannot be reached or has no leader to ask.
    async fn read(
        &self,
        base: &Base,
        path: &[&str],
        query: Option<&str>,
        head_deadline: Duration,
    ) -> Result<(Response, String), FetchError> {
        let others = (0..self.n_members()).map(|n| self.member(base.member + n).url);
        let mut failure = None;
        let mut tried = Vec::new();
        for root in std::iter::once(base.url.clone()).chain(others) {
            if tried.contains(&root) {
                continue;
            }
            let mut url = endpoint(&root, path.iter().copied());
            url.set_query(query);
            tried.push(root);
            match self.request(url, "application/json", head_deadline).await {
                Ok((response, _))
                    if response.status().is_server_error() && tried.len() < self.n_members() =>
                {
                    failure = Some(FetchError::Status {
                        host: host(response.url()),
                        status: response.status(),
                        message: String::new(),
                    });
                }
                Ok((response, url)) => return Ok((response, host(&url))),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| FetchError::RedirectLoop { host: host(&base.url) }))
    }

    /// One request, with its redirects. Credentials go to configured members only.
    async fn request(
        &self,
        mut url: Url,
        accept: &'static str,
        head_deadline: Duration,
    ) -> Result<(Response, Url), FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            if let Some(authorization) = &self.shared.authorization
                && self.is_configured(&url.origin())
            {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            let sending = self.shared.http.get(url.clone()).headers(headers).send();
            let response = match tokio::time::timeout(head_deadline, sending).await {
                Ok(sent) => sent.map_err(|source| FetchError::Connect {
                    host: host(&url),
                    source: source.without_url(),
                })?,
                Err(_) => {
                    return Err(FetchError::Silent { host: host(&url), limit: head_deadline });
                }
            };
            if !response.status().is_redirection() {
                return Ok((response, url));
            }
            url = self.redirected(&url, &response)?;
        }
        Err(FetchError::RedirectLoop { host: host(&url) })
    }

    fn redirected(&self, url: &Url, response: &Response) -> Result<Url, FetchError> {
        let headers = response.headers();
        let location = headers.get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let foreign =
            |target: &str| FetchError::ForeignRedirect { host: host(url), target: target.to_owned() };
        let mut target = url.join(location).map_err(|_| foreign(location))?;
        let _ = target.set_username("");
        let _ = target.set_password(None);
        let origin = target.origin();
        let is_leader = || {
            let leader = headers.get(LEADER_HEADER).and_then(|v| v.to_str().ok())?;
            Some(Url::parse(leader).ok()?.origin() == origin)
        };
        // From https back to http is nobody's leader.
        let keeps_tls = url.scheme() == "http" || target.scheme() == "https";
        if self.is_configured(&origin) || (keeps_tls && is_leader() == Some(true)) {
            Ok(target)
        } else {
            Err(foreign(&origin.ascii_serialization()))
        }
    }

    fn is_configured(&self, origin: &Origin) -> bool {
        self.shared.members.iter().any(|url| url.origin() == *origin)
    }

    async fn body(
        &self,
        response: Response,
        host: String,
        limit_bytes: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let limit = self.shared.request_deadline;
        let reading = read_body(response, host.clone(), limit_bytes);
        tokio::time::timeout(limit, reading).await.unwrap_or(Err(FetchError::Silent { host, limit }))
    }
}

async fn read_body(mut response: Response, host: String, limit_bytes: usize) -> Result<Vec<u8>, FetchError> {
    let expected = response.content_length().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let mut body = Vec::with_capacity(expected.min(limit_bytes).min(1 << 20));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > limit_bytes => {
                return Err(FetchError::TooLarge { host, limit_bytes });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(source) => return Err(FetchError::Body { host, source: source.without_url() }),
        }
    }
}

/// What a status that is not the wanted one means.
async fn refusal(host: String, response: Response) -> FetchError {
    let status = response.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return FetchError::Auth { host, status };
    }
    let reading = read_body(response, host.clone(), MAX_ERROR_BYTES);
    let body = tokio::time::timeout(NEXT_MEMBER_AFTER, reading).await;
    let message = match body {
        Ok(Ok(body)) => {
            serde_json::from_slice(&body).map_or(String::new(), |e: wire::ErrorMessage| e.message)
        }
        _ => String::new(),
    };
    FetchError::Status { host, status, message }
}

fn authorization(credentials: &Credentials) -> Result<HeaderValue, ConfigError> {
    let text = match credentials {
        Credentials::Basic { user, password } => {
            format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
        }
        Credentials::Token(token) => format!("token={token}"),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| ConfigError::Credentials)?;
    value.set_sensitive(true);
    Ok(value)
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0, |group, n| (group << 8) | u32::from(chunk.get(n).copied().unwrap_or(0)));
        for n in 0..4 {
            let digit = ALPHABET[(group >> (18 - 6 * n)) as usize & 63];
            text.push(if n <= chunk.len() { digit as char } else { '=' });
        }
    }
    text
}

fn decoded(text: &str) -> String {
    url::form_urlencoded::parse(text.replace('+', "%2B").as_bytes())
        .next()
        .map_or(String::new(), |(key, _)| key.into_owned())
}

/// `path` below the root of a member, which may have a prefix of its own.
fn endpoint<'a>(root: &Url, path: impl IntoIterator<Item = &'a str>) -> Url {
    let mut url = root.clone();
    url.set_query(None);
    url.set_fragment(None);
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}

/// `root` with the scheme, host and port of `other`.
fn with_origin(root: &Url, other: &Url) -> Url {
    let mut url = other.clone();
    url.set_path(root.path());
    url.set_query(None);
    url
}

fn host(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_rfc() {
        for (text, expect) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("None:None", "Tm9uZTpOb25l")]
        {
            assert_eq!(base64(text.as_bytes()), expect);
        }
    }

    #[test]
    fn endpoints_keep_the_prefix_of_a_member() {
        for (root, id, expect) in [
            ("http://m:8080", "/a/b", "http://m:8080/v2/apps/a/b"),
            ("http://m:8080/", "/a", "http://m:8080/v2/apps/a"),
            ("https://m/service/marathon?x=1", "/a b/c?d", "https://m/service/marathon/v2/apps/a%20b/c%3Fd"),
        ] {
            let id = AppId::new(id);
            let url = endpoint(&root.parse().unwrap(), ["v2", "apps"].into_iter().chain(id.segments()));
            assert_eq!(url.as_str(), expect);
        }
    }

    #[test]
    fn credentials_in_an_address_are_used_and_not_shown() {
        let config = Config::new(vec!["http://us%40er:s%3Acret+@m:8080/".parse().unwrap()]);
        let client = Client::new(&config).unwrap();
        let sent = client.shared.authorization.clone().unwrap();
        assert_eq!(sent, format!("Basic {}", base64(b"us@er:s:cret+")));
        let shown = format!("{client:?}");
        assert!(!shown.contains("cret") && !shown.contains(sent.to_str().unwrap()), "{shown}");
    }

    #[test]
    fn addresses_must_be_http() {
        for bad in ["ftp://m/", "data:x", "unix:/x"] {
            let error = Client::new(&Config::new(vec![bad.parse().unwrap()])).unwrap_err();
            assert!(matches!(error, ConfigError::NotHttp(_)), "{bad}: {error}");
        }
        assert!(matches!(Client::new(&Config::new(vec![])), Err(ConfigError::NoScheduler)));
    }
}
