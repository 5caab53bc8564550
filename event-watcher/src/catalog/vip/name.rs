//! A VIP's DNS name, and how text becomes DNS labels the way DC/OS does it.
//!
//! It gives no addresses.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The longest DNS label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// A VIP's DNS name below its zone, normalised: `dcos-101app2.marathon`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VipName(Arc<str>);

impl VipName {
    /// Joins a label as written (`/dcos-101/app2`) and the framework's name; `None` when nothing of the label is left.
    pub fn new(label: &str, framework: &str) -> Option<Self> {
        let (label, framework) = (dns_fragment(label), dns_fragment(framework));
        if label.is_empty() || framework.is_empty() {
            return None;
        }
        Some(Self(format!("{label}.{framework}").into()))
    }

    /// A name as it was written out, normalised already.
    pub(super) fn from_normal(name: &str) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// DC/OS's `mesos_state:domain_frag`: dots separate, each part is mangled on its own, empty parts vanish.
fn dns_fragment(text: &str) -> String {
    let parts: Vec<String> = text.split('.').map(dns_label).filter(|l| !l.is_empty()).collect();
    parts.join(".")
}

/// DC/OS's `mesos_state:label`: lower case, `_` and `.` become `-`, everything else but letters, digits and `-` is
/// deleted. A label over 63 octets loses trailing dashes at the cut and is filled up from the remaining letters and
/// digits.
pub fn dns_label(text: &str) -> String {
    let mangled: String = text
        .bytes()
        .filter_map(|b| match b {
            b'A'..=b'Z' => Some(b.to_ascii_lowercase() as char),
            b'a'..=b'z' | b'0'..=b'9' => Some(b as char),
            b'-' | b'_' | b'.' => Some('-'),
            _ => None,
        })
        .collect();
    let mangled = mangled.trim_matches('-');
    if mangled.len() <= MAX_LABEL {
        return mangled.to_owned();
    }
    let (head, rest) = mangled.split_at(MAX_LABEL);
    let mut label = head.trim_end_matches('-').to_owned();
    let missing = MAX_LABEL - label.len();
    label.extend(rest.chars().filter(char::is_ascii_alphanumeric).take(missing));
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_are_cut_and_filled() {
        let long = format!("{}---{}", "a".repeat(62), "b-c".repeat(4));
        let label = dns_label(&long);
        assert_eq!(label, format!("{}b", "a".repeat(62)));
        assert_eq!(dns_label("--x--"), "x");
    }

    #[test]
    fn names_are_normalised_part_by_part() {
        for (label, framework, expect) in [
            ("/dcos-101/app2", "marathon", Some("dcos-101app2.marathon")),
            ("API.Hello-World", "marathon", Some("api.hello-world.marathon")),
            ("..a..b..", "dev.marathon", Some("a.b.dev.marathon")),
            ("my_app", "marathon", Some("my-app.marathon")),
            ("\u{fc}ber $x", "marathon", Some("berx.marathon")),
            ("-a-", "marathon", Some("a.marathon")),
            ("$/", "marathon", None),
            ("", "marathon", None),
        ] {
            assert_eq!(VipName::new(label, framework).as_ref().map(VipName::as_str), expect, "{label:?}");
        }
    }
}
