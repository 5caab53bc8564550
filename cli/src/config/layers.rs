//! How the four layers of configuration are read and laid over each other.
//!
//! Layers are TOML tables: merging needs no knowledge of the keys. Which keys exist is said once, by `Config`.

use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};

use super::Config;
use crate::args::{Compat, DaemonArgs, DnsCompat, Mode};
use crate::failure::Failure;

const PREFIX: &str = "WAYMARK_";
/// Variables with our prefix that are no configuration of the daemon.
const OTHER_VARIABLES: [&str; 6] = [
    "WAYMARK_CONFIG",
    "WAYMARK_DNS",
    "WAYMARK_LOG",
    "WAYMARK_STATS",
    "WAYMARK_MARATHON",
    "WAYMARK_MARATHON_TOKEN",
];

/// The variables of the process whose names begin with `WAYMARK_`.
#[derive(Clone, Debug, Default)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    pub fn of_process() -> Self {
        Self::new(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect())
    }
}

/// Values by dotted key.
#[derive(Debug, Default)]
pub struct Layer(Table);

impl Layer {
    pub fn of_daemon(args: &DaemonArgs) -> Self {
        let mut layer = Self::default();
        layer.set_if("http.listen", args.http_listen);
        layer.set_if("https.listen", args.https_listen);
        layer.set_list("https.certificates", &args.ssl_certs);
        layer.set_if("service.address", args.service_address);
        layer.set_if("appid.listen", args.appid_listen);
        layer.set_if("stats.listen", args.stats_listen);
        layer.set_list("dns.listen", &args.dns_listen);
        layer.set_if("dns.http.listen", args.dns_http_listen);
        layer.set_if("dns.dcos.listen", args.dns_dcos_listen);
        layer.set_list("dns.upstreams", &args.dns_upstreams);
        let as_mesos_dns = args.compat.contains(&Compat::MesosDns).then_some(DnsCompat::MesosDns);
        layer.set_if("dns.compat", args.dns_compat.or(as_mesos_dns));
        layer.set_if("dns.install", args.dns_install.then_some(true));
        layer.set_list("vip.pool", &args.vip_pool);
        layer.set_list("group", &args.group);
        layer.set_if("strict.mode", args.strict_mode.then_some(true));
        layer.set_list("compat", &args.compat);
        layer.set_if("vip.plane", args.vip_plane);
        layer.set_if("vip.cgroup", args.vip_cgroup.as_ref());
        layer.set_if("vip.flush_on_exit", args.flush_on_exit.then_some(true));
        layer.set_list("static", &args.static_files);
        layer.set_if("vip.policy", args.vip_policy);
        layer.set_if("vip.affinity", args.vip_affinity.as_ref());
        layer.set_if("vip.tcp.idle", args.vip_tcp_idle.as_ref());
        layer.set_if("vip.udp.idle", args.vip_udp_idle.as_ref());
        layer.set_if("vip.udp.flows", args.vip_udp_flows);
        layer.set_if("state.dir", args.state_dir.as_ref());
        layer.set_if("workers", args.workers);
        layer.set_if("ready.file", args.ready_file.as_ref());
        layer
    }

    pub fn set_if(&mut self, key: &str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            let value = Value::try_from(value).expect("flags are texts, numbers and lists of them");
            put(&mut self.0, key, value);
        }
    }

    /// An empty list is an absent flag.
    pub fn set_list(&mut self, key: &str, values: &[impl Serialize]) {
        self.set_if(key, (!values.is_empty()).then_some(values));
    }
}

pub fn merge(
    mode: Mode,
    file: Option<&Path>,
    environment: &Environment,
    flags: Layer,
) -> Result<Config, Failure> {
    let mut table = Table::try_from(Config::defaults(mode)).expect("the defaults are a table");
    if let Some(path) = file {
        lay_over(&mut table, read_file(path)?);
    }
    lay_over(&mut table, of_environment(environment, mode)?);
    lay_over(&mut table, flags.0);
    table
        .try_into()
        .map_err(|e: toml::de::Error| Failure::usage(format!("bad configuration: {}", e.message())))
}

fn read_file(path: &Path) -> Result<Table, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::usage(format!("cannot read {shown}: {e}")).hint("--config names a TOML file")
    })?;
    // Read into the typed form first: its errors know their line.
    if let Err(error) = toml::from_str::<Config>(&text) {
        let line =
            error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let (what, hint) = explain(error.message());
        return Err(Failure::usage(format!("{shown}, line {line}: {what}")).hint(hint));
    }
    toml::from_str(&text).map_err(|e| Failure::usage(format!("{shown}: {}", e.message())))
}

