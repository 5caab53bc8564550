//! Who may ask: methods that only read, and host names that a browser cannot be tricked into.
//!
//! There is no authentication: what is served here is read-only, but for one command that only this machine may
//! give, and Marathon-LB's signals.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method, StatusCode, header};

/// A request that is not answered, with the reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub reason: &'static str,
}

/// How Marathon-LB's signals are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signals {
    #[default]
    ByPost,
    /// As Marathon-LB takes them.
    ByGetToo,
}

/// Paths that ask for something to be done.
pub fn is_signal(path: &str) -> bool {
    path.starts_with("/_mlb_signal/")
}

/// On loopback, a page of a foreign site could reach this server by making its own name resolve to 127.0.0.1 (DNS
/// rebinding). Its requests then carry that name, so only names that are this machine's own are answered.
pub fn check(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    listen: SocketAddr,
    signals: Signals,
) -> Result<(), Refusal> {
    let not_allowed = |reason| Err(Refusal { status: StatusCode::METHOD_NOT_ALLOWED, reason });
    match *method {
        Method::GET | Method::HEAD if !is_signal(path) || signals == Signals::ByGetToo => {}
        Method::GET | Method::HEAD => return not_allowed("this asks for something to be done: use POST"),
        // A page of another site may send a form, but not without saying where it is from.
        Method::POST if is_signal(path) && !headers.contains_key(header::ORIGIN) => {}
        Method::POST if is_signal(path) => return not_allowed("this is not for pages of other sites"),
        _ => return not_allowed("this address only answers GET and HEAD"),
    }
    let misdirected =
        Refusal { status: StatusCode::MISDIRECTED_REQUEST, reason: "this address answers to localhost only" };
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(Refusal { status: StatusCode::BAD_REQUEST, reason: "two Host headers" });
    }
    if !listen.ip().is_loopback() {
        return Ok(());
    }
    // A client without a Host header is no browser.
    let Some(host) = host else { return Ok(()) };
    let name = host.to_str().ok().and_then(host_name);
    if name.is_some_and(|name| is_local(name, listen.ip())) { Ok(()) } else { Err(misdirected) }
}

/// The header that a command carries. A page of a foreign site cannot send it without asking first, and is refused
/// then.
pub const COMMAND_HEADER: &str = "waymark-command";

/// A command comes from this machine and from a program.
pub fn check_command(headers: &HeaderMap, peer: SocketAddr) -> Result<(), Refusal> {
    match peer.ip().to_canonical().is_loopback() && headers.contains_key(COMMAND_HEADER) {
        true => Ok(()),
        false => Err(Refusal {
            status: StatusCode::FORBIDDEN,
            reason: "commands are taken from this machine only; run waymark sync on it",
        }),
    }
}

fn host_name(host: &str) -> Option<&str> {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map(|(name, _)| name);
    }
    Some(host.split_once(':').map_or(host, |(name, _)| name))
}

fn is_local(name: &str, listen: IpAddr) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == listen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &Method, hosts: &[&str], listen: &str) -> Option<u16> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        check(method, "/", &headers, listen.parse().unwrap(), Signals::ByPost)
            .err()
            .map(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn commands_come_from_programs_on_this_machine() {
        let mut headers = HeaderMap::new();
        let local: SocketAddr = "127.0.0.1:5000".parse().unwrap();
        assert!(check_command(&headers, local).is_err(), "a page could send this");
        headers.insert(COMMAND_HEADER, "1".parse().unwrap());
        assert!(check_command(&headers, local).is_ok());
        assert!(check_command(&headers, "[::ffff:127.0.0.1]:5000".parse().unwrap()).is_ok());
        assert!(check_command(&headers, "10.0.0.7:5000".parse().unwrap()).is_err());
    }

    #[test]
    fn only_reading_of_own_names() {
        let loopback = "127.0.0.1:9090";
        for (method, hosts, listen, expect) in [
            (Method::GET, &["127.0.0.1:9090"][..], loopback, None),
            (Method::HEAD, &["localhost:9090"], loopback, None),
            (Method::GET, &["LOCALHOST"], loopback, None),
            (Method::GET, &["[::1]:9090"], "[::1]:9090", None),
            (Method::GET, &[], loopback, None),
            (Method::GET, &["evil.example:9090"], loopback, Some(421)),
            (Method::GET, &["127.0.0.1.evil.example"], loopback, Some(421)),
            (Method::GET, &["10.0.0.1"], loopback, Some(421)),
            (Method::GET, &["[::1"], loopback, Some(421)),
            (Method::GET, &["localhost", "evil"], loopback, Some(400)),
            (Method::GET, &["node7.cluster:9090"], "0.0.0.0:9090", None),
            (Method::POST, &["localhost"], loopback, Some(405)),
            (Method::DELETE, &["node7"], "0.0.0.0:9090", Some(405)),
        ] {
            assert_eq!(status(&method, hosts, listen), expect, "{method} {hosts:?} at {listen}");
        }
    }

    #[test]
    fn signals_change_something_and_want_a_post() {
        for (method, path, origin, signals, expect) in [
            (Method::GET, "/_mlb_signal/hup", None, Signals::ByPost, Some(405)),
            (Method::GET, "/_mlb_signal/hup", None, Signals::ByGetToo, None),
            (Method::POST, "/_mlb_signal/hup", None, Signals::ByPost, None),
            (Method::POST, "/_mlb_signal/hup", Some("http://evil.example"), Signals::ByGetToo, Some(405)),
            (Method::POST, "/", None, Signals::ByGetToo, Some(405)),
        ] {
            let headers = HeaderMap::from_iter(origin.map(|o| (header::ORIGIN, o.parse().unwrap())));
            let listen = "127.0.0.1:9090".parse().unwrap();
            let refused = check(&method, path, &headers, listen, signals).err();
            assert_eq!(refused.map(|r| r.status.as_u16()), expect, "{method} {path} {origin:?} {signals:?}");
        }
    }
}
