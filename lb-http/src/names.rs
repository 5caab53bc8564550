//! Marathon-LB's names: backends, servers, server ids and cookie values. Tools and old cookies depend on them.
//!
//! Source: `config()` in marathon_lb.py.

use std::net::SocketAddr;

use event_watcher::catalog::AppId;
use sha1::{Digest, Sha1};
use sha2::Sha256;

pub const HTTP_FRONTEND: &str = "marathon_http_in";
pub const HTTPS_FRONTEND: &str = "marathon_https_in";
pub const APPID_FRONTEND: &str = "marathon_http_appid_in";

/// `/dcos-101/app2`, 10000 → `dcos-101_app2_10000`. Also the frontend's name.
pub fn backend(app: &AppId, port: u16) -> String {
    let path = app.as_str();
    format!("{}_{port}", path.strip_prefix('/').unwrap_or(path).replace('/', "_"))
}

/// `agent-1.example.com`, 9.0.1.2:80 → `agent-1_example_com_9_0_1_2_80`; the host is left out when it is the address.
pub fn server(host: &str, address: SocketAddr) -> String {
    let ip = address.ip().to_string();
    let full = if host == ip {
        format!("{ip}_{}", address.port())
    } else {
        format!("{host}_{ip}_{}", address.port())
    };
    full.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// Service ports for those that the scheduler gives none: Marathon-LB's `--min-serv-port-ip-per-task` and `--max-…`.
const FIRST_ASSIGNED: u16 = 10050;
const LAST_ASSIGNED: u16 = 10100;

/// The service port of an app whose instances have addresses of their own, by the port that they listen on. Marathon-LB
/// takes another one when it is taken, which depends on who came first; here it is always this one.
pub fn assigned_port(app: &AppId, instance_port: u16) -> u16 {
    let digest = Sha1::digest(format!("{app}-{instance_port}-0"));
    let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let n_ports = u32::from(LAST_ASSIGNED - FIRST_ASSIGNED) + 1;
    FIRST_ASSIGNED + (number % n_ports) as u16
}

/// The value of the sticky cookie: 10 hexadecimal digits.
pub fn cookie_value(server_name: &str) -> String {
    let mut hex = hex(&Sha1::digest(server_name));
    hex.truncate(10);
    hex
}

/// HAProxy's numeric id of a server; `is_taken` tells those of the backend that are given already.
pub fn server_id(server_name: &str, is_taken: impl Fn(u16) -> bool) -> u16 {
    const IDS: u32 = 32767;
    let mut name = server_name.to_owned();
    // Marathon-LB tries for ever; a backend of that many servers has no free id, and ids are for display.
    for _ in 0..64 {
        let digest = Sha256::digest(&name);
        let id = digest.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % IDS) as u16;
        if id != 0 && !is_taken(id) {
            return id;
        }
        name = format!("{name} {}", hex(&digest));
    }
    (1..IDS as u16).find(|id| !is_taken(*id)).unwrap_or(0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_marathon_lb() {
        assert_eq!(backend(&AppId::new("/dcos-101/app2"), 10000), "dcos-101_app2_10000");
        assert_eq!(backend(&AppId::new("/prod/web/api-v1"), 10000), "prod_web_api-v1_10000");
        for (host, address, expect) in [
            ("10.0.2.148", "10.0.2.148:1565", "10_0_2_148_1565"),
            ("agent1", "1.1.1.1:1024", "agent1_1_1_1_1_1024"),
            ("agent-1.example.com", "9.0.1.2:80", "agent-1_example_com_9_0_1_2_80"),
            ("h", "[fd00::1]:80", "h_fd00__1_80"),
        ] {
            assert_eq!(server(host, address.parse().unwrap()), expect);
        }
    }

    #[test]
    fn ports_cookies_and_ids_are_hashes_of_names() {
        // Computed with Python's hashlib, as Marathon-LB does.
        assert_eq!(assigned_port(&AppId::new("/db"), 5432), 10099);
        assert_eq!(assigned_port(&AppId::new("/shop/web"), 8080), 10056);
        assert_eq!(cookie_value("hello"), "aaf4c61ddc");
        assert_eq!(server_id("hello", |_| false), 17194);
        assert_eq!(server_id("hello", |id| id == 17194), 32044);
    }
}
