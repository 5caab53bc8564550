//! Images, run through the `docker` command: the command line that Mesos' Docker executor would use, the
//! container's address, and the end of containers whose command is gone.
//!
//! Not here: the process of the command itself (`process`).

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::spec::{ContainerSpec, ImageSpec, LaunchSpec};
use crate::scheduler::app::NetworkMode;
use crate::scheduler::app::pod::Program;

/// Where a container sees its sandbox.
const SANDBOX: &str = "/mnt/mesos/sandbox";

/// Marks containers with the scheduler that they belong to.
const LABEL: &str = "waymark.sandboxes";

/// For commands that only ask the engine something.
const PATIENCE: Duration = Duration::from_secs(10);

/// A registry may be slow; a launch is not held up for ever.
const PULL_PATIENCE: Duration = Duration::from_secs(600);

/// How often, and how many times, a container is asked for its address after its start.
const ADDRESS_POLL: Duration = Duration::from_millis(100);
const ADDRESS_ATTEMPTS: usize = 50;

/// The `docker` command of this machine, if it has one.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("docker")).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The container's name. Task ids have no characters that Docker forbids.
pub fn name(container: &ContainerSpec) -> String {
    format!("waymark-{}", container.task_id)
}

/// The words after `docker`. `env` holds the variables with the values of secrets.
pub fn run_arguments(
    spec: &LaunchSpec,
    container: &ContainerSpec,
    image: &ImageSpec,
    env: &[(String, String)],
) -> Vec<OsString> {
    let mut words: Vec<String> = ["run", "--rm", "--name", &name(container)].map(str::to_owned).into();
    let sandboxes = container.sandbox.parent().unwrap_or(&container.sandbox);
    words.extend(["--label".into(), format!("{LABEL}={}", sandboxes.display())]);
    // 1024 shares are one core; less than 2 is not allowed.
    words.extend(["--cpu-shares".into(), format!("{}", (container.cpus * 1024.0).max(2.0) as u64)]);
    // Docker refuses to run with less than 6 MiB.
    words.extend(["--memory".into(), format!("{}m", container.mem.max(6.0) as u64)]);
    for (key, value) in env.iter().filter(|(key, _)| key != "MESOS_SANDBOX") {
        words.extend(["--env".into(), format!("{key}={value}")]);
    }
    words.extend(["--env".into(), format!("MESOS_SANDBOX={SANDBOX}")]);
    words.extend(["--volume".into(), format!("{}:{SANDBOX}", container.sandbox.display())]);
    for volume in &image.volumes {
        if let Some(host) = &volume.host_path {
            let mode = volume.mode.to_lowercase();
            words.extend(["--volume".into(), format!("{host}:{}:{mode}", volume.container_path)]);
        }
    }
    let network = spec.app.networks.first();
    words.extend([
        "--network".into(),
        match spec.app.network_mode() {
            NetworkMode::Host => "host".into(),
            NetworkMode::Bridge => "bridge".into(),
            NetworkMode::Container => network.and_then(|n| n.name.clone()).unwrap_or_else(|| "bridge".into()),
        },
    ]);
    for (port, host_port) in spec.app.ports().iter().zip(spec.app.host_ports(&spec.ports)) {
        let (Some(inside), Some(outside)) = (port.container, host_port) else { continue };
        let inside = if inside == 0 { outside } else { inside };
        for protocol in port.protocol.split(',') {
            words.extend(["--publish".into(), format!("{outside}:{inside}/{protocol}")]);
        }
    }
    if image.privileged {
        words.push("--privileged".into());
    }
    if let Some(user) = &container.user {
        words.extend(["--user".into(), user.clone()]);
    }
    for parameter in &image.parameters {
        words.push(format!("--{}={}", parameter.key, parameter.value));
    }
    words.push(image.image.clone());
    match &container.program {
        None => {}
        Some(Program::Argv(args)) => words.extend(args.iter().cloned()),
        Some(Program::Shell(line)) => words.extend(["/bin/sh".into(), "-c".into(), line.clone()]),
    }
    words.into_iter().map(Into::into).collect()
}

pub async fn pull(image: &str) -> Result<(), String> {
    ask(&["pull", image], PULL_PATIENCE).await.map(drop)
}

/// The container's address on its network, once the engine has given it one.
pub async fn address_of(container: &ContainerSpec) -> Option<IpAddr> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
    let name = name(container);
    for _ in 0..ADDRESS_ATTEMPTS {
        let answer = ask(&["inspect", "--format", format, &name], PATIENCE).await.unwrap_or_default();
        if let Some(address) = answer.split_whitespace().find_map(|word| word.parse().ok()) {
            return Some(address);
        }
        tokio::time::sleep(ADDRESS_POLL).await;
    }
    None
}

/// Ends a container whose command was killed before the engine could be told.
pub async fn remove(container: &ContainerSpec) {
    // One that has ended by itself is gone already.
    let _ = ask(&["rm", "--force", &name(container)], PATIENCE).await;
}

/// Ends the containers that an earlier run of the scheduler left behind. Returns how many there were.
pub async fn end_leftovers(sandboxes: &Path) -> usize {
    let filter = format!("label={LABEL}={}", sandboxes.display());
    let found = ask(&["ps", "--all", "--quiet", "--filter", &filter], PATIENCE).await.unwrap_or_default();
    let ids: Vec<&str> = found.split_whitespace().collect();
    for id in &ids {
        let _ = ask(&["rm", "--force", id], PATIENCE).await;
    }
    ids.len()
}

async fn ask(words: &[&str], patience: Duration) -> Result<String, String> {
    let asked = Command::new("docker").args(words).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(patience, asked).await {
        Err(_) => Err(format!("docker {} took longer than {}s", words[0], patience.as_secs())),
        Ok(Err(error)) => Err(format!("docker {}: {error}", words[0])),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!("docker {}: {}", words[0], text.lines().last().unwrap_or("it failed")))
        }
    }
}
