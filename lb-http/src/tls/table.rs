//! Server name → configuration of the handshake: one for all hosts, others for hosts with a policy of their own. Beside
//! them, the configurations for servers that are spoken to in TLS.
//!
//! Built anew when certificates or policies change. A configuration has ticket keys of its own, so that a session of
//! one policy is never resumed under another, nor with a certificate that was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use foldhash::HashMap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::certificate::Certificate;
use super::policy::{Alpn, HostPolicy, MinVersion, Need};
use super::servers::{self, ServerTls, ToServer, Verify};
use super::store::Store;

/// RFC 7301.
const HTTP_2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// What the handshake looks up; swapped as a whole.
#[derive(Debug)]
pub(crate) struct TlsTable {
    default: Arc<ServerConfig>,
    /// By lower-case host; `*.a.test` as `.a.test`.
    of_hosts: HashMap<Box<str>, OfHost>,
    /// By service port.
    of_ports: HashMap<u16, Arc<ServerConfig>>,
    /// Without those that cannot be kept.
    to_servers: BTreeMap<Verify, Arc<ClientConfig>>,
}

#[derive(Debug)]
struct OfHost {
    config: Arc<ServerConfig>,
    wants_client_certificates: bool,
}

/// The contents of the files that policies name.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) certificates: BTreeMap<PathBuf, Vec<Certificate>>,
    pub(crate) authorities: BTreeMap<PathBuf, Vec<CertificateDer<'static>>>,
}

/// Hosts and service ports with what they ask for, and what is asked of servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policies {
    pub(crate) of_hosts: BTreeMap<Box<str>, HostPolicy>,
    pub(crate) of_ports: BTreeMap<u16, HostPolicy>,
    pub(crate) to_servers: BTreeSet<Verify>,
}

/// What could not be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Clients(HostPolicy),
    Servers(Verify),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("no usable authority in {path}")]
    Authority { path: PathBuf },
    #[error("the client authorities of {path} cannot be used")]
    Verifier { path: PathBuf, source: rustls::server::VerifierBuilderError },
    #[error("this machine has no authority that can be used")]
    NoSystemAuthority,
    #[error("the TLS versions cannot be used")]
    Versions(#[from] rustls::Error),
}

impl TlsTable {
    /// A policy that cannot be kept leaves its hosts without any configuration of their own only where that is safe:
    /// one that asks for client certificates refuses every handshake instead. What could not be done is told.
    pub(crate) fn compile(
        shared: &[Certificate],
        min_version: MinVersion,
        policies: &Policies,
        contents: &Contents,
    ) -> (Self, Vec<(Subject, PolicyError)>) {
        let default = HostPolicy { min_version: Some(min_version), ..HostPolicy::default() };
        let builder = Builder { shared, min_version, contents };
        let default = builder.build(&default).unwrap_or_else(|_| builder.refusing());
        let mut made: HashMap<&HostPolicy, Arc<ServerConfig>> = HashMap::default();
        let mut errors = Vec::new();
        for policy in policies.of_hosts.values().chain(policies.of_ports.values()) {
            if made.contains_key(policy) {
                continue;
            }
            let config = builder.build(policy).unwrap_or_else(|error| {
                errors.push((Subject::Clients(policy.clone()), error));
                builder.refusing()
            });
            made.insert(policy, config);
        }
        let mut to_servers = BTreeMap::new();
        for verify in &policies.to_servers {
            match servers::config(verify, contents) {
                Ok(config) => drop(to_servers.insert(verify.clone(), config)),
                Err(error) => errors.push((Subject::Servers(verify.clone()), error)),
            }
        }
        let table = Self {
            default,
            to_servers,
            of_hosts: policies
                .of_hosts
                .iter()
                .map(|(host, policy)| {
                    let host = host.strip_prefix('*').unwrap_or(host);
                    let wants_client_certificates = policy.client_auth.is_some();
                    (host.into(), OfHost { config: Arc::clone(&made[policy]), wants_client_certificates })
                })
                .collect(),
            of_ports: policies.of_ports.iter().map(|(port, p)| (*port, Arc::clone(&made[p]))).collect(),
        };
        (table, errors)
    }

    /// The configuration for a server name that a client of the virtual hosts' address asks for.
    pub(crate) fn of_host(&self, name: Option<&str>) -> &Arc<ServerConfig> {
        name.and_then(|name| self.find(name)).map_or(&self.default, |host| &host.config)
    }

    pub(crate) fn wants_client_certificates(&self, host: &str) -> bool {
        self.find(host).is_some_and(|host| host.wants_client_certificates)
    }

    fn find(&self, host: &str) -> Option<&OfHost> {
        let above = || host.find('.').and_then(|dot| self.of_hosts.get(&host[dot..]));
        self.of_hosts.get(host).or_else(above)
    }

    /// `None`: what the label asks for cannot be kept, so the server at this address is not to be spoken to.
    pub(crate) fn to_server(&self, tls: &ServerTls, address: IpAddr) -> Option<ToServer> {
        Some(ToServer::new(self.to_servers.get(&tls.verify)?, tls, address))
    }

    /// `None`: the service port speaks plain text.
    pub(crate) fn of_port(&self, port: u16) -> Option<&Arc<ServerConfig>> {
        self.of_ports.get(&port)
    }
}

struct Builder<'a> {
    shared: &'a [Certificate],
    min_version: MinVersion,
    contents: &'a Contents,
}

impl Builder<'_> {
    fn build(&self, policy: &HostPolicy) -> Result<Arc<ServerConfig>, PolicyError> {
        let versions = policy.min_version.unwrap_or(self.min_version).versions();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
        let builder = match &policy.client_auth {
            None => builder.with_no_client_auth(),
            Some(auth) => {
                let mut roots = RootCertStore::empty();
                let authorities = self.contents.authorities.get(&auth.ca).cloned().unwrap_or_default();
                if roots.add_parsable_certificates(authorities).0 == 0 {
                    return Err(PolicyError::Authority { path: auth.ca.clone() });
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match auth.need {
                    Need::Required => verifier,
                    Need::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier
                    .build()
                    .map_err(|source| PolicyError::Verifier { path: auth.ca.clone(), source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let own =
            policy.certificates.iter().filter_map(|path| self.contents.certificates.get(path)).flatten();
        let store = Store::new(own.chain(self.shared));
        let mut config = builder.with_cert_resolver(Arc::new(store));
        config.alpn_protocols = match policy.alpn {
            Alpn::Http2 => vec![HTTP_2.to_vec(), HTTP_1_1.to_vec()],
            Alpn::Http1 => vec![HTTP_1_1.to_vec()],
            Alpn::Silent => Vec::new(),
        };
        // Without one, sessions are resumed from a small memory that all clients share.
        if let Ok(ticketer) = aws_lc_rs::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Ok(Arc::new(config))
    }

    /// A configuration without certificates ends every handshake with an alert.
    fn refusing(&self) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(MinVersion::Tls13.versions())
            .expect("aws-lc-rs speaks TLS 1.3");
        Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(Store::default())))
    }
}
