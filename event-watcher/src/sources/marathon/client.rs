//! HTTP to the members of one Marathon: whom to ask, redirects, credentials, deadlines and size limits.
//!
//! It decides nothing about when to ask. Answers are asked for uncompressed, and a compressed one is refused, so no
//! small answer can become a large one. A list is read on a thread of its own while it arrives.

mod leaders;
mod names;
mod pump;
mod requests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Response, StatusCode, redirect};
use serde::de::Error as _;
use url::{Origin, Url};

use self::requests::refusal;
use super::auth::Auth;
use super::list::{Answer, Kind, Surroundings};
use super::wire;
use crate::catalog::AppId;
use crate::config::{Credentials, Marathon};
use crate::error::{ConfigError, FetchError};

/// Who leads is asked of all members at once, and who does not know at once does not count.
const LEADER_DEADLINE: Duration = Duration::from_secs(1);
/// Who a member says leads it.
const LEADER_HEADER: &str = "x-marathon-leader";
const MAX_REDIRECTS: usize = 3;
/// How long one member may think before the next one is asked as well (RFC 8305 section 5).
const NEXT_MEMBER_AFTER: Duration = Duration::from_millis(250);
/// An error message longer than this is not shown.
const MAX_ERROR_BYTES: usize = 4096;
/// How long one app may take to be answered; the list may take [`Shared::list_head_deadline`].
const APP_HEAD_DEADLINE: Duration = Duration::from_secs(3);
/// A member that accepted and stayed silent is asked last for this long: a deadlocked former leader does that.
const QUARANTINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    members: Vec<Url>,
    /// Members that stayed silent, and until when they are asked last.
    quarantined: Mutex<HashMap<Origin, Instant>>,
    auth: Option<Auth>,
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

/// What a read of the list brought.
#[derive(Debug)]
pub(crate) struct ListAnswer {
    pub answer: Answer,
    /// Who the answering member says is leader, or the member itself.
    pub leader: String,
}

/// What a scheduler says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub framework: Option<String>,
    pub leader: Option<HostAndPort>,
    /// The leading Mesos master.
    pub master: Option<HostAndPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostAndPort {
    pub host: String,
    pub port: u16,
}

impl HostAndPort {
    /// Of a URL; `None`: it names no host, or `leader.mesos`, which is what this is to find out.
    fn parse(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let is_own = host.ends_with(".mesos") || host.ends_with(".thisdcos.directory");
        (!is_own).then_some(Self { host, port: url.port_or_known_default()? })
    }
}

/// What the members say about who leads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// Nobody contradicts the member that is read from.
    Agreed,
    /// Most members name another one; it is this configured member.
    Elsewhere(usize),
    /// There are several claims and no majority.
    Split(Vec<String>),
}

/// What a read of one app or pod brought.
#[derive(Debug)]
pub(crate) enum Found {
    Body(Kind, Vec<u8>),
    Gone,
}

