//! Lines of backend templates: time-outs, headers, redirects, cookies, checks, servers.
//!
//! Each line is understood as a whole or not at all.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use rustls::pki_types::ServerName;

use super::super::{Affinity, CheckKind, CheckPort, CheckSpec, Mode, ServiceLabels, StaticServer, balance};
use super::lines::{Condition, Holds, Negated, condition, time};
use super::{Acl, Acls};
use crate::access::{Proxied, Scheme, ToHttps, Ways};
use crate::edits::{Change, Edit, Value, When};
use crate::sticky::CookieStyle;
use crate::tls::{ServerTls, Verify};

/// Whether a line was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Understood {
    Yes,
    No,
}

impl From<Option<()>> for Understood {
    fn from(done: Option<()>) -> Self {
        if done.is_some() { Self::Yes } else { Self::No }
    }
}

/// A line that may stand in any backend template.
pub(super) fn line(words: &[&str], labels: &mut ServiceLabels, acls: &mut Acls) -> Understood {
    match words {
        ["timeout", which, value] => timeout(which, value, labels).into(),
        ["balance", rest @ ..] => balance(&rest.join(" "), labels).into(),
        ["mode", mode] => self::mode(mode, labels).into(),
        ["backend" | "frontend" | "log" | "maxconn" | "fullconn" | "retries", ..] => Understood::Yes,
        ["no", "option", ..] => Understood::Yes,
        ["option", "forwardfor", ..] => {
            let change = Change::Add(Value::ClientAddress);
            edit(&mut labels.edits.request, change, "x-forwarded-for", When::Always).into()
        }
        // Logging and what the engine does anyway, or never does.
        [
            "option",
            "httplog"
            | "tcplog"
            | "dontlognull"
            | "dontlog-normal"
            | "log-health-checks"
            | "redispatch"
            | "http-keep-alive"
            | "http-server-close"
            | "httpclose"
            | "forceclose"
            | "tcpka"
            | "clitcpka"
            | "srvtcpka"
            | "allbackups"
            | "log-separate-errors"
            | "contstats",
            ..,
        ] => Understood::Yes,
        ["option", "httpchk", rest @ ..] => http_check(rest, labels).into(),
        ["option", "tcp-check"] => with_check(labels, |check| check.kind = CheckKind::Tcp).into(),
        ["http-request", rest @ ..] => request_rule(rest, labels, acls).into(),
        ["http-response", rest @ ..] => header_rule(rest, &mut labels.edits.response).into(),
        ["rspadd", header, rest @ ..] => rspadd(header, rest, labels).into(),
        ["reqadd", header] => reqadd(header, labels).into(),
        ["redirect", rest @ ..] => redirect(rest, labels, acls).into(),
        ["acl", name, rest @ ..] => acls.define(name, rest).into(),
        ["cookie", name, rest @ ..] => cookie(name, rest, labels).into(),
        ["server", name, address, rest @ ..] => server(name, address, rest, labels).into(),
        ["check", rest @ ..] => check_options(rest, labels).into(),
        _ => Understood::No,
    }
}

fn timeout(which: &str, value: &str, labels: &mut ServiceLabels) -> Option<()> {
    let value = time(value)?;
    let timeouts = &mut labels.timeouts;
    match which {
        "connect" => timeouts.connect = Some(value),
        "client" => timeouts.client = Some(value),
        "server" => timeouts.server = Some(value),
        "tunnel" => timeouts.tunnel = Some(value),
        "queue" => labels.capacity.queue_timeout = value,
        "check" => return with_check(labels, |check| check.timeout = value),
        // Others bound what has bounds of its own here.
        "http-request" | "http-keep-alive" | "tarpit" | "client-fin" | "server-fin" => {}
        _ => return None,
    }
    Some(())
}

fn balance(text: &str, labels: &mut ServiceLabels) -> Option<()> {
    (labels.balance, labels.hash_on) = balance::parse(text)?;
    Some(())
}

