//! What asks a running Waymark what it knows.

use clap::{Args, Subcommand};
use url::Url;

/// Where a Waymark's status answers when nothing else is said.
const DEFAULT_STATS: &str = "http://127.0.0.1:9090";

#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// The stats address of the Waymark to ask
    #[arg(long, value_name = "URL", env = "WAYMARK_STATS", default_value = DEFAULT_STATS)]
    pub stats: Url,
}

/// A listing of what a running Waymark knows.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Clone, Debug)]
pub struct SyncArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// Believe the schedulers even when most of what ran is missing
    #[arg(long)]
    pub accept: bool,
}

#[derive(Debug, Subcommand)]
pub enum VipCommand {
    /// List virtual IPs
    List(ListArgs),
    /// One virtual IP with its backends
    Show {
        #[command(flatten)]
        list: ListArgs,
        /// Its name (dcos-101app2.marathon, with or without .l4lb.thisdcos.directory), label or address
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Explain what a URL would reach
    Explain {
        #[command(flatten)]
        list: ListArgs,
        url: Url,
        /// By app id (header X-Marathon-App-Id) instead of by host
        #[arg(long, value_name = "ID")]
        app: Option<String>,
    },
}
