//! Named virtual IPs: pools of endpoints, balancing policies, and the planes that forward to them.
//!
//! Reading order: [`policy`] (how a pool picks), [`pool`] (endpoints with live state).

pub mod policy;
pub mod pool;