/// Splits serde's list of the keys that exist off the message.
fn explain(message: &str) -> (String, String) {
    match message.split_once(", expected ") {
        Some((what, expected)) if what.starts_with("unknown field") => (
            what.replacen("unknown field", "unknown key", 1),
            format!("keys here: {}", expected.trim_start_matches("one of ").replace('`', "")),
        ),
        _ => (message.to_owned(), "waymark config prints every key with its value".to_owned()),
    }
}

/// `WAYMARK_HTTP_TIMEOUTS_CONNECT=3s` is `http.timeouts.connect = "3s"`. Lists are separated by commas.
fn of_environment(environment: &Environment, mode: Mode) -> Result<Table, Failure> {
    let defaults = Table::try_from(Config::defaults(mode)).expect("the defaults are a table");
    let mut keys = Vec::new();
    collect_keys(&defaults, "", &mut keys);
    // Keys whose default is their absence.
    keys.push(("dns.upstreams".to_owned(), Shape::List));
    keys.push(("ready.file".to_owned(), Shape::Text));
    // Keys that are not shown.
    keys.push(("scheduler.token".to_owned(), Shape::Text));
    keys.push(("scheduler.credentials".to_owned(), Shape::Text));
    for key in ["dns.dcos.listen", "dns.http.certificate", "dns.http.key", "dns.nsid", "dns.cookie_secret"] {
        keys.push((key.to_owned(), Shape::Text));
    }
    keys.push(("vip.cgroup".to_owned(), Shape::Text));
    let mut table = Table::new();
    for (name, text) in &environment.0 {
        let Some((key, shape)) = keys.iter().find(|(key, _)| variable(key) == *name) else {
            if !OTHER_VARIABLES.contains(&name.as_str()) {
                tracing::warn!("{name} is no configuration key and is ignored");
            }
            continue;
        };
        put(&mut table, key, shape.read(text).ok_or_else(|| bad_variable(name, text, *shape))?);
    }
    Ok(table)
}

fn bad_variable(name: &str, text: &str, shape: Shape) -> Failure {
    let expected = match shape {
        Shape::Number | Shape::Fraction => "a number",
        Shape::Switch => "true or false",
        Shape::Text | Shape::List => "text",
    };
    Failure::usage(format!("{name}={text:?}: expected {expected}"))
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Text,
    Number,
    Fraction,
    Switch,
    List,
}

impl Shape {
    fn read(self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Text => Value::String(text.to_owned()),
            Self::Number => Value::Integer(text.parse().ok()?),
            Self::Fraction => Value::Float(text.parse().ok()?),
            Self::Switch => Value::Boolean(text.parse().ok()?),
            Self::List => Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|t| !t.is_empty() && *t != "none")
                    .map(Value::from)
                    .collect(),
            ),
        })
    }
}