impl Client {
    pub(crate) fn new(config: &Marathon) -> Result<Self, ConfigError> {
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
            .tcp_user_timeout(config.stream_deadline)
            .dns_resolver(names::Remembering::default())
            .user_agent(concat!("waymark/", env!("CARGO_PKG_VERSION")));
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else may be first; either way there is one afterwards.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        if let Some(path) = &config.ca_file {
            let failed = |why: String| ConfigError::Authorities { path: path.display().to_string(), why };
            let pem = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
            let authorities =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| failed(crate::error::chain(&e)))?;
            if authorities.is_empty() {
                return Err(failed("it holds no certificate".to_owned()));
            }
            builder = builder.tls_certs_only(authorities);
        } else if members.iter().all(|url| url.scheme() == "http")
            && !matches!(credentials, Some(Credentials::ServiceAccountFile(_)))
        {
            // No certificate will be looked at, so a machine without a certificate store must not be an error.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(ConfigError::Client)?;
        let shared = Shared {
            auth: credentials.map(|credentials| Auth::new(http.clone(), credentials)).transpose()?,
            http,
            members,
            quarantined: Mutex::default(),
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
            self.willing_first((0..self.n_members()).map(|n| self.member(first + n)).collect()).into();
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
        let reads_follow =
            origin != base.url.origin() && (self.shared.auth.is_none() || self.is_configured(&origin));
        let base = if reads_follow { Base { url: with_origin(&base.url, &url), ..base } } else { base };
        Ok(OpenStream { response, base })
    }

    /// The whole list of apps, and of pods.
    pub(crate) async fn list(&self, base: &Base, around: Surroundings) -> Result<ListAnswer, FetchError> {
        let (list, pods) = tokio::join!(self.list_apps(base, around.clone()), self.pods(base));
        let mut list = list?;
        let Some(pods) = pods? else { return Ok(list) };
        let malformed = |source| FetchError::Malformed { host: base.host(), source };
        // Like the list, on a thread of its own.
        let reading =
            tokio::task::spawn_blocking(move || list.answer.add_pods(&pods, &around).map(|()| list));
        match reading.await {
            Ok(read) => read.map_err(malformed),
            Err(_) => Err(malformed(serde_json::Error::custom("the reading thread broke off").into())),
        }
    }

    async fn list_apps(&self, base: &Base, around: Surroundings) -> Result<ListAnswer, FetchError> {
        let query = "embed=apps.tasks&embed=apps.deployments&embed=apps.readiness";
        let (response, host) =
            self.read(base, &["v2", "apps"], Some(query), self.shared.list_head_deadline).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(host, response).await);
        }
        refuse_compressed(&host, &response)?;
        let leader = response.headers().get(LEADER_HEADER).and_then(|v| v.to_str().ok());
        let leader = leader.map_or_else(|| host.clone(), str::to_owned);
        let limit = self.shared.request_deadline;
        let reading = pump::read(response, &host, self.shared.max_answer_bytes, around);
        match tokio::time::timeout(limit, reading).await {
            Ok(answer) => Ok(ListAnswer { answer: answer?, leader }),
            Err(_) => Err(FetchError::Silent { host, limit }),
        }
    }

    /// All pods with their instances. `None`: this scheduler knows none, as before 1.4 or when only apps are let
    /// through.
    pub(crate) async fn pods(&self, base: &Base) -> Result<Option<Vec<u8>>, FetchError> {
        let (response, host) =
            self.read(base, &["v2", "pods", "::status"], None, self.shared.list_head_deadline).await?;
        match response.status() {
            StatusCode::OK => {
                refuse_compressed(&host, &response)?;
                self.body(response, host, self.shared.max_answer_bytes).await.map(Some)
            }
            status if has_no_pods(status) => Ok(None),
            _ => Err(refusal(host, response).await),
        }
    }

    /// The app of this id, or the pod.
    pub(crate) async fn app(&self, base: &Base, id: &AppId) -> Result<Found, FetchError> {
        let path: Vec<&str> = ["v2", "apps"].into_iter().chain(id.segments()).collect();
        let (response, host) = self.read(base, &path, Some("embed=app.readiness"), APP_HEAD_DEADLINE).await?;
        match response.status() {
            StatusCode::OK => {
                refuse_compressed(&host, &response)?;
                let body = self.body(response, host, self.shared.max_answer_bytes).await?;
                Ok(Found::Body(Kind::App, body))
            }
            StatusCode::NOT_FOUND => {
                // Marathon's own 404 has a message; a proxy's page must not remove an app.
                let body = self.body(response, host.clone(), MAX_ERROR_BYTES).await?;
                match serde_json::from_slice::<wire::ErrorMessage>(&body) {
                    Ok(_) => self.pod(base, id).await,
                    Err(error) => Err(FetchError::Malformed { host, source: error.into() }),
                }
            }
            _ => Err(refusal(host, response).await),
        }
    }

    async fn pod(&self, base: &Base, id: &AppId) -> Result<Found, FetchError> {
        let id = format!("{}::status", id.as_str().trim_start_matches('/'));
        let path = ["v2", "pods"].into_iter().chain(id.split('/')).collect::<Vec<_>>();
        let (response, host) = self.read(base, &path, None, APP_HEAD_DEADLINE).await?;
        match response.status() {
            StatusCode::OK => {
                refuse_compressed(&host, &response)?;
                let body = self.body(response, host, self.shared.max_answer_bytes).await?;
                Ok(Found::Body(Kind::Pod, body))
            }
            status if has_no_pods(status) => Ok(Found::Gone),
            _ => Err(refusal(host, response).await),
        }
    }

    /// What the scheduler says about itself.
    pub(crate) async fn about(&self, base: &Base) -> Result<About, FetchError> {
        let (response, host) = self.read(base, &["v2", "info"], None, APP_HEAD_DEADLINE).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(host, response).await);
        }
        let body = self.body(response, host.clone(), self.shared.max_answer_bytes).await?;
        let info: wire::Info =
            serde_json::from_slice(&body).map_err(|e| FetchError::Malformed { host, source: e.into() })?;
        let config = info.marathon_config.unwrap_or_default();
        let leader = match info.leader {
            Some(leader) => Some(leader),
            None => self.leader(base).await,
        };
        Ok(About {
            framework: config.framework_name,
            leader: leader.and_then(|leader| HostAndPort::parse(&format!("http://{leader}"))),
            master: config.mesos_leader_ui_url.and_then(|url| HostAndPort::parse(&url)),
        })
    }

    /// Old versions name their leader only here.
    async fn leader(&self, base: &Base) -> Option<String> {
        let (response, host) = self.read(base, &["v2", "leader"], None, LEADER_DEADLINE).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = self.body(response, host, MAX_ERROR_BYTES).await.ok()?;
        serde_json::from_slice::<wire::Leader>(&body).ok().map(|answer| answer.leader)
    }
}

