//! The panes of `waymark top`: a summary, the instances, the VIPs, and the newest changes or problems.
//!
//! Pure: it lays out the JSON of the stats address and knows no terminal.

use std::cmp::Ordering;
use std::collections::VecDeque;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, Widget};
use serde_json::Value;

use super::{N_CHANGES, Now};
use crate::failure::Failure;

const SUMMARY_HEIGHT: u16 = 2;
/// Title and header of a pane.
const PANE_HEAD: u16 = 2;
/// Rows of the pane of changes on a terminal.
const CHANGES_HEIGHT: u16 = 7;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    App,
    /// Busiest first.
    Rate,
}

#[derive(Debug)]
pub struct View {
    stats: String,
    now: Now,
    /// Why the newest look failed.
    failure: Option<String>,
    changes: VecDeque<String>,
    order: Order,
    n_scrolled: usize,
}

impl View {
    pub fn new(stats: String, now: Now) -> Self {
        Self { stats, now, failure: None, changes: VecDeque::new(), order: Order::default(), n_scrolled: 0 }
    }

    /// The newest look; what was seen before stays on the screen when it failed.
    pub fn show(&mut self, look: Result<Now, Failure>) {
        match look {
            Ok(now) => {
                self.now = now;
                self.failure = None;
                self.scroll(0);
            }
            Err(failure) => self.failure = Some(failure.to_string()),
        }
    }

    pub fn changed(&mut self, change: String) {
        if self.changes.len() == N_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }

    pub fn sort(&mut self, order: Order) {
        self.order = order;
        self.n_scrolled = 0;
    }

    pub fn scroll(&mut self, by: isize) {
        let last = self.instances().len().saturating_sub(1);
        self.n_scrolled = self.n_scrolled.saturating_add_signed(by).min(last);
    }

    /// Rows that show everything.
    pub fn full_height(&self) -> u16 {
        let n = self.instances().len() + list(&self.now.vips["vips"]).len() + self.remarks().len();
        u16::try_from(n).unwrap_or(u16::MAX).saturating_add(SUMMARY_HEIGHT + 3 * PANE_HEAD)
    }

    fn instances(&self) -> Vec<Instance> {
        let mut rows = Vec::new();
        for app in list(&self.now.apps["apps"]) {
            for instance in list(&app["instances"]) {
                rows.extend(Instance::of(app, instance));
            }
        }
        if self.order == Order::Rate {
            rows.sort_by(|a, b| b.per_sec.partial_cmp(&a.per_sec).unwrap_or(Ordering::Equal));
        }
        rows
    }

    fn summary(&self) -> Vec<Line<'_>> {
        let status = &self.now.status;
        let state = match (&self.failure, status["freshness"]["state"].as_str()) {
            (Some(failure), _) => Span::from(failure.as_str()).red().bold(),
            (None, Some("live")) => Span::from("live").green(),
            (None, state) => Span::from(format!(
                "{} {}",
                state.unwrap_or("-"),
                status["freshness"]["reason"].as_str().unwrap_or_default()
            ))
            .yellow(),
        };
        let n_problems = list(&status["problems"]).len();
        let first = vec![
            Span::from("waymark ").bold(),
            Span::from(format!("{}  ", self.stats)),
            state,
            Span::from(format!(
                "  generation {}  up {} s  {} apps  {} instances  {} VIPs ({})  ",
                status["generation"],
                status["uptime_seconds"],
                status["n_apps"],
                status["n_instances"],
                status["n_vips"],
                text(&status["vip_plane"], "active"),
            )),
            match n_problems {
                0 => Span::from("no problems").green(),
                n => Span::from(format!("problems: {n}")).yellow(),
            },
        ];
        let mut second = Vec::new();
        for plane in list(&status["planes"]) {
            second.push(Span::from(format!("{} ", text(plane, "name"))).bold());
            for (name, n) in plane["totals"].as_object().into_iter().flatten() {
                second.push(Span::from(format!("{name} {n}  ")));
            }
        }
        vec![Line::from(first), Line::from(second)]
    }

    /// Problems first: changes pass, problems stay until somebody acts.
    fn remarks(&self) -> Vec<Line<'_>> {
        let problem = |p: &Value| {
            Line::from(format!("{} {}: {}", text(p, "app"), text(p, "at"), text(p, "what"))).yellow()
        };
        let problems = list(&self.now.status["problems"]).iter().map(problem);
        problems.chain(self.changes.iter().rev().map(|c| Line::from(c.as_str()))).collect()
    }
}

