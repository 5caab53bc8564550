//! The eBPF plane: a connection to a VIP is given its backend inside `connect()`, and nothing touches a packet after.
//!
//! It changes no packet, no route and no firewall rule.
