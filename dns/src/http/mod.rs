//! What DNS knows, over HTTP: Mesos-DNS's API, dcos-net's, the read parts of DC/OS's networking API, DNS over HTTPS,
//! and why a name is answered as it is.
//!
//! Reading order: `server` (connections), `routes` here, then one module for each API. It only reads, and it runs
//! beside the workers, so no listing costs a DNS query its time.

mod dcos;
mod doh;
mod mesos;
mod networking;
mod server;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use event_watcher::publish::Subscriber;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::networking::Samples;
use crate::Plane;
use crate::config::Config;
use crate::error::Error;
use crate::explain::{Question, explain};
use crate::forward::Forwarder;
use crate::handler::{Responder, Terms};
use crate::names::WireName;
use crate::stats::Counters;
use crate::zone::Zone;

type Answer = Response<Full<Bytes>>;

/// What `/v1` means on a listener. The two APIs share paths and differ in their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    MesosDns,
    Dcos,
}

/// What every request reads.
#[derive(Debug)]
pub(crate) struct Api {
    pub plane: Plane,
    pub zone: Arc<ArcSwap<Zone>>,
    pub terms: Arc<Terms>,
    pub forwarder: Arc<Forwarder>,
    pub counters: Arc<Counters>,
    pub subscriber: Subscriber,
    pub config: Arc<Config>,
    pub samples: Samples,
}

/// Bound, and not yet serving.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Vec<(std::net::TcpListener, Dialect)>);

impl Listeners {
    pub fn bind(config: &Config) -> Result<Self, Error> {
        let wanted = [(config.http_listen, Dialect::MesosDns), (config.dcos_listen, Dialect::Dcos)];
        let listeners = wanted.into_iter().filter_map(|(address, dialect)| Some((address?, dialect)));
        let bound = listeners.map(|(address, dialect)| {
            let listener =
                std::net::TcpListener::bind(address).map_err(|source| Error::Http { address, source })?;
            listener.set_nonblocking(true).map_err(|source| Error::Http { address, source })?;
            Ok((listener, dialect))
        });
        bound.collect::<Result<_, _>>().map(Self)
    }

    /// Where Mesos-DNS's API is.
    pub fn address(&self) -> Option<SocketAddr> {
        let (listener, _) = self.0.iter().find(|(_, dialect)| *dialect == Dialect::MesosDns)?;
        listener.local_addr().ok()
    }

    /// Serves on tasks of the current runtime until cancelled.
    pub fn serve(self, api: Api, cancel: &CancellationToken) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let tls = tls::acceptor(&api.config.tls)?;
        let api = Arc::new(api);
        tokio::spawn(cancel.clone().run_until_cancelled_owned(networking::keep_sampling(Arc::clone(&api))));
        for (listener, dialect) in self.0 {
            let server = server::Server { api: Arc::clone(&api), dialect, tls: tls.clone() };
            tokio::spawn(server.run(listener, cancel.clone()));
        }
        Ok(())
    }
}

async fn route(api: &Arc<Api>, dialect: Dialect, client: IpAddr, request: Request<Incoming>) -> Answer {
    if !is_our_host(api, &request) {
        // A page of somebody else whose name leads here must not read what a browser on this host can.
        return refuse(StatusCode::FORBIDDEN, "ask by address, or by a name that this server answers");
    }
    let path = request.uri().path().to_owned();
    if path == "/dns-query" {
        return doh::answer(api, client, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "this API only reads");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let path = path.trim_end_matches('/');
    if let Some(rest) = path.strip_prefix("/networking/api/v1/") {
        return networking::answer(api, rest);
    }
    let (dialect, path) = match path.strip_prefix("/net/") {
        // Where DC/OS's admin router puts it.
        Some(rest) => (Dialect::Dcos, rest),
        None => (dialect, path.trim_start_matches('/')),
    };
    let Some(rest) = path.strip_prefix("v1/") else {
        return refuse(StatusCode::NOT_FOUND, "no such page; /v1/version is one");
    };
    if rest == "explain" {
        return explanation(api, client, request.uri().query().unwrap_or_default()).await;
    }
    match dialect {
        Dialect::MesosDns => match mesos::answer(api, rest).await {
            Some(answer) => answer,
            None => dcos::answer(api, rest, request.headers()).await,
        },
        Dialect::Dcos => dcos::answer(api, rest, request.headers()).await,
    }
}

/// By address, as `localhost`, or by a name of ours.
fn is_our_host(api: &Api, request: &Request<Incoming>) -> bool {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(host) = named.or(request.uri().authority().map(|a| a.as_str())) else { return true };
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = bare.trim_matches(['[', ']']);
    bare.parse::<IpAddr>().is_ok()
        || WireName::parse(bare).is_some_and(|name| api.zone.load().find(name.as_bytes()).is_some())
}

async fn explanation(api: &Arc<Api>, client: IpAddr, query: &str) -> Answer {
    let word = |key: &str| {
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.into_owned())
    };
    let Some(question) = word("name").and_then(|name| Question::parse(&name, word("type").as_deref())) else {
        return refuse(StatusCode::BAD_REQUEST, "name is no DNS name, or type no record type");
    };
    let api = Arc::clone(api);
    heavy(move || json(&explain(&api, &question, client))).await
}

/// Runs what may take long where it holds up nobody.
async fn heavy(work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made"))
}

impl Api {
    pub fn responder(&self) -> Responder {
        Responder::new(Arc::clone(&self.zone), Arc::clone(&self.counters), Arc::clone(&self.terms))
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => text("application/json", body),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written as JSON")
        }
    }
}

fn text(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refuse(status: StatusCode, reason: &str) -> Answer {
    let mut response = text("text/plain; charset=utf-8", format!("{reason}\n"));
    *response.status_mut() = status;
    response
}
