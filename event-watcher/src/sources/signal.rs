//! What a source tells between two reads: what to look at again, and which instance is out already.
//!
//! Never state: signals may be missing, doubled or out of order, and nothing but haste may depend on them.

use crate::catalog::{AppId, InstanceId, InstanceState};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The stream is known to deliver: what is read from now on misses nothing.
    Attached,
    Touched {
        apps: Vec<AppId>,
        urgency: Urgency,
        news: News,
    },
    /// An instance must get nothing new from now on; its app is to be looked at again.
    Ended {
        app: AppId,
        instance: InstanceRef,
        verdict: Verdict,
    },
    /// Something changed, and it is not known what.
    Everything,
    Nothing,
}

/// What a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Somebody changes the app on purpose: it may well have fewer instances afterwards.
    Plan,
    /// Something happened to its instances.
    Report,
}

/// How soon a touched app is worth a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Traffic may move.
    Now,
    /// Only what people look at changes; another event is likely to follow.
    Soon,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    State(InstanceState),
    Unhealthy,
}

/// An instance as an event names it: by task id, or by Marathon's instance id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InstanceRef {
    Task(String),
    Instance(String),
}

impl InstanceRef {
    /// Instance ids are a prefix of task ids (`….instance-<uuid>` of `….instance-<uuid>._app.1`), or differ by
    /// `marathon-` before the uuid (1.4 to 1.7: `app.marathon-<uuid>` of `app.<uuid>`).
    pub(crate) fn names(&self, id: &InstanceId) -> bool {
        let task = id.as_str();
        match self {
            Self::Task(id) => id == task,
            Self::Instance(instance) => {
                if let Some(rest) = task.strip_prefix(instance.as_str()) {
                    return rest.is_empty() || rest.starts_with('.');
                }
                instance.rsplit_once(".marathon-").is_some_and(|(path, uuid)| {
                    let rest = task.strip_prefix(path).and_then(|rest| rest.strip_prefix('.'));
                    rest.and_then(|rest| rest.strip_prefix(uuid))
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_ids_name_tasks_in_every_spelling() {
        for (instance, task, expect) in [
            ("a_b.instance-u", "a_b.instance-u._app.1", true),
            ("a_b.instance-u", "a_b.instance-u", true),
            ("a_b.instance-u", "a_b.instance-uu._app.1", false),
            ("a_b.marathon-u", "a_b.u", true),
            ("a_b.marathon-u", "a_b.u.2", true),
            ("a_b.marathon-u", "a_b.v", false),
            ("a_b.marathon-u", "a_c.u", false),
        ] {
            let instance_ref = InstanceRef::Instance(instance.into());
            assert_eq!(instance_ref.names(&InstanceId::new(task)), expect, "{instance} {task}");
        }
        assert!(!InstanceRef::Task("a.u".into()).names(&InstanceId::new("a.u.1")));
    }
}
