//! A client of the Marathon API: one request, one answer, and errors that say what to do.
//!
//! Answers stay JSON values: what a command does not print, it need not understand.

use std::cell::Cell;
use std::error::Error as _;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;
use url::Url;

use crate::args::MarathonArgs;
use crate::failure::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A large cluster's list of apps takes its time.
const TIMEOUT: Duration = Duration::from_secs(180);

#[derive(Debug)]
pub struct Marathon {
    http: reqwest::Client,
    bases: Vec<Url>,
    token: Option<String>,
    /// The address that answered last.
    current: Cell<usize>,
}

/// A path below the API's root with its query.
#[derive(Clone, Debug)]
pub struct Path {
    segments: Vec<String>,
    query: Vec<(&'static str, String)>,
}

impl Path {
    /// `v2/apps`: the segments as they are, without escapes.
    pub fn new(path: &str) -> Self {
        Self { segments: path.split('/').map(str::to_owned).collect(), query: Vec::new() }
    }

    /// The path of an app (`/dcos-101/app2`) below `v2/apps`.
    pub fn of_app(id: &str) -> Self {
        Self::new("v2/apps").join(id)
    }

    /// Appends the segments of `path`; empty ones vanish.
    pub fn join(mut self, path: &str) -> Self {
        self.segments.extend(path.split('/').filter(|s| !s.is_empty()).map(str::to_owned));
        self
    }

    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }

    pub fn with_force(self, force: bool) -> Self {
        if force { self.with("force", "true") } else { self }
    }

    fn on(&self, base: &Url) -> Url {
        let mut url = base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(&self.segments);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }
}

impl Marathon {
    pub fn new(args: &MarathonArgs) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .build()
            .map_err(|e| Failure::chain("cannot start an HTTP client", &e))?;
        Ok(Self { http, bases: args.marathon.clone(), token: args.token.clone(), current: Cell::new(0) })
    }

    pub async fn get(&self, path: &Path) -> Result<Value, Failure> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &Path, body: Option<&Value>) -> Result<Value, Failure> {
        self.call(Method::POST, path, body).await
    }

    pub async fn put(&self, path: &Path, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &Path) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, None).await
    }

    /// An app with its tasks, or `None` when there is no such app.
    pub async fn app(&self, id: &str) -> Result<Option<Value>, Failure> {
        let (status, text, base) = self.send(&Method::GET, &Path::of_app(id), None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let mut answer = self.read(status, &text, &base)?;
        match answer.get_mut("app") {
            Some(app) => Ok(Some(app.take())),
            None => Err(Failure::new(format!("{base} answered something else than an app"))),
        }
    }

    /// An app, or the error that says there is none.
    pub async fn existing_app(&self, id: &str) -> Result<Value, Failure> {
        self.app(id).await?.ok_or_else(|| {
            Failure::new(format!("there is no app {id}")).hint("waymark app list shows the apps there are")
        })
    }

    /// Fetches a plain text that only Waymark's own scheduler has; `None` when the scheduler does not know the path.
    pub async fn text(&self, path: &Path) -> Result<Option<String>, Failure> {
        let (status, text, base) = self.send(&Method::GET, path, None).await?;
        match status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(None),
            status if status.is_success() => Ok(Some(text)),
            status => Err(refusal(status, &text, &base)),
        }
    }

    async fn call(&self, method: Method, path: &Path, body: Option<&Value>) -> Result<Value, Failure> {
        let (status, text, base) = self.send(&method, path, body).await?;
        self.read(status, &text, &base)
    }

    fn read(&self, status: StatusCode, text: &str, base: &Url) -> Result<Value, Failure> {
        if !status.is_success() {
            return Err(refusal(status, text, base));
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(text).map_err(|e| {
            Failure::new(format!("{base} did not answer in JSON: {e}")).hint("is that a Marathon API?")
        })
    }

    /// Tries the address that answered last, then the others; only a failed connect moves on.
    async fn send(
        &self,
        method: &Method,
        path: &Path,
        body: Option<&Value>,
    ) -> Result<(StatusCode, String, Url), Failure> {
        let mut last = None;
        for offset in 0..self.bases.len() {
            let index = (self.current.get() + offset) % self.bases.len();
            let base = &self.bases[index];
            let mut request = self
                .http
                .request(method.clone(), path.on(base))
                .header(http::header::ACCEPT, "application/json");
            if let Some(token) = &self.token {
                request = request.header(http::header::AUTHORIZATION, format!("token={token}"));
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            match request.send().await {
                Ok(response) => {
                    self.current.set(index);
                    let status = response.status();
                    let text = response
                        .text()
                        .await
                        .map_err(|e| Failure::chain(format!("the answer of {base} broke off"), &e))?;
                    return Ok((status, text, base.clone()));
                }
                Err(error) if error.is_connect() => last = Some(unreachable("scheduler", base, &error)),
                Err(error) => return Err(Failure::chain(format!("no answer from {base}"), &error)),
            }
        }
        Err(last.unwrap_or_else(|| Failure::usage("no scheduler address")).hint(
            "is waymark dev running? otherwise name the scheduler with --marathon URL or WAYMARK_MARATHON",
        ))
    }
}

/// `what` does not accept connections at `base`, with the operating system's reason and no more.
pub fn unreachable(what: &str, base: &Url, error: &reqwest::Error) -> Failure {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let address = base.as_str().trim_end_matches('/');
    let reason = cause.to_string();
    let reason = reason.split(" (os error").next().unwrap_or_default().to_lowercase();
    debug_assert!(error.source().is_some(), "a connect error has a cause");
    Failure::new(format!("no {what} at {address}: {reason}"))
}

/// What a Marathon that said no meant by it.
fn refusal(status: StatusCode, text: &str, base: &Url) -> Failure {
    let body = serde_json::from_str::<Value>(text).unwrap_or_default();
    let message = body.get("message").and_then(Value::as_str).map_or_else(
        || format!("{base} answered {status}"),
        |message| message.trim_end_matches('.').to_owned(),
    );
    let details = details(&body);
    let what = if details.is_empty() { message.clone() } else { format!("{message}: {details}") };
    let failure = Failure::new(what);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => failure
            .hint("give --token TOKEN, or credentials in the URL: --marathon http://USER:PASSWORD@HOST:PORT"),
        StatusCode::NOT_FOUND => {
            failure.hint("waymark app list and waymark deployment list show what there is")
        }
        StatusCode::CONFLICT if body.get("deployments").is_some() || message.contains("locked") => {
            failure.hint("wait for it (waymark deployment list), or override it with --force")
        }
        StatusCode::CONFLICT => failure.hint("waymark app update changes what exists"),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => {
            failure.hint("the scheduler may be electing a leader; try again in a few seconds")
        }
        _ => failure,
    }
}

