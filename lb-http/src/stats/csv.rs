//! Rows as HAProxy's CSV and JSON.
//!
//! The CSV has a trailing comma on every line, the header's too: clients of HAProxy 2.0 count on it.

use std::fmt::Write;

use serde::Serialize;

use super::fields::{COLUMNS, Kind, Row, Value, column_name};

pub fn csv(rows: &[Row]) -> String {
    let mut text = String::with_capacity(1024 + rows.len() * 256);
    text.push_str("# ");
    for name in COLUMNS {
        text.push_str(column_name(name));
        text.push(',');
    }
    text.push('\n');
    for row in rows {
        for value in &row.values {
            match value {
                Some(Value::Text(field)) => quoted(field, &mut text),
                // Writing to a string cannot fail.
                Some(value) => drop(write!(text, "{value}")),
                None => {}
            }
            text.push(',');
        }
        text.push('\n');
    }
    text
}

/// RFC 4180: quotes only where they are needed, which app names do not.
fn quoted(field: &str, text: &mut String) {
    if field.contains([',', '"', '\n', '\r']) {
        text.push('"');
        text.push_str(&field.replace('"', "\"\""));
        text.push('"');
    } else {
        text.push_str(field);
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonField<'a> {
    obj_type: &'static str,
    proxy_id: u64,
    id: u64,
    field: Position,
    process_num: u8,
    tags: Tags,
    value: JsonValue<'a>,
}

#[derive(Serialize)]
struct Position {
    pos: usize,
    name: &'static str,
}

#[derive(Serialize)]
struct Tags {
    origin: &'static str,
    nature: &'static str,
    scope: &'static str,
}

#[derive(Serialize)]
#[serde(tag = "type", content = "value")]
enum JsonValue<'a> {
    #[serde(rename = "str")]
    Text(&'a str),
    #[serde(rename = "u64")]
    Number(u64),
    #[serde(rename = "s32")]
    Age(i64),
}

pub fn json(rows: &[Row]) -> String {
    let rows: Vec<Vec<JsonField<'_>>> = rows.iter().map(json_row).collect();
    // Strings and numbers only: this cannot fail.
    serde_json::to_string(&rows).unwrap_or_default()
}

fn json_row(row: &Row) -> Vec<JsonField<'_>> {
    use super::fields::Column;
    let proxy_id = row.count(Column::iid).unwrap_or(0);
    let id = row.count(Column::sid).unwrap_or(0);
    let obj_type = match row.kind {
        Kind::Frontend => "Frontend",
        Kind::Backend => "Backend",
        Kind::Server => "Server",
    };
    let fields = row.values.iter().enumerate().filter_map(|(pos, value)| {
        let value = match value.as_ref()? {
            Value::Text(text) => JsonValue::Text(text),
            Value::Number(number) => JsonValue::Number(*number),
            Value::Age(seconds) => JsonValue::Age(*seconds),
        };
        let field = Position { pos, name: column_name(COLUMNS[pos]) };
        Some(JsonField { obj_type, proxy_id, id, field, process_num: 1, tags: tags(COLUMNS[pos]), value })
    });
    fields.collect()
}

/// As HAProxy 2.6 tags them.
fn tags(name: &str) -> Tags {
    let (origin, nature, scope) = match name {
        "pxname" | "svname" => ("Key", "Name", "Service"),
        "pid" => ("Key", "Gauge", "Process"),
        "iid" | "sid" => ("Key", "Gauge", "Service"),
        "slim" | "rate_lim" | "qlimit" => ("Config", "Limit", "Process"),
        "mode" | "algo" | "type_" | "addr" | "cookie" => ("Config", "Gauge", "Service"),
        "status" | "check_status" | "last_chk" => ("Status", "Gauge", "Process"),
        "smax" | "qmax" | "rate_max" | "req_rate_max" | "conn_rate_max" => ("Metric", "Max", "Process"),
        "rate" | "req_rate" | "conn_rate" => ("Metric", "Rate", "Process"),
        "lastchg" | "lastsess" => ("Metric", "Age", "Process"),
        "weight" | "qtime" | "ctime" | "rtime" | "ttime" => ("Metric", "Avg", "Process"),
        "scur" | "qcur" | "act" | "bck" => ("Metric", "Gauge", "Process"),
        _ => ("Metric", "Counter", "Process"),
    };
    Tags { origin, nature, scope }
}
