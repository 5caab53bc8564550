//! Why a name is answered as it is: which app, instance, VIP or upstream an answer comes from, and what keeps a name
//! from existing or from having records.
//!
//! For people: it looks at everything and may take its time. Answers themselves never come from here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use event_watcher::catalog::{App, Instance, Rotation, Snapshot, Vip};
use hickory_server::proto::op::Message;
use hickory_server::proto::rr::RecordType;
use serde::Serialize;

use crate::forward::Foreign;
use crate::handler::Outcome;
use crate::http::Api;
use crate::names::{MAX_NAME, WireName, labels};
use crate::records::{
    Data, Facts, L4LB, Tier, of_agents, of_app, of_cluster, of_instance, of_vip, task_label,
};
use crate::stats::{Transport, rcode_name};
use crate::zone::Zone;

/// So many names that are nearly the one that was asked for.
const N_NEAREST: usize = 5;
/// Behind a record that is answered only when there is no better one.
const LAST_RESORT: &str = " (last resort)";
/// How many letters may differ in such a name: fewer than in names that only happen to be as long.
const MAX_DISTANCE: usize = 6;

#[derive(Debug)]
pub(crate) struct Question {
    name: WireName,
    record_type: RecordType,
}

impl Question {
    pub fn parse(name: &str, record_type: Option<&str>) -> Option<Self> {
        let record_type = RecordType::from_str(&record_type.unwrap_or("A").to_uppercase()).ok()?;
        Some(Self { name: WireName::parse(name)?, record_type })
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    name: String,
    #[serde(rename = "type")]
    record_type: String,
    rcode: String,
    answers: Vec<String>,
    /// `zone`, `cache`, `upstream` or `nobody`.
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    /// The name under which it is known, when it was asked for by an alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    stands_for: Option<String>,
    generation: u64,
    serial: u32,
    /// What says something about the name.
    origins: Vec<Origin>,
    /// Who would be asked.
    upstreams: Vec<String>,
    /// Why there is no better answer.
    reasons: Vec<String>,
    /// Names that exist and look alike.
    nearest: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Origin {
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vip: Option<String>,
    /// Who in the cluster as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'static str>,
    /// The records that it contributes.
    data: Vec<String>,
    /// `answered`, or why it is not.
    state: String,
}

pub(crate) fn explain(api: &Api, question: &Question, client: IpAddr) -> Explanation {
    let zone = api.zone.load_full();
    let mut explanation = Explanation {
        name: question.name.to_string(),
        record_type: question.record_type.to_string(),
        rcode: "NOERROR".into(),
        answers: Vec::new(),
        source: "nobody",
        zone: None,
        stands_for: None,
        generation: zone.generation.0,
        serial: zone.serial,
        origins: Vec::new(),
        upstreams: Vec::new(),
        reasons: Vec::new(),
        nearest: Vec::new(),
    };
    let packet = packet(question);
    let mut reply = Vec::new();
    match api.responder().respond(&packet, Transport::Https, client, &mut reply) {
        Outcome::Forward(foreign) => of_foreign(api, &foreign, &mut explanation),
        Outcome::Silence => explanation.reasons.push("the server drops such a question".into()),
        Outcome::Reply => {
            if let Ok(message) = Message::from_vec(&reply) {
                explanation.rcode = rcode_name(message.metadata.response_code).to_owned();
                explanation.answers = message.answers.iter().map(|r| r.data.to_string()).collect();
            }
            of_zone(api, &zone, question, &mut explanation);
        }
    }
    explanation
}

fn packet(question: &Question) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend_from_slice(question.name.as_bytes());
    packet.extend_from_slice(&u16::from(question.record_type).to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

fn of_foreign(api: &Api, foreign: &Foreign, explanation: &mut Explanation) {
    let prospect = api.forwarder.prospect(foreign);
    explanation.upstreams = prospect.upstreams.iter().map(ToString::to_string).collect();
    (explanation.source, explanation.rcode) = match (prospect.cached, prospect.upstreams.is_empty()) {
        (true, _) => ("cache", "as cached".into()),
        (false, false) => ("upstream", "as the upstream says".into()),
        (false, true) => ("nobody", "REFUSED".into()),
    };
    let what = match explanation.source {
        "cache" => "it is in no zone of this server, and an upstream's answer is kept",
        "upstream" => "it is in no zone of this server, so an upstream is asked",
        _ => "it is in no zone of this server, and nobody is to be asked about it",
    };
    explanation.reasons.push(what.into());
}

fn of_zone(api: &Api, zone: &Zone, question: &Question, explanation: &mut Explanation) {
    let Some(found) = zone.find(question.name.as_bytes()) else {
        explanation.reasons.push(match api.forwarder.upstreams().is_empty() {
            true => "it is in no zone of this server, and there are no upstreams".into(),
            false => "it is in no zone of this server, and upstreams are asked for local clients only".into(),
        });
        return;
    };
    explanation.source = "zone";
    explanation.zone = Some(found.apex.name.to_string());
    let mut space = [0; MAX_NAME];
    let name = match found.alias {
        None => question.name.clone(),
        Some(alias) => {
            let name = WireName::from_wire(alias.canonical(question.name.as_bytes(), &mut space));
            explanation.stands_for = Some(name.to_string());
            name
        }
    };
    if !zone.is_synced() {
        explanation.reasons.push("nothing has been heard from the scheduler yet".into());
        return;
    }
    let snapshot = api.subscriber.latest();
    of_apps(api, &snapshot, &name, explanation);
    of_vips(&snapshot, &name, explanation);
    of_the_cluster(api, &snapshot, &name, explanation);
    match found.node {
        None => {
            explanation.reasons.push("there is no such name".into());
            explanation.nearest = nearest(zone, &name);
            of_near_misses(&snapshot, &name, explanation);
        }
        Some(node) if explanation.answers.is_empty() => {
            let has: Vec<&str> = [
                ("A", !node.v4.is_empty()),
                ("AAAA", !node.v6.is_empty()),
                ("SRV", !node.services.is_empty()),
                ("PTR", !node.pointers.is_empty()),
            ]
            .into_iter()
            .filter_map(|(name, has)| has.then_some(name))
            .collect();
            explanation.reasons.push(match (&has[..], explanation.origins.is_empty()) {
                ([], true) => "the name exists because there are names below it, and has no records".into(),
                ([], false) => "the name exists, and no instance is fit to be its answer".into(),
                (has, _) => format!("the name has records of other types: {}", has.join(", ")),
            });
        }
        Some(_) => {}
    }
}

/// What apps and their instances say about the name.
fn of_apps(api: &Api, snapshot: &Snapshot, name: &WireName, explanation: &mut Explanation) {
    for app in snapshot.apps.values() {
        let of_app = of_app(app, snapshot.framework_of(&app.id), api.config.compat);
        let names_it = of_app.0.iter().any(|fact| fact.name == *name);
        for instance in &app.instances {
            let facts = of_instance(app, instance, snapshot.framework_of(&app.id), api.config.compat);
            let data = data_of(&facts, name);
            if data.is_empty() && !names_it {
                continue;
            }
            explanation.origins.push(Origin {
                app: Some(app.id.to_string()),
                instance: Some(instance.id.to_string()),
                vip: None,
                cluster: None,
                state: state(instance, &data, explanation),
                data,
            });
        }
        if names_it && app.instances.is_empty() {
            explanation.reasons.push(format!("app {} has no instances", app.id));
            explanation.origins.push(Origin {
                app: Some(app.id.to_string()),
                instance: None,
                vip: None,
                cluster: None,
                data: Vec::new(),
                state: "has no instances".into(),
            });
        }
    }
}

/// Whether an instance's records are among the answers, and if not, why.
fn state(instance: &Instance, data: &[String], explanation: &Explanation) -> String {
    let told = format!("{:?}, health {:?}", instance.state, instance.health).to_lowercase();
    let is_answered = |record: &&String| {
        let text = record.strip_suffix(LAST_RESORT).unwrap_or(record);
        explanation.answers.iter().any(|answer| answer == text)
    };
    match instance.rotation() {
        Rotation::In if data.iter().any(|record| is_answered(&record)) => format!("answered ({told})"),
        _ if data.iter().any(|record| is_answered(&record)) => {
            format!("answered for want of a better one ({told})")
        }
        Rotation::In if data.is_empty() => format!("has no such record ({told})"),
        Rotation::In => format!("in rotation ({told})"),
        Rotation::Draining => format!("not answered: it is being taken out or fails its checks ({told})"),
        Rotation::Out => format!("not answered: it is not ready ({told})"),
    }
}

fn of_vips(snapshot: &Snapshot, name: &WireName, explanation: &mut Explanation) {
    for (vip, addresses) in snapshot.vips.names() {
        let of_name: Vec<&Vip> = snapshot.vips.of_name(vip).collect();
        let ports: Vec<_> = of_name.iter().map(|vip| (vip.key.protocol, vip.key.port)).collect();
        let data = data_of(&of_vip(vip, addresses, &ports), name);
        if data.is_empty() {
            continue;
        }
        let mut apps: Vec<String> =
            of_name.iter().flat_map(|vip| &vip.services).map(|service| service.app.to_string()).collect();
        apps.dedup();
        explanation.origins.push(Origin {
            app: Some(apps.join(", ")),
            instance: None,
            vip: Some(format!("{vip}.{L4LB}")),
            cluster: None,
            data,
            state: "answered".into(),
        });
    }
}

/// Names of no app: the scheduler's, this node's, the agents'.
fn of_the_cluster(api: &Api, snapshot: &Snapshot, name: &WireName, explanation: &mut Explanation) {
    let instances = snapshot.apps.values().flat_map(|app| &app.instances);
    let agents: BTreeSet<IpAddr> = instances.filter_map(|instance| instance.host_address).collect();
    let agents = of_agents(&agents.into_iter().collect::<Vec<_>>());
    let own = of_cluster(&api.config, &snapshot.framework, snapshot.leaders);
    for (who, facts) in [("scheduler and configuration", own), ("agents that run anything", agents)] {
        let data = data_of(&facts, name);
        if !data.is_empty() {
            explanation.origins.push(Origin {
                app: None,
                instance: None,
                vip: None,
                cluster: Some(who),
                data,
                state: "answered".into(),
            });
        }
    }
}

fn data_of(facts: &Facts, name: &WireName) -> Vec<String> {
    let about = facts.0.iter().filter(|fact| fact.name == *name);
    about
        .filter_map(|fact| {
            let mut text = match &fact.data {
                Data::Exists => return None,
                Data::Address(ip) => ip.to_string(),
                Data::Service { port, target } => format!("0 1 {port} {target}"),
                Data::Pointer(target) => target.to_string(),
            };
            if fact.tier == Tier::LastResort && !text.is_empty() {
                text.push_str(LAST_RESORT);
            }
            Some(text)
        })
        .collect()
}

/// Apps that somebody who asked for this name may have meant.
fn of_near_misses(snapshot: &Snapshot, name: &WireName, explanation: &mut Explanation) {
    let Some(first) = labels(name.as_bytes()).next() else { return };
    let first = String::from_utf8_lossy(first).into_owned();
    let bare = first.trim_start_matches('_');
    let is_vip_zone = WireName::parse(L4LB).is_some_and(|zone| name.as_bytes().ends_with(zone.as_bytes()));
    let names = |app: &App| task_label(app) == bare || app.id.as_str().replace('/', "") == bare;
    for app in snapshot.apps.values().filter(|app| names(app)) {
        let has_vip = app.services.iter().any(|service| !service.vips.is_empty());
        if is_vip_zone && !has_vip {
            explanation.reasons.push(format!("app {} has no VIP label, so it has no name here", app.id));
        } else {
            explanation.reasons.push(format!("app {} exists under other names", app.id));
        }
        for problem in snapshot.problems.iter().filter(|problem| problem.app.as_ref() == Some(&app.id)) {
            explanation.reasons.push(problem.to_string());
        }
    }
}

fn nearest(zone: &Zone, name: &WireName) -> Vec<String> {
    let asked = name.to_string();
    let mut found: Vec<(usize, String)> = zone
        .nodes()
        .filter(|(known, node)| {
            !node.is_empty() && known.as_bytes().len().abs_diff(name.as_bytes().len()) <= MAX_DISTANCE
        })
        .map(|(known, _)| known.to_string())
        .map(|known| (distance(&asked, &known), known))
        .filter(|(distance, _)| *distance <= MAX_DISTANCE)
        .collect();
    found.sort();
    found.into_iter().take(N_NEAREST).map(|(_, name)| name).collect()
}

/// Levenshtein's: letters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_by_the_letters_to_change() {
        for (a, b, expect) in
            [("", "", 0), ("web", "web", 0), ("web", "wbe", 2), ("kitten", "sitting", 3), ("a", "", 1)]
        {
            assert_eq!(distance(a, b), expect, "{a} {b}");
        }
    }
}
