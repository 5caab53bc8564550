//! The maps that the programs share with this process: made or adopted, and pinned.
//!
//! It knows their shapes; what is written into them is decided in `tables`.

use std::io;
use std::path::Path;

use super::super::Frontend;
use super::layout::{self, affinity, backend, counters, flow, peer, reverse, service, slot, talk};
use super::sys::{self, Map, MapKind, MapShape};

/// How much the maps take. The kernel wants to know it when a map is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Addresses, ports and protocols that are served.
    pub n_frontends: u32,
    /// Backends, counted once for each frontend that has them.
    pub n_backends: u32,
    /// UDP conversations and clients with affinity that are remembered; the oldest are forgotten.
    pub n_flows: u32,
    /// TCP connections that show the VIP as their peer, a power of two; the oldest show their backend.
    pub n_peers: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { n_frontends: 65_536, n_backends: 262_144, n_flows: 65_536, n_peers: 262_144 }
    }
}

#[derive(Debug)]
pub struct Maps {
    /// VIP → service.
    pub services: Map,
    /// Version and index → backends.
    pub slots: Map,
    /// Number → backend.
    pub backends: Map,
    /// Number of a service or a backend → counters on each CPU.
    pub counters: Map,
    /// TCP socket → VIP and backend.
    pub peers: Map,
    /// UDP socket → its first VIP and backend.
    pub talks: Map,
    /// UDP socket and VIP → backend.
    pub flows: Map,
    /// UDP socket and backend → VIP.
    pub reverse: Map,
    /// Client and service → backend.
    pub affinity: Map,
}

impl Maps {
    /// Adopts what is pinned in `directory` and of the right shape; makes and pins the rest.
    pub fn open(directory: &Path, limits: Limits) -> io::Result<Self> {
        let open = |name: &str, kind: MapKind, key_bytes: usize, value_bytes: usize, max_entries: u32| {
            let shape =
                MapShape { kind, key_bytes: key_bytes as u32, value_bytes: value_bytes as u32, max_entries };
            let path = directory.join(pin_name(name));
            if let Some(map) = Map::open_pinned(&path, shape)? {
                return Ok(map);
            }
            let map = Map::create(&format!("wm_{name}"), shape)?;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            sys::pin(map.fd(), &path)?;
            io::Result::Ok(map)
        };
        let Limits { n_frontends, n_backends, n_flows, n_peers } = limits;
        // A service's new slots stand beside its old ones until the change is made.
        let n_slots = n_backends.saturating_mul(2);
        let n_counters = n_frontends.saturating_mul(2).saturating_add(n_backends);
        Ok(Self {
            services: open(NAMES[0], MapKind::Hash, layout::FRONTEND_BYTES, service::BYTES, n_frontends)?,
            slots: open(NAMES[1], MapKind::Hash, slot::KEY_BYTES, slot::BYTES, n_slots)?,
            backends: open(NAMES[2], MapKind::Hash, 4, backend::BYTES, n_backends)?,
            counters: open(NAMES[3], MapKind::PerCpuHash, 4, counters::BYTES, n_counters)?,
            peers: open(NAMES[4], MapKind::Array, 4, peer::BYTES, n_peers)?,
            talks: open(NAMES[5], MapKind::SocketStorage, 4, talk::BYTES, 0)?,
            flows: open(NAMES[6], MapKind::LruHash, flow::KEY_BYTES, flow::BYTES, n_flows)?,
            reverse: open(NAMES[7], MapKind::LruHash, reverse::KEY_BYTES, layout::FRONTEND_BYTES, n_flows)?,
            affinity: open(NAMES[8], MapKind::LruHash, affinity::KEY_BYTES, affinity::BYTES, n_flows)?,
        })
    }

    /// Places for TCP sockets.
    pub fn n_peers(&self) -> u32 {
        self.peers.max_entries()
    }

    /// Pins again what somebody removed. Returns how many those were.
    pub fn pin_missing(&self, directory: &Path) -> io::Result<usize> {
        let maps = [
            &self.services,
            &self.slots,
            &self.backends,
            &self.counters,
            &self.peers,
            &self.talks,
            &self.flows,
            &self.reverse,
            &self.affinity,
        ];
        let mut n_missing = 0;
        for (name, map) in NAMES.iter().zip(maps) {
            let path = directory.join(pin_name(name));
            if !path.try_exists()? {
                sys::pin(map.fd(), &path)?;
                n_missing += 1;
            }
        }
        Ok(n_missing)
    }
}

/// Of any number of frontends.
const SERVICES: MapShape = MapShape {
    kind: MapKind::Hash,
    key_bytes: layout::FRONTEND_BYTES as u32,
    value_bytes: service::BYTES as u32,
    max_entries: 0,
};

/// In the order of the fields.
const NAMES: [&str; 9] =
    ["services", "slots", "backends", "counters", "peers", "talks", "flows", "reverse", "affinity"];

fn pin_name(map: &str) -> String {
    format!("{map}_{}", layout::VERSION)
}

/// Removes the pins of maps of other layouts, which an earlier version of this program left. Their memory goes with the
/// programs that used them.
pub fn remove_other_layouts(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_map = |name: &&str| NAMES.iter().any(|map| name.strip_prefix(map).is_some_and(is_version));
        if name.to_str().filter(is_map).is_some_and(|name| !NAMES.iter().any(|map| pin_name(map) == name)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_version(suffix: &str) -> bool {
    suffix.strip_prefix('_').is_some_and(|version| version.parse::<u32>().is_ok())
}

/// What the maps that are pinned in a directory serve, as far as they are of this layout.
pub fn pinned_frontends(directory: &Path) -> io::Result<Vec<Frontend>> {
    let mut frontends = Vec::new();
    if let Some(services) = Map::open_pinned_of_any_size(&directory.join(pin_name(NAMES[0])), SERVICES)? {
        services.for_each(|key, _| frontends.extend(layout::read_frontend(key)))?;
    }
    Ok(frontends)
}