fn collect_keys(table: &Table, prefix: &str, keys: &mut Vec<(String, Shape)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => collect_keys(inner, &key, keys),
            Value::Array(_) => keys.push((key, Shape::List)),
            Value::Integer(_) => keys.push((key, Shape::Number)),
            Value::Float(_) => keys.push((key, Shape::Fraction)),
            Value::Boolean(_) => keys.push((key, Shape::Switch)),
            _ => keys.push((key, Shape::Text)),
        }
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn lay_over(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::super::{NoUpstreams, Upstreams};
    use super::*;
    use crate::args::{DevArgs, PlaneName, ServeArgs};

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn dev(text: &str, variables: &[(&str, &str)], args: DevArgs) -> Result<Config, Failure> {
        let file = file(text);
        let daemon = DaemonArgs { config: Some(file.path().to_owned()), ..args.daemon };
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::of_dev(&DevArgs { daemon, ..args }, &Environment::new(variables))
    }

    #[test]
    fn the_defaults_are_those_of_the_interface() {
        let toml = Config::defaults(Mode::Dev).to_toml().unwrap();
        for line in [
            "client_header = \"10s\"",
            "client_body_idle = \"30s\"",
            "client_keepalive = \"1m\"",
            "connect = \"3s\"",
            "server_head = \"1m\"",
            "tunnel_idle = \"1h\"",
            "request_line_bytes = 16384",
            "header_bytes = 32768",
            "connections_per_client = 512",
            "udp_payload_bytes = 1232",
            "resync = \"30s\"",
            "stream_deadline = \"15s\"",
        ] {
            assert!(toml.lines().any(|l| l == line), "{line} is not in\n{toml}");
        }
        let read: Config = toml::from_str(&toml).unwrap();
        assert_eq!(read, Config::defaults(Mode::Dev));
    }

    #[test]
    fn later_layers_win() {
        let text = "[http]\nlisten = \"127.0.0.1:1\"\n[stats]\nlisten = \"127.0.0.1:2\"\n[appid]\nlisten = \"127.0.0.1:3\"";
        let variables = [
            ("WAYMARK_STATS_LISTEN", "127.0.0.1:12"),
            ("WAYMARK_APPID_LISTEN", "127.0.0.1:13"),
            ("WAYMARK_HTTP_TIMEOUTS_CONNECT", "1s"),
            ("WAYMARK_DNS_LISTEN", "127.0.0.1:5, 127.0.0.1:6"),
            ("WAYMARK_HTTP_LIMITS_HEADER_COUNT", "7"),
            ("WAYMARK_NO_SUCH_KEY", "ignored with a warning"),
        ];
        let args = DevArgs {
            daemon: DaemonArgs { appid_listen: "127.0.0.1:23".parse().ok(), ..DaemonArgs::default() },
            no_demo: true,
            ..DevArgs::default()
        };
        let config = dev(text, &variables, args).unwrap();
        assert_eq!(config.http.listen.port(), 1);
        assert_eq!(config.stats.listen.port(), 12);
        assert_eq!(config.appid.listen.port(), 23);
        assert_eq!(config.http.timeouts.connect, Duration::from_secs(1));
        assert_eq!(config.http.timeouts.server_head, Duration::from_secs(60));
        assert_eq!(config.dns.listen.len(), 2);
        assert_eq!(config.http.limits.header_count, 7);
        assert!(!config.scheduler.demo);
        assert_eq!(config.scheduler.listen.port(), 8080);
    }

    #[test]
    fn wrong_files_name_the_line() {
        for (text, what, hint) in [
            ("[http]\n\n[http.timeouts]\nconect = \"1s\"", "line 4: unknown key `conect`", "connect"),
            ("[htp]\n", "line 1: unknown key `htp`", "http"),
            ("[watch]\nresync = \"often\"", "line 2: bad duration \"often\"", "waymark config"),
            ("[stats]\nlisten = \"nowhere\"", "line 2: ", "waymark config"),
            ("[stats\n", "line 1: ", "waymark config"),
            ("[vip]\npool = [\"300.0.0.0/8\"]", "bad VIP pool", "NETWORK/BITS"),
        ] {
            let failure = dev(text, &[], DevArgs::default()).expect_err(text);
            assert_eq!(failure.code(), 2, "{text}");
            assert!(failure.to_string().contains(what), "{text}: {failure}");
            assert!(failure.to_string().contains(hint), "{text}: {failure}");
        }
    }

    #[test]
    fn upstreams_are_the_systems_unless_said() {
        for (text, expect) in [
            ("", None),
            ("[dns]\nupstreams = []", Some(Upstreams::List(vec![]))),
            ("[dns]\nupstreams = \"none\"", Some(Upstreams::Word(NoUpstreams::None))),
            ("[dns]\nupstreams = [\"127.0.0.1:53\"]", Some(Upstreams::List(vec!["127.0.0.1:53".to_owned()]))),
        ] {
            assert_eq!(dev(text, &[], DevArgs::default()).unwrap().dns.upstreams, expect, "{text:?}");
        }
    }

    #[test]
    fn serve_wants_a_scheduler() {
        let none = Config::of_serve(&ServeArgs::default(), &Environment::default()).unwrap_err();
        assert_eq!(none.code(), 2);
        let variables = [("WAYMARK_MARATHON".to_owned(), "http://a:8080,http://b:8080".to_owned())];
        let args = ServeArgs { planes: vec![PlaneName::Dns], ..ServeArgs::default() };
        let config = Config::of_serve(&args, &Environment::new(variables)).unwrap();
        assert_eq!(config.marathon, ["http://a:8080", "http://b:8080"]);
        assert_eq!(config.planes, [PlaneName::Dns]);
        assert_eq!(config.http.listen.to_string(), "0.0.0.0:80");
        assert!(!config.to_toml().unwrap().contains("[scheduler]"));
    }
}
