//! What asks Waymark's DNS, makes it the host's resolver, or runs a command that uses it.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::StatsArgs;

#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Look a name up
    Lookup {
        #[command(flatten)]
        stats: StatsArgs,
        name: String,
        /// Record type
        #[arg(value_name = "TYPE", default_value = "A")]
        record_type: String,
        /// Only the data: addresses for A and AAAA
        #[arg(long, conflicts_with = "json")]
        short: bool,
        /// JSON instead of text
        #[arg(long)]
        json: bool,
        /// The server to ask; learnt from the running Waymark when absent
        #[arg(long, value_name = "ADDRESS", env = "WAYMARK_DNS", value_parser = parse_dns_server)]
        server: Option<SocketAddr>,
        /// Say where the answer comes from, and why there is none
        #[arg(long, conflicts_with = "short")]
        trace: bool,
    },
    /// Make Waymark the resolver of this host, or take that back
    Install(InstallArgs),
}

#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct InstallArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// Show what would be written, and write nothing
    #[arg(long, group = "what")]
    pub print: bool,
    /// Write it, keeping what was there
    #[arg(long, group = "what")]
    pub apply: bool,
    /// Put back what was there
    #[arg(long, group = "what")]
    pub remove: bool,
    /// Waymark's DNS address with port 53 (repeatable); learnt from the running Waymark when absent
    #[arg(long, value_name = "IP")]
    pub address: Vec<IpAddr>,
    /// A zone that Waymark is to be asked for (repeatable); learnt from the running Waymark when absent
    #[arg(long, value_name = "ZONE")]
    pub zone: Vec<String>,
    /// Who resolves names on this host; found out when absent
    #[arg(long, value_enum)]
    pub style: Option<ResolverStyle>,
    /// The root directory of the host
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Stay, and put back what was there when this process has ended
    #[arg(long, value_name = "PID", requires = "apply")]
    pub until_exit_of: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResolverStyle {
    Resolved,
    ResolvConf,
}

#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `IP` or `IP:PORT`; the port is 53 unless said.
fn parse_dns_server(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53)))
        .map_err(|_| "expected IP or IP:PORT".to_owned())
}