/// Answers of schedulers before 1.4, and of proxies that let only apps through, beside Marathon's own.
fn has_no_pods(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_ACCEPTABLE
            | StatusCode::NOT_IMPLEMENTED
    )
}

fn no_credentials(url: &Url, error: super::auth::AuthError) -> FetchError {
    FetchError::NoCredentials { host: host(url), source: error }
}

fn refuse_compressed(host: &str, response: &Response) -> Result<(), FetchError> {
    match response.headers().get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => Err(FetchError::Compressed { host: host.to_owned() }),
        _ => Ok(()),
    }
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

    #[tokio::test]
    async fn credentials_in_an_address_are_used_and_not_shown() {
        let config = Marathon::new(vec!["http://us%40er:s%3Acret+@m:8080/".parse().unwrap()]);
        let client = Client::new(&config).unwrap();
        let sent = client.shared.auth.as_ref().unwrap().value().await.unwrap();
        assert_eq!(sent, "Basic dXNAZXI6czpjcmV0Kw==");
        let shown = format!("{client:?}");
        assert!(!shown.contains("cret") && !shown.contains(sent.to_str().unwrap()), "{shown}");
    }

    #[test]
    fn addresses_must_be_http() {
        for bad in ["ftp://m/", "data:x", "unix:/x"] {
            let error = Client::new(&Marathon::new(vec![bad.parse().unwrap()])).unwrap_err();
            assert!(matches!(error, ConfigError::NotHttp(_)), "{bad}: {error}");
        }
        assert!(matches!(Client::new(&Marathon::new(vec![])), Err(ConfigError::NoScheduler)));
    }

    #[test]
    fn a_majority_says_who_leads() {
        let member = |n: usize| format!("http://m{n}:8080").parse().unwrap();
        let client = Client::new(&Marathon::new((0..3).map(member).collect())).unwrap();
        for (base, claims, expect) in [
            (0, &[][..], Leadership::Agreed),
            (0, &[(0, "m0:8080")], Leadership::Agreed),
            (0, &[(0, "m0:8080"), (1, "m0:8080"), (2, "m0:8080")], Leadership::Agreed),
            (1, &[(0, "m0:8080"), (1, "m0:8080")], Leadership::Agreed),
            (0, &[(0, "m0:8080"), (1, "m1:8080"), (2, "m1:8080")], Leadership::Elsewhere(1)),
            (0, &[(0, "m0:8080"), (1, "x:1"), (2, "x:1")], Leadership::Elsewhere(1)),
            (
                0,
                &[(0, "m0:8080"), (1, "m1:8080")],
                Leadership::Split(vec!["m0:8080".to_owned(), "m1:8080".to_owned()]),
            ),
        ] {
            let claims: Vec<(usize, String)> = claims.iter().map(|(m, c)| (*m, (*c).to_owned())).collect();
            assert_eq!(client.weigh(&client.member(base), &claims), expect, "{base} {claims:?}");
        }
    }
}
