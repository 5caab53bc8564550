//! The command line: every command, flag and environment name, as clap types.
//!
//! It decides nothing: defaults that differ between `dev` and `serve` live in `config`, behaviour in `commands`.
//!
//! [`daemon`] is what `dev` and `serve` take, [`scheduler`] what works through the Marathon API, [`observe`] what asks
//! a running Waymark, [`names`] what has to do with its DNS.

mod daemon;
mod names;
mod observe;
mod scheduler;

use clap::{Parser, Subcommand};

pub use daemon::{AgentArgs, Compat, ConfigArgs, DaemonArgs, DevArgs, DnsCompat, Mode, PlaneName, ServeArgs};
pub use names::{DnsCommand, ExecArgs, InstallArgs, ResolverStyle};
pub use observe::{ListArgs, RouteCommand, StatsArgs, SyncArgs, VipCommand};
pub use scheduler::{
    AppCommand, BluegreenArgs, ChangeArgs, CheckArgs, DeployCommand, DeploymentCommand, MarathonArgs,
    WaitArgs,
};

/// Service discovery and virtual IPs for clusters run by a Marathon-like scheduler.
#[derive(Debug, Parser)]
#[command(name = "waymark", version, propagate_version = true, disable_help_subcommand = true)]
pub struct CommandLine {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: a Marathon-compatible scheduler, all planes, and a demo app
    Dev(DevArgs),
    /// Run the planes against a real scheduler
    Serve(ServeArgs),
    /// Work with apps through the Marathon API
    #[command(subcommand)]
    App(AppCommand),
    /// Work with deployments through the Marathon API
    #[command(subcommand)]
    Deployment(DeploymentCommand),
    /// What the named virtual IPs reach now
    #[command(subcommand)]
    Vip(VipCommand),
    /// Ask Waymark's DNS
    #[command(subcommand)]
    Dns(DnsCommand),
    /// What a URL would reach now, and why
    #[command(subcommand)]
    Route(RouteCommand),
    /// Say what each label of app definitions will do, and what is wrong with them
    Check(CheckArgs),
    /// Replace an app by a new version of it, step by step
    #[command(subcommand)]
    Deploy(DeployCommand),
    /// State, freshness and problems of a running Waymark
    Status(ListArgs),
    /// Have everything read again from the schedulers, now
    Sync(SyncArgs),
    /// Watch instances, VIPs and changes live (one look when not on a terminal)
    Top(ListArgs),
    /// Follow what changes, one line per event
    Events(ListArgs),
    /// Run a command inside the cluster: its DNS is Waymark's (needs root)
    Exec(ExecArgs),
    /// Open a shell inside the cluster: its DNS is Waymark's (needs root)
    Shell(StatsArgs),
    /// Print the effective configuration as TOML
    Config(ConfigArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the version
    Version,
    /// The demo app that `waymark dev` runs as instances
    #[command(hide = true)]
    DemoApp,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_interface_parse() {
        for line in [
            "dev --no-demo --scheduler-listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --https-listen 127.0.0.1:0 --service-address 127.0.0.1 \
             --appid-listen 127.0.0.1:0 --stats-listen 127.0.0.1:0 --dns-listen 127.0.0.1:0 --dns-listen [::1]:0 \
             --vip-pool 127.11.0.0/16 --vip-pool fd01:c::/64 --vip-plane auto --vip-cgroup /x --flush-on-exit --state-dir /tmp/x --ready-file /tmp/y --config /tmp/z",
            "serve --marathon http://a:8080,http://b:8080 --planes http,vip,dns",
            "dev --cpus 2 --mem 512 --disk 100 --ports 31000-31100 --simulate --attribute rack=r1",
            "dev --scheduler-token secret --scheduler-credentials a:b --scheduler-name marathon.example",
            "app list --json --marathon http://h:1 --token secret",
            "app show /dcos-101/app2",
            "app show /dcos-101/app2 --json",
            "app add -",
            "app add app.json --wait",
            "app update /dcos-101/app2 instances=2 --force",
            "app update /dcos-101/app2 --wait --timeout 30s instances=2",
            "app scale web 3",
            "app restart web",
            "app kill web --scale",
            "app remove web",
            "app log web",
            "deployment list",
            "deployment watch 1",
            "deployment stop 1",
            "deployment rollback 1",
            "vip list --json",
            "vip show dcos-101app2.marathon",
            "dns lookup --short dcos-101app2.marathon.l4lb.thisdcos.directory",
            "dns lookup x SRV --server 127.0.0.1:8053",
            "route explain http://a.test/x",
            "check app.json other.json --json --compat marathon-lb --strict-mode --group external",
            "deploy bluegreen app.json --max-wait 30s",
            "deploy bluegreen app.json --abort",
            "serve --marathon http://a:8080 --group external --group internal --strict-mode --compat marathon-lb",
            "dns lookup x SRV --trace --json",
            "dns install --print",
            "dns install --apply --address 198.51.100.1 --root /tmp/x --style resolv-conf --until-exit-of 1",
            "dns install --remove",
            "serve --marathon http://a:8080 --compat mesos-dns --dns-http-listen 127.0.0.1:0 --dns-dcos-listen 127.0.0.1:0 \
             --dns-upstreams 10.0.0.1 --dns-upstreams corp.example=10.0.0.2 --dns-install",
            "status --json",
            "top",
            "top --json",
            "events",
            "sync",
            "sync --accept --json",
            "serve --marathon one=http://a:8080,http://b:8080 --marathon two=https://c --watch-ca two=/x --static legacy=/y",
            "exec -- curl -s http://x",
            "exec curl -s http://x",
            "shell",
            "config",
            "config serve --config x.toml",
            "config --json",
            "completions bash",
            "version",
        ] {
            let words = std::iter::once("waymark").chain(line.split_whitespace());
            if let Err(error) = CommandLine::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn exec_takes_every_word_of_the_command() {
        let line = ["waymark", "exec", "--", "curl", "-s", "--json", "x"];
        let Ok(CommandLine { command: Command::Exec(args) }) = CommandLine::try_parse_from(line) else {
            panic!("exec does not parse");
        };
        assert_eq!(args.command, ["curl", "-s", "--json", "x"]);
    }

    #[test]
    fn wrong_lines_are_usage_errors() {
        for line in [
            "",
            "frobnicate",
            "dns install",
            "dns install --apply --remove",
            "app scale web x",
            "app list --nope",
            "dev --http-listen nowhere",
            "exec",
        ] {
            let words = std::iter::once("waymark").chain(line.split_whitespace());
            let error = CommandLine::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
