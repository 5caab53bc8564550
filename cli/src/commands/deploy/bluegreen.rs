//! `waymark deploy bluegreen FILE`: the new version starts beside the old one under another colour; as its instances
//! come up the balancer takes as many old ones out of use, and those that have nothing in flight are stopped.
//!
//! All state is in the scheduler: run again, it goes on where it stopped. What zdd.py does, but by waiting for what the
//! balancer has applied instead of for its processes.

use std::path::Path as FilePath;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::colours::{self, GROUP, STARTED_AT, instances, label, target};
use super::progress::Servers;
use crate::args::BluegreenArgs;
use crate::commands::marathon::{Marathon, Path};
use crate::commands::stats::StatsClient;
use crate::failure::Failure;
use crate::output::{self, Progress};

/// How often the scheduler and the balancer are asked.
const PAUSE: Duration = Duration::from_millis(250);

struct Deployment<'a> {
    marathon: Marathon,
    stats: StatsClient,
    group: &'a str,
    max_wait: Duration,
    progress: Progress,
}

pub async fn run(args: &BluegreenArgs) -> Result<(), Failure> {
    let definition = read(&args.file)?;
    colours::check(&definition)?;
    let group = label(&definition, GROUP).unwrap_or_default().trim();
    let mut deployment = Deployment {
        marathon: Marathon::new(&args.marathon)?,
        stats: StatsClient::new(&args.stats)?,
        group,
        max_wait: args.max_wait,
        progress: Progress::default(),
    };
    let outcome = tokio::select! {
        outcome = deployment.run(args, &definition) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::new("stopped: both versions run and serve").hint(
            "run it again to go on, or with --abort to go back",
        )),
    };
    deployment.progress.done();
    outcome
}

fn read(file: &FilePath) -> Result<Value, Failure> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| {
        Failure::new(format!("cannot read {shown}: {e}")).hint("name a file with an app definition")
    })?;
    serde_json::from_str(&text).map_err(|e| Failure::usage(format!("{shown} is not JSON: {e}")))
}