impl Widget for &View {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let instances = self.instances();
        let vips = list(&self.now.vips["vips"]);
        let remarks = self.remarks();
        let n_rows = |n: usize| PANE_HEAD.saturating_add(u16::try_from(n).unwrap_or(u16::MAX));
        // On a screen that is too small the instances give way last.
        let everything = self.full_height() <= area.height;
        let low = |n: usize| if everything { n_rows(n) } else { n_rows(n).min(CHANGES_HEIGHT) };
        let [top, middle, below, bottom] = Layout::vertical([
            Constraint::Length(SUMMARY_HEIGHT),
            Constraint::Min(PANE_HEAD),
            Constraint::Length(low(vips.len())),
            Constraint::Length(if everything { n_rows(remarks.len()) } else { CHANGES_HEIGHT }),
        ])
        .areas(area);
        Paragraph::new(self.summary()).render(top, buffer);
        let by = if self.order == Order::Rate { "busiest first" } else { "by app" };
        let title = format!(" instances, {by} (a, r: order · arrows: scroll · q: quit) ");
        let rows = instances.iter().skip(self.n_scrolled).map(Instance::row);
        table(title, &INSTANCE_COLUMNS, rows.collect()).render(middle, buffer);
        table(" virtual IPs ".to_owned(), &VIP_COLUMNS, vips.iter().map(vip_row).collect())
            .render(below, buffer);
        Paragraph::new(remarks).block(pane(" problems and changes ".to_owned())).render(bottom, buffer);
    }
}

const INSTANCE_COLUMNS: [(&str, Constraint); 9] = [
    ("APP", Constraint::Fill(2)),
    ("ENDPOINT", Constraint::Length(22)),
    ("STATE", Constraint::Length(10)),
    ("HEALTH", Constraint::Length(10)),
    ("ROTATION", Constraint::Length(9)),
    ("PER S", Constraint::Length(9)),
    ("IN FLIGHT", Constraint::Length(9)),
    ("LATENCY", Constraint::Length(9)),
    ("FAILED", Constraint::Length(8)),
];

const VIP_COLUMNS: [(&str, Constraint); 7] = [
    ("VIP", Constraint::Fill(2)),
    ("PROTOCOL", Constraint::Length(8)),
    ("ADDRESS", Constraint::Length(22)),
    ("PLANE", Constraint::Length(10)),
    ("BACKENDS", Constraint::Length(9)),
    ("CONNECTIONS", Constraint::Length(11)),
    ("REFUSED", Constraint::Length(8)),
];

/// An endpoint of an instance, with what both balancers send to it.
#[derive(Debug)]
struct Instance {
    cells: [String; 9],
    per_sec: f64,
    colour: Color,
}

impl Instance {
    /// One for each endpoint, or one without for an instance that has none.
    fn of(app: &Value, instance: &Value) -> Vec<Self> {
        let endpoints = list(&instance["endpoints"]);
        if endpoints.is_empty() {
            return vec![Self::new(app, instance, &Value::Null)];
        }
        endpoints.iter().map(|endpoint| Self::new(app, instance, endpoint)).collect()
    }

    fn new(app: &Value, instance: &Value, endpoint: &Value) -> Self {
        let sum =
            |key: &str| ["http", "vip"].iter().filter_map(|plane| endpoint[plane][key].as_f64()).sum::<f64>();
        let per_sec = sum("per_sec");
        let latency = endpoint["http"]["latency_ms"].as_f64();
        let rotation = text(instance, "rotation");
        let ejected = endpoint["http"]["ejected"] == true || endpoint["vip"]["ejected"] == true;
        let colour = match rotation.as_str() {
            _ if ejected => Color::Red,
            "in" => Color::Reset,
            "draining" => Color::Yellow,
            _ => Color::DarkGray,
        };
        let cells = [
            text(app, "id"),
            text(endpoint, "address"),
            text(instance, "state"),
            text(instance, "health"),
            if ejected { "ejected".to_owned() } else { rotation },
            format!("{per_sec:.1}"),
            format!("{:.0}", sum("n_in_flight")),
            latency.map_or("-".to_owned(), |ms| format!("{ms:.1} ms")),
            format!("{:.0}", sum("n_failures")),
        ];
        Self { cells, per_sec, colour }
    }

