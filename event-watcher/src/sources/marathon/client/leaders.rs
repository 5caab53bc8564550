//! Who leads: every member is asked, and a majority is believed.

use reqwest::{StatusCode, Url};

use super::{Base, Client, LEADER_DEADLINE, Leadership, MAX_ERROR_BYTES, endpoint, host};
use crate::sources::marathon::wire;

impl Client {
    /// Asks all members who leads. A cluster of one has nobody to ask, and members that cannot tell do not count.
    pub(crate) async fn leadership(&self, base: &Base) -> Leadership {
        if self.n_members() < 2 {
            return Leadership::Agreed;
        }
        let asking = (0..self.n_members()).map(|member| async move {
            let url = endpoint(&self.shared.members[member], ["v2", "leader"]);
            let (response, url) = self.request(url, "application/json", LEADER_DEADLINE).await.ok()?;
            if response.status() != StatusCode::OK {
                return None;
            }
            let reading = self.body(response, host(&url), MAX_ERROR_BYTES);
            let body = tokio::time::timeout(LEADER_DEADLINE, reading).await.ok()?.ok()?;
            let claim: wire::Leader = serde_json::from_slice(&body).ok()?;
            Some((member, claim.leader))
        });
        let claims: Vec<(usize, String)> =
            futures_util::future::join_all(asking).await.into_iter().flatten().collect();
        self.weigh(base, &claims)
    }

    pub(super) fn weigh(&self, base: &Base, claims: &[(usize, String)]) -> Leadership {
        let n_for = |leader: &str| claims.iter().filter(|(_, claim)| claim == leader).count();
        let Some((_, leader)) = claims.iter().max_by_key(|(_, claim)| n_for(claim)) else {
            return Leadership::Agreed;
        };
        if 2 * n_for(leader) <= claims.len() {
            let mut all: Vec<String> = claims.iter().map(|(_, claim)| claim.clone()).collect();
            all.sort();
            all.dedup();
            return Leadership::Split(all);
        }
        let is_at = |url: &Url| {
            let port = url.port_or_known_default().unwrap_or(0);
            url.host_str().is_some_and(|host| *leader == format!("{host}:{port}"))
        };
        let claim_of = |member: usize| claims.iter().find(|(m, _)| *m == member).map(|(_, claim)| claim);
        // A member that knows the leader passes reads on to it.
        if is_at(&base.url) || claim_of(base.member).is_none_or(|claim| claim == leader) {
            return Leadership::Agreed;
        }
        let leading = self.shared.members.iter().position(is_at);
        let knowing = || claims.iter().find(|(_, claim)| claim == leader).map(|(member, _)| *member);
        leading.or_else(knowing).map_or(Leadership::Agreed, Leadership::Elsewhere)
    }
}
