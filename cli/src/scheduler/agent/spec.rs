//! What the agent needs to know to run one instance.
//!
//! Not here: running it (`agent`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::scheduler::app::container::{Parameter, Volume};
use crate::scheduler::app::pod::Program;
use crate::scheduler::app::{App, EnvValue, Fetch};
use crate::scheduler::core::Settings;
use crate::scheduler::core::environment::task_environment;
use crate::scheduler::core::instance::{Instance, TaskRef};

#[derive(Debug)]
pub struct LaunchSpec {
    pub task: TaskRef,
    pub app: Arc<App>,
    pub host: String,
    /// The instance's own address, when it is given one.
    pub address: Option<IpAddr>,
    pub ports: Vec<u16>,
    /// Where the values of secrets are.
    pub secrets: PathBuf,
    /// One, except for a pod.
    pub containers: Vec<ContainerSpec>,
}

/// One program of an instance.
#[derive(Debug)]
pub struct ContainerSpec {
    pub task_id: String,
    /// `None`: what the image does.
    pub program: Option<Program>,
    /// `None`: a process of this machine.
    pub image: Option<ImageSpec>,
    pub env: BTreeMap<String, EnvValue>,
    pub user: Option<String>,
    pub fetch: Vec<Fetch>,
    pub sandbox: PathBuf,
    pub cpus: f64,
    pub mem: f64,
}

#[derive(Clone, Debug)]
pub struct ImageSpec {
    pub image: String,
    pub force_pull: bool,
    pub privileged: bool,
    pub parameters: Vec<Parameter>,
    pub volumes: Vec<Volume>,
}

/// Where a port of an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
}

impl LaunchSpec {
    pub fn of(instance: &Instance, settings: &Settings) -> Self {
        let app = &instance.app;
        let container = |index: usize, task_id: String| {
            let sandbox = settings.sandboxes.join(&task_id);
            let env = task_environment(instance, index, &task_id, &settings.host, &sandbox);
            let empty = ContainerSpec {
                task_id,
                program: None,
                image: None,
                env,
                user: app.user.clone(),
                fetch: Vec::new(),
                sandbox,
                cpus: app.cpus,
                mem: app.mem,
            };
            match &app.pod {
                None => of_app(app, empty),
                Some(pod) => {
                    let container = &pod.containers[index];
                    ContainerSpec {
                        program: container.program.clone(),
                        image: container.image.clone().map(|image| ImageSpec {
                            image,
                            force_pull: container.force_pull,
                            privileged: false,
                            parameters: Vec::new(),
                            volumes: Vec::new(),
                        }),
                        user: container.user.clone().or(empty.user),
                        fetch: container.fetch.clone(),
                        cpus: container.cpus,
                        mem: container.mem,
                        ..empty
                    }
                }
            }
        };
        Self {
            task: instance.task_ref(),
            host: settings.host.clone(),
            address: instance.address,
            ports: instance.ports.clone(),
            secrets: settings.secrets.clone(),
            containers: instance
                .task_ids()
                .into_iter()
                .enumerate()
                .map(|(index, id)| container(index, id))
                .collect(),
            app: app.clone(),
        }
    }

    /// Time that a container has to end when another one of its pod has failed.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.app.task_kill_grace_period_seconds.unwrap_or(3).into())
    }

    /// Where port `index` is reached, given the instance's own address; `None`: there is no such port.
    pub fn target(&self, index: usize, address: Option<IpAddr>) -> Option<Target> {
        let spec = self.app.ports().get(index)?.clone();
        if let Some(Some(port)) = self.app.host_ports(&self.ports).get(index) {
            return Some(Target { host: self.host.clone(), port: *port });
        }
        let host = address.map_or_else(|| self.host.clone(), |address| address.to_string());
        Some(Target { host, port: spec.container.filter(|port| *port != 0)? })
    }
}

fn of_app(app: &App, empty: ContainerSpec) -> ContainerSpec {
    let program = match (&app.args, &app.cmd) {
        (Some(args), _) => Some(Program::Argv(args.clone())),
        (None, Some(cmd)) => Some(Program::Shell(cmd.clone())),
        (None, None) => None,
    };
    let container = app.container.as_ref();
    let image = container.and_then(|container| {
        let docker = container.docker.as_ref()?;
        Some(ImageSpec {
            image: docker.image.clone(),
            force_pull: docker.force_pull_image,
            privileged: docker.privileged,
            parameters: docker.parameters.clone(),
            volumes: container.volumes.clone(),
        })
    });
    ContainerSpec { program, image, fetch: app.fetch.clone(), ..empty }
}