impl Deployment<'_> {
    async fn run(&mut self, args: &BluegreenArgs, definition: &Value) -> Result<(), Failure> {
        let running = self.colours().await?;
        if args.abort {
            return match &running[..] {
                [.., old, new] => self.go_back(old, new).await,
                _ => Err(Failure::new(format!("no deployment of the group {} is under way", self.group))),
            };
        }
        let (old, new) = match &running[..] {
            [.., old, new] => {
                output::print_line(&format!("Resuming: {} replaces {}", id(new), id(old)))?;
                (id(old).to_owned(), id(new).to_owned())
            }
            _ => {
                let now = jiff::Timestamp::now().to_string();
                let last = running.first();
                let new = colours::next(definition, last, args.initial_instances, &now)?;
                self.marathon.post(&Path::new("v2/apps"), Some(&new)).await?;
                let Some(last) = last else {
                    self.wait_until_up(id(&new), instances(&new)).await?;
                    return output::print_line(&format!(
                        "Deployed {} ({} instances)",
                        id(&new),
                        instances(&new)
                    ));
                };
                output::print_line(&format!("Created {}, which replaces {}", id(&new), id(last)))?;
                (id(last).to_owned(), id(&new).to_owned())
            }
        };
        match self.replace(&old, &new).await {
            Ok(n) => output::print_line(&format!("Deployed {new} ({n} instances); {old} is removed")),
            Err(failure) => {
                self.progress.say("going back");
                let (old, new) =
                    (self.marathon.existing_app(&old).await?, self.marathon.existing_app(&new).await?);
                self.go_back(&old, &new).await?;
                Err(failure
                    .hint("the old version serves as before; waymark app log shows what the new one wrote"))
            }
        }
    }

    /// The apps of the group, the latest last.
    async fn colours(&self) -> Result<Vec<Value>, Failure> {
        let answer = self.marathon.get(&Path::new("v2/apps")).await?;
        let apps = answer["apps"].as_array().cloned().unwrap_or_default();
        let of_group = |app: &Value| label(app, GROUP).is_some_and(|g| g.trim() == self.group);
        let mut apps: Vec<Value> = apps.into_iter().filter(of_group).collect();
        apps.sort_by_key(|app| label(app, STARTED_AT).unwrap_or_default().to_owned());
        Ok(apps)
    }

    /// Moves everything from the old app to the new one; how many instances that are now. Fails, having removed
    /// nothing that cannot be started again, when a step takes too long.
    async fn replace(&mut self, old: &str, new: &str) -> Result<u64, Failure> {
        let mut step_began = Instant::now();
        let mut seen = None;
        loop {
            let (old_app, new_app) =
                (self.marathon.existing_app(old).await?, self.marathon.existing_app(new).await?);
            let (n_old, n_new, wanted) = (instances(&old_app), instances(&new_app), target(&new_app));
            let servers = Servers::of_group(&self.stats, self.group).await?;
            // Instances that come and go without staying are no progress.
            let n_up = servers.up.len().max(seen.map_or(0, |(_, _, n_up)| n_up));
            if seen != Some((n_old, n_new, n_up)) {
                (seen, step_began) = (Some((n_old, n_new, n_up)), Instant::now());
            }
            self.progress.say(&format!(
                "{new}: {n_new} of {wanted} instances; {old}: {n_old}; {} up, {} draining",
                servers.up.len(),
                servers.drained.len() + servers.draining.len()
            ));
            let waited_long = step_began.elapsed() > self.max_wait;
            let of_old = |list: &[String]| -> Vec<String> {
                let tasks: Vec<&str> = tasks(&old_app).collect();
                list.iter().filter(|i| tasks.contains(&i.as_str())).cloned().collect()
            };
            let (mut idle, busy) = (of_old(&servers.drained), of_old(&servers.draining));
            if waited_long {
                // Whatever is still in flight has had its time.
                idle.extend(busy);
            }
            let is_settled = deployments(&new_app) == 0 && deployments(&old_app) == 0;
            if is_settled && n_new >= wanted && idle.len() as u64 == n_old {
                self.marathon.delete(&Path::of_app(old)).await?;
                self.wait_until_gone(old).await?;
                return Ok(n_new);
            }
            let all_seen =
                servers.up.len() + servers.drained.len() + servers.draining.len() >= (n_old + n_new) as usize;
            if is_settled && all_seen && servers.up.len() as u64 >= wanted && !idle.is_empty() {
                self.marathon
                    .post(&Path::new("v2/tasks/delete").with("scale", "true"), Some(&json!({ "ids": idle })))
                    .await?;
                if n_new < wanted {
                    self.scale(new, next_size(n_new, n_old, wanted)).await?;
                }
            } else if waited_long {
                return Err(Failure::new(format!(
                    "{new} made no progress for {}",
                    humantime::format_duration(self.max_wait)
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The old version gets its instances back before the new one goes.
    async fn go_back(&mut self, old: &Value, new: &Value) -> Result<(), Failure> {
        let wanted = target(new);
        if instances(old) < wanted {
            self.scale(id(old), wanted).await?;
        }
        self.wait_until_up(id(old), wanted).await?;
        self.marathon.delete(&Path::of_app(id(new)).with_force(true)).await?;
        self.wait_until_gone(id(new)).await?;
        output::print_line(&format!("Went back: {} serves, {} is removed", id(old), id(new)))
    }

    async fn scale(&self, app: &str, n: u64) -> Result<(), Failure> {
        // A deployment that still starts instances is overtaken, not waited for.
        let path = Path::of_app(app).with_force(true);
        self.marathon.put(&path, &json!({ "instances": n })).await.map(|_| ())
    }

    async fn wait_until_up(&mut self, app: &str, n: u64) -> Result<(), Failure> {
        let deadline = Instant::now() + self.max_wait;
        loop {
            let known = self.marathon.existing_app(app).await?;
            let servers = Servers::of_group(&self.stats, self.group).await?;
            // Out of use counts as up: it is the balancer's doing, not the instance's.
            let n_up = tasks(&known)
                .filter(|t| {
                    [&servers.up, &servers.drained, &servers.draining]
                        .iter()
                        .any(|l| l.iter().any(|i| i == t))
                })
                .count() as u64;
            self.progress.say(&format!("{app}: {n_up} of {n} instances are up"));
            if n_up >= n && deployments(&known) == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!("{app} has {n_up} of {n} instances up"))
                    .hint("run it again to go on; waymark app log shows what its instances wrote"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn wait_until_gone(&mut self, app: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + self.max_wait;
        while self.marathon.app(app).await?.is_some() && Instant::now() < deadline {
            self.progress.say(&format!("{app}: being removed"));
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Half as many again each time; from the old app's size on, everything at once.
fn next_size(new: u64, old: u64, target: u64) -> u64 {
    let size = new + new.div_ceil(2).max(1);
    if size >= old { target } else { size.min(target) }
}

fn id(app: &Value) -> &str {
    app["id"].as_str().unwrap_or_default()
}

fn tasks(app: &Value) -> impl Iterator<Item = &str> {
    app["tasks"].as_array().into_iter().flatten().filter_map(|task| task["id"].as_str())
}

fn deployments(app: &Value) -> usize {
    app["deployments"].as_array().map_or(0, Vec::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_app_grows_by_half_and_then_at_once() {
        for (new, old, target, expect) in
            [(1, 10, 10, 2), (2, 9, 10, 3), (3, 8, 10, 5), (5, 6, 10, 10), (1, 1, 4, 4)]
        {
            assert_eq!(next_size(new, old, target), expect, "{new} {old} {target}");
        }
    }
}
