//! `waymark vip list|show`: the virtual IPs of a running Waymark and what stands behind them now.

use serde_json::Value;

use super::stats::StatsClient;
use crate::args::VipCommand;
use crate::failure::Failure;
use crate::output::{self, Style, Table};

/// Where named VIPs live in DNS.
const ZONE: &str = ".l4lb.thisdcos.directory";

pub async fn run(command: VipCommand) -> Result<(), Failure> {
    match command {
        VipCommand::List(args) => {
            let vips = StatsClient::new(&args.stats)?.get("api/vips").await?;
            if args.json {
                return output::print_json(&vips["vips"]);
            }
            let mut table = Table::new(&[
                "VIP",
                "PROTOCOL",
                "ADDRESS",
                "PLANE",
                "BACKENDS",
                "CONNECTIONS",
                "REFUSED",
                "BYTES IN",
                "BYTES OUT",
                "FAILED",
                "APPS",
            ]);
            for vip in vips["vips"].as_array().into_iter().flatten() {
                table.row([
                    format!("{}:{}", text(vip, "name"), vip["port"]),
                    text(vip, "protocol"),
                    list(&vip["addresses"]),
                    text(vip, "plane"),
                    vip["backends"].as_array().map_or(0, Vec::len).to_string(),
                    text(vip, "n_connections"),
                    text(vip, "n_no_endpoint"),
                    text(vip, "bytes_in"),
                    text(vip, "bytes_out"),
                    text(vip, "n_connect_failures"),
                    list(&vip["apps"]),
                ]);
            }
            let style = Style::of_stdout();
            output::print(&format!("{}{}", table.render(style), about_plane(&vips["plane"], style)))
        }
        VipCommand::Show { list: args, name } => {
            let vips = StatsClient::new(&args.stats)?.get("api/vips").await?;
            let found: Vec<&Value> =
                vips["vips"].as_array().into_iter().flatten().filter(|vip| is_named(vip, &name)).collect();
            if found.is_empty() {
                return Err(Failure::new(format!("there is no VIP {name}"))
                    .hint("waymark vip list shows the VIPs there are"));
            }
            if args.json {
                return output::print_json(&found);
            }
            for vip in found {
                show(vip)?;
            }
            Ok(())
        }
    }
}

fn show(vip: &Value) -> Result<(), Failure> {
    let style = Style::of_stdout();
    let title = format!("{}:{} {}", text(vip, "dns"), vip["port"], text(vip, "protocol"));
    let mut table = Table::new(&[
        "BACKEND",
        "INSTANCE",
        "STATE",
        "WEIGHT",
        "IN FLIGHT",
        "CONNECTIONS",
        "BYTES IN",
        "BYTES OUT",
        "FAILED",
    ]);
    for backend in vip["backends"].as_array().into_iter().flatten() {
        table.row([
            text(backend, "address"),
            text(backend, "instance"),
            text(backend, "rotation"),
            text(backend, "weight"),
            text(backend, "n_in_flight"),
            text(backend, "n_connections"),
            text(backend, "bytes_in"),
            text(backend, "bytes_out"),
            text(backend, "n_connect_failures"),
        ]);
    }
    output::print(&format!(
        "{}\naddress  {}\nserved   {}\nplane    {}\npolicy   {}\naffinity {}\napps     {}\nrefused  {}\n\n{}",
        style.bold(&title),
        list(&vip["addresses"]),
        if list(&vip["served"]).is_empty() { "nowhere".to_owned() } else { list(&vip["served"]) },
        text(vip, "plane"),
        text(vip, "policy"),
        vip["affinity_seconds"].as_u64().map_or_else(|| "none".to_owned(), |seconds| format!("{seconds} s")),
        list(&vip["apps"]),
        text(vip, "n_no_endpoint"),
        table.render(style)
    ))
}

/// Which plane serves, why no better one does, and what it cannot do at the moment.
pub fn about_plane(plane: &Value, style: Style) -> String {
    let Some(active) = plane["active"].as_str() else { return String::new() };
    let mut lines = format!("\nVIP plane   {active} (asked for: {})\n", text(plane, "wanted"));
    for rejection in plane["why_not"].as_array().into_iter().flatten() {
        lines.push_str(&format!("  not {}: {}\n", text(rejection, "plane"), text(rejection, "reason")));
    }
    if let Some(failure) = plane["failure"].as_str() {
        lines.push_str(&format!("  {} {failure}\n", style.red("failing:")));
    }
    lines
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> String {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

/// Takes the name with or without its zone and port, the label as written (`/dcos-101/app2`), and addresses.
fn is_named(vip: &Value, wanted: &str) -> bool {
    let wanted = wanted.to_lowercase();
    let (name, port) = match wanted.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.parse::<u16>().is_ok() => (name, port.parse().ok()),
        _ => (wanted.as_str(), None),
    };
    let name = name.trim_end_matches('.');
    let name = name.strip_suffix(ZONE).unwrap_or(name);
    let own = text(vip, "name");
    let label = name.replace('/', "").replace('_', "-");
    let is_own = own == name || own.split_once('.').is_some_and(|(first, _)| first == label);
    let is_address = vip["addresses"].as_array().into_iter().flatten().any(|a| a.as_str() == Some(name));
    (is_own || is_address) && port.is_none_or(|port: u64| vip["port"].as_u64() == Some(port))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vip_answers_to_its_names() {
        let vip = json!({"name": "dcos-101app2.marathon", "port": 10000, "addresses": ["127.11.84.23"]});
        for (wanted, expect) in [
            ("dcos-101app2.marathon", true),
            ("dcos-101app2.marathon.l4lb.thisdcos.directory", true),
            ("DCOS-101app2.marathon.l4lb.thisdcos.directory.:10000", true),
            ("/dcos-101/app2:10000", true),
            ("/dcos-101/app2", true),
            ("127.11.84.23", true),
            ("127.11.84.23:10000", true),
            ("dcos-101app2.marathon:80", false),
            ("app2", false),
            ("127.11.84.24", false),
        ] {
            assert_eq!(is_named(&vip, wanted), expect, "{wanted}");
        }
    }
}
