//! Reads the table back: what stands there, whoever wrote it.
//!
//! It changes nothing.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use super::batch::{
    DATA_VALUE, ELEMENT_DATA, ELEMENT_KEY, LIST_ELEM, TABLE, TABLE_NAME, TABLE_USERDATA, kind, write_key,
};
use super::edits::{COUNTING, Edits};
use super::elements::{frontend_key, read_backend, read_frontend, read_slot, slot_key};
use super::entry::Entry;
use super::family::{Family, SetKind};
use super::pick::Pick;
use crate::kernel::Frontend;
use crate::netlink::{Attributes, Message, Writer, be, text};
use crate::netlink::{Socket, netfilter_attributes, netfilter_header};

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
        dump(socket, family.set(SetKind::Services), |key, element| {
            let pick = value(element).and_then(Pick::from_value);
            match (read_frontend(family, key), pick) {
                (Some(frontend), Some(pick)) => found.entry(frontend).or_default().pick = Some(pick),
                _ => of_nothing.push((SetKind::Services, key.to_vec())),
            }
        })?;
        dump(socket, family.set(SetKind::Slots), |key, element| {
            let backend = value(element).and_then(|value| read_backend(family, value));
            match (read_slot(family, key), backend) {
                (Some((frontend, slot)), Some(backend)) => {
                    found.entry(frontend).or_default().slots.push((slot, backend));
                }
                _ => of_nothing.push((SetKind::Slots, key.to_vec())),
            }
        })?;
        for (nth, kind) in COUNTING.into_iter().enumerate() {
            dump(socket, family.set(kind), |key, _| match read_frontend(family, key) {
                Some(frontend) => found.entry(frontend).or_default().is_listed[nth] = true,
                None => of_nothing.push((kind, key.to_vec())),
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
        // The kernel tells an element twice when its table grows meanwhile; it can be removed only once.
        found.slots.dedup();
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

/// Key and value of each element of a counting set, and how often it was found.
pub(super) fn counts(
    socket: &mut Socket,
    set: &str,
    mut each: impl FnMut(&[u8], Option<&[u8]>, u64),
) -> io::Result<()> {
    dump(socket, set, |key, element| each(key, value(element), count(element)))
}

/// The same for the elements with these keys, all of which must be there.
pub(super) fn counts_of(
    socket: &mut Socket,
    set: &str,
    keys: &[&[u8]],
    mut each: impl FnMut(&[u8], u64),
) -> io::Result<()> {
    let asked = |w: &mut Writer| {
        w.string(1, TABLE);
        w.string(2, set);
        w.nest(LIST_ELEMENTS, |w| keys.iter().for_each(|key| w.nest(LIST_ELEM, |w| write_key(w, key))));
    };
    let header = netfilter_header(libc::NFPROTO_INET);
    socket.ask(kind(libc::NFT_MSG_GETSETELEM), 0, &header, asked, |message| {
        each_element(message, |key, element| each(key, count(element)));
    })
}

fn count(element: Attributes<'_>) -> u64 {
    let counter = element.nest(ELEMENT_EXPRESSION).nest(EXPRESSION_DATA);
    counter.find(COUNTER_PACKETS).map_or(0, be)
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
        |message| each_element(message, &mut each),
    )
}

fn each_element(message: Message<'_>, mut each: impl FnMut(&[u8], Attributes<'_>)) {
    for (_, element) in netfilter_attributes(message).nest(LIST_ELEMENTS) {
        let element = Attributes(element);
        each(element.nest(ELEMENT_KEY).find(DATA_VALUE).unwrap_or_default(), element);
    }
}

fn value<'a>(element: Attributes<'a>) -> Option<&'a [u8]> {
    element.nest(ELEMENT_DATA).find(DATA_VALUE)
}
