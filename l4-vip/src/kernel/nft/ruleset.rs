//! The table `waymark` as it always is, whatever the VIPs: its sets, its hooks and what they do with a packet.
//!
//! A new connection's address, protocol and port give the number of slots of its frontend, a random slot gives the
//! backend. Only a connection's first packet comes here; connection tracking translates the rest. Frontends and
//! backends are elements of sets and none of this module's business, so that a change of them changes no rule.
//!
//! The hooks and a rule that translates stay when the last VIP goes: without any the kernel would stop translating,
//! and what is established would break.

use std::time::Duration;

use event_watcher::catalog::VipPool;

use super::batch::{Batch, CHAIN_NAME, Value};
use super::elements::octets;
use super::expression::{
    Again, Expression as E, Header, OBJECT_CT_TIMEOUT, Register as R, Tracked, write_counter,
};
use super::family::{Family, SetKind};
use super::pick::Pick;

/// Before the usual priority of destination NAT (-100), where container runtimes translate the ports they publish: a
/// VIP's port may equal one of them.
const DESTINATION_PRIORITY: i32 = libc::NF_IP_PRI_NAT_DST - 10;
const SOURCE_PRIORITY: i32 = libc::NF_IP_PRI_NAT_SRC - 10;

/// A client is remembered from the first packet's arrival to its departure, which takes no time; the rest is slack
/// that keeps clients with many connections from coming and going.
const ARRIVAL_LIFETIME: Duration = Duration::from_secs(60);
/// Links, clients or sessions. What finds no room is served all the same, but not masqueraded, and picked by its hash.
const REMEMBERED: u32 = 1 << 16;
/// For what a rule puts in without saying how long; every rule says.
const SESSION_LIFETIME: Duration = Duration::from_secs(60);

/// The object that holds the timeouts of a translated TCP connection.
const TIMEOUTS: &str = "vip";
/// Connection tracking keeps a closed connection's addresses and ports for 120 s by default. A client that makes many
/// connections to one VIP uses each port again sooner than that, and its new connection then collides with the old.
const CLOSED_LIFETIME_SECS: u32 = 1;

/// The data types of nft(8), which it shows elements by; the kernel only stores them.
#[derive(Clone, Copy)]
enum Type {
    Verdict = 1,
    Ipv4Address = 7,
    Ipv6Address = 8,
    Protocol = 12,
    Port = 13,
    Mark = 19,
    Interface = 20,
}

/// What the kernel takes for the type of a verdict.
const DATA_VERDICT: u32 = 0xffff_ff00;
/// NFT_SET_EXPR.
const SET_EXPR: u32 = 0x100;

/// The names of the chains that a pool's addresses matter to.
const STRAY: &str = "stray";

/// Everything but the chains that pick, which are made when a frontend first needs them.
pub(super) fn write(batch: &mut Batch, pools: &[VipPool]) {
    timeouts(batch);
    set(batch, "links", &[Type::Interface; 2], &[], Options::Remembers(ARRIVAL_LIFETIME));
    for family in Family::ALL {
        sets(batch, family);
        for name in ["arrive", "serve", "refuse", STRAY] {
            batch.chain(&chain(name, family));
        }
    }
    base_chain(batch, "prerouting", "nat", libc::NF_INET_PRE_ROUTING, DESTINATION_PRIORITY);
    base_chain(batch, "output", "nat", libc::NF_INET_LOCAL_OUT, DESTINATION_PRIORITY);
    base_chain(batch, "postrouting", "nat", libc::NF_INET_POST_ROUTING, SOURCE_PRIORITY);
    for family in Family::ALL {
        batch.rule("prerouting", &to_family(family, &chain("arrive", family)));
        batch.rule("output", &to_family(family, &chain("serve", family)));
        arrive(batch, family);
        serve(batch, family);
        refuse(batch, family);
        depart(batch, family, pools);
        stray(batch, family, pools);
        write_way(batch, family, Pick::Refuse);
    }
}

/// Leaves the addresses of the pools that no frontend has to whoever else serves them.
pub(super) fn disown_pools(batch: &mut Batch) {
    for family in Family::ALL {
        batch.clear_chain(&chain(STRAY, family));
    }
}

