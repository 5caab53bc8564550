//! The control side: keeps the table that handshakes look up true to the files and to what hosts ask for.
//!
//! Connections that are open keep the certificate they were greeted with. It binds nothing.

use std::sync::Arc;

use arc_swap::ArcSwap;
use event_watcher::catalog::Problem;

use super::certificate::CertificateError;
use super::files::Files;
use super::policy::{HostPolicy, MinVersion};
use super::servers::Verify;
use super::table::{Policies, Subject, TlsTable};
use crate::config::Tls;

#[derive(Debug)]
pub(crate) struct Follower {
    files: Files,
    policies: Policies,
    min_version: MinVersion,
    table: Arc<ArcSwap<TlsTable>>,
    problems: Vec<Problem>,
}

impl Follower {
    pub(crate) fn start(config: &Tls) -> Result<Self, CertificateError> {
        let files = Files::open(config.certificates.clone(), &config.inline_certificates)?;
        let policies = Policies::default();
        let (table, _) = TlsTable::compile(&files.shared, config.min_version, &policies, &files.contents);
        Ok(Self {
            files,
            policies,
            min_version: config.min_version,
            table: Arc::new(ArcSwap::from_pointee(table)),
            problems: Vec::new(),
        })
    }

    pub(crate) fn table(&self) -> &Arc<ArcSwap<TlsTable>> {
        &self.table
    }

    /// What certificates and policies cannot be used, and what is done instead.
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Takes what the hosts of a new snapshot ask for. Whether problems may be others now.
    pub(crate) fn follow(&mut self, policies: Policies) -> bool {
        let is_new = self.policies != policies;
        self.policies = policies;
        is_new && {
            self.files.refresh(&self.policies);
            self.compile();
            true
        }
    }

    /// Looks whether files were touched. Whether problems may be others now.
    pub(crate) fn look(&mut self) -> bool {
        self.files.refresh(&self.policies) && {
            self.compile();
            true
        }
    }

    fn compile(&mut self) {
        let (table, errors) =
            TlsTable::compile(&self.files.shared, self.min_version, &self.policies, &self.files.contents);
        self.table.store(Arc::new(table));
        let of_files = self.files.errors.iter().map(|(path, error)| Problem {
            app: None,
            at: format!("certificate {}", path.display()),
            what: chain(error),
            hint: "what was read of it before stays in use; it is read again when it changes".to_owned(),
        });
        let of_policies = errors.iter().map(|(subject, error)| Problem {
            app: None,
            at: match subject {
                Subject::Clients(policy) => format!("TLS of {}", self.hosts_of(policy)),
                Subject::Servers(Verify::Authorities(path)) => {
                    format!("TLS to servers, ca-file {}", path.display())
                }
                Subject::Servers(_) => "TLS to servers without a ca-file".to_owned(),
            },
            what: chain(error),
            hint: "handshakes are refused until its files can be used".to_owned(),
        });
        self.problems = of_files.chain(of_policies).collect();
        for problem in &self.problems {
            tracing::warn!(at = problem.at, "{}", problem.what);
        }
    }

    fn hosts_of(&self, policy: &HostPolicy) -> String {
        let hosts =
            self.policies.of_hosts.iter().filter(|(_, p)| *p == policy).map(|(host, _)| host.to_string());
        let ports = self.policies.of_ports.iter().filter(|(_, p)| *p == policy);
        hosts.chain(ports.map(|(port, _)| format!("service port {port}"))).collect::<Vec<_>>().join(", ")
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