fn mode(text: &str, labels: &ServiceLabels) -> Option<()> {
    let own = match labels.mode {
        Mode::Http => "http",
        Mode::Tcp => "tcp",
    };
    (text == own).then_some(())
}

fn with_check(labels: &mut ServiceLabels, change: impl FnOnce(&mut CheckSpec)) -> Option<()> {
    // Without a check there is nothing to change, as in HAProxy.
    labels.check.as_mut().map(change);
    Some(())
}

/// `option httpchk [METHOD] PATH [VERSION [headers]]`.
fn http_check(words: &[&str], labels: &mut ServiceLabels) -> Option<()> {
    let (method, path, rest) = match words {
        [] => ("OPTIONS", "/", &[][..]),
        [path] => ("OPTIONS", *path, &[][..]),
        [method, path, rest @ ..] => (*method, *path, rest),
    };
    // `HTTP/1.1\r\nHost:\ www` is one word; the escapes of the line end have lost their backslash.
    let headers = rest.join(" ");
    let host = headers.to_ascii_lowercase().find("host:").map(|at| headers[at + 5..].trim());
    let host = host.map(|host| host.split(['\r', '\n', ' ']).next().unwrap_or(host));
    if !path.starts_with('/') {
        return None;
    }
    let (method, path, host) = (method.into(), path.into(), host.map(Into::into));
    with_check(labels, |check| {
        let scheme = match &check.kind {
            CheckKind::Http { scheme, .. } => *scheme,
            CheckKind::Tcp => Scheme::Http,
        };
        check.kind = CheckKind::Http { scheme, method, path, host };
    })
}

/// `check [inter D] [fastinter D] [fall N] [rise N] [port N]`.
fn check_options(words: &[&str], labels: &mut ServiceLabels) -> Option<()> {
    let mut check = labels.check.clone();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = *words.next()?;
        let Some(check) = &mut check else { continue };
        match *word {
            "inter" => check.interval = time(value).filter(|t| *t > Duration::ZERO)?,
            "fall" => check.fall = value.parse().ok().filter(|n| *n > 0)?,
            "rise" => check.rise = value.parse().ok().filter(|n| *n > 0)?,
            "port" => check.port = CheckPort::Fixed(value.parse().ok().filter(|p| *p > 0)?),
            "fastinter" | "downinter" => {
                time(value)?;
            }
            _ => return None,
        }
    }
    labels.check = check;
    Some(())
}

fn request_rule(words: &[&str], labels: &mut ServiceLabels, acls: &Acls) -> Option<()> {
    match words {
        ["redirect", rest @ ..] => redirect(rest, labels, acls),
        _ => header_rule(words, &mut labels.edits.request),
    }
}

/// `set-header N V [if …]`, `add-header N V [if …]`, `del-header N [if …]`.
fn header_rule(words: &[&str], edits: &mut Vec<Edit>) -> Option<()> {
    let (change, name, rest) = match words {
        ["set-header", name, value, rest @ ..] => (Change::Set(self::value(value)?), name, rest),
        ["add-header", name, value, rest @ ..] => (Change::Add(self::value(value)?), name, rest),
        ["del-header", name, rest @ ..] => (Change::Remove, name, rest),
        _ => return None,
    };
    edit(edits, change, name, when(rest)?)
}

/// These frame the message, or name its receiver's next hop: not for labels to change.
const FRAMING: [&str; 4] = ["content-length", "transfer-encoding", "connection", "upgrade"];

fn edit(edits: &mut Vec<Edit>, change: Change, name: &str, when: When) -> Option<()> {
    let name: HeaderName = name.parse().ok()?;
    if FRAMING.contains(&name.as_str()) {
        return None;
    }
    edits.push(Edit { change, name, when });
    Some(())
}

