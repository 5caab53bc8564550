//! Hears whether somebody else changed the table, the routes or the host's addresses.
//!
//! It tells that something changed, never what it is now: reading the kernel again tells that.

use std::io;

use super::batch::{TABLE, TABLE_NAME};
use crate::netlink::text;
use crate::netlink::{Event, Socket, netfilter_attributes};

#[derive(Debug)]
pub(super) struct Monitor {
    rules: Socket,
    routes: Socket,
}

const RULES: u32 = libc::NFNLGRP_NFTABLES as u32;

/// What others changed since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// Elements of our sets.
    pub(super) are_elements_changed: bool,
    /// The table itself, its chains, rules or sets.
    pub(super) is_structure_changed: bool,
    /// Routes or addresses of any kind; there are few such events on a host at rest.
    pub(super) are_routes_changed: bool,
}

impl Monitor {
    /// Everything from now on is heard.
    pub(super) fn open() -> io::Result<Self> {
        let rules = Socket::open(libc::NETLINK_NETFILTER)?;
        rules.join(RULES)?;
        let routes = Socket::open(libc::NETLINK_ROUTE)?;
        for group in [libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE, libc::RTNLGRP_IPV4_IFADDR] {
            routes.join(group)?;
        }
        Ok(Self { rules, routes })
    }

    /// Nothing of rules is heard until [`Self::hear_rules`]: the kernel tells of each element by a message of its own
    /// if anybody listens, which takes longer than to add it.
    pub(super) fn ignore_rules(&self) -> io::Result<()> {
        self.rules.leave(RULES)
    }

    pub(super) fn hear_rules(&self) -> io::Result<()> {
        self.rules.join(RULES)
    }

    /// `rules_port`, `routes_port`: those of the sockets that we make changes by.
    pub(super) fn listen(&mut self, rules_port: u32, routes_port: u32) -> io::Result<Heard> {
        let mut heard = Heard::default();
        self.rules.events(|event| match event {
            Event::Lost => heard.are_elements_changed = true,
            Event::Message(message) if message.port == rules_port => {}
            Event::Message(message) => {
                let operation = libc::c_int::from(message.kind & 0xff);
                let is_generation = operation == libc::NFT_MSG_NEWGEN;
                let is_inet = message.body.first() == Some(&(libc::NFPROTO_INET as u8));
                if is_generation || !is_inet {
                    return;
                }
                if netfilter_attributes(message).find(TABLE_NAME).map(text) == Some(TABLE) {
                    match operation {
                        libc::NFT_MSG_NEWSETELEM | libc::NFT_MSG_DELSETELEM => {
                            heard.are_elements_changed = true;
                        }
                        _ => heard.is_structure_changed = true,
                    }
                }
            }
        })?;
        self.routes.events(|event| match event {
            Event::Message(message) if message.port == routes_port => {}
            Event::Message(_) | Event::Lost => heard.are_routes_changed = true,
        })?;
        Ok(heard)
    }
}
