//! `BALANCE`: which policy, and what of a request a policy that hashes looks at.
//!
//! The policies themselves are the pool's.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use event_watcher::catalog::InstanceId;
use foldhash::quality::FixedState;
use http::HeaderName;
use l4_vip::policy::Policy;

/// What requests of one kind share, so that they go to one endpoint. Only [`Policy::Source`] heeds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HashOn {
    #[default]
    ClientAddress,
    /// `uri`: the path.
    Path,
    /// `uri whole`: path and query.
    Target,
    /// `url_param NAME`.
    Parameter(Arc<str>),
    /// `hdr(NAME)`.
    Header(HeaderName),
}

impl HashOn {
    /// The same on every node and after every restart. `None`: the request lacks it, so endpoints take turns.
    pub fn of<'a>(
        &self,
        client: IpAddr,
        target: &str,
        header: impl FnOnce(&[u8]) -> Option<&'a [u8]>,
    ) -> Option<u64> {
        let path_ends = target.find('?');
        match self {
            Self::ClientAddress => Some(hash(client.to_canonical())),
            Self::Path => Some(hash(&target[..path_ends.unwrap_or(target.len())])),
            Self::Target => Some(hash(target)),
            Self::Parameter(name) => {
                let query = &target[path_ends? + 1..];
                let value =
                    query.split('&').find_map(|pair| pair.strip_prefix(&**name)?.strip_prefix('='))?;
                Some(hash(value))
            }
            Self::Header(name) => header(name.as_str().as_bytes()).map(hash),
        }
    }
}

fn hash(value: impl std::hash::Hash) -> u64 {
    use std::hash::BuildHasher;
    FixedState::with_seed(0).hash_one(value)
}

/// What HAProxy takes after `balance`. `None`: not known, or without a meaning here.
pub(super) fn parse(text: &str) -> Option<(Policy, HashOn)> {
    let lower = text.to_ascii_lowercase();
    let mut words = lower.split_whitespace();
    let first = words.next()?;
    let argument = |name: &str| first.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    let hash_on = match first {
        "uri" if words.any(|w| w == "whole") => HashOn::Target,
        "uri" => HashOn::Path,
        // Names of parameters keep their case.
        "url_param" => HashOn::Parameter(text.split_whitespace().nth(1)?.into()),
        _ => match argument("hdr") {
            Some(name) => HashOn::Header(HeaderName::from_str(name).ok()?),
            None if argument("random").is_some() => return Some((Policy::Random, HashOn::default())),
            None => return Some((first.parse().ok()?, HashOn::default())),
        },
    };
    Some((Policy::Source, hash_on))
}

/// A static server stands for every instance of its app.
pub(crate) fn static_instance(name: &str) -> InstanceId {
    InstanceId::new(&format!("static.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxys_words_are_known() {
        for (text, expect) in [
            ("roundrobin", Some((Policy::RoundRobin, HashOn::ClientAddress))),
            ("static-rr", Some((Policy::RoundRobin, HashOn::ClientAddress))),
            ("LeastConn", Some((Policy::LeastConn, HashOn::ClientAddress))),
            ("random(2)", Some((Policy::Random, HashOn::ClientAddress))),
            ("source", Some((Policy::Source, HashOn::ClientAddress))),
            ("uri", Some((Policy::Source, HashOn::Path))),
            ("uri whole", Some((Policy::Source, HashOn::Target))),
            ("url_param userId check_post", Some((Policy::Source, HashOn::Parameter("userId".into())))),
            ("hdr(X-User)", Some((Policy::Source, HashOn::Header(HeaderName::from_static("x-user"))))),
            ("url_param", None),
            ("hdr()", None),
            ("rdp-cookie(x)", None),
            ("first", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expect, "{text:?}");
        }
    }

    #[test]
    fn requests_of_one_kind_hash_alike() {
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let parameter = HashOn::Parameter("u".into());
        let header = HashOn::Header(HeaderName::from_static("x-user"));
        for (hash_on, first, second, is_same) in [
            (&HashOn::ClientAddress, (a, "/x", "1"), (a, "/y", "2"), true),
            (&HashOn::ClientAddress, (a, "/x", "1"), (b, "/x", "1"), false),
            (&HashOn::Path, (a, "/x?1", "1"), (b, "/x?2", "2"), true),
            (&HashOn::Target, (a, "/x?1", "1"), (a, "/x?2", "1"), false),
            (&parameter, (a, "/x?v=1&u=7", "1"), (b, "/y?u=7", "2"), true),
            (&parameter, (a, "/x?u=7", "1"), (a, "/x?u=8", "1"), false),
            (&header, (a, "/x", "1"), (b, "/y", "1"), true),
            (&header, (a, "/x", "1"), (a, "/x", "2"), false),
        ] {
            let of = |(client, target, user): (IpAddr, &str, &'static str)| {
                hash_on.of(client, target, |_| Some(user.as_bytes()))
            };
            assert_eq!(of(first) == of(second), is_same, "{hash_on:?} {first:?} {second:?}");
        }
        assert_eq!(parameter.of(a, "/x", |_| None), None);
        assert_eq!(header.of(a, "/x", |_| None), None);
    }
}