    fn row(&self) -> Row<'_> {
        Row::new(self.cells.iter().map(String::as_str)).style(Style::new().fg(self.colour))
    }
}

fn vip_row(vip: &Value) -> Row<'_> {
    let addresses: Vec<&str> = list(&vip["addresses"]).iter().filter_map(Value::as_str).collect();
    Row::new([
        format!("{}:{}", text(vip, "name"), vip["port"]),
        text(vip, "protocol"),
        addresses.join(", "),
        text(vip, "plane"),
        list(&vip["backends"]).len().to_string(),
        text(vip, "n_connections"),
        text(vip, "n_no_endpoint"),
    ])
}

fn table<'a, const N: usize>(
    title: String,
    columns: &[(&'static str, Constraint); N],
    rows: Vec<Row<'a>>,
) -> Table<'a> {
    Table::new(rows, columns.map(|(_, width)| width))
        .header(Row::new(columns.map(|(name, _)| name)).bold())
        .block(pane(title))
}

fn pane<'a>(title: String) -> Block<'a> {
    Block::new().borders(Borders::TOP).title(title)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What stands at `key`, without control characters: it may come from an app.
fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view() -> View {
        let instance = |rate: f64, ejected: bool| {
            json!({ "state": "running", "health": "healthy", "rotation": "in", "endpoints": [{
                "address": "127.0.0.1:31000",
                "http": { "per_sec": rate, "n_in_flight": 1, "latency_ms": 2.5, "n_failures": 0, "ejected": ejected },
            }]})
        };
        let apps = json!({ "apps": [
            { "id": "/calm", "instances": [instance(1.0, false)] },
            { "id": "/busy", "instances": [instance(70.0, true)] },
            { "id": "/starting", "instances": [{ "state": "staging", "rotation": "out", "endpoints": [] }] },
        ]});
        let status = json!({ "problems": [{ "app": "/calm", "at": "label", "what": "un\u{1b}known" }] });
        View::new("http://h/".to_owned(), Now { status, apps, vips: json!({ "vips": [] }) })
    }

    fn shown(view: &View) -> String {
        super::super::plain(view)
    }

    fn at(text: &str, needle: &str) -> usize {
        text.find(needle).unwrap_or_else(|| panic!("no {needle}: {text}"))
    }

    #[test]
    fn apps_come_in_their_order_or_the_busiest_first() {
        let mut view = view();
        let text = shown(&view);
        assert!(
            at(&text, "/calm") < at(&text, "/busy") && at(&text, "/busy") < at(&text, "/starting"),
            "{text}"
        );
        assert!(text.contains("ejected") && text.contains("70.0") && text.contains("2.5 ms"), "{text}");
        view.sort(Order::Rate);
        let text = shown(&view);
        assert!(at(&text, "/busy") < at(&text, "/calm"), "{text}");
    }

    #[test]
    fn scrolling_ends_at_the_last_instance() {
        let mut view = view();
        view.scroll(100);
        let text = shown(&view);
        assert!(text.contains("/starting") && !text.contains("/busy"), "{text}");
        view.scroll(-100);
        assert!(shown(&view).contains("/busy"));
    }

    #[test]
    fn problems_stand_above_the_newest_changes() {
        let mut view = view();
        view.changed("first".to_owned());
        view.changed("second".to_owned());
        let text = shown(&view);
        assert!(
            at(&text, "label: unknown") < at(&text, "second") && at(&text, "second") < at(&text, "first"),
            "{text}"
        );
    }

    #[test]
    fn a_failed_look_keeps_what_was_seen() {
        let mut view = view();
        view.show(Err(Failure::new("no answer")));
        let text = shown(&view);
        assert!(text.contains("no answer") && text.contains("/busy"), "{text}");
    }
}
