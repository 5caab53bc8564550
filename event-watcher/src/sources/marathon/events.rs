//! What an event asks for: which apps to look at again, and which instance is out already.
//!
//! Events are never state: their order is not promised, they may be missed or come twice (Marathon's own
//! `event-bus.md`). The only thing taken from one at once is that an instance ends.

use super::translate::state_named;
use super::wire;
use crate::catalog::{AppId, InstanceState};
use crate::sources::{InstanceRef, News, Signal, Urgency, Verdict};

/// The events that are asked for. Everything else is left to the periodic resync.
pub(crate) const WANTED: &[&str] = &[
    "event_stream_attached",
    "status_update_event",
    "instance_changed_event",
    "unknown_instance_terminated_event",
    "health_status_changed_event",
    "instance_health_changed_event",
    "unhealthy_instance_kill_event",
    "unhealthy_task_kill_event",
    "api_post_event",
    "group_change_success",
    "app_terminated_event",
    "deployment_info",
    "deployment_step_success",
    "deployment_step_failure",
    "deployment_success",
    "deployment_failed",
];

/// Reads one event. `kind` is the frame's `event:` line; Marathon repeats it in the body.
pub(crate) fn signal(kind: &str, data: &str) -> Result<Signal, serde_json::Error> {
    let event: wire::Event = serde_json::from_str(data)?;
    let kind = if kind.is_empty() { event.event_type.as_deref().unwrap_or_default() } else { kind };
    let app = event.app_id.as_deref().or(event.run_spec_id.as_deref()).map(AppId::new);
    let about = |app: Option<AppId>, urgency, news| match app {
        Some(app) => Signal::Touched { apps: vec![app], urgency, news },
        None => Signal::Everything,
    };
    let touched = |app, urgency| about(app, urgency, News::Report);
    let task = || event.task_id.clone().map(InstanceRef::Task);
    let instance = || event.instance_id.clone().map(InstanceRef::Instance);
    let ended = |app: Option<AppId>, instance: Option<InstanceRef>, verdict| match (app, instance) {
        (Some(app), Some(instance)) => Signal::Ended { app, instance, verdict },
        (app, _) => touched(app, Urgency::Now),
    };
    Ok(match kind {
        "event_stream_attached" => Signal::Attached,
        "status_update_event" => match event.task_status.as_deref().map(state_named) {
            Some(state @ (InstanceState::Killing | InstanceState::Terminal)) => {
                ended(app, task(), Verdict::State(state))
            }
            Some(InstanceState::Staging | InstanceState::Starting) => touched(app, Urgency::Soon),
            _ => touched(app, Urgency::Now),
        },
        "unhealthy_instance_kill_event" | "unhealthy_task_kill_event" => {
            ended(app, task().or_else(instance), Verdict::State(InstanceState::Killing))
        }
        "health_status_changed_event" | "instance_health_changed_event" => {
            if event.alive.or(event.healthy) == Some(false) {
                ended(app, instance().or_else(task), Verdict::Unhealthy)
            } else {
                touched(app, Urgency::Now)
            }
        }
        // The status update with the same news has the task's id and comes next to it.
        "instance_changed_event" | "unknown_instance_terminated_event" => {
            let state = event.condition.as_deref().map(|c| state_named(&c.to_ascii_uppercase()));
            let urgency = match state {
                Some(InstanceState::Running | InstanceState::Unreachable) => Urgency::Now,
                _ => Urgency::Soon,
            };
            touched(app, urgency)
        }
        "app_terminated_event" => about(app, Urgency::Now, News::Plan),
        "api_post_event" => about(event.app_definition.map(|a| AppId::new(&a.id)), Urgency::Now, News::Plan),
        // An app's own id, or a group's: then deployment events name the apps in it.
        "group_change_success" => {
            let id = event.group_id.map(|id| AppId::new(&id)).filter(|id| id.as_str() != "/");
            about(id, Urgency::Now, News::Plan)
        }
        "deployment_info"
        | "deployment_step_success"
        | "deployment_step_failure"
        | "deployment_success"
        | "deployment_failed" => {
            let steps =
                event.plan.and_then(|p| p.steps).unwrap_or_default().into_iter().chain(event.current_step);
            let mut apps: Vec<AppId> = steps
                .flat_map(|step| step.actions.unwrap_or_default())
                .filter_map(|action| action.app.or(action.pod).map(|id| AppId::new(&id)))
                .collect();
            apps.sort();
            apps.dedup();
            // A plan without steps changes nothing that runs, but it may be the end of a definition's change.
            match apps.is_empty() {
                true => Signal::Everything,
                false => Signal::Touched { apps, urgency: Urgency::Now, news: News::Plan },
            }
        }
        "event_stream_detached"
        | "failed_health_check_event"
        | "add_health_check_event"
        | "remove_health_check_event" => Signal::Nothing,
        // Kinds of a later version: dirty when they name an app, nothing otherwise.
        _ if app.is_some() => touched(app, Urgency::Soon),
        _ => Signal::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn touched(apps: &[&str], urgency: Urgency) -> Signal {
        about(apps, urgency, News::Report)
    }

    fn planned(apps: &[&str]) -> Signal {
        about(apps, Urgency::Now, News::Plan)
    }

    fn about(apps: &[&str], urgency: Urgency, news: News) -> Signal {
        Signal::Touched { apps: apps.iter().map(|id| AppId::new(id)).collect(), urgency, news }
    }

    fn ended(instance: InstanceRef, verdict: Verdict) -> Signal {
        Signal::Ended { app: AppId::new("/a/b"), instance, verdict }
    }

    #[test]
    fn events_say_what_to_look_at() {
        let task = || InstanceRef::Task("a_b.instance-u._app.1".into());
        let instance = || InstanceRef::Instance("a_b.instance-u".into());
        let plan = json!({"id": "p", "original": {"id": "/", "apps": []}, "steps": [
            {"actions": [{"action": "StartApplication", "app": "/a/b"}]},
            {"actions": [{"action": "ScaleApplication", "app": "/a/b"}, {"action": "ScaleApplication", "app": "/c"}]},
        ]});
        for (kind, body, expect) in [
            ("event_stream_attached", json!({"remoteAddress": "x"}), Signal::Attached),
            (
                "status_update_event",
                json!({"appId": "/a/b", "taskStatus": "TASK_RUNNING"}),
                touched(&["/a/b"], Urgency::Now),
            ),
            (
                "status_update_event",
                json!({"appId": "/a/b", "taskStatus": "TASK_STARTING"}),
                touched(&["/a/b"], Urgency::Soon),
            ),
            (
                "status_update_event",
                json!({"appId": "/a/b", "taskStatus": "TASK_KILLING", "taskId": "a_b.instance-u._app.1"}),
                ended(task(), Verdict::State(InstanceState::Killing)),
            ),
            (
                "status_update_event",
                json!({"appId": "/a/b", "taskStatus": "TASK_LOST", "taskId": "a_b.instance-u._app.1"}),
                ended(task(), Verdict::State(InstanceState::Terminal)),
            ),
            ("status_update_event", json!({"taskStatus": "TASK_LOST"}), Signal::Everything),
            (
                "unhealthy_instance_kill_event",
                json!({"appId": "/a/b", "taskId": "a_b.instance-u._app.1", "instanceId": "a_b.instance-u"}),
                ended(task(), Verdict::State(InstanceState::Killing)),
            ),
            (
                "health_status_changed_event",
                json!({"appId": "/a/b", "instanceId": "a_b.instance-u", "alive": false}),
                ended(instance(), Verdict::Unhealthy),
            ),
            (
                "instance_health_changed_event",
                json!({"runSpecId": "/a/b", "instanceId": "a_b.instance-u", "healthy": false}),
                ended(instance(), Verdict::Unhealthy),
            ),
            (
                "instance_health_changed_event",
                json!({"runSpecId": "/a/b", "healthy": null}),
                touched(&["/a/b"], Urgency::Now),
            ),
            (
                "instance_changed_event",
                json!({"runSpecId": "/a/b", "condition": "Scheduled", "host": null}),
                touched(&["/a/b"], Urgency::Soon),
            ),
            (
                "instance_changed_event",
                json!({"runSpecId": "/a/b", "condition": "Running"}),
                touched(&["/a/b"], Urgency::Now),
            ),
            ("api_post_event", json!({"appDefinition": {"id": "a//b", "cmd": "x"}}), planned(&["/a/b"])),
            ("group_change_success", json!({"groupId": "/a/b"}), planned(&["/a/b"])),
            ("group_change_success", json!({"groupId": "/"}), Signal::Everything),
            (
                "deployment_info",
                json!({"plan": plan, "currentStep": {"actions": [{"app": "/d"}]}}),
                planned(&["/a/b", "/c", "/d"]),
            ),
            (
                "deployment_success",
                json!({"plan": {"steps": [{"actions": [{"action": "StartPod", "pod": "/p"}]}]}}),
                planned(&["/p"]),
            ),
            ("deployment_success", json!({"id": "p"}), Signal::Everything),
            ("app_terminated_event", json!({"appId": "/a/b"}), planned(&["/a/b"])),
            ("pod_created_event", json!({"uri": "/v2/pods"}), Signal::Nothing),
            ("failed_health_check_event", json!({"appId": "/a/b"}), Signal::Nothing),
            ("a_later_event", json!({"appId": "/a/b"}), touched(&["/a/b"], Urgency::Soon)),
        ] {
            assert_eq!(signal(kind, &body.to_string()).unwrap(), expect, "{kind} {body}");
            let mut whole = body.clone();
            whole["eventType"] = kind.into();
            assert_eq!(
                signal("", &whole.to_string()).unwrap(),
                expect,
                "the kind may be in the body alone: {kind}"
            );
        }
    }

    #[test]
    fn hostile_events_are_errors() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        for data in ["", "{", "NaN", "[]", r#"{"appId": 5}"#, &format!(r#"{{"plan": {deep}}}"#)] {
            assert!(signal("status_update_event", data).is_err(), "{}", &data[..data.len().min(40)]);
        }
        // What is not read may be as deep as it likes.
        signal("status_update_event", &format!(r#"{{"x": {deep}}}"#)).unwrap();
    }
}
