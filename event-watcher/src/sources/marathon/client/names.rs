//! Addresses of the members: looked up anew for each connection, remembered for when the name servers are away.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Members are few; this bounds what redirects could add.
const MAX_NAMES: usize = 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct Remembering(Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>);

impl Resolve for Remembering {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map(Iterator::collect);
            let found = this.settle(name, found)?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

impl Remembering {
    /// What was found, or what was found before.
    fn settle(
        &self,
        name: String,
        found: std::io::Result<Vec<SocketAddr>>,
    ) -> std::io::Result<Vec<SocketAddr>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(addresses) if !addresses.is_empty() => {
                if known.len() >= MAX_NAMES {
                    known.clear();
                }
                known.insert(name, addresses.clone());
                Ok(addresses)
            }
            failed => known.get(&name).cloned().map_or(failed, Ok),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w23_known_addresses_work_while_name_servers_are_away() {
        let names = Remembering::default();
        let away = || Err(std::io::Error::other("no name server"));
        let (old, new): (SocketAddr, SocketAddr) =
            ("10.0.0.1:0".parse().unwrap(), "10.0.0.2:0".parse().unwrap());
        assert!(names.settle("m".into(), away()).is_err());
        assert_eq!(names.settle("m".into(), Ok(vec![old])).unwrap(), [old]);
        assert_eq!(names.settle("m".into(), away()).unwrap(), [old]);
        assert_eq!(names.settle("m".into(), Ok(vec![])).unwrap(), [old]);
        assert_eq!(names.settle("m".into(), Ok(vec![new])).unwrap(), [new], "asked anew for each connection");
        assert_eq!(names.settle("m".into(), away()).unwrap(), [new]);
        assert!(names.settle("other".into(), away()).is_err());
    }
}