/// The chain that picks a backend for the frontends that pick so.
pub(super) fn write_pick(batch: &mut Batch, family: Family, pick: Pick) {
    let rules = match pick {
        Pick::Refuse => return,
        // Before Linux 6.17 a look-up may miss an element that is being replaced at that moment; the second one does
        // not.
        Pick::Random(n_slots) => vec![random(family, n_slots), random(family, n_slots)],
        Pick::ByClient(n_slots, lifetime) => by_client(family, n_slots, lifetime.duration()).into(),
    };
    let chain_name = pick.chain(family);
    batch.chain(&chain_name);
    for rule in rules {
        batch.rule(&chain_name, &rule);
    }
    // The frontend lost its last backend since its number of slots was read.
    batch.rule(&chain_name, &[E::Goto { chain: &chain("refuse", family) }]);
    write_way(batch, family, pick);
}

/// How many rules [`write_pick`] makes.
pub(super) fn n_rules(pick: Pick) -> usize {
    match pick {
        Pick::Refuse => 0,
        Pick::Random(_) => 3,
        Pick::ByClient(..) => 4,
    }
}

/// Where chains that pick have the number of the slot. The frontend stands behind it, and the client behind that.
const SLOT: R = R(1);
const FRONTEND: R = R(2);
/// A remembered slot is the second word of a value, for the sake of nft(8), as in `serve`.
const REMEMBERED_SLOT: R = R(0);

fn client(family: Family) -> R {
    R(family.after_address(FRONTEND).0 + 2)
}

fn random(family: Family, n_slots: u16) -> Vec<E<'static>> {
    let mut rule = vec![E::Random { below: n_slots.into(), to: SLOT }];
    rule.extend(frontend(family, FRONTEND));
    rule.extend(translate(family));
    rule
}

/// The slot that the client had last; any slot, and that is remembered; or, when nobody else can be remembered, the one
/// that always is its address's. A client whose slot was given to another backend goes there with all the others.
fn by_client(family: Family, n_slots: u16, lifetime: Duration) -> [Vec<E<'static>>; 3] {
    let (map, below) = (family.set(SetKind::Sessions), n_slots.into());
    let ends = [&frontend(family, FRONTEND)[..], &[family.source(client(family))]].concat();
    let mark = |to| E::Meta { key: libc::NFT_META_MARK, to };
    let remember = |again| E::RememberValue { map, key: FRONTEND, value: REMEMBERED_SLOT, lifetime, again };
    let bytes = family.address_bytes();
    let hash = E::Hash { of: client(family), bytes, below, to: SLOT };
    // nft(8) cannot show a map's value as a new one's; the word that is not used is loaded again for it.
    let found = E::Map { map, key: FRONTEND, to: REMEMBERED_SLOT };
    let find = [mark(SLOT), found, mark(REMEMBERED_SLOT), remember(Again::Begins)];
    let draw = [mark(REMEMBERED_SLOT), E::Random { below, to: SLOT }, remember(Again::Stays)];
    [&find[..], &draw[..], &[hash][..]].map(|choose| [&ends[..], choose, &translate(family)[..]].concat())
}

/// To the backend in the slot.
fn translate(family: Family) -> [E<'static>; 2] {
    let backend = R(client(family).0 + 1);
    [
        E::Map { map: family.set(SetKind::Slots), key: SLOT, to: backend },
        E::Dnat { family: family.number(), address: backend, port: family.after_address(backend) },
    ]
}

/// From a frontend's pick to the chain that does it.
fn write_way(batch: &mut Batch, family: Family, pick: Pick) {
    let way = Value::Goto(pick.chain(family));
    batch.add_elements(family.set(SetKind::Picks), &[(&pick.key(), &way)]);
}

pub(super) fn delete_pick(batch: &mut Batch, family: Family, pick: Pick) {
    batch.delete_elements(family.set(SetKind::Picks), &[&pick.key()]);
    batch.delete_chain(&pick.chain(family));
}

/// The type of the interface `lo`.
const LOOPBACK: [u8; 2] = libc::ARPHRD_LOOPBACK.to_ne_bytes();
const TCP: [u8; 1] = [libc::IPPROTO_TCP as u8];
const UDP: [u8; 1] = [libc::IPPROTO_UDP as u8];

