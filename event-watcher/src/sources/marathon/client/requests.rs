//! One request: credentials, redirects that stay within the configured members, deadlines and size limits.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Response, StatusCode};
use url::{Origin, Url};

use super::{
    Base, Client, LEADER_HEADER, MAX_ERROR_BYTES, MAX_REDIRECTS, NEXT_MEMBER_AFTER, QUARANTINE, endpoint,
    host, no_credentials,
};
use crate::error::FetchError;
use crate::sources::marathon::wire;

impl Client {
    /// Reads from `base`, or from the other members when it cannot be reached or has no leader to ask.
    pub(super) async fn read(
        &self,
        base: &Base,
        path: &[&str],
        query: Option<&str>,
        head_deadline: Duration,
    ) -> Result<(Response, String), FetchError> {
        let others = (0..self.n_members()).map(|n| self.member(base.member + n));
        let mut failure = None;
        let mut tried = Vec::new();
        for Base { url: root, .. } in
            self.willing_first(std::iter::once(base.clone()).chain(others).collect())
        {
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
    pub(super) async fn request(
        &self,
        mut url: Url,
        accept: &'static str,
        head_deadline: Duration,
    ) -> Result<(Response, Url), FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let auth = self.shared.auth.as_ref().filter(|_| self.is_configured(&url.origin()));
            let mut authorization = match auth {
                Some(auth) => Some(auth.value().await.map_err(|e| no_credentials(&url, e))?),
                None => None,
            };
            let mut response = self.send(&url, accept, authorization.as_ref(), head_deadline).await?;
            if let (StatusCode::UNAUTHORIZED, Some(auth), Some(refused)) =
                (response.status(), auth, &authorization)
                && let Some(value) = auth.instead_of(refused).await.map_err(|e| no_credentials(&url, e))?
            {
                authorization = Some(value);
                response = self.send(&url, accept, authorization.as_ref(), head_deadline).await?;
            }
            if !response.status().is_redirection() {
                return Ok((response, url));
            }
            url = self.redirected(&url, &response)?;
        }
        Err(FetchError::RedirectLoop { host: host(&url) })
    }

    pub(super) async fn send(
        &self,
        url: &Url,
        accept: &'static str,
        authorization: Option<&HeaderValue>,
        head_deadline: Duration,
    ) -> Result<Response, FetchError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let sending = self.shared.http.get(url.clone()).headers(headers).send();
        match tokio::time::timeout(head_deadline, sending).await {
            Ok(sent) => {
                sent.map_err(|source| FetchError::Connect { host: host(url), source: source.without_url() })
            }
            Err(_) => {
                let until = crate::watcher::now() + QUARANTINE;
                self.quarantined().insert(url.origin(), until);
                Err(FetchError::Silent { host: host(url), limit: head_deadline })
            }
        }
    }

    pub(super) fn quarantined(&self) -> std::sync::MutexGuard<'_, HashMap<Origin, Instant>> {
        self.shared.quarantined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same members, those that stayed silent lately at the end.
    pub(super) fn willing_first(&self, mut members: Vec<Base>) -> Vec<Base> {
        let now = crate::watcher::now();
        let mut quarantined = self.quarantined();
        quarantined.retain(|_, until| *until > now);
        members.sort_by_key(|base| quarantined.contains_key(&base.url.origin()));
        members
    }

    pub(super) fn redirected(&self, url: &Url, response: &Response) -> Result<Url, FetchError> {
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

    pub(super) fn is_configured(&self, origin: &Origin) -> bool {
        self.shared.members.iter().any(|url| url.origin() == *origin)
    }

    pub(super) async fn body(
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

pub(super) async fn read_body(
    mut response: Response,
    host: String,
    limit_bytes: usize,
) -> Result<Vec<u8>, FetchError> {
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
pub(super) async fn refusal(host: String, response: Response) -> FetchError {
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
