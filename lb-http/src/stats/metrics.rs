//! Rows as Prometheus text, with the names of HAProxy's own exporter.
//!
//! Only what has a meaning here is exported; names of our own begin with `waymark_` and come from others.

use std::fmt::Write;

use super::fields::{Column, Kind, Row, Value};

struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    column: Column,
}

const fn counter(name: &'static str, column: Column, help: &'static str) -> Metric {
    Metric { name, kind: "counter", help, column }
}

const fn gauge(name: &'static str, column: Column, help: &'static str) -> Metric {
    Metric { name, kind: "gauge", help, column }
}

/// For frontends, backends and servers alike; a row without the field is left out.
const METRICS: &[Metric] = &[
    gauge("current_queue", Column::qcur, "Requests that wait for room."),
    gauge("max_queue", Column::qmax, "Most requests that waited at once."),
    gauge("queue_limit", Column::qlimit, "Requests that may wait."),
    gauge("queue_time_average_seconds", Column::qtime, "Mean time that the last 1,024 waited for room."),
    gauge("max_queue_time_seconds", Column::qtime_max, "Longest wait for room."),
    gauge("current_sessions", Column::scur, "Number of current sessions."),
    gauge("max_sessions", Column::smax, "Highest number of current sessions."),
    gauge("limit_sessions", Column::slim, "Limit of sessions."),
    counter("sessions_total", Column::stot, "Sessions since the start."),
    counter("bytes_in_total", Column::bin, "Bytes from clients."),
    counter("bytes_out_total", Column::bout, "Bytes to clients."),
    counter("connections_total", Column::conn_tot, "Connections since the start."),
    counter("denied_connections_total", Column::dcon, "Connections refused by a limit."),
    counter("requests_denied_total", Column::dreq, "Requests refused by a rule."),
    counter("request_errors_total", Column::ereq, "Malformed or late requests."),
    counter("connection_errors_total", Column::econ, "Failed connects to servers."),
    counter("response_errors_total", Column::eresp, "Missing, late or malformed responses."),
    counter("retry_warnings_total", Column::wretr, "Requests sent once more."),
    counter(
        "redispatch_warnings_total",
        Column::wredis,
        "Requests sent to another server than chosen first.",
    ),
    gauge("current_session_rate", Column::rate, "Sessions in the last second."),
    gauge("max_session_rate", Column::rate_max, "Most sessions in one second."),
    gauge("http_requests_rate_current", Column::req_rate, "Requests in the last second."),
    counter("http_requests_total", Column::req_tot, "Requests since the start."),
    counter("intercepted_requests_total", Column::intercepted, "Requests that the balancer answered itself."),
    gauge("weight", Column::weight, "Weight."),
    gauge("active_servers", Column::act, "Servers in rotation."),
    counter("check_up_down_total", Column::chkdown, "Changes from up to down."),
    gauge("check_last_change_seconds", Column::lastchg, "Time since the last change of state."),
    counter("downtime_seconds_total", Column::downtime, "Time without a server in rotation."),
    counter("loadbalanced_total", Column::lbtot, "Requests that the policy placed."),
    gauge("connect_time_average_seconds", Column::ctime, "Mean time to connect of the last 1,024."),
    gauge("max_connect_time_seconds", Column::ctime_max, "Longest time to connect."),
    gauge(
        "response_time_average_seconds",
        Column::rtime,
        "Mean time to a response's head of the last 1,024.",
    ),
    gauge("max_response_time_seconds", Column::rtime_max, "Longest time to a response's head."),
    gauge("total_time_average_seconds", Column::ttime, "Mean time to a response's end of the last 1,024."),
    gauge("max_total_time_seconds", Column::ttime_max, "Longest time to a response's end."),
    gauge("idle_connections_current", Column::idle_conn_cur, "Connections kept for the next request."),
    gauge("used_connections_current", Column::used_conn_cur, "Connections in use."),
    counter("client_aborts_total", Column::cli_abrt, "Requests that the client gave up."),
    counter("server_aborts_total", Column::srv_abrt, "Responses that the server broke off."),
    counter("connection_attempts_total", Column::connect, "Connects to servers."),
    counter("connection_reuses_total", Column::reuse, "Requests on a connection that had served before."),
];