fn chain(name: &str, family: Family) -> String {
    format!("{name}{}", family.digit())
}

/// What came from elsewhere may have to leave by the link that it came by, or for the very address that it came from.
/// Its answer would not come back through here then, so `depart` has to know.
fn arrive(batch: &mut Batch, family: Family) {
    let name = chain("arrive", family);
    let mut rule = frontend(family, R(0)).to_vec();
    rule.extend([
        E::Find { set: family.set(SetKind::Services), key: R(0) },
        E::Meta { key: libc::NFT_META_IIF, to: R(0) },
        E::Meta { key: libc::NFT_META_IIF, to: R(1) },
        E::Remember { set: "links", key: R(0), lifetime: ARRIVAL_LIFETIME },
        family.source(R(0)),
        family.source(family.after_address(R(0))),
        E::Remember { set: family.set(SetKind::Clients), key: R(0), lifetime: ARRIVAL_LIFETIME },
    ]);
    batch.rule(&name, &rule);
    batch.rule(&name, &[E::Goto { chain: &chain("serve", family) }]);
}

fn serve(batch: &mut Batch, family: Family) {
    let name = chain("serve", family);
    // A TCP connection that is picked up in its middle belongs to whoever had it: another plane on this host, or
    // nobody any more, and then the host's own TCP resets it.
    batch.rule(
        &name,
        &[
            protocol(R(0)),
            E::Equal { register: R(0), value: &TCP },
            // FIN, SYN, RST and ACK.
            E::Packet { header: Header::Transport, offset: 13, bytes: 1, to: R(1) },
            E::Mask { register: R(1), mask: &[0x17] },
            E::Differs { register: R(1), value: &[0x02] },
            E::Return,
        ],
    );
    let mut rule = frontend(family, R(0)).to_vec();
    // A map from frontends to chains would be one look-up less, but the kernel checks every element of such a map
    // again whenever one is added: 8 ms with 10,000 frontends. The pick is the second word of its element's value, and
    // lands in a register that was loaded before: nft(8) 1.0.6 aborts when a rule's key is a map's value by its own
    // account, and takes it for what was loaded (`meta mark`) this way.
    let pick = R(family.after_address(R(0)).0 + 3);
    rule.extend([
        E::Find { set: family.set(SetKind::Connections), key: R(0) },
        E::Timeouts { object: TIMEOUTS },
        E::Meta { key: libc::NFT_META_MARK, to: pick },
        E::Map { map: family.set(SetKind::Services), key: R(0), to: R(pick.0 - 1) },
        E::Dispatch { map: family.set(SetKind::Picks), key: pick },
    ]);
    batch.rule(&name, &rule);
    batch.rule(&name, &[E::Goto { chain: &chain(STRAY, family) }]);
}

/// A frontend without a backend.
fn refuse(batch: &mut Batch, family: Family) {
    let name = chain("refuse", family);
    let mut rule = frontend(family, R(0)).to_vec();
    rule.push(E::Find { set: family.set(SetKind::Refusals), key: R(0) });
    batch.rule(&name, &rule);
    let [load, equal] = is_protocol(&TCP);
    batch.rule(&name, &[load, equal, E::Reset]);
    let mut rule = is_protocol(&UDP).to_vec();
    rule.extend(to_nobody(family));
    batch.rule(&name, &rule);
}

/// A port of the pool that is no frontend.
fn stray(batch: &mut Batch, family: Family, pools: &[VipPool]) {
    for pool in of_family(pools, family) {
        let network = Network::of(pool);
        for protocol in [&TCP, &UDP] {
            let mut rule = is_protocol(protocol).to_vec();
            rule.extend(network.holds(family.destination(R(0))));
            match protocol {
                &TCP => rule.push(E::Reset),
                _ => rule.extend(to_nobody(family)),
            }
            batch.rule(&chain(STRAY, family), &rule);
        }
    }
}

/// The port of the VIP that datagrams are sent to when they are refused: nobody listens there.
pub(super) const NOBODY: [u8; 2] = [0, 1];