/// A text, or one of the sample expressions that people use.
fn value(text: &str) -> Option<Value> {
    Some(match text {
        "%[dst_port]" | "%[dst_port()]" => Value::LocalPort,
        "%[src]" | "%ci" => Value::ClientAddress,
        _ => {
            let name = text.strip_prefix("%[env(").and_then(|rest| rest.strip_suffix(")]"));
            let text = match name {
                Some(name) => std::env::var(name).unwrap_or_default(),
                None if text.contains("%[") => return None,
                None => text.replace("%%", "%"),
            };
            Value::Text(HeaderValue::try_from(text).ok()?)
        }
    })
}

/// `rspadd Name:\ value [if …]`.
fn rspadd(header: &str, rest: &[&str], labels: &mut ServiceLabels) -> Option<()> {
    let (name, value) = header.split_once(':')?;
    let change = Change::Add(self::value(value.trim())?);
    edit(&mut labels.edits.response, change, name.trim(), when(rest)?)
}

fn reqadd(header: &str, labels: &mut ServiceLabels) -> Option<()> {
    let (name, value) = header.split_once(':')?;
    edit(&mut labels.edits.request, Change::Add(self::value(value.trim())?), name.trim(), When::Always)
}

fn when(words: &[&str]) -> Option<When> {
    if words.is_empty() {
        return Some(When::Always);
    }
    let Condition { holds, terms } = condition(words)?;
    let [term] = &terms[..] else { return None };
    if term.test != "ssl_fc" {
        return None;
    }
    let is_if = matches!(holds, Holds::IfAll | Holds::IfAny);
    Some(if is_if == (term.negated == Negated::No) { When::Tls } else { When::Plain })
}

/// `redirect scheme https [code N] if !{ ssl_fc }`, or `unless { ssl_fc } or is_proxy_https`.
fn redirect(words: &[&str], labels: &mut ServiceLabels, acls: &Acls) -> Option<()> {
    let ["scheme", "https", rest @ ..] = words else { return None };
    let (status, rest) = match rest {
        ["code", code, rest @ ..] => (StatusCode::from_bytes(code.as_bytes()).ok()?, rest),
        _ => (StatusCode::FOUND, rest),
    };
    if !status.is_redirection() {
        return None;
    }
    let Condition { holds, terms } = condition(rest)?;
    let wanted = match holds {
        Holds::UnlessAny => Negated::No,
        Holds::UnlessAll if terms.len() == 1 => Negated::No,
        Holds::IfAll => Negated::Yes,
        _ => return None,
    };
    let mut proxied = Proxied::Ignored;
    let mut names_tls = false;
    for term in &terms {
        match acls.get(&term.test) {
            _ if term.negated != wanted => return None,
            _ if term.test == "ssl_fc" => names_tls = true,
            Some(Acl::Tls) => names_tls = true,
            Some(Acl::ForwardedHttps) => proxied = Proxied::Trusted,
            _ => return None,
        }
    }
    if !names_tls && proxied == Proxied::Ignored {
        return None;
    }
    labels.admission.to_https = Some(ToHttps { status, ways: Ways::All, proxied });
    Some(())
}

/// `cookie NAME insert indirect nocache [httponly] [secure] [domain D] [maxidle D] [maxlife D]`.
fn cookie(name: &str, words: &[&str], labels: &mut ServiceLabels) -> Option<()> {
    let mut cookie = CookieStyle::named(name)?;
    let mut inserts = false;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "insert" => inserts = true,
            "indirect" | "nocache" | "dynamic" => {}
            "httponly" => cookie = cookie.with("HttpOnly")?,
            "secure" => cookie = cookie.with("Secure")?,
            "domain" => cookie = cookie.with(&format!("Domain={}", words.next()?))?,
            "attr" => cookie = cookie.with(words.next()?)?,
            _ => return None,
        }
    }
    if !inserts {
        return None;
    }
    labels.cookie = cookie;
    Some(())
}

