//! Reads the table back: what stands there, whoever wrote it.
//!
//! It changes nothing.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use super::batch::{DATA_VALUE, ELEMENT_DATA, ELEMENT_KEY, TABLE, TABLE_NAME, TABLE_USERDATA, kind};
use super::edits::{COUNTING, Edits};
use super::elements::{frontend_key, read_backend, read_frontend, slot_key};
use super::entry::Entry;
use super::family::{Family, SetKind};
use super::message::{Attributes, be, text};
use super::pick::Pick;
use super::socket::{Socket, netfilter_attributes, netfilter_header};
use crate::kernel::Frontend;

/// The label of the table, if there is the table; empty if it has none.
pub(super) fn label(socket: &mut Socket) -> io::Result<Option<String>> {
    let mut label = None;
    let asked = socket.ask(
        kind(libc::NFT_MSG_GETTABLE),
        0,
        &netfilter_header(libc::NFPROTO_INET),
        |w| w.string(TABLE_NAME, TABLE),
        |message| {
            let comment = netfilter_attributes(message).find(TABLE_USERDATA).unwrap_or_default();
            // Type and length come first.
            label = Some(text(comment.get(2..).unwrap_or_default()).to_owned());
        },
    );
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        asked => asked.map(|()| label),
    }
}

pub(super) fn n_rules(socket: &mut Socket) -> io::Result<usize> {
    let mut n_rules = 0;
    socket.ask(
        kind(libc::NFT_MSG_GETRULE),
        libc::NLM_F_DUMP,
        &netfilter_header(libc::NFPROTO_INET),
        |w| w.string(TABLE_NAME, TABLE),
        |_| n_rules += 1,
    )?;
    Ok(n_rules)
}

/// What a table of our layout holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) entries: HashMap<Frontend, Entry, foldhash::fast::RandomState>,
    pub(super) picks: HashSet<(Family, Pick)>,
    /// Removes what belongs to no entry.
    pub(super) mending: Edits,
    pub(super) n_faults: usize,
}

impl Contents {
    pub(super) fn read(socket: &mut Socket) -> io::Result<Self> {
        let mut contents = Self::default();
        for family in Family::ALL {
            contents.read_family(socket, family)?;
        }
        Ok(contents)
    }

    fn read_family(&mut self, socket: &mut Socket, family: Family) -> io::Result<()> {
        dump(socket, family.set(SetKind::Picks), |key, _| {
            self.picks.extend(Pick::from_key(key).map(|pick| (family, pick)));
        })?;
        let mut found = HashMap::<Frontend, Found>::new();
        let mut of_nothing = Vec::new();
        let mut put = |kind, key: &[u8], fill: &mut dyn FnMut(&mut Found, &[u8]) -> Option<()>| {
            let filled = read_frontend(family, key)
                .and_then(|(frontend, rest)| fill(found.entry(frontend).or_default(), rest));
            if filled.is_none() {
                of_nothing.push((kind, key.to_vec()));
            }
        };
        dump(socket, family.set(SetKind::Services), |key, element| {
            put(SetKind::Services, key, &mut |found, _| {
                found.pick = Some(Pick::from_value(value(element)?)?);
                Some(())
            });
        })?;
        dump(socket, family.set(SetKind::Slots), |key, element| {
            put(SetKind::Slots, key, &mut |found, rest| {
                let slot = u16::try_from(u32::from_ne_bytes(rest.try_into().ok()?)).ok()?;
                found.slots.push((slot, read_backend(family, value(element)?)?));
                Some(())
            });
        })?;
        for (nth, kind) in COUNTING.into_iter().enumerate() {
            dump(socket, family.set(kind), |key, _| {
                put(kind, key, &mut |found, _| {
                    found.is_listed[nth] = true;
                    Some(())
                });
            })?;
        }
        self.n_faults += of_nothing.len();
        of_nothing.into_iter().for_each(|(kind, key)| self.mending.remove(family, kind, key));
        for (frontend, found) in found {
            self.settle(family, frontend, found);
        }
        Ok(())
    }

    /// A frontend that somebody left incomplete is taken out, to be made again as a whole.
    fn settle(&mut self, family: Family, frontend: Frontend, mut found: Found) {
        found.slots.sort_unstable();
        let is_dense = found.slots.iter().enumerate().all(|(n, (slot, _))| n == usize::from(*slot));
        let slots: Box<[SocketAddr]> = found.slots.iter().map(|(_, backend)| *backend).collect();
        if let Some(pick) = found.pick
            && is_dense
            && self.picks.contains(&(family, pick))
            && usize::from(pick.n_slots()) <= slots.len()
            && found.is_listed.iter().all(|is| *is)
        {
            self.entries.insert(frontend, Entry { pick, slots });
            return;
        }
        self.n_faults += 1;
        if found.pick.is_some() {
            self.mending.remove(family, SetKind::Services, frontend_key(frontend));
        }
        for (slot, _) in found.slots {
            self.mending.remove(family, SetKind::Slots, slot_key(frontend, slot));
        }
        for (kind, is_listed) in COUNTING.into_iter().zip(found.is_listed) {
            if is_listed {
                self.mending.remove(family, kind, frontend_key(frontend));
            }
        }
    }
}

/// What the sets say of one frontend.
#[derive(Debug, Default)]
struct Found {
    pick: Option<Pick>,
    slots: Vec<(u16, SocketAddr)>,
    is_listed: [bool; COUNTING.len()],
}

/// How often each element of a counting set was found, and the bytes of those packets.
pub(super) fn counts(
    socket: &mut Socket,
    family: Family,
    kind: SetKind,
    mut each: impl FnMut(Frontend, u64),
) -> io::Result<()> {
    dump(socket, family.set(kind), |key, element| {
        if let Some((frontend, _)) = read_frontend(family, key) {
            let counter = element.nest(ELEMENT_EXPRESSION).nest(EXPRESSION_DATA);
            each(frontend, counter.find(COUNTER_PACKETS).map_or(0, be));
        }
    })
}

const ELEMENT_EXPRESSION: u16 = 7;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_PACKETS: u16 = 2;
const LIST_ELEMENTS: u16 = 3;

fn dump(socket: &mut Socket, set: &str, mut each: impl FnMut(&[u8], Attributes<'_>)) -> io::Result<()> {
    socket.ask(
        kind(libc::NFT_MSG_GETSETELEM),
        libc::NLM_F_DUMP,
        &netfilter_header(libc::NFPROTO_INET),
        |w| {
            w.string(1, TABLE);
            w.string(2, set);
        },
        |message| {
            for (_, element) in netfilter_attributes(message).nest(LIST_ELEMENTS) {
                let element = Attributes(element);
                each(element.nest(ELEMENT_KEY).find(DATA_VALUE).unwrap_or_default(), element);
            }
        },
    )
}

fn value<'a>(element: Attributes<'a>) -> Option<&'a [u8]> {
    element.nest(ELEMENT_DATA).find(DATA_VALUE)
}
