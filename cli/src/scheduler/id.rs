//! App ids and instance ids as Marathon writes them, and the task ids derived from them.
//!
//! Not here: which ids exist.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Marathon's rule for one segment of a path, quoted in its validation message.
const SEGMENT_RULE: &str =
    r"^(([a-z0-9]|[a-z0-9][a-z0-9\-]*[a-z0-9])\.)*([a-z0-9]|[a-z0-9][a-z0-9\-]*[a-z0-9])|(\.|\.\.)$";

/// The id names the sandbox folder and the state file of the app; file names end at 255 bytes.
const LONGEST_ID_BYTES: usize = 180;

/// An absolute path such as `/dcos-101/app2`. The root group is `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId(Arc<str>);

impl AppId {
    /// Reads an absolute or relative path (relative to the root); doubled and trailing slashes are dropped.
    ///
    /// Errors carry Marathon's wording.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_in("/", text)
    }

    /// Like [`AppId::parse`], relative to the group `base`.
    pub fn parse_in(base: &str, text: &str) -> Result<Self, String> {
        let mut segments: Vec<&str> = Vec::new();
        if !text.starts_with('/') {
            segments.extend(base.split('/').filter(|s| !s.is_empty()));
        }
        for segment in text.split('/').filter(|s| !s.is_empty()) {
            match segment {
                "." => {}
                ".." => {
                    segments.pop();
                }
                _ if is_segment(segment) => segments.push(segment),
                _ => return Err(format!("must fully match regular expression '{SEGMENT_RULE}'")),
            }
        }
        let path = format!("/{}", segments.join("/"));
        if path.len() > LONGEST_ID_BYTES {
            return Err(format!("must not be longer than {LONGEST_ID_BYTES} characters"));
        }
        Ok(Self(path.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// The group it lies in; that of the root is the root.
    pub fn group(&self) -> &str {
        match self.0.rsplit_once('/') {
            Some((group, _)) if !group.is_empty() => group,
            _ => "/",
        }
    }

    /// Every group it lies in, from the innermost to the root.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        let parent = |path: &str| path.rfind('/').map(|end| if end == 0 { 1 } else { end });
        let mut rest: &str = &self.0;
        std::iter::from_fn(move || {
            if rest == "/" {
                return None;
            }
            rest = &rest[..parent(rest)?];
            Some(rest)
        })
    }

    /// `dcos-101_app2`: how task ids and file names spell the path. Reversible, segments have no `_`.
    pub fn flat(&self) -> String {
        self.0[1..].replace('/', "_")
    }

    /// Whether the id lies in the group `group` (every id lies in `/`).
    pub fn is_inside(&self, group: &str) -> bool {
        let group = group.trim_end_matches('/');
        self.0.strip_prefix(group).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
    }
}

fn is_segment(segment: &str) -> bool {
    segment.split('.').all(|part| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if plain(first) && plain(last))
            && bytes.iter().all(|&b| plain(b) || b == b'-')
    })
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for AppId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for AppId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// `dcos-101_app2.instance-<uuid1>` (Marathon 1.8 and later).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// A new id for an instance of `app`; `node` makes ids of this machine differ from others'.
    pub fn fresh(app: &AppId, node: &[u8; 6]) -> Self {
        Self(format!("{}.instance-{}", app.flat(), uuid::Uuid::now_v1(node)).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `container`: `_app`, or the name of a pod's container.
    pub fn task_id(&self, container: &str, attempt: u32) -> String {
        format!("{}.{container}.{attempt}", self.0)
    }
}

impl Serialize for InstanceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Splits a task id, or an instance id, into the app it names and its instance id. `None`: neither.
pub fn split_task_id(task_id: &str) -> Option<(AppId, &str)> {
    let (flat, rest) = task_id.rsplit_once(".instance-").filter(|(flat, _)| !flat.is_empty())?;
    let uuid = rest.split('.').next().filter(|uuid| !uuid.is_empty())?;
    let app = AppId::parse(&flat.replace('_', "/")).ok()?;
    Some((app, &task_id[..flat.len() + ".instance-".len() + uuid.len()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (text, expect) in [
            ("/dcos-101/app2", Some("/dcos-101/app2")),
            ("dcos-101/app2", Some("/dcos-101/app2")),
            ("//dcos-101//app2/", Some("/dcos-101/app2")),
            ("/a/../b", Some("/b")),
            ("/a.b-c/d", Some("/a.b-c/d")),
            ("/", Some("/")),
            ("/A", None),
            ("/a_b", None),
            ("/-a", None),
            ("/a..b", None),
            ("/a b", None),
        ] {
            assert_eq!(AppId::parse(text).ok().as_ref().map(AppId::as_str), expect, "{text}");
        }
        assert_eq!(AppId::parse_in("/prod", "web").map(|id| id.to_string()), Ok("/prod/web".into()));
        assert!(AppId::parse(&format!("/{}", "a".repeat(300))).is_err());
    }

    #[test]
    fn groups() {
        let id = AppId::parse("/dcos-101/app2").expect("valid");
        for (group, inside) in
            [("/", true), ("/dcos-101", true), ("/dcos-101/app2", false), ("/dcos", false), ("", true)]
        {
            assert_eq!(id.is_inside(group), inside, "{group}");
        }
    }

    #[test]
    fn groups_of_an_app() {
        for (id, group, all) in
            [("/a/b/c", "/a/b", vec!["/a/b", "/a", "/"]), ("/a", "/", vec!["/"]), ("/", "/", vec![])]
        {
            let id = AppId::parse(id).expect("valid");
            assert_eq!((id.group(), id.groups().collect::<Vec<_>>()), (group, all), "{id}");
        }
    }

    #[test]
    fn task_ids_lead_back_to_their_app() {
        let app = AppId::parse("/dcos-101/a.b").expect("valid");
        let instance = InstanceId::fresh(&app, &[1; 6]);
        assert_eq!(split_task_id(&instance.task_id("_app", 3)), Some((app.clone(), instance.as_str())));
        assert_eq!(split_task_id(instance.as_str()), Some((app, instance.as_str())));
        for bad in ["unknown-task-id", "", "a.b", "A.instance-1._app.1", ".instance-1"] {
            assert_eq!(split_task_id(bad), None, "{bad}");
        }
    }
}
