//! The packet path without sockets: for whoever has bytes and wants to know what becomes of them.
//!
//! It answers exactly as a worker does, from one snapshot that never changes; nothing is limited, sent or waited for.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use event_watcher::catalog::Snapshot;
use hickory_server::proto::op::Message;

use crate::compile::Compiler;
use crate::config::Config;
use crate::forward::{Foreign, relay};
use crate::handler::{Outcome, Recursion, Responder, Terms};
use crate::stats::{Counters, Transport};

#[derive(Debug)]
pub struct Offline {
    pub(crate) responder: Responder,
}

/// What becomes of a packet.
#[derive(Debug)]
pub enum Fate {
    /// The reply was appended.
    Reply,
    Silence,
    /// Upstreams would be asked.
    Forward(Question),
}

/// A question for a name of another zone.
#[derive(Debug)]
pub struct Question(Foreign);

impl Offline {
    pub fn new(config: &Config, snapshot: &Snapshot) -> Self {
        let mut compiler = Compiler::new(config);
        compiler.apply_without_new_vips(snapshot);
        compiler.apply_new_vips();
        let zone = Arc::new(ArcSwap::from_pointee(compiler.zone()));
        let terms = Terms::new(&Config { rate_limit_per_sec: 0, ..config.clone() });
        if config.upstreams.as_ref().is_some_and(|upstreams| !upstreams.is_empty()) {
            terms.set_recursion(Recursion::Available);
        }
        let counters = Arc::new(Counters::new(zone.load().authority().zone_labels().len()));
        Self { responder: Responder::new(zone, counters, Arc::new(terms)) }
    }

    /// Answers one packet that came from `client`; the reply is appended to `out`.
    pub fn answer(&mut self, packet: &[u8], transport: Transport, client: IpAddr, out: &mut Vec<u8>) -> Fate {
        match self.responder.respond(packet, transport, client, out) {
            Outcome::Reply => Fate::Reply,
            Outcome::Silence => Fate::Silence,
            Outcome::Forward(foreign) => Fate::Forward(Question(foreign)),
        }
    }
}

impl Question {
    /// Appends what the client gets when an upstream answers with these bytes. False: nothing, they are no answer.
    pub fn relay(&self, answer: &[u8], out: &mut Vec<u8>) -> bool {
        Message::from_vec(answer).is_ok_and(|message| relay(message, &self.0, out))
    }
}
