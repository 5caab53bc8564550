//! Starts the sources and merges them: what the rest of the process sees of all that is watched.
//!
//! What a source does is its own business; who wins is decided in [`crate::hub`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogConfig};
use crate::config::{Config, DEFAULT_FRAMEWORK, SourceKind};
use crate::error::ConfigError;
use crate::hub::{Hub, Kind, Onlooker, SourceView};
use crate::publish::Publisher;
use crate::sources::fixed::Fixed;
use crate::sources::marathon::stream::SeenEvent;
use crate::sources::marathon::watch::Watch;
use crate::stats::{Stats, StatsView};

/// Events that a slow onlooker may lag behind.
const SEEN_EVENTS: usize = 256;
/// An operator's commands come one by one.
const COMMANDS: usize = 16;

/// What an operator may ask of all sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read everything again, now.
    Resync,
    /// The same, and believe it even when much is missing.
    Believe,
}

/// The watcher as the rest of the process sees it. Dropping it stops nothing: that is the token's work.
#[derive(Clone, Debug)]
pub struct Handle {
    hub: Onlooker,
    stats: Arc<Stats>,
    seen: broadcast::Sender<Arc<SeenEvent>>,
    commands: broadcast::Sender<Command>,
}

impl Handle {
    pub fn stats(&self) -> StatsView {
        StatsView { n_snapshots_published: self.hub.n_published(), ..self.stats.view() }
    }

    /// Every source, in the order in which they win.
    pub fn sources(&self) -> Vec<SourceView> {
        self.hub.sources()
    }

    /// Every event from now on that a scheduler sends. A reader that lags loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Arc<SeenEvent>> {
        self.seen.subscribe()
    }

    pub fn command(&self, command: Command) {
        // Sources end with the process.
        let _ = self.commands.send(command);
    }
}

/// Starts to watch, on the runtime that this is called on, until `cancel` is cancelled. The publisher goes away with
/// the tasks. Unreachable schedulers are no error: they are what [`crate::publish::Freshness`] tells.
pub fn start(config: Config, publisher: Publisher, cancel: CancellationToken) -> Result<Handle, ConfigError> {
    let mut names = BTreeSet::new();
    if let Some(twice) = config.sources.iter().find(|source| !names.insert(Arc::clone(&source.name))) {
        return Err(ConfigError::SameName(twice.name.to_string()));
    }
    let framework = config.sources.iter().find_map(|source| match &source.kind {
        SourceKind::Marathon(marathon) => Some(Arc::clone(&marathon.framework)),
        SourceKind::Static(_) => None,
    });
    let catalog = Catalog::new(CatalogConfig {
        framework: framework.unwrap_or_else(|| DEFAULT_FRAMEWORK.into()),
        vip_pools: config.vip_pools,
    })
    .reserving(config.reserved);
    let hub = Hub::new(catalog, publisher);
    let stats = Arc::new(Stats::default());
    let (seen, _) = broadcast::channel(SEEN_EVENTS);
    let (commands, _) = broadcast::channel(COMMANDS);
    let mut watches = Vec::new();
    let mut files = Vec::new();
    for source in config.sources {
        match source.kind {
            SourceKind::Marathon(marathon) => {
                let feed = hub.feed(source.name, Kind::Marathon, String::new());
                watches.push(Watch::new(*marathon, feed, Arc::clone(&stats), seen.clone())?);
            }
            SourceKind::Static(file) => {
                let feed = hub.feed(source.name, Kind::Static, file.file.display().to_string());
                files.push(Fixed::new(file, feed));
            }
        }
    }
    for watch in watches {
        tokio::spawn(watch.run(commands.subscribe(), cancel.clone()));
    }
    for file in files {
        tokio::spawn(file.run(commands.subscribe(), cancel.clone()));
    }
    Ok(Handle { hub: hub.onlooker(), stats, seen, commands })
}

/// The runtime's monotonic clock, which tests can move.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
