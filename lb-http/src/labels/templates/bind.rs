//! `BIND_OPTIONS`: what stands after `bind` of a service port, and of its virtual hosts over TLS.
//!
//! Options without a meaning here are passed over; the first that is not understood ends the reading with a problem.

use std::path::PathBuf;

use super::super::reader::Reader;
use super::super::{AcceptProxy, ServiceLabels};
use super::lines::lines;
use crate::tls::{Alpn, ClientAuth, MinVersion, Need};

pub(super) fn options(reader: &mut Reader<'_>, labels: &mut ServiceLabels) {
    let Some(text) = reader.text("BIND_OPTIONS") else { return };
    let mut clients = Clients::default();
    for line in lines(text) {
        let mut words = line.words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let known = match word {
                "accept-proxy" => {
                    labels.proxy_protocol.accept = AcceptProxy::Required;
                    Some(())
                }
                "alpn" => words.next().map(|list| {
                    if labels.tls.alpn != Alpn::Silent && list.split(',').all(|protocol| protocol != "h2") {
                        labels.tls.alpn = Alpn::Http1;
                    }
                }),
                "crt" => words.next().map(|path| labels.tls.certificates.push(path.into())),
                "verify" => words.next().and_then(|need| clients.verify(need)),
                "ca-file" => words.next().map(|path| clients.ca = Some(path.into())),
                "ssl-min-ver" => words.next().and_then(|version| version.parse().ok()).map(|version| {
                    labels.tls.min_version = Some(version);
                }),
                "no-tlsv12" | "force-tlsv13" => {
                    labels.tls.min_version = Some(MinVersion::Tls13);
                    Some(())
                }
                // Said by default, or without a meaning here.
                "ssl" | "transparent" | "defer-accept" | "tfo" | "v4v6" | "no-sslv3" | "no-tlsv10"
                | "no-tlsv11" | "no-tls-tickets" => Some(()),
                "name" | "backlog" | "maxconn" | "nice" | "id" | "ciphers" | "ciphersuites" | "ecdhe" => {
                    words.next().map(|_| ())
                }
                _ => None,
            };
            if known.is_none() {
                let what = format!("{word:?} is not understood");
                reader.problem("BIND_OPTIONS", what, "it and what follows has no effect");
                break;
            }
        }
    }
    match (clients.need, clients.ca) {
        (Some(need), Some(ca)) => labels.tls.client_auth = Some(ClientAuth { ca, need }),
        (Some(need), None) => {
            // Whoever wants clients to be known must not get strangers because of a forgotten word.
            let what = "verify needs a ca-file".to_owned();
            reader.problem(
                "BIND_OPTIONS",
                what,
                "TLS handshakes of this service are refused until it has one",
            );
            labels.tls.client_auth = Some(ClientAuth { ca: PathBuf::new(), need });
        }
        (None, _) => {}
    }
}

#[derive(Default)]
struct Clients {
    need: Option<Need>,
    ca: Option<PathBuf>,
}

impl Clients {
    fn verify(&mut self, need: &str) -> Option<()> {
        self.need = match need {
            "required" => Some(Need::Required),
            "optional" => Some(Need::Optional),
            "none" => None,
            _ => return None,
        };
        Some(())
    }
}