const CLASSES: [(&str, Column); 6] = [
    ("1xx", Column::hrsp_1xx),
    ("2xx", Column::hrsp_2xx),
    ("3xx", Column::hrsp_3xx),
    ("4xx", Column::hrsp_4xx),
    ("5xx", Column::hrsp_5xx),
    ("other", Column::hrsp_other),
];

pub fn metrics(rows: &[Row], text: &mut String) {
    for (kind, prefix) in [(Kind::Frontend, "frontend"), (Kind::Backend, "backend"), (Kind::Server, "server")]
    {
        let rows: Vec<(String, &Row)> =
            rows.iter().filter(|r| r.kind == kind).map(|r| (labels(r), r)).collect();
        if rows.is_empty() {
            continue;
        }
        let mut section = Section { prefix, text };
        section.status(&rows, kind);
        for metric in METRICS {
            section.metric(metric, &rows);
        }
        section.responses(&rows);
    }
}

struct Section<'a> {
    prefix: &'static str,
    text: &'a mut String,
}

impl Section<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let prefix = self.prefix;
        self.write(format_args!(
            "# HELP haproxy_{prefix}_{name} {help}\n# TYPE haproxy_{prefix}_{name} {kind}\n"
        ));
    }

    fn metric(&mut self, metric: &Metric, rows: &[(String, &Row)]) {
        if rows.iter().all(|(_, row)| row.count(metric.column).is_none()) {
            return;
        }
        self.head(metric.name, metric.kind, metric.help);
        let (prefix, name) = (self.prefix, metric.name);
        for (labels, row) in rows {
            match row.count(metric.column) {
                // HAProxy keeps times in milliseconds.
                Some(millis) if is_time(metric.column) => {
                    let seconds = millis as f64 / 1000.0;
                    self.write(format_args!("haproxy_{prefix}_{name}{{{labels}}} {seconds}\n"));
                }
                Some(value) => self.write(format_args!("haproxy_{prefix}_{name}{{{labels}}} {value}\n")),
                None => {}
            }
        }
    }

    fn responses(&mut self, rows: &[(String, &Row)]) {
        self.head("http_responses_total", "counter", "Responses by class.");
        let prefix = self.prefix;
        for (labels, row) in rows {
            for (class, column) in CLASSES {
                let value = row.count(column).unwrap_or(0);
                self.write(format_args!(
                    "haproxy_{prefix}_http_responses_total{{{labels},code=\"{class}\"}} {value}\n"
                ));
            }
        }
    }

    /// One series for each state, 1 for the present one.
    fn status(&mut self, rows: &[(String, &Row)], kind: Kind) {
        let states: &[&str] = match kind {
            Kind::Frontend => &["UP", "DOWN"],
            Kind::Backend => &["UP", "DOWN"],
            Kind::Server => &["UP", "DOWN", "MAINT", "DRAIN", "NOLB"],
        };
        self.head("status", "gauge", "Current status, for each state: 1 is the present one.");
        let prefix = self.prefix;
        for (labels, row) in rows {
            let present = match row.text(Column::status).as_str() {
                "OPEN" | "no check" => "UP".to_owned(),
                other => other.to_owned(),
            };
            for state in states {
                let value = u8::from(present == *state);
                self.write(format_args!("haproxy_{prefix}_status{{{labels},state=\"{state}\"}} {value}\n"));
            }
        }
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(text);
    }
}

fn is_time(column: Column) -> bool {
    use Column::{ctime, ctime_max, qtime, qtime_max, rtime, rtime_max, ttime, ttime_max};
    matches!(column, qtime | ctime | rtime | ttime | qtime_max | ctime_max | rtime_max | ttime_max)
}

fn labels(row: &Row) -> String {
    let label = |column| match row.get(column) {
        Some(Value::Text(text)) => text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"),
        _ => String::new(),
    };
    match row.kind {
        Kind::Server => format!("proxy=\"{}\",server=\"{}\"", label(Column::pxname), label(Column::svname)),
        _ => format!("proxy=\"{}\"", label(Column::pxname)),
    }
}
