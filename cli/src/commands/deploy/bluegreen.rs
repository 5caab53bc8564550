//! `waymark deploy bluegreen FILE`: the new version starts beside the old one under another colour; as its instances
//! come up the balancer takes as many old ones out of use, and those that have nothing in flight are stopped.
//!
//! All state is in the scheduler: run again, it goes on where it stopped. What zdd.py does, but by waiting for what the
//! balancer has applied instead of for its processes. A split (`--new-instances`) keeps some of both until it is ended.

use std::path::Path as FilePath;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::colours::{self, Beginning, GROUP, STARTED_AT, instances, kept_new, label, target};
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
    args: &'a BluegreenArgs,
    progress: Progress,
}

/// Which app takes the place of which, and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Replacement {
    old: String,
    new: String,
    /// Of both together.
    n_total: u64,
    /// Of the new app; fewer than all in a split.
    n_new: u64,
}

impl Replacement {
    fn n_old(&self) -> u64 {
        self.n_total.saturating_sub(self.n_new)
    }
}

/// Why a replacement ended early.
enum Stopped {
    /// Nothing is gained by waiting: the old version is to serve alone again.
    NoProgress(Failure),
    /// Somebody has to look at it.
    Undecided(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Undecided(failure)
    }
}

pub async fn run(args: &BluegreenArgs) -> Result<(), Failure> {
    let definition = read(&args.file)?;
    colours::check(&definition)?;
    let group = label(&definition, GROUP).unwrap_or_default().trim();
    let mut deployment = Deployment {
        marathon: Marathon::new(&args.marathon)?,
        stats: StatsClient::new(&args.stats)?,
        group,
        args,
        progress: Progress::default(),
    };
    let outcome = tokio::select! {
        outcome = deployment.run(&definition) => outcome,
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
    async fn run(&mut self, definition: &Value) -> Result<(), Failure> {
        let running = self.colours().await?;
        match &running[..] {
            [.., old, new] => self.go_on(old, new).await,
            _ if self.args.abort || self.args.complete_cur || self.args.complete_prev => {
                Err(Failure::new(format!("no deployment of the group {} is under way", self.group)))
            }
            running => self.begin(definition, running.first()).await,
        }
    }

    async fn begin(&mut self, definition: &Value, last: Option<&Value>) -> Result<(), Failure> {
        let (now, args) = (jiff::Timestamp::now().to_string(), self.args);
        let begin = Beginning { n_initial: args.initial_instances, split: args.new_instances, now: &now };
        let new = colours::next(definition, last, begin)?;
        let (name, n) = (id(&new), instances(&new));
        if args.dry_run {
            let replaced = last.map(|last| format!(", which replaces {}", id(last))).unwrap_or_default();
            output::print_line(&format!("Would create {name} ({n} instances){replaced}:"))?;
            return output::print_json(&new);
        }
        self.marathon.post(&Path::new("v2/apps"), Some(&new)).await?;
        let Some(last) = last else {
            self.wait_until_up(name, n).await?;
            return output::print_line(&format!("Deployed {name} ({n} instances)"));
        };
        output::print_line(&format!("Created {name}, which replaces {}", id(last)))?;
        self.replace_or_go_back(&whole(last, &new)).await
    }

    /// Two versions are there: a deployment that was interrupted, or a split.
    async fn go_on(&mut self, old: &Value, new: &Value) -> Result<(), Failure> {
        let (args, n_total) = (self.args, target(new));
        let whole = whole(old, new);
        let is_split = kept_new(new) > 0 && (instances(old), instances(new)) == (whole.n_old(), whole.n_new);
        if args.dry_run {
            let (old, new) = (id(old), id(new));
            return output::print_line(&match (args.abort || args.complete_prev, is_split) {
                (true, _) => format!("Would go back from {new} to {old}"),
                (false, true) if !args.complete_cur => {
                    format!("Would do nothing: traffic is split between {old} and {new}")
                }
                _ => format!("Would go on: {new} replaces {old}"),
            });
        }
        if args.abort {
            return self.go_back(old, new).await;
        }
        if args.complete_cur || args.complete_prev {
            let (from, to) = if args.complete_prev { (new, old) } else { (old, new) };
            let (from, to) = (id(from).to_owned(), id(to).to_owned());
            let all = Replacement { old: from, new: to, n_total, n_new: n_total };
            // Whoever ends a split has decided for one side: there is nothing to go back to.
            return match self.replace(&all).await {
                Ok(()) => self.tell(&all),
                Err(Stopped::NoProgress(failure) | Stopped::Undecided(failure)) => {
                    Err(failure.hint("both versions run and serve; run it again to go on"))
                }
            };
        }
        if is_split {
            let what = format!("traffic is split between {} and {}", id(old), id(new));
            return Err(Failure::new(what).hint("--complete-cur or --complete-prev ends the split"));
        }
        output::print_line(&format!("Resuming: {} replaces {}", id(new), id(old)))?;
        self.replace_or_go_back(&whole).await
    }

    async fn replace_or_go_back(&mut self, replacement: &Replacement) -> Result<(), Failure> {
        match self.replace(replacement).await {
            Ok(()) => self.tell(replacement),
            Err(Stopped::Undecided(failure)) => Err(failure),
            Err(Stopped::NoProgress(failure)) => {
                self.progress.say("going back");
                let old = self.marathon.existing_app(&replacement.old).await?;
                let new = self.marathon.existing_app(&replacement.new).await?;
                self.go_back(&old, &new).await?;
                Err(failure
                    .hint("the old version serves as before; waymark app log shows what the new one wrote"))
            }
        }
    }

    fn tell(&self, done: &Replacement) -> Result<(), Failure> {
        let Replacement { old, new, n_new, .. } = done;
        output::print_line(&match done.n_old() {
            0 => format!("Deployed {new} ({n_new} instances); {old} is removed"),
            n_old => format!("Split: {new} has {n_new} instances, {old} has {n_old}"),
        })
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

    /// Moves instances from the old app to the new one. Fails, having removed nothing that cannot be started again,
    /// when a step takes too long.
    async fn replace(&mut self, goal: &Replacement) -> Result<(), Stopped> {
        let (old, new, max_wait) = (&*goal.old, &*goal.new, self.args.max_wait);
        let mut step_began = Instant::now();
        let mut seen = None;
        loop {
            let (old_app, new_app) =
                (self.marathon.existing_app(old).await?, self.marathon.existing_app(new).await?);
            let (n_old, n_new) = (instances(&old_app), instances(&new_app));
            let servers = Servers::of_group(&self.stats, self.group).await?;
            // Instances that come and go without staying are no progress.
            let n_up = servers.up.len().max(seen.map_or(0, |(_, _, n_up)| n_up));
            if seen != Some((n_old, n_new, n_up)) {
                (seen, step_began) = (Some((n_old, n_new, n_up)), Instant::now());
            }
            self.progress.say(&format!(
                "{new}: {n_new} of {} instances; {old}: {n_old}; {} up, {} draining",
                goal.n_new,
                servers.up.len(),
                servers.drained.len() + servers.draining.len()
            ));
            let waited_long = step_began.elapsed() > max_wait;
            let of_old = |list: &[String]| -> Vec<String> {
                let tasks: Vec<&str> = tasks(&old_app).collect();
                list.iter().filter(|i| tasks.contains(&i.as_str())).cloned().collect()
            };
            let (mut idle, busy) = (of_old(&servers.drained), of_old(&servers.draining));
            if waited_long {
                // Whatever is still in flight has had its time.
                idle.extend(busy);
            }
            idle.truncate(n_old.saturating_sub(goal.n_old()) as usize);
            let is_settled = deployments(&new_app) == 0 && deployments(&old_app) == 0;
            if is_settled && n_new >= goal.n_new && goal.n_old() == 0 && idle.len() as u64 == n_old {
                self.ask_before_kill(&old_app, &idle, &new_app).await?;
                self.marathon.delete(&Path::of_app(old)).await?;
                self.wait_until_gone(old).await?;
                return Ok(());
            }
            if is_settled && n_new >= goal.n_new && goal.n_old() > 0 && n_old <= goal.n_old() {
                return Ok(());
            }
            let all_seen =
                servers.up.len() + servers.drained.len() + servers.draining.len() >= (n_old + n_new) as usize;
            let moves = is_settled && all_seen && servers.up.len() as u64 >= goal.n_total;
            // A split that is ended the other way round has nothing drained before the first new one is up.
            let begins = is_settled && all_seen && n_old + n_new <= goal.n_total && n_new < goal.n_new;
            if moves && !idle.is_empty() || begins {
                if moves && !idle.is_empty() {
                    self.ask_before_kill(&old_app, &idle, &new_app).await?;
                    let path = Path::new("v2/tasks/delete").with("scale", "true");
                    self.marathon.post(&path, Some(&json!({ "ids": idle }))).await?;
                }
                if n_new < goal.n_new {
                    self.scale(new, self.next_size(n_new, n_old, goal.n_new)).await?;
                }
                tokio::time::sleep(self.args.step_delay).await;
            } else if waited_long {
                let waited = humantime::format_duration(max_wait);
                return Err(Stopped::NoProgress(Failure::new(format!(
                    "{new} made no progress for {waited}"
                ))));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// `--pre-kill-hook`, called as zdd.py calls it.
    async fn ask_before_kill(
        &mut self,
        old: &Value,
        instances: &[String],
        new: &Value,
    ) -> Result<(), Stopped> {
        let Some(hook) = self.args.pre_kill_hook.as_deref().filter(|_| !instances.is_empty()) else {
            return Ok(());
        };
        std::mem::take(&mut self.progress).done();
        let mut command = tokio::process::Command::new(hook);
        command.args([old.to_string(), json!(instances).to_string(), new.to_string()]);
        let status = command.stdin(std::process::Stdio::null()).kill_on_drop(true).status().await;
        let failed = match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => format!("ended with {status}"),
            Err(error) => format!("cannot be run: {error}"),
        };
        let what = format!("the hook {} {failed}: nothing was stopped by this step", hook.display());
        Err(Failure::new(what).hint("both versions run and serve; run it again to go on, or with --abort"))?
    }

    /// Half as many again each time, or as many more as was asked for; from the old app's size on, everything at once.
    fn next_size(&self, new: u64, old: u64, most: u64) -> u64 {
        let more = match self.args.linear_increase {
            0 => new.div_ceil(2).max(1),
            n => n,
        };
        grown(new, more, old, most)
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
        let deadline = Instant::now() + self.args.max_wait;
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
        let deadline = Instant::now() + self.args.max_wait;
        while self.marathon.app(app).await?.is_some() && Instant::now() < deadline {
            self.progress.say(&format!("{app}: being removed"));
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

fn grown(new: u64, more: u64, old: u64, most: u64) -> u64 {
    let size = new + more;
    if size >= old { most } else { size.min(most) }
}

/// What the labels of the new app say about where it is to end.
fn whole(old: &Value, new: &Value) -> Replacement {
    let n_total = target(new);
    let n_new = match kept_new(new) {
        0 => n_total,
        n => n.min(n_total),
    };
    Replacement { old: id(old).to_owned(), new: id(new).to_owned(), n_total, n_new }
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
        for (new, more, old, most, expect) in [
            (1, 1, 10, 10, 2),
            (2, 1, 9, 10, 3),
            (3, 2, 8, 10, 5),
            (5, 3, 6, 10, 10),
            (1, 1, 1, 4, 4),
            (1, 1, 3, 2, 2),
        ] {
            assert_eq!(grown(new, more, old, most), expect, "{new} {more} {old} {most}");
        }
    }
}
