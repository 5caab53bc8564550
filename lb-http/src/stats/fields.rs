//! HAProxy's statistics fields: one row for each frontend, server and backend, in HAProxy's order and with its names.
//!
//! A field that has no meaning here is empty. How rows are written down is decided by `csv`, `page` and `metrics`.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use l4_vip::pool::EndpointState;

use super::refusals::reasons;
use super::series::{Series, Totals};
use super::stages::{MeanStages, Stage};
use crate::health::CheckState;
use crate::labels::{CheckSpec, Mode};
use crate::names::{APPID_FRONTEND, HTTP_FRONTEND, HTTPS_FRONTEND};
use crate::plane::Shared;
use crate::table::{Backend, Server, ServerStatus, Standing};

macro_rules! columns {
    ($($name:ident)*) => {
        /// A column of the CSV, in order.
        #[expect(non_camel_case_types, dead_code, reason = "HAProxy's names; some have no meaning here and stay empty")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Column { $($name,)* }

        /// The names of all columns. Each is an identifier, because clients make attributes of them (HAProxy 2.6 has
        /// one called `-`, which breaks them).
        pub(super) const COLUMNS: &[&str] = &[$(stringify!($name),)*];
    };
}

columns! {
    pxname svname qcur qmax scur smax slim stot bin bout dreq dresp ereq econ eresp wretr wredis status weight act bck
    chkfail chkdown lastchg downtime qlimit pid iid sid throttle lbtot tracked type_ rate rate_lim rate_max
    check_status check_code check_duration hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx hrsp_other hanafail req_rate
    req_rate_max req_tot cli_abrt srv_abrt comp_in comp_out comp_byp comp_rsp lastsess last_chk last_agt qtime ctime
    rtime ttime agent_status agent_code agent_duration check_desc agent_desc check_rise check_fall check_health
    agent_rise agent_fall agent_health addr cookie mode algo conn_rate conn_rate_max conn_tot intercepted dcon dses
    wrew connect reuse cache_lookups cache_hits srv_icur src_ilim qtime_max ctime_max rtime_max ttime_max
    eint idle_conn_cur safe_conn_cur used_conn_cur need_conn_est uweight
}

