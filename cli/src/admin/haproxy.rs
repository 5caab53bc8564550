//! Marathon-LB's endpoints on the stats address, as far as they are true here.
//!
//! What they say comes from the HTTP plane; its names and columns are made there.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderValue};
use lb_http::stats::{Series, Servers};

use super::server::{Answer, text};

/// What the HTTP plane tells in HAProxy's words.
pub trait Haproxy: Send + Sync {
    /// HAProxy's statistics page.
    fn page(&self, servers: Servers) -> String;
    /// The CSV of the same.
    fn csv(&self, servers: Servers) -> String;
    /// The JSON of the same.
    fn json(&self, servers: Servers) -> String;
    /// What the stats address itself counts, as HAProxy's proxy `stats` does.
    fn stats_series(&self) -> &Arc<Series>;
    /// `host backend` lines.
    fn vhost_map(&self) -> String;
    /// `app backend` lines.
    fn app_map(&self) -> String;
    /// JSON: what each host, path and port leads to.
    fn routes(&self) -> String;
    /// JSON: what a request for this URL reaches, and why. `app`: by this `X-Marathon-App-Id`.
    fn explain(&self, url: &url::Url, app: Option<&str>) -> String;
}

const HTML: &str = "text/html; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// `None`: no such path. `query` is what stands behind the question mark, e.g. `stats;csv`.
pub fn answer(haproxy: &dyn Haproxy, path: &str, query: Option<&str>) -> Option<Response<Answer>> {
    Some(match path {
        "/haproxy" => {
            let mut words = query.unwrap_or_default().split(';');
            if words.next() != Some("stats") {
                return None;
            }
            let words: Vec<&str> = words.collect();
            let servers = if words.contains(&"up") { Servers::Up } else { Servers::All };
            if words.contains(&"csv") {
                text(PLAIN, haproxy.csv(servers))
            } else if words.contains(&"json") {
                text("application/json", haproxy.json(servers))
            } else {
                page(haproxy.page(servers), &words)
            }
        }
        "/_haproxy_health_check" => text(HTML, Bytes::from_static(SERVICE_READY.as_bytes())),
        "/_haproxy_getpids" => text(PLAIN, format!("{}\n", std::process::id())),
        "/_haproxy_getvhostmap" => text(PLAIN, haproxy.vhost_map()),
        "/_haproxy_getappmap" => text(PLAIN, haproxy.app_map()),
        _ => return None,
    })
}

/// Word for word what HAProxy's `monitor-uri` answers.
const SERVICE_READY: &str = "<html><body><h1>200 OK</h1>\nService ready.\n</body></html>\n";

/// The page brings its style along and has no script; it moves because the browser asks again.
fn page(page: String, words: &[&str]) -> Response<Answer> {
    let mut response = text(HTML, page);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    if !words.contains(&"norefresh") {
        headers.insert(header::REFRESH, HeaderValue::from_static(REFRESH_SECONDS));
    }
    response
}

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
const REFRESH_SECONDS: &str = "2";
