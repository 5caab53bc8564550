//! `waymark deployment …`: what the scheduler is changing now, and how to stop it.
//!
//! A deployment that has ended is not remembered by the Marathon API, so none can be shown here.

use std::time::Duration;

use serde_json::Value;

use super::marathon::{Marathon, Path, deployment_id};
use super::wait;
use crate::args::DeploymentCommand;
use crate::failure::Failure;
use crate::output::{self, Style, Table};

pub async fn run(command: DeploymentCommand) -> Result<(), Failure> {
    match command {
        DeploymentCommand::List { marathon, json } => list(&Marathon::new(&marathon)?, json).await,
        DeploymentCommand::Watch { marathon, id, timeout } => {
            watch(&Marathon::new(&marathon)?, &id, timeout).await
        }
        DeploymentCommand::Stop { marathon, id } => {
            let path = Path::new("v2/deployments").join(&id).with("force", "true");
            Marathon::new(&marathon)?.delete(&path).await?;
            output::print_line(&format!("Stopped deployment {id}"))
        }
        DeploymentCommand::Rollback { marathon, id } => {
            let answer = Marathon::new(&marathon)?.delete(&Path::new("v2/deployments").join(&id)).await?;
            match deployment_id(&answer) {
                Some(new) => output::print_line(&format!("Created deployment {new}, which undoes {id}")),
                None => output::print_line(&format!("Rolled back deployment {id}")),
            }
        }
    }
}

async fn list(marathon: &Marathon, json: bool) -> Result<(), Failure> {
    let answer = marathon.get(&Path::new("v2/deployments")).await?;
    if json {
        return output::print_json(&answer);
    }
    let mut table = Table::new(&["ID", "APPS", "ACTION", "STEP"]);
    for deployment in answer.as_array().into_iter().flatten() {
        table.row([
            deployment["id"].as_str().unwrap_or("-").to_owned(),
            [&deployment["affectedApps"], &deployment["affectedPods"]]
                .map(|ids| join(ids, |id| id.as_str()))
                .into_iter()
                .filter(|ids| !ids.is_empty())
                .collect::<Vec<_>>()
                .join(","),
            join(&deployment["currentActions"], |action| action["action"].as_str()),
            steps(deployment),
        ]);
    }
    output::print(&table.render(Style::of_stdout()))
}

/// `currentStep` counts from 1.
pub fn steps(deployment: &Value) -> String {
    format!("{}/{}", deployment["currentStep"], deployment["totalSteps"])
}

fn join<'a>(list: &'a Value, text: impl Fn(&'a Value) -> Option<&'a str>) -> String {
    let texts: Vec<&str> = list.as_array().into_iter().flatten().filter_map(text).collect();
    texts.join(",")
}

async fn watch(marathon: &Marathon, id: &str, timeout: Duration) -> Result<(), Failure> {
    wait::until_deployed(marathon, id, timeout).await?;
    output::print_line(&format!("Deployment {id} has ended"))
}
