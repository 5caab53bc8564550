//! How systemd-resolved is configured, and what it is told (resolved.conf(5)).
//!
//! It asks no running service: files say all of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{DROP_IN, RESOLV_CONF};

const RUNS_WHERE: &str = "run/systemd/resolve";
const CONFIG: &str = "etc/systemd/resolved.conf";
/// Of drop-ins of one name, the last counts.
const DROP_INS: [&str; 4] = [
    "usr/lib/systemd/resolved.conf.d",
    "usr/local/lib/systemd/resolved.conf.d",
    "run/systemd/resolved.conf.d",
    "etc/systemd/resolved.conf.d",
];
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];

/// Whether programs of this host ask systemd-resolved: it may run with nobody asking.
pub(super) fn is_asked(root: &Path) -> bool {
    if !root.join(RUNS_WHERE).is_dir() {
        return false;
    }
    let resolv_conf = root.join(RESOLV_CONF);
    let leads_there =
        fs::read_link(&resolv_conf).is_ok_and(|target| target.to_string_lossy().contains("systemd/resolve/"));
    let names_it = |text: String| text.split_whitespace().any(|word| STUBS.contains(&word));
    let is_in_hosts = |text: String| {
        let mut hosts = text.lines().filter_map(|line| line.trim().strip_prefix("hosts:"));
        hosts.any(|sources| sources.split_whitespace().any(|source| source == "resolve"))
    };
    leads_there
        || !resolv_conf.exists()
        || fs::read_to_string(resolv_conf).is_ok_and(names_it)
        || fs::read_to_string(root.join("etc/nsswitch.conf")).is_ok_and(is_in_hosts)
}

/// The file that names servers for all links. systemd-resolved asks one of those at a time, whatever the name, so this
/// one would be asked for everything or for nothing.
pub(super) fn global_servers(root: &Path) -> Option<PathBuf> {
    let mut drop_ins = BTreeMap::new();
    for folder in DROP_INS {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            drop_ins.insert(entry.file_name(), entry.path());
        }
    }
    let own = root.join(DROP_IN);
    let drop_ins = drop_ins.into_values().filter(|path| path.extension().is_some_and(|e| e == "conf"));
    let mut found = None;
    for path in [root.join(CONFIG)].into_iter().chain(drop_ins).filter(|path| *path != own) {
        for line in fs::read_to_string(&path).unwrap_or_default().lines() {
            match line.split_once('=') {
                Some((key, servers)) if key.trim() == "DNS" => {
                    found = (!servers.trim().is_empty()).then(|| path.clone());
                }
                _ => {}
            }
        }
    }
    found
}

/// `~`: names of these zones come here, and no name is completed with them.
pub(super) fn drop_in(servers: &[IpAddr], zones: &[String]) -> String {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let zones: Vec<String> = zones.iter().map(|zone| format!("~{zone}")).collect();
    format!("[Resolve]\nDNS={}\nDomains={}\n", servers.join(" "), zones.join(" "))
}