/// `server NAME HOST:PORT [check …] [ssl …]`.
fn server(name: &str, address: &str, options: &[&str], labels: &mut ServiceLabels) -> Option<()> {
    let mut options = options.iter().copied();
    let mut tls = TlsOptions::default();
    while let Some(option) = options.next() {
        match option {
            "check" | "check-ssl" => {}
            // 0: none.
            "maxconn" => labels.capacity.per_endpoint = NonZeroU32::new(options.next()?.parse().ok()?),
            // For each server in HAProxy; here for all of the service, as what waits is one line.
            "maxqueue" => labels.capacity.queue = options.next()?.parse().ok()?,
            "inter" | "fall" | "rise" | "weight" | "id" | "port" | "cookie" | "resolvers" => {
                options.next()?;
            }
            _ => tls.option(option, &mut options)?,
        }
    }
    if tls.is_wanted {
        // As in HAProxy: checks are in TLS, too.
        with_check(labels, |check| {
            if let CheckKind::Http { scheme, .. } = &mut check.kind {
                *scheme = Scheme::Https;
            }
        });
    }
    if address.contains(PER_INSTANCE) {
        labels.server_tls = tls.read(None)?;
        return Some(());
    }
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_name = host.parse::<std::net::IpAddr>().is_ok()
        || (!host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)));
    let port = port.parse().ok().filter(|p| *p > 0)?;
    if !is_name {
        return None;
    }
    labels.server_tls = tls.read(Some(host))?;
    labels.static_server = Some(StaticServer { name: name.into(), host: host.into(), port });
    Some(())
}

/// What a server line says of TLS; without `ssl` it means nothing, as in HAProxy.
#[derive(Default)]
struct TlsOptions<'a> {
    is_wanted: bool,
    is_unverified: bool,
    authorities: Option<&'a str>,
    server_name: Option<&'a str>,
    /// `verifyhost`.
    certificate_name: Option<&'a str>,
}

impl<'a> TlsOptions<'a> {
    /// `None`: not understood, e.g. a client certificate, or a name that is made anew for each request.
    fn option(&mut self, option: &str, values: &mut impl Iterator<Item = &'a str>) -> Option<()> {
        if option == "ssl" {
            self.is_wanted = true;
            return Some(());
        }
        let value = values.next()?;
        match (option, value) {
            ("verify", "none") => self.is_unverified = true,
            ("verify", "required") => self.is_unverified = false,
            ("ca-file", file) => self.authorities = Some(file),
            ("sni", name) => {
                self.server_name = Some(name.strip_prefix("str(")?.strip_suffix(')')?.trim_matches('\''));
            }
            ("verifyhost", name) => self.certificate_name = Some(name),
            ("alpn", "http/1.1") | ("ssl-min-ver", "TLSv1.2") | ("check-sni", _) => {}
            _ => return None,
        }
        Some(())
    }

    /// `host`: of the server's address, when all of the service have the same.
    fn read(self, host: Option<&str>) -> Option<Option<Arc<ServerTls>>> {
        if !self.is_wanted {
            return Some(None);
        }
        if self.server_name.is_some()
            && self.certificate_name.is_some_and(|name| Some(name) != self.server_name)
        {
            return None;
        }
        let verify = match self.authorities {
            _ if self.is_unverified => Verify::None,
            None | Some("@system-ca") => Verify::System,
            Some(file) => Verify::Authorities(file.into()),
        };
        let name = self.server_name.or(self.certificate_name).or(host);
        let name = match name {
            Some(name) => Some(ServerName::try_from(name).ok()?.to_owned()),
            None => None,
        };
        Some(Some(Arc::new(ServerTls { verify, name })))
    }
}

/// Stands for what differs from instance to instance; no host name has it.
pub(super) const PER_INSTANCE: &str = "\u{1}";

/// The default options of a sticky server line; only whether they are there matters.
pub(super) fn is_sticky(labels: &ServiceLabels) -> bool {
    labels.affinity == Affinity::Cookie
}
