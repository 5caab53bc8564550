//! A client of a running Waymark's stats address.
//!
//! It reads, and gives the one command that is taken there.

use std::time::Duration;

use serde_json::Value;
use url::Url;

use super::marathon::unreachable;
use crate::admin::COMMAND_HEADER;
use crate::args::StatsArgs;
use crate::failure::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct StatsClient {
    http: reqwest::Client,
    base: Url,
}

impl StatsClient {
    pub fn new(args: &StatsArgs) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|e| Failure::chain("cannot start an HTTP client", &e))?;
        Ok(Self { http, base: args.stats.clone() })
    }

    /// The JSON at `path`, e.g. `api/status`.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        let response = self.open(path).await?;
        response.json().await.map_err(|e| {
            Failure::chain(format!("{} did not answer in JSON", self.base), &e.without_url())
                .hint("is that the stats address of a Waymark?")
        })
    }

    /// Gives the command at `path` and answers its JSON.
    pub async fn command(&self, path: &str) -> Result<Value, Failure> {
        let url = self
            .base
            .join(path)
            .map_err(|e| Failure::chain(format!("bad stats address {}", self.base), &e))?;
        let sent = self.http.post(url).header(COMMAND_HEADER, "1").send().await;
        let response = sent.map_err(|e| unreachable("Waymark", &self.base, &e))?;
        let status = response.status();
        if status.is_success() {
            let not_json = |e: reqwest::Error| {
                Failure::chain(format!("{} did not answer in JSON", self.base), &e.without_url())
            };
            return response.json().await.map_err(not_json);
        }
        let why = response.text().await.unwrap_or_default();
        let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(Failure::new(format!("{} answered {status}: {why}", self.base))
            .hint("commands are taken from the same machine only"))
    }

    /// The open answer at `path`, for streams.
    pub async fn open(&self, path: &str) -> Result<reqwest::Response, Failure> {
        let url = self
            .base
            .join(path)
            .map_err(|e| Failure::chain(format!("bad stats address {}", self.base), &e))?;
        let response = self.http.get(url).send().await.map_err(|e| match e.is_connect() {
            true => unreachable("Waymark", &self.base, &e).hint(
                "is waymark dev or waymark serve running? otherwise name its stats address with --stats URL or WAYMARK_STATS",
            ),
            false => Failure::chain(format!("no answer from {}", self.base), &e.without_url()),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Failure::new(format!("{} answered {}", self.base, response.status()))
            .hint("is that the stats address of a Waymark?"))
    }

    /// Waits until every plane has applied a generation after `generation`, at most for `wait`; the generation that
    /// every plane has applied then.
    pub async fn applied_after(&self, generation: u64, wait: Duration) -> Result<u64, Failure> {
        let wait = humantime::format_duration(wait).to_string().replace(' ', "");
        let status = self.get(&format!("api/status?after={generation}&wait={wait}")).await?;
        Ok(status["applied"].as_u64().unwrap_or(0))
    }
}