/// Marathon's `details`: a text, or a list of `{path, errors}`.
fn details(body: &Value) -> String {
    let of_entry = |entry: &Value| {
        let path = entry.get("path").and_then(Value::as_str).unwrap_or("/");
        let errors = entry.get("errors").and_then(Value::as_array);
        let errors: Vec<&str> = errors.into_iter().flatten().filter_map(Value::as_str).collect();
        format!("{path}: {}", errors.join(", "))
    };
    match body.get("details") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(entries)) => entries.iter().map(of_entry).collect::<Vec<_>>().join("; "),
        _ => String::new(),
    }
}

/// The id of the deployment that an answer announces.
pub fn deployment_id(answer: &Value) -> Option<&str> {
    answer
        .get("deploymentId")
        .or_else(|| answer.get("deployments")?.get(0)?.get("id"))
        .and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_the_base_and_escape_their_parts() {
        let base = "http://h:8080/service/marathon/".parse().unwrap();
        for (path, expect) in [
            (Path::new("v2/apps"), "http://h:8080/service/marathon/v2/apps"),
            (Path::of_app("/dcos-101//app2/"), "http://h:8080/service/marathon/v2/apps/dcos-101/app2"),
            (
                Path::of_app("a b?c").with_force(true).with("host", "x&y"),
                "http://h:8080/service/marathon/v2/apps/a%20b%3Fc?force=true&host=x%26y",
            ),
        ] {
            assert_eq!(path.on(&base).as_str(), expect);
        }
    }

    #[test]
    fn refusals_say_what_the_scheduler_said_and_what_to_do() {
        let base = "http://h:8080".parse().unwrap();
        for (status, body, what, hint) in [
            (
                409,
                r#"{"message":"App is locked by one or more deployments.","deployments":[{"id":"1"}]}"#,
                "App is locked by one or more deployments",
                "--force",
            ),
            (409, r#"{"message":"An app with id [/x] already exists."}"#, "already exists", "app update"),
            (404, r#"{"message":"App '/x' does not exist"}"#, "App '/x' does not exist", "app list"),
            (
                422,
                r#"{"message":"Object is not valid","details":[{"path":"/cpus","errors":["got -1","no"]}]}"#,
                "Object is not valid: /cpus: got -1, no",
                "",
            ),
            (400, r#"{"message":"Invalid JSON","details":"line 1"}"#, "Invalid JSON: line 1", ""),
            (502, "<html>", "http://h:8080/ answered 502 Bad Gateway", "leader"),
        ] {
            let failure = refusal(StatusCode::from_u16(status).unwrap(), body, &base).to_string();
            assert!(failure.contains(what), "{failure}");
            assert!(failure.contains(hint), "{failure}");
        }
    }

    #[test]
    fn deployments_are_found_in_both_shapes() {
        for (answer, expect) in [
            (r#"{"version":"v","deploymentId":"d1"}"#, Some("d1")),
            (r#"{"id":"/a","deployments":[{"id":"d2"}]}"#, Some("d2")),
            (r#"{"tasks":[]}"#, None),
        ] {
            assert_eq!(deployment_id(&serde_json::from_str(answer).unwrap()), expect);
        }
    }
}
