//! The value labels that change heads: `HTTP_BACKEND_PROXYPASS_PATH`, `HTTP_BACKEND_REVPROXY_PATH`, `USE_HSTS`.
//!
//! Edits that come from templates are read in `templates`.

use http::{HeaderName, HeaderValue};

use super::reader::Reader;
use super::{Compat, HostPattern, Mode};
use crate::edits::{Change, Edit, HeadEdits, LocationRewrite, Tail, Value, When};

/// Half a year, as Marathon-LB has it.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=15768000");

pub(super) fn read(reader: &mut Reader<'_>, mode: Mode, hosts: &[HostPattern]) -> HeadEdits {
    let names: Vec<_> = hosts.iter().filter_map(HostPattern::exact_host).map(Into::into).collect();
    let mut edits = HeadEdits::default();
    if let Some(path) = path(reader, mode, "HTTP_BACKEND_PROXYPASS_PATH") {
        edits.strip_prefix = Some(path.into());
        // Marathon-LB writes the whole label; with several hosts only one can be meant.
        edits.host = hosts.first().and_then(|host| match host {
            HostPattern::Exact(host) => HeaderValue::from_str(host).ok(),
            _ => None,
        });
    }
    if let Some(path) = path(reader, mode, "HTTP_BACKEND_REVPROXY_PATH") {
        let tail = if reader.compat() == Compat::MarathonLb { Tail::Dropped } else { Tail::Kept };
        edits.location = Some(LocationRewrite { path: path.into(), hosts: names, tail });
    }
    if mode == Mode::Http && reader.boolean("USE_HSTS", false) {
        edits.response.push(hsts(HSTS));
    }
    edits
}

pub(super) fn hsts(value: HeaderValue) -> Edit {
    Edit {
        change: Change::Set(Value::Text(value)),
        name: HeaderName::from_static("strict-transport-security"),
        when: When::Always,
    }
}

fn path<'a>(reader: &mut Reader<'a>, mode: Mode, key: &str) -> Option<&'a str> {
    let path = reader.text(key)?.trim();
    let what = match mode {
        Mode::Tcp => "paths need mode http; this service is mode tcp".to_owned(),
        Mode::Http if path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()) => {
            return Some(path);
        }
        Mode::Http => format!("{path:?} does not begin with a slash"),
    };
    reader.problem(key, what, "nothing is rewritten");
    None
}
