//! `waymark dns …`: what Waymark answers and why, and Waymark as the resolver of its host.
//!
//! Only the arguments are taken apart here.

mod install;
mod lookup;
mod trace;

use std::process::ExitCode;

use crate::args::DnsCommand;
use crate::failure::Failure;

use super::wait_for;

pub fn run(command: DnsCommand) -> Result<ExitCode, Failure> {
    match command {
        DnsCommand::Lookup { stats, name, record_type, trace: true, json, .. } => {
            wait_for(trace::run(&stats, &name, &record_type, json))
        }
        DnsCommand::Lookup { stats, name, record_type, short, json, server, .. } => {
            let form = match (short, json) {
                (_, true) => lookup::Form::Json,
                (true, false) => lookup::Form::Short,
                (false, false) => lookup::Form::Full,
            };
            wait_for(lookup::run(&stats, &name, &record_type, form, server))
        }
        DnsCommand::Install(args) => install::run(&args),
    }
}
