//! The labels of access: `AUTH`, `BACKEND_NETWORK_ALLOWED_ACL`, `DENY`, `REDIRECT_TO_HTTPS`, `HTTP_BACKEND_REDIR`.
//!
//! A list or a login that cannot be read closes the service for those it was to keep out: open would be worse.

use http::StatusCode;

use super::reader::Reader;
use super::{Compat, HostPattern, Mode};
use crate::access::{Admission, Login, Network, PasswordHash, Proxied, RootRedirect, ToHttps, Ways};

pub(super) fn read(reader: &mut Reader<'_>, mode: Mode, hosts: &[HostPattern]) -> Admission {
    Admission {
        allow: allowed(reader),
        deny: networks(reader, "DENY"),
        login: login(reader, mode),
        to_https: to_https(reader, hosts),
        root: root(reader, mode, hosts),
    }
}

fn allowed(reader: &mut Reader<'_>) -> Vec<Network> {
    const KEY: &str = "BACKEND_NETWORK_ALLOWED_ACL";
    let key = if reader.find("ALLOW").is_some() { "ALLOW" } else { KEY };
    let mut allow = networks(reader, key);
    let is_meant = reader.text(key).is_some_and(|text| !text.trim().is_empty());
    if allow.is_empty() && is_meant {
        // Nobody comes from the unspecified address.
        allow.extend("0.0.0.0/32".parse::<Network>().ok());
        reader.problem(key, "no network of the list can be read".to_owned(), "nobody is let in");
    }
    allow
}

/// Separated by blanks or commas.
fn networks(reader: &mut Reader<'_>, key: &str) -> Vec<Network> {
    let mut networks = Vec::new();
    let words = reader.text(key).unwrap_or_default().split([' ', ',', '\t']).filter(|w| !w.is_empty());
    for word in words {
        match word.parse() {
            Ok(network) => networks.push(network),
            Err(error) => reader.problem(key, format!("{error}"), "it is left out"),
        }
    }
    networks
}

/// `realm:user:hash`.
fn login(reader: &mut Reader<'_>, mode: Mode) -> Option<Login> {
    let text = reader.text("AUTH")?;
    if mode == Mode::Tcp {
        let what = "passwords need mode http; this service is mode tcp and asks nobody".to_owned();
        reader.problem("AUTH", what, "set MODE to http, or restrict it by BACKEND_NETWORK_ALLOWED_ACL");
        return None;
    }
    let ways = match reader.compat() {
        Compat::MarathonLb => Ways::Hosts,
        Compat::None => Ways::All,
    };
    let fields: Vec<&str> = text.split(':').collect();
    let [realm, user, hash] = fields[..] else {
        reader.problem("AUTH", "it is not realm:user:hash".to_owned(), "nobody is let in");
        return Some(Login::nobody(ways));
    };
    match PasswordHash::parse(hash) {
        Ok(hash) => Some(Login::new(realm, user, hash, ways)),
        Err(error) => {
            reader.problem("AUTH", error.to_string(), "nobody is let in");
            Some(Login::nobody(ways))
        }
    }
}

fn to_https(reader: &mut Reader<'_>, hosts: &[HostPattern]) -> Option<ToHttps> {
    if !reader.boolean("REDIRECT_TO_HTTPS", false) {
        return None;
    }
    if hosts.is_empty() {
        let what = "only virtual hosts are redirected, and the service has none".to_owned();
        reader.problem("REDIRECT_TO_HTTPS", what, "set VHOST as well");
    }
    Some(ToHttps { status: StatusCode::MOVED_PERMANENTLY, ways: Ways::Hosts, proxied: Proxied::Ignored })
}

fn root(reader: &mut Reader<'_>, mode: Mode, hosts: &[HostPattern]) -> Option<RootRedirect> {
    let location = reader.text("HTTP_BACKEND_REDIR")?.trim();
    let is_location = !location.is_empty() && location.bytes().all(|b| b.is_ascii_graphic());
    if mode == Mode::Tcp || !is_location {
        let what = match mode {
            Mode::Tcp => "redirects need mode http; this service is mode tcp".to_owned(),
            Mode::Http => format!("{location:?} is not a location"),
        };
        reader.problem("HTTP_BACKEND_REDIR", what, "nothing is redirected");
        return None;
    }
    let hosts = hosts.iter().filter_map(HostPattern::exact_host).map(Into::into).collect();
    Some(RootRedirect { location: location.into(), hosts })
}
