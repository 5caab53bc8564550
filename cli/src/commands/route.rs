//! `waymark route explain URL`: what a URL would reach now, and why.
//!
//! The running Waymark decides; this only prints.

use serde_json::Value;

use super::stats::StatsClient;
use crate::args::RouteCommand;
use crate::failure::Failure;
use crate::output::{self, Style, Table};

pub async fn run(command: RouteCommand) -> Result<(), Failure> {
    let RouteCommand::Explain { list, url, app } = command;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(Failure::usage(format!("{url} is no URL of HTTP")).hint("write it as http://HOST/PATH"));
    }
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("url", url.as_str());
    if let Some(app) = &app {
        query.append_pair("app", app);
    }
    let path = format!("api/routes/explain?{}", query.finish());
    let explanation = StatsClient::new(&list.stats)?.get(&path).await?;
    if list.json {
        return output::print_json(&explanation);
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut lines = String::new();
    for decision in explanation["decisions"].as_array().into_iter().flatten() {
        lines.push_str(&format!("- {}\n", text(decision)));
    }
    let reached = &explanation["reached"];
    if reached.is_null() {
        lines.push_str("- the answer is 503\n");
        return output::print(&lines);
    }
    let style = Style::of_stdout();
    let title = format!("{} as {}", text(&reached["app"]), text(&reached["backend"]));
    lines.push_str(&format!("\n{}, {}\n\n", style.bold(&title), text(&reached["balance"])));
    let mut table = Table::new(&["INSTANCE", "SERVER", "ADDRESS", "ROTATION"]);
    for endpoint in reached["endpoints"].as_array().into_iter().flatten() {
        let rotation = match endpoint["ejected"] == true {
            true => "ejected".to_owned(),
            false => text(&endpoint["rotation"]),
        };
        table.row([
            text(&endpoint["instance"]),
            text(&endpoint["server"]),
            text(&endpoint["address"]),
            rotation,
        ]);
    }
    lines.push_str(&table.render(style));
    output::print(&lines)
}