/// The name as it is written; one column's is a word of Rust.
pub(super) fn column_name(name: &'static str) -> &'static str {
    if name == "type_" { "type" } else { name }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(Arc<str>),
    Number(u64),
    /// -1: never.
    Age(i64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
            Self::Age(seconds) => seconds.fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Frontend,
    Backend,
    Server,
}

#[derive(Clone, Debug)]
pub struct Row {
    pub kind: Kind,
    pub(super) values: Vec<Option<Value>>,
    /// Why something was refused, for people.
    pub(super) reasons: String,
}

impl Row {
    fn new(kind: Kind, proxy: &Arc<str>, name: impl Into<Arc<str>>, iid: usize) -> Self {
        let mut row = Self { kind, values: vec![None; COLUMNS.len()], reasons: String::new() };
        row.set(Column::pxname, Value::Text(Arc::clone(proxy)));
        row.set(Column::svname, Value::Text(name.into()));
        row.number(Column::pid, 1_u64);
        row.number(Column::iid, iid as u64);
        row.number(Column::sid, 0_u64);
        row.number(Column::type_, kind as u64);
        row
    }

    pub(super) fn get(&self, column: Column) -> Option<&Value> {
        self.values[column as usize].as_ref()
    }

    /// For people: empty when the field has no meaning.
    pub(super) fn text(&self, column: Column) -> String {
        self.get(column).map(Value::to_string).unwrap_or_default()
    }

    pub(super) fn count(&self, column: Column) -> Option<u64> {
        match self.get(column)? {
            Value::Number(number) => Some(*number),
            Value::Text(_) | Value::Age(_) => None,
        }
    }

    fn set(&mut self, column: Column, value: Value) {
        self.values[column as usize] = Some(value);
    }

    fn unset(&mut self, column: Column) {
        self.values[column as usize] = None;
    }

    fn number(&mut self, column: Column, number: impl Into<u64>) {
        self.set(column, Value::Number(number.into()));
    }

    fn word(&mut self, column: Column, text: impl Into<Arc<str>>) {
        self.set(column, Value::Text(text.into()));
    }

    fn responses(&mut self, totals: &Totals) {
        use Column::{hrsp_1xx, hrsp_2xx, hrsp_3xx, hrsp_4xx, hrsp_5xx, hrsp_other};
        for (column, n) in
            [hrsp_1xx, hrsp_2xx, hrsp_3xx, hrsp_4xx, hrsp_5xx, hrsp_other].into_iter().zip(totals.responses)
        {
            self.number(column, n);
        }
    }

    /// What the balancer's own check of a server has found.
    fn check(&mut self, state: &CheckState, spec: &CheckSpec) {
        self.number(Column::chkfail, state.n_failures());
        self.number(Column::check_rise, spec.rise);
        self.number(Column::check_fall, spec.fall);
        self.number(Column::check_health, state.health(spec));
        let Some(last) = state.last() else {
            self.word(Column::check_status, "INI");
            return self.word(Column::check_desc, "Initializing");
        };
        self.word(Column::check_status, last.result.word());
        self.word(Column::check_desc, last.result.description());
        self.word(Column::last_chk, last.detail.as_str());
        self.number(Column::check_duration, last.took.as_millis() as u64);
        if let Some(code) = last.code {
            self.number(Column::check_code, code);
        }
    }

    /// Means and longest times. In mode tcp nothing is known to be a response.
    fn stages(&mut self, means: &MeanStages, totals: &Totals, mode: Mode) {
        for (stage, mean, longest) in [
            (Stage::Queue, Column::qtime, Column::qtime_max),
            (Stage::Connect, Column::ctime, Column::ctime_max),
            (Stage::Response, Column::rtime, Column::rtime_max),
            (Stage::Total, Column::ttime, Column::ttime_max),
        ] {
            if mode == Mode::Http || stage != Stage::Response {
                self.number(mean, means[stage as usize].as_millis() as u64);
                self.number(longest, totals.longest[stage as usize].as_millis() as u64);
            }
        }
    }

    /// What servers and backends have in common.
    fn traffic(&mut self, series: &Series, totals: &Totals, mode: Mode, standing: &Standing, now: Instant) {
        self.number(Column::qcur, series.n_waiting());
        self.number(Column::qmax, series.most_waiting());
        self.number(Column::smax, series.most_current());
        self.number(Column::stot, totals.n_sessions);
        self.number(Column::bin, totals.bytes_in);
        self.number(Column::bout, totals.bytes_out);
        self.number(Column::dresp, 0_u64);
        self.number(Column::econ, totals.n_connect_errors);
        self.number(Column::eresp, totals.n_response_errors);
        self.number(Column::wretr, totals.n_retries);
        self.number(Column::wredis, totals.n_redispatches);
        self.number(Column::lbtot, totals.n_sessions);
        self.number(Column::bck, 0_u64);
        self.number(Column::chkdown, standing.n_downs);
        self.number(Column::lastchg, now.saturating_duration_since(standing.since).as_secs());
        self.number(Column::downtime, standing.downtime(now).as_secs());
        let (rate, rate_max) = series.sessions_per_sec();
        self.number(Column::rate, rate);
        self.number(Column::rate_max, rate_max);
        if mode == Mode::Http {
            self.responses(totals);
            self.number(Column::req_tot, totals.n_requests);
        }
        self.word(Column::mode, mode_name(mode));
        self.number(Column::cli_abrt, totals.n_client_aborts);
        self.number(Column::srv_abrt, totals.n_server_aborts);
        self.set(Column::lastsess, Value::Age(series.last_session_secs().map_or(-1, |s| s as i64)));
        self.stages(&series.mean_stages().unwrap_or_default(), totals, mode);
        self.number(Column::connect, totals.n_connects);
        self.number(Column::reuse, totals.n_reuses);
    }
}

/// Which servers are shown: what `;up` in HAProxy's URL asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    All,
    /// Those that are not down.
    Up,
}

/// All rows: the proxy `stats`, the fixed frontends, the frontends of service ports, then each backend after its
/// servers.
pub(crate) fn rows(shared: &Shared, servers: Servers) -> Vec<Row> {
    let table = shared.table.load();
    let now = Instant::now();
    let limit = shared.config.limits.connections_per_listener as u64;
    let mut rows = Vec::from(stats_proxy(&shared.stats_in));
    let mut iid = STATS_ID;
    let https = shared.serves_https().then_some((HTTPS_FRONTEND, &shared.https_in));
    let plain = [(HTTP_FRONTEND, &shared.http_in), (APPID_FRONTEND, &shared.appid_in)];
    for (name, series) in plain.into_iter().chain(https) {
        iid += 1;
        rows.push(frontend(&name.into(), series, &series.totals(), Mode::Http, iid, limit));
    }
    // A service whose port another one has won has no frontend.
    let has_port = |i: usize, b: &Backend| table.routes.of_port(b.labels.port) == Some(i);
    for (_, b) in table.backends.iter().enumerate().filter(|(i, b)| has_port(*i, b)) {
        iid += 1;
        rows.push(frontend(&b.name, &b.frontend, &b.frontend_totals(), b.labels.mode, iid, limit));
    }
    for b in &table.backends {
        iid += 1;
        let mut shown: Vec<&Server> = b.servers.iter().collect();
        if servers == Servers::Up {
            shown.retain(|s| status(b, s) != "DOWN");
        }
        shown.sort_by(|a, b| (&a.host, a.endpoint.address.port()).cmp(&(&b.host, b.endpoint.address.port())));
        rows.extend(shown.into_iter().map(|s| server(b, s, iid, now)));
        rows.push(backend(b, iid, limit, now));
    }
    rows
}

/// As HAProxy numbers it: the first proxy after its own.
const STATS_ID: usize = 2;
/// HAProxy's `listen stats`, which is a frontend and a backend without servers.
const STATS: &str = "stats";

fn stats_proxy(series: &Series) -> [Row; 2] {
    let (name, totals) = (Arc::from(STATS), series.totals());
    let mut front = frontend(&name, series, &totals, Mode::Http, STATS_ID, 0);
    // Its requests are parsed by a library that does not tell how long they are.
    front.unset(Column::bin);
    front.unset(Column::slim);
    let mut back = Row::new(Kind::Backend, &name, "BACKEND", STATS_ID);
    for column in [Column::qcur, Column::qmax, Column::scur, Column::stot, Column::econ, Column::eresp] {
        back.number(column, 0_u64);
    }
    for column in [Column::weight, Column::act, Column::bck, Column::chkdown, Column::lbtot] {
        back.number(column, 0_u64);
    }
    back.number(Column::bout, totals.bytes_out);
    back.word(Column::status, "UP");
    back.word(Column::mode, mode_name(Mode::Http));
    [front, back]
}

fn frontend(name: &Arc<str>, series: &Series, totals: &Totals, mode: Mode, iid: usize, limit: u64) -> Row {
    let mut row = Row::new(Kind::Frontend, name, "FRONTEND", iid);
    row.number(Column::scur, series.n_current());
    row.number(Column::smax, series.most_current());
    row.number(Column::slim, limit);
    row.number(Column::stot, totals.n_sessions);
    row.number(Column::bin, totals.bytes_in);
    row.number(Column::bout, totals.bytes_out);
    row.number(Column::dreq, totals.n_denied_requests);
    row.number(Column::dresp, 0_u64);
    row.number(Column::ereq, totals.n_request_errors + totals.n_handshake_failures);
    row.word(Column::status, "OPEN");
    let (rate, rate_max) = series.sessions_per_sec();
    row.number(Column::rate, rate);
    row.number(Column::rate_lim, 0_u64);
    row.number(Column::rate_max, rate_max);
    if mode == Mode::Http {
        row.responses(totals);
        let (req_rate, req_rate_max) = series.requests_per_sec();
        row.number(Column::req_rate, req_rate);
        row.number(Column::req_rate_max, req_rate_max);
        row.number(Column::req_tot, totals.n_requests);
    }
    row.word(Column::mode, mode_name(mode));
    row.number(Column::conn_rate, rate);
    row.number(Column::conn_rate_max, rate_max);
    row.number(Column::conn_tot, totals.n_sessions);
    row.number(Column::intercepted, totals.n_intercepted);
    row.number(Column::dcon, totals.n_denied);
    row.number(Column::dses, 0_u64);
    row.reasons = reasons(totals);
    row
}

fn backend(backend: &Backend, iid: usize, limit: u64, now: Instant) -> Row {
    let totals = backend.totals();
    let mut row = Row::new(Kind::Backend, &backend.name, "BACKEND", iid);
    let n_usable = backend.pool.n_usable() as u64;
    row.traffic(&backend.series, &totals, backend.labels.mode, &backend.standing, now);
    row.number(Column::scur, backend.series.n_current());
    row.number(Column::slim, limit);
    row.number(Column::dreq, totals.n_denied_requests);
    row.word(Column::status, if n_usable > 0 { "UP" } else { "DOWN" });
    row.number(Column::weight, n_usable);
    row.number(Column::uweight, n_usable);
    row.number(Column::act, n_usable);
    row.word(Column::algo, backend.labels.balance.to_string());
    if backend.is_sticky() {
        row.word(Column::cookie, backend.labels.cookie.name());
    }
    row.reasons = reasons(&totals);
    row
}

fn server(backend: &Backend, server: &Server, iid: usize, now: Instant) -> Row {
    let totals = backend.totals_of(server);
    let mut row = Row::new(Kind::Server, &backend.name, Arc::clone(&server.name), iid);
    row.traffic(&server.series, &totals, backend.labels.mode, &server.standing, now);
    row.number(Column::sid, u64::from(server.id));
    row.number(Column::scur, server.endpoint.n_in_flight());
    row.word(Column::status, status(backend, server));
    let capacity = &backend.labels.capacity;
    if let Some(most) = capacity.per_endpoint {
        row.number(Column::slim, most.get());
        row.number(Column::qlimit, capacity.queue);
    }
    if backend.labels.mode == Mode::Http {
        row.number(Column::srv_icur, totals.n_idle);
        row.number(Column::idle_conn_cur, totals.n_idle);
        row.number(Column::used_conn_cur, server.endpoint.n_in_flight());
    }
    row.number(Column::weight, 1_u64);
    row.number(Column::uweight, 1_u64);
    // That it is no backup; whether it is used is in its status.
    row.number(Column::act, 1_u64);
    row.word(Column::addr, server.endpoint.address.to_string());
    if let Some(cookie) = server.cookie.as_ref().filter(|_| backend.is_sticky()) {
        row.word(Column::cookie, cookie.value.clone());
    }
    let spec = backend.labels.check.as_ref().filter(|_| server.check_address.is_some());
    if let (Some(spec), Some(check)) = (spec, &server.check) {
        row.check(check, spec);
    } else if server.status == ServerStatus::Up {
        row.word(Column::check_status, "L7OK");
        row.word(Column::last_chk, "scheduler: healthy");
    } else if server.status == ServerStatus::Unhealthy {
        row.word(Column::check_status, "L7STS");
        row.word(Column::last_chk, "scheduler: unhealthy");
    }
    row
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Http => "http",
        Mode::Tcp => "tcp",
    }
}

/// In HAProxy's words.
fn status(backend: &Backend, server: &Server) -> &'static str {
    let is_ejected = |endpoint: &EndpointState| endpoint.is_usable() && endpoint.is_ejected();
    match server.status {
        ServerStatus::Draining => "DRAIN",
        ServerStatus::Disabled => "MAINT",
        ServerStatus::Unhealthy | ServerStatus::Failing => "DOWN",
        _ if is_ejected(&server.endpoint) => "DOWN",
        ServerStatus::Up => "UP",
        _ if backend.labels.check.is_some() && server.check_address.is_some() => "UP",
        ServerStatus::Unchecked | ServerStatus::Unknown => "no check",
    }
}
