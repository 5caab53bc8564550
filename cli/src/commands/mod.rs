//! The commands of people, one module per area, and the dispatch to them.
//!
//! They speak HTTP and DNS to running programs; nothing here reaches into the daemon.

mod app;
mod check;
mod deploy;
mod deployment;
mod dns;
mod inside;
mod marathon;
mod route;
mod stats;
mod status;
mod sync;
mod top;
mod vip;
mod wait;
mod words;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Command, CommandLine, DeployCommand};
use crate::config::{Config, Environment};
use crate::failure::Failure;
use crate::{daemon, demo, output, runtime};

pub fn run(line: CommandLine) -> Result<ExitCode, Failure> {
    match line.command {
        Command::Dev(args) => daemon::run(Config::of_dev(&args, &Environment::of_process())?),
        Command::Serve(args) => daemon::run(Config::of_serve(&args, &Environment::of_process())?),
        Command::App(command) => wait_for(app::run(command)),
        Command::Deployment(command) => wait_for(deployment::run(command)),
        Command::Vip(command) => wait_for(vip::run(command)),
        Command::Dns(command) => dns::run(command),
        Command::Route(command) => wait_for(route::run(command)),
        Command::Check(args) => check::run(&args),
        Command::Deploy(DeployCommand::Bluegreen(args)) => wait_for(deploy::bluegreen::run(&args)),
        Command::Status(args) => wait_for(status::run(&args)),
        Command::Sync(args) => wait_for(sync::run(&args)),
        Command::Top(args) => wait_for(top::run(&args)),
        Command::Events(args) => wait_for(status::events(&args)),
        Command::Exec(args) => inside::exec(&args.stats, &args.command),
        Command::Shell(args) => inside::shell(&args),
        Command::Config(args) => {
            let config = Config::of_mode(args.mode, &args.daemon, &Environment::of_process())?;
            match args.json {
                true => output::print_json(&config.to_table()?)?,
                false => output::print(&config.to_toml()?)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut CommandLine::command(), "waymark", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            output::print_line(&format!("waymark {}", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::DemoApp => match demo::run() {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(Failure::new(format!("{error:#}"))),
        },
    }
}

fn wait_for(command: impl Future<Output = Result<(), Failure>>) -> Result<ExitCode, Failure> {
    runtime::single_threaded("command")?.block_on(command)?;
    Ok(ExitCode::SUCCESS)
}

/// What only the embedded scheduler has: `{id}/logs/stdout|stderr` below it is what an instance wrote.
const TASKS_PATH: &str = "waymark/v1/tasks";
