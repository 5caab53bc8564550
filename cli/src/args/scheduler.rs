//! What changes or reads apps and deployments through the Marathon API, and what reads their definitions.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use url::Url;

use super::{Compat, StatsArgs};

/// Where a Marathon-like scheduler answers when nothing else is said; `waymark dev` listens there.
const DEFAULT_MARATHON: &str = "http://127.0.0.1:8080";

#[derive(Args, Clone, Debug)]
pub struct MarathonArgs {
    /// The Marathon API (a comma separates several; the first that answers is used)
    #[arg(long, value_name = "URL", env = "WAYMARK_MARATHON", default_value = DEFAULT_MARATHON, value_delimiter = ',')]
    pub marathon: Vec<Url>,
    /// Token for a scheduler that asks for one; user and password go into the URL
    #[arg(long, value_name = "TOKEN", env = "WAYMARK_MARATHON_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// What every command that changes an app takes.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    #[command(flatten)]
    pub marathon: MarathonArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// Return when every plane has applied the change
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after this long
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration, requires = "wait")]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// List apps
    List {
        #[command(flatten)]
        marathon: MarathonArgs,
        /// JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show an app as JSON
    Show {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
        /// A past version of the definition
        #[arg(long, value_name = "VERSION")]
        app_version: Option<String>,
        /// It is JSON in any case; scripts may ask for it as they do elsewhere
        #[arg(long, hide = true)]
        json: bool,
    },
    /// Create an app from its JSON definition
    Add {
        #[command(flatten)]
        change: ChangeArgs,
        /// A file, an http(s) URL, or - for standard input
        #[arg(value_name = "FILE|URL|-", default_value = "-")]
        source: String,
    },
    /// Change keys of an app: key=value …, or a JSON object on standard input
    Update {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// A value is JSON when it parses as JSON, otherwise text
        #[arg(value_name = "KEY=VALUE")]
        words: Vec<String>,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Set the number of instances
    Scale {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        instances: u32,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Replace all instances, keeping the definition
    Restart {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Kill the instances of an app; the scheduler starts new ones
    Kill {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// Start no new ones: scale the app down by as many
        #[arg(long)]
        scale: bool,
        /// Only the instances on this host
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
    },
    /// Remove an app and its instances
    Remove {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Print what the instances of an app wrote (embedded scheduler only)
    Log {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
        /// Only this instance
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum DeploymentCommand {
    /// List running deployments
    List {
        #[command(flatten)]
        marathon: MarathonArgs,
        /// JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Follow a deployment until it ends
    Watch {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
        /// Give up after this long
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Stop a deployment where it is
    Stop {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
    },
    /// Stop a deployment and go back to what was before it
    Rollback {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
    },
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// App definitions: one app, a list, or what /v2/apps answers; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// As the daemon's --group
    #[arg(long, value_name = "GROUP", default_value = "*")]
    pub group: Vec<String>,
    /// As the daemon's --strict-mode
    #[arg(long)]
    pub strict_mode: bool,
    /// As the daemon's --compat
    #[arg(long, value_enum, value_name = "PROGRAM", value_delimiter = ',')]
    pub compat: Vec<Compat>,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum DeployCommand {
    /// Start the new version beside the old one, move traffic over, remove the old one; run again to resume
    Bluegreen(BluegreenArgs),
}

#[derive(Args, Clone, Debug)]
pub struct BluegreenArgs {
    /// The app's definition, with the labels HAPROXY_DEPLOYMENT_GROUP and HAPROXY_DEPLOYMENT_ALT_PORT
    pub file: PathBuf,
    #[command(flatten)]
    pub marathon: MarathonArgs,
    #[command(flatten)]
    pub stats: StatsArgs,
    /// Instances of the new version to begin with
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub initial_instances: u64,
    /// Grow the new version by this many instances in each step, instead of by half
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub linear_increase: u64,
    /// Let each step rest for so long before the next one
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub step_delay: Duration,
    /// Give up on a step after this long
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub max_wait: Duration,
    /// Split the traffic: stop when the new version has N instances and the old one the rest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub new_instances: Option<u64>,
    /// Run before old instances are stopped, with three JSON arguments: the old app, the ids of the instances, the new
    /// app. Unless it succeeds nothing is stopped
    #[arg(long, value_name = "PROGRAM")]
    pub pre_kill_hook: Option<PathBuf>,
    /// End a split: all instances become the new version's
    #[arg(long, group = "ending")]
    pub complete_cur: bool,
    /// End a split: all instances become the previous version's
    #[arg(long, group = "ending")]
    pub complete_prev: bool,
    /// Go back: restore the old version and remove the new one
    #[arg(long, group = "ending")]
    pub abort: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}
