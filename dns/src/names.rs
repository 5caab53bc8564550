//! Domain names in wire form, and the grammars that turn apps and instances into labels.
//!
//! It knows no records. The label of a VIP is not made here: the catalog allocates addresses by it, so the catalog
//! owns it.

use std::borrow::Borrow;
use std::fmt::{self, Write};
use std::sync::Arc;

use sha1::{Digest, Sha1};

/// The longest label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;
/// The longest name in wire form, root included (RFC 1035 section 2.3.4).
pub(crate) const MAX_NAME: usize = 255;

/// A domain name as it travels, in lower case: length-prefixed labels, the root's zero last.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WireName(Arc<[u8]>);

impl WireName {
    /// Reads dotted text. `None`: an empty or overlong label, or a name over 255 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.') {
            if label.is_empty() || label.len() > MAX_LABEL {
                return None;
            }
            wire.push(label.len() as u8);
            wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
        }
        wire.push(0);
        (wire.len() <= MAX_NAME).then(|| Self(wire.into()))
    }

    /// Reads dotted labels to stand in front of a name. `None` as for [`Self::parse`].
    pub fn under(labels: &str, suffix: &Self) -> Option<Self> {
        let mut wire = [0; MAX_NAME];
        let mut at = 0;
        for label in labels.split('.') {
            if label.is_empty() || label.len() > MAX_LABEL {
                return None;
            }
            let space = wire.get_mut(at..=at + label.len())?;
            space[0] = label.len() as u8;
            space[1..].copy_from_slice(label.as_bytes());
            space[1..].make_ascii_lowercase();
            at += space.len();
        }
        let end = at + suffix.0.len();
        wire.get_mut(at..end)?.copy_from_slice(&suffix.0);
        Some(Self(wire[..end].into()))
    }

    /// A well-formed name in lower case.
    pub fn from_wire(wire: &[u8]) -> Self {
        Self(wire.into())
    }

    /// One copy of the same name. Two copies may be equal.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for WireName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in labels(&self.0) {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => f.write_char(char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_char('.')?;
        }
        Ok(())
    }
}

impl fmt::Debug for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The labels of a well-formed wire name, without their lengths.
pub(crate) fn labels(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = wire.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(*length)).filter(|_| *length > 0)?;
        wire = rest;
        Some(label)
    })
}

/// A well-formed wire name without its first label; `None` at the root.
pub(crate) fn parent(wire: &[u8]) -> Option<&[u8]> {
    let first = usize::from(*wire.first()?);
    wire.get(first + 1..).filter(|_| first > 0)
}

/// A well-formed wire name and its ancestors up to the root, the longest first.
pub(crate) fn suffixes(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let suffix = wire.get(at..)?;
        at += 1 + usize::from(*suffix.first()?);
        Some(suffix)
    })
}

/// One label of a task or framework name, as DC/OS makes it. (Mesos-DNS fills a label that was cut with dashes as well,
/// which can leave one at the end, where host names may not have it.)
pub(crate) use event_watcher::catalog::dns_label as label;

/// A name of several labels, e.g. a framework's: each part between dots on its own, empty parts vanish.
pub(crate) fn fragment(text: &str) -> String {
    let parts: Vec<String> = text.split('.').map(label).filter(|l| !l.is_empty()).collect();
    parts.join(".")
}

/// The label that tells one instance from its siblings, `<task>-<hash of the task id>-<last field of the agent id>`:
/// `tail` is what [`canonical_tail`] makes of the two ids. A task label that leaves no room for the rest is shortened.
pub(crate) fn canonical(task: &str, tail: &str) -> String {
    let room = MAX_LABEL - tail.len();
    let task = task.get(..room).unwrap_or(task).trim_end_matches('-');
    format!("{task}{tail}")
}

/// What `canonical` puts behind the task's name; at most a label long.
pub(crate) fn canonical_tail(instance: &str, agent: Option<&str>) -> String {
    let mut tail = format!("-{}", instance_hash(instance));
    let field = agent.and_then(|a| a.rsplit('-').next()).map(label).filter(|f| !f.is_empty());
    if let Some(field) = field.filter(|f| f.len() < MAX_LABEL - tail.len()) {
        tail.push('-');
        tail.push_str(&field);
    }
    tail
}

/// The first 25 bits of SHA-1 in zbase32, as Mesos-DNS abbreviates a task id.
fn instance_hash(instance: &str) -> String {
    const ZBASE32: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";
    let digest = Sha1::digest(instance.as_bytes());
    let bits = digest.iter().take(4).fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte));
    (0..5).map(|i| char::from(ZBASE32[(bits >> (27 - 5 * i) & 31) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_mangled_as_dcos_does() {
        let long = format!("{}---{}", "a".repeat(62), "b-c".repeat(4));
        for (input, expect) in [
            ("app2.dcos-101", "app2-dcos-101"),
            ("My_App", "my-app"),
            ("--x--", "x"),
            ("a b$c/é", "abc"),
            ("", ""),
            (&long, &format!("{}b", "a".repeat(62))),
        ] {
            assert_eq!(label(input), expect, "{input:?}");
        }
        assert_eq!(fragment("dev..Marathon."), "dev.marathon");
    }

    #[test]
    fn instances_are_abbreviated_as_mesos_dns_does() {
        for (id, expect) in [("test", "iffe9"), ("nginx.48dccce7-90bc-11e6-ae70-70b3d5800001", "jhy6r")] {
            assert_eq!(instance_hash(id), expect);
        }
        assert_eq!(canonical("web", &canonical_tail("test", Some("2620c9cb-S12"))), "web-iffe9-s12");
        assert_eq!(canonical("web", &canonical_tail("test", None)), "web-iffe9");
        let long = canonical(&"a".repeat(63), &canonical_tail("test", Some("x-S1")));
        assert_eq!((long.len(), &long[51..]), (63, "aaa-iffe9-s1"));
    }

    #[test]
    fn wire_names_are_bounded_and_shown_escaped() {
        let name = WireName::parse("Web.Marathon.mesos.").unwrap();
        assert_eq!(name.as_bytes(), b"\x03web\x08marathon\x05mesos\x00");
        assert_eq!(name.to_string(), "web.marathon.mesos.");
        assert_eq!(parent(name.as_bytes()), Some(&b"\x08marathon\x05mesos\x00"[..]));
        assert_eq!(suffixes(name.as_bytes()).map(<[u8]>::len).collect::<Vec<_>>(), [20, 16, 7, 1]);
        assert_eq!(WireName::under("A.b", &name).unwrap().to_string(), "a.b.web.marathon.mesos.");
        for bad in ["", ".", "a..b", &"a".repeat(64), &vec!["a".repeat(63); 4].join(".")] {
            assert!(WireName::parse(bad).is_none(), "{bad:?}");
            assert!(WireName::under(bad, &name).is_none(), "{bad:?}");
        }
        assert_eq!(WireName(b"\x05a.b\x00<\x00"[..].into()).to_string(), "a\\.b\\000<.");
    }
}