/// The host itself answers that the port is unreachable. What a rule rejects on its way out fails as "not permitted"
/// instead of "refused", and a rule on its way in would look at every datagram.
fn to_nobody(family: Family) -> [E<'static>; 3] {
    let (address, port) = (R(0), family.after_address(R(0)));
    let nobody = E::Constant { value: &NOBODY, to: port };
    [family.destination(address), nobody, E::Dnat { family: family.number(), address, port }]
}

/// Clients get another address only where the answer would miss this host otherwise: out by the link that they came
/// by, back to themselves, or with a VIP for a source, which happens on a host that had no address of its own when the
/// pool's route was made.
fn depart(batch: &mut Batch, family: Family, pools: &[VipPool]) {
    let masquerade = |batch: &mut Batch, key: &[E<'_>], set: &str, behind: R| {
        let mut rule = is_family(family).to_vec();
        rule.extend_from_slice(key);
        rule.extend([
            E::Find { set, key: R(0) },
            family.original_destination(behind),
            protocol(family.after_address(behind)),
            E::Tracked { what: Tracked::Port, to: R(family.after_address(behind).0 + 1) },
            E::Find { set: family.set(SetKind::Services), key: behind },
            E::Masquerade,
        ]);
        batch.rule("postrouting", &rule);
    };
    let links =
        [E::Meta { key: libc::NFT_META_IIF, to: R(0) }, E::Meta { key: libc::NFT_META_OIF, to: R(1) }];
    masquerade(batch, &links, "links", R(2));
    let ends = [family.source(R(0)), family.destination(family.after_address(R(0)))];
    masquerade(batch, &ends, family.set(SetKind::Clients), R(0));
    for pool in of_family(pools, family) {
        let network = Network::of(pool);
        let mut rule = is_family(family).to_vec();
        rule.extend(network.holds(family.source(R(0))));
        rule.extend([
            E::Meta { key: libc::NFT_META_OIFTYPE, to: R(0) },
            E::Differs { register: R(0), value: &LOOPBACK },
            E::Masquerade,
        ]);
        batch.rule("postrouting", &rule);
    }
}

fn is_family(family: Family) -> [E<'static>; 2] {
    let value = match family {
        Family::V4 => &[libc::NFPROTO_IPV4 as u8],
        Family::V6 => &[libc::NFPROTO_IPV6 as u8],
    };
    [E::Meta { key: libc::NFT_META_NFPROTO, to: R(0) }, E::Equal { register: R(0), value }]
}

fn to_family<'a>(family: Family, chain: &'a str) -> [E<'a>; 3] {
    let [load, equal] = is_family(family);
    [load, equal, E::Jump { chain }]
}

fn protocol(to: R) -> E<'static> {
    E::Meta { key: libc::NFT_META_L4PROTO, to }
}

fn is_protocol(value: &'static [u8]) -> [E<'static>; 2] {
    [protocol(R(0)), E::Equal { register: R(0), value }]
}

/// The frontend that a packet is addressed to: address, protocol and port in registers from `to` on.
fn frontend(family: Family, to: R) -> [E<'static>; 3] {
    let behind = family.after_address(to);
    let port = E::Packet { header: Header::Transport, offset: 2, bytes: 2, to: R(behind.0 + 1) };
    [family.destination(to), protocol(behind), port]
}

fn of_family(pools: &[VipPool], family: Family) -> impl Iterator<Item = &VipPool> {
    pools.iter().filter(move |pool| Family::of(pool.first()) == family)
}

/// A pool as rules compare it.
struct Network {
    first: Vec<u8>,
    mask: Vec<u8>,
}

impl Network {
    fn of(pool: &VipPool) -> Self {
        let first = octets(pool.first());
        let bits = 0..first.len() * 8;
        let mut mask = vec![0; first.len()];
        bits.take(pool.prefix_bits().into()).for_each(|bit| mask[bit / 8] |= 0x80 >> (bit % 8));
        Self { first, mask }
    }

    /// Goes on if the address that `load` puts into the first register belongs to it.
    fn holds<'a>(&'a self, load: E<'a>) -> [E<'a>; 3] {
        [load, E::Mask { register: R(0), mask: &self.mask }, E::Equal { register: R(0), value: &self.first }]
    }
}

