//! `/`: the stats page for people. Complete without JavaScript; with it, sections are replaced as they change.
//!
//! Everything shown is escaped by the templates; nothing here builds HTML by hand.

use std::collections::BTreeMap;

use askama::Template;
use event_watcher::SourceView;
use event_watcher::publish::Freshness;
use http::Response;
use l4_vip::kernel::ChoiceView;

use super::Admin;
use super::history::Change;
use super::server::{Answer, refuse, text};
use super::view::{AppView, PlaneProblem, Status, Traffic};
use super::vips::VipView;

pub const CSS: &str = include_str!("../../assets/page.css");
pub const JS: &str = include_str!("../../assets/page.js");
pub const ICON: &str = include_str!("../../assets/favicon.svg");

/// Apps beyond this are counted, not shown: the page stays readable and cheap; `/api/apps` has all.
const MAX_APPS: usize = 200;

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    sections: &'a Sections,
}

#[derive(Template)]
#[template(path = "summary.html")]
struct Summary<'a> {
    status: &'a Status,
    state: &'static str,
    reason: String,
    uptime: String,
}

#[derive(Template)]
#[template(path = "sources.html")]
struct Watched<'a> {
    sources: &'a [SourceView],
}

#[derive(Template)]
#[template(path = "problems.html")]
struct Problems<'a> {
    problems: &'a [PlaneProblem],
}

#[derive(Template)]
#[template(path = "apps.html")]
struct Apps<'a> {
    apps: &'a [AppView],
    n_hidden: usize,
}

#[derive(Template)]
#[template(path = "vips.html")]
struct Vips<'a> {
    plane: Option<&'a ChoiceView>,
    vips: &'a [VipView],
    n_hidden: usize,
}

#[derive(Template)]
#[template(path = "planes.html")]
struct Planes<'a> {
    status: &'a Status,
}

#[derive(Template)]
#[template(path = "changes.html")]
struct Changes {
    changes: Vec<Change>,
}

/// The page's parts as HTML, by the id of the element that holds them.
#[derive(Debug, Default)]
pub struct Sections(BTreeMap<&'static str, String>);

impl Sections {
    pub fn of(admin: &Admin) -> Self {
        let status = admin.status();
        let (state, reason) = match &status.freshness {
            Freshness::Live => ("live", String::new()),
            Freshness::Stale { since, reason } => {
                ("stale", format!("for {} s: {reason}", since.elapsed().as_secs()))
            }
            Freshness::Unsynced { reason } => ("unsynced", reason.to_string()),
        };
        let uptime =
            humantime::format_duration(std::time::Duration::from_secs(status.uptime_seconds / 10 * 10));
        let (apps, vips) = (admin.apps(None).apps, admin.vips());
        let (plane, vips) = (vips.plane, vips.vips);
        let (shown_apps, shown_vips) = (&apps[..apps.len().min(MAX_APPS)], &vips[..vips.len().min(MAX_APPS)]);
        let summary = Summary { status: &status, state, reason, uptime: uptime.to_string() };
        Self(BTreeMap::from([
            ("summary", html(&summary)),
            ("sources", html(&Watched { sources: &status.sources })),
            ("problems", html(&Problems { problems: &status.problems })),
            ("apps", html(&Apps { apps: shown_apps, n_hidden: apps.len() - shown_apps.len() })),
            (
                "vips",
                html(&Vips {
                    plane: plane.as_ref(),
                    vips: shown_vips,
                    n_hidden: vips.len() - shown_vips.len(),
                }),
            ),
            ("planes", html(&Planes { status: &status })),
            ("changes", html(&Changes { changes: admin.history.newest_first() })),
        ]))
    }

    pub fn differing_from(&self, other: &Self) -> BTreeMap<&'static str, &str> {
        let differs = |(id, html): &(&&'static str, &String)| other.0.get(*id) != Some(*html);
        self.0.iter().filter(differs).map(|(id, html)| (*id, html.as_str())).collect()
    }

    fn section(&self, id: &str) -> &str {
        self.0.get(id).map_or("", String::as_str)
    }
}

impl serde::Serialize for Sections {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

fn html(template: &impl Template) -> String {
    template.render().unwrap_or_else(|error| {
        tracing::error!(%error, "a section of the page could not be rendered");
        String::new()
    })
}

pub fn answer(admin: &Admin) -> Response<Answer> {
    match (Page { sections: &Sections::of(admin) }).render() {
        Ok(page) => text("text/html; charset=utf-8", page),
        Err(error) => refuse(http::StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// What templates show of counters.
impl Traffic {
    fn rate(&self) -> String {
        match self.per_sec {
            rate if rate >= 100.0 => format!("{rate:.0}/s"),
            rate => format!("{rate:.1}/s"),
        }
    }

    fn latency(&self) -> String {
        match self.latency_ms {
            None => "–".to_owned(),
            Some(ms) if ms >= 100.0 => format!("{ms:.0} ms"),
            Some(ms) => format!("{ms:.2} ms"),
        }
    }
}

/// The state of a source, with its age and reason.
fn state_of(source: &SourceView) -> String {
    match &source.freshness {
        Freshness::Live => "live".to_owned(),
        Freshness::Unsynced { reason } => format!("unsynced: {reason}"),
        // Whole seconds: the section is sent again whenever it reads differently.
        Freshness::Stale { since, reason } => format!("stale for {} s: {reason}", since.elapsed().as_secs()),
    }
}

fn seconds(age: &Option<f64>) -> String {
    // To ten seconds, for the same reason.
    age.map_or_else(|| "–".to_owned(), |age| format!("< {} s", (age as u64 / 10 + 1) * 10))
}

fn sum(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(word, n)| format!("{word} {n}")).collect::<Vec<_>>().join(", ")
}

/// A count, or a dash where nobody counts.
fn counted(count: &Option<u64>) -> String {
    count.map_or_else(|| "–".to_owned(), |count| count.to_string())
}

/// Lower-case words of the catalog's enums, as the JSON spells them.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}
