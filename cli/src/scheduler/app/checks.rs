//! Health and readiness checks as an app defines them.
//!
//! Not here: making them (`agent::check`) and counting their results (`core::instance`).

use serde::Serialize;
use serde_json::Value;

use super::fields::{FieldError, Fields, integer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Https,
    Tcp,
    Command,
}

/// One health check. `wire_protocol` keeps the spelling of the input (`MESOS_HTTP` stays `MESOS_HTTP`).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    #[serde(rename = "protocol")]
    pub wire_protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CheckCommand>,
    pub grace_period_seconds: u32,
    pub interval_seconds: u32,
    pub timeout_seconds: u32,
    pub max_consecutive_failures: u32,
    pub delay_seconds: u32,
    pub ignore_http1xx: bool,
    pub ip_protocol: String,
    /// Which container of a pod the check belongs to.
    #[serde(skip)]
    pub container: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckCommand {
    pub value: String,
}

impl HealthCheck {
    pub fn protocol(&self) -> Protocol {
        match self.wire_protocol.trim_start_matches("MESOS_") {
            "TCP" => Protocol::Tcp,
            "HTTPS" => Protocol::Https,
            "COMMAND" => Protocol::Command,
            _ => Protocol::Http,
        }
    }

    /// Whether Marathon itself makes the check; otherwise it runs next to the task and sends other events.
    pub fn is_marathon_level(&self) -> bool {
        self.wire_protocol != "COMMAND" && !self.wire_protocol.starts_with("MESOS_")
    }

    /// Failures in a row after which the instance is killed, `None`: never. No failure allowed means never for a
    /// check of Marathon's own, and at once for one next to the task (spec 6.4).
    pub fn kill_at(&self) -> Option<u32> {
        match (self.max_consecutive_failures, self.is_marathon_level()) {
            (0, true) => None,
            (max, _) => Some(max.saturating_add(1)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadinessCheck {
    pub name: String,
    pub protocol: String,
    pub path: String,
    pub port_name: String,
    pub interval_seconds: u32,
    pub timeout_seconds: u32,
    pub http_status_codes_for_ready: Vec<u16>,
    pub preserve_last_response: bool,
}

const CHECK_PROTOCOLS: &[&str] =
    &["HTTP", "HTTPS", "TCP", "COMMAND", "MESOS_HTTP", "MESOS_HTTPS", "MESOS_TCP"];

pub fn read_health_check(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<HealthCheck> {
    let mut fields = Fields::of(item, path, errors)?;
    let wire_protocol = fields.choice("protocol", CHECK_PROTOCOLS).unwrap_or_else(|| "HTTP".into());
    let port = fields.bounded("port", u16::MAX.into()).map(|port| port as u16);
    let is_command = wire_protocol == "COMMAND";
    let is_http = wire_protocol.contains("HTTP");
    let port_index = fields.unsigned("portIndex").map(|index| index as usize);
    Some(HealthCheck {
        path: fields.text("path").or_else(|| Some("/".into())).filter(|_| is_http),
        port_index: port_index.or(Some(0)).filter(|_| port.is_none() && !is_command),
        port: port.filter(|_| !is_command),
        command: fields.nested("command", |f| f.text("value")).map(|value| CheckCommand { value }),
        grace_period_seconds: fields.unsigned("gracePeriodSeconds").unwrap_or(300),
        interval_seconds: fields.unsigned("intervalSeconds").unwrap_or(60),
        timeout_seconds: fields.unsigned("timeoutSeconds").unwrap_or(20),
        max_consecutive_failures: fields.unsigned("maxConsecutiveFailures").unwrap_or(3),
        delay_seconds: fields.unsigned("delaySeconds").unwrap_or(15),
        ignore_http1xx: fields.boolean("ignoreHttp1xx").unwrap_or(false),
        ip_protocol: fields.choice("ipProtocol", &["IPv4", "IPv6"]).unwrap_or_else(|| "IPv4".into()),
        container: 0,
        wire_protocol,
    })
}

pub fn read_readiness_check(
    item: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) -> Option<ReadinessCheck> {
    let mut fields = Fields::of(item, path, errors)?;
    let codes = fields.list("httpStatusCodesForReady", |item, path, errors| integer(item, path, errors, 999));
    Some(ReadinessCheck {
        name: fields.text("name").unwrap_or_else(|| "readinessCheck".into()),
        protocol: fields.choice("protocol", &["HTTP", "HTTPS"]).unwrap_or_else(|| "HTTP".into()),
        path: fields.text("path").unwrap_or_else(|| "/".into()),
        port_name: fields.text("portName").unwrap_or_else(|| "http-api".into()),
        interval_seconds: fields.unsigned("intervalSeconds").unwrap_or(30),
        timeout_seconds: fields.unsigned("timeoutSeconds").unwrap_or(10),
        http_status_codes_for_ready: codes
            .map(|codes| codes.into_iter().map(|code| code as u16).collect())
            .unwrap_or_else(|| vec![200]),
        preserve_last_response: fields.boolean("preserveLastResponse").unwrap_or(false),
    })
}