#[derive(Clone, Copy)]
enum Options {
    /// Only this program changes it.
    Fixed,
    /// Each element counts how often it was found.
    Counts,
    /// Rules put elements in, for this long unless they say otherwise.
    Remembers(Duration),
}

fn sets(batch: &mut Batch, family: Family) {
    let address = match family {
        Family::V4 => Type::Ipv4Address,
        Family::V6 => Type::Ipv6Address,
    };
    let frontend = [address, Type::Protocol, Type::Port];
    let of_slot = [&[Type::Mark], &frontend[..]].concat();
    let of_client = [&frontend[..], &[address]].concat();
    let name = |kind| family.set(kind);
    set(batch, name(SetKind::Services), &frontend, &[Type::Mark; 2], Options::Fixed);
    set(batch, name(SetKind::Picks), &[Type::Mark], &[Type::Verdict], Options::Fixed);
    set(batch, name(SetKind::Slots), &of_slot, &[address, Type::Port], Options::Counts);
    set(batch, name(SetKind::Sessions), &of_client, &[Type::Mark; 2], Options::Remembers(SESSION_LIFETIME));
    set(batch, name(SetKind::Connections), &frontend, &[], Options::Counts);
    set(batch, name(SetKind::Refusals), &frontend, &[], Options::Counts);
    set(batch, name(SetKind::Clients), &[address; 2], &[], Options::Remembers(ARRIVAL_LIFETIME));
}

/// A set of these keys, or a map when there are values.
fn set(batch: &mut Batch, name: &str, key: &[Type], value: &[Type], options: Options) {
    let mut flags = if value.is_empty() { 0 } else { libc::NFT_SET_MAP as u32 };
    match options {
        Options::Fixed => {}
        Options::Counts => flags |= SET_EXPR,
        Options::Remembers(_) => flags |= (libc::NFT_SET_EVAL | libc::NFT_SET_TIMEOUT) as u32,
    }
    batch.create("create a set", libc::NFT_MSG_NEWSET, |w| {
        w.string(2, name);
        w.be32(3, flags);
        w.be32(4, type_number(key));
        w.be32(5, key.iter().map(|field| field.bytes()).sum());
        match value {
            [] => {}
            [Type::Verdict] => w.be32(6, DATA_VERDICT),
            value => {
                w.be32(6, type_number(value));
                w.be32(7, value.iter().map(|field| field.bytes()).sum());
            }
        }
        // The transaction's own number of the set: unused, but asked for.
        w.be32(10, 0);
        match options {
            Options::Fixed => {}
            Options::Counts => write_counter(w, 17),
            Options::Remembers(lifetime) => {
                w.nest(9, |w| w.be32(1, REMEMBERED));
                w.attribute(11, &(lifetime.as_millis() as u64).to_be_bytes());
            }
        }
    });
}

impl Type {
    /// Rounded up to whole registers.
    fn bytes(self) -> u32 {
        if matches!(self, Self::Ipv6Address) { 16 } else { 4 }
    }
}

/// nft(8) packs the types of a key of several values into one number, 6 bits each.
fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |number, kind| number << 6 | *kind as u32)
}

fn base_chain(batch: &mut Batch, name: &str, kind: &str, hook: libc::c_int, priority: i32) {
    batch.create("create a chain at a hook", libc::NFT_MSG_NEWCHAIN, |w| {
        w.string(CHAIN_NAME, name);
        w.nest(4, |w| {
            w.be32(1, hook as u32);
            w.be32(2, priority as u32);
        });
        w.string(7, kind);
    });
}

fn timeouts(batch: &mut Batch) {
    batch.create("create connection timeouts", libc::NFT_MSG_NEWOBJ, |w| {
        w.string(2, TIMEOUTS);
        w.be32(3, OBJECT_CT_TIMEOUT);
        w.nest(4, |w| {
            w.attribute(1, &(libc::NFPROTO_IPV4 as u16).to_be_bytes());
            w.attribute(2, &TCP);
            w.nest(3, |w| {
                // CTA_TIMEOUT_TCP_TIME_WAIT and CTA_TIMEOUT_TCP_CLOSE; the others stay as the system has them.
                w.be32(7, CLOSED_LIFETIME_SECS);
                w.be32(8, CLOSED_LIFETIME_SECS);
            });
        });
    });
}
