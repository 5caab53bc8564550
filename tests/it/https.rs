//! HTTPS and HTTP/2 towards clients, with curl as the client: certificates, server names, reload, client certificates.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::PROGRAM;

const DEMO: &str = "/dcos-101/app2";

/// A certificate for `names` and its key in one file.
fn certificate(directory: &Path, file: &str, names: &[&str]) -> anyhow::Result<PathBuf> {
    let made = rcgen::generate_simple_self_signed(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
    let path = directory.join(file);
    std::fs::write(&path, made.cert.pem() + &made.signing_key.serialize_pem())?;
    Ok(path)
}

struct Curl<'a> {
    waymark: &'a Waymark,
    ca: &'a Path,
}

impl Curl<'_> {
    /// `(protocol, status, body)` of a request to `https://HOST/`, whose certificate is verified.
    async fn get(&self, host: &str, more: &[&str]) -> anyhow::Result<(String, u16, String)> {
        let address = self.waymark.address("https");
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "10", "--noproxy", "*", "-w", "\n%{http_version} %{http_code}"])
            .args(["--resolve", &format!("{host}:{}:{}", address.port(), address.ip())])
            .arg("--cacert")
            .arg(self.ca)
            .args(more)
            .arg(format!("https://{host}:{}/", address.port()))
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (body, words) = text.rsplit_once('\n').unwrap_or(("", &text));
        let (version, status) = words.split_once(' ').unwrap_or((words, "0"));
        Ok((version.to_owned(), status.parse()?, body.to_owned()))
    }
}

/// So that the instance that the change brings is used when it listens, not when its process has begun.
const CHECKS: &str = r#"healthChecks=[{"protocol":"HTTP","path":"/","portIndex":0,"intervalSeconds":1}]"#;

/// The demo app with more labels.
async fn label(waymark: &Waymark, labels: &str) -> anyhow::Result<()> {
    waymark.ok(&["app", "update", DEMO, CHECKS, &format!("labels={labels}"), "--wait"]).await?;
    Ok(())
}

#[tokio::test]
async fn hosts_are_served_over_tls_and_http2_with_their_own_certificates() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let a = certificate(scratch.path(), "a.pem", &["a.test"])?;
    let b = certificate(scratch.path(), "b.pem", &["*.b.test"])?;
    let certs = format!("{},{}", a.display(), b.display());
    let waymark = Waymark::dev(PROGRAM, &["--ssl-certs", &certs]).await?;
    label(&waymark, r#"{"HAPROXY_0_VHOST":"a.test,x.b.test"}"#).await?;
    let (of_a, of_b) = (Curl { waymark: &waymark, ca: &a }, Curl { waymark: &waymark, ca: &b });
    for (curl, host, flag, version) in [
        (&of_a, "a.test", "--http2", "2"),
        (&of_a, "a.test", "--http1.1", "1.1"),
        (&of_b, "x.b.test", "--http2", "2"),
    ] {
        let (spoken, status, body) = curl.get(host, &[flag]).await?;
        assert_eq!((&*spoken, status), (version, 200), "{host} {flag}: {body}");
    }
    // The certificate of another host is not shown.
    assert!(of_a.get("x.b.test", &[]).await.is_err());
    // A request for another host than the handshake's is sent away, not served under the wrong policy.
    for flag in ["--http2", "--http1.1"] {
        let (_, status, _) = of_a.get("a.test", &[flag, "-H", "Host: x.b.test"]).await?;
        assert_eq!(status, 421, "{flag}");
    }
    let upload = scratch.path().join("upload");
    std::fs::write(&upload, "x".repeat(200_000))?;
    let upload = format!("@{}", upload.display());
    let (_, status, _) = of_a.get("a.test", &["--data-binary", &upload, "--http2"]).await?;
    assert!(matches!(status, 200 | 405), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_changed_certificate_is_shown_and_open_connections_go_on() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let file = certificate(scratch.path(), "a.pem", &["a.test"])?;
    let old = scratch.path().join("old.ca");
    std::fs::copy(&file, &old)?;
    let waymark = Waymark::dev(PROGRAM, &["--ssl-certs", &file.display().to_string()]).await?;
    label(&waymark, r#"{"HAPROXY_0_VHOST":"a.test"}"#).await?;
    // A connection of openssl's, kept open across the change.
    let mut open = Command::new("openssl")
        .args(["s_client", "-quiet", "-servername", "a.test", "-connect"])
        .arg(waymark.address("https").to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = open.stdin.take().expect("it was asked for");
    let mut output = BufReader::new(open.stdout.take().expect("it was asked for")).lines();
    let mut ask = async |what: &str| -> anyhow::Result<String> {
        input.write_all(b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await?;
        loop {
            let line = tokio::time::timeout(tests::client::DEADLINE, output.next_line()).await??;
            let line = line.ok_or_else(|| anyhow::anyhow!("{what}: closed"))?;
            if line.starts_with("HTTP/1.1 ") {
                return Ok(line);
            }
        }
    };
    let before = ask("before").await?;
    assert!(before.contains(" 200 "), "{before}");
    certificate(scratch.path(), "a.pem", &["a.test", "more.a.test"])?;
    let new = Curl { waymark: &waymark, ca: &file };
    let deadline = tokio::time::Instant::now() + tests::client::DEADLINE;
    while let Err(error) = new.get("a.test", &[]).await {
        assert!(tokio::time::Instant::now() < deadline, "the new certificate is not shown: {error}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let after = ask("after").await?;
    assert!(after.contains(" 200 "), "the open connection: {after}");
    std::fs::write(&file, "broken")?;
    let shown = |answer: &tests::client::Response| answer.text().contains("no certificate in");
    waymark.until("/api/status", "the broken file is a problem", shown).await?;
    Ok(())
}

/// A certificate authority and a certificate of its own for a client: files `ca.pem`, `client.pem`, `client.key`.
fn client_certificate(directory: &Path) -> anyhow::Result<()> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "clients");
    let ca_key = KeyPair::generate()?;
    std::fs::write(directory.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
    let client_key = KeyPair::generate()?;
    let client = CertificateParams::new(vec!["client.test".to_owned()])?;
    let signed = client.signed_by(&client_key, &Issuer::new(ca, ca_key))?;
    std::fs::write(directory.join("client.pem"), signed.pem())?;
    std::fs::write(directory.join("client.key"), client_key.serialize_pem())?;
    Ok(())
}

#[tokio::test]
async fn a_service_brings_its_certificate_and_asks_for_its_clients() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let shared = certificate(scratch.path(), "shared.pem", &["shared.test"])?;
    let own = certificate(scratch.path(), "own.pem", &["own.test"])?;
    client_certificate(scratch.path())?;
    let waymark = Waymark::dev(PROGRAM, &["--ssl-certs", &shared.display().to_string()]).await?;
    let directory = scratch.path().display();
    let labels = format!(
        r#"{{"HAPROXY_0_VHOST":"own.test","HAPROXY_0_SSL_CERT":"{}","HAPROXY_0_BIND_OPTIONS":"verify required ca-file {directory}/ca.pem"}}"#,
        own.display()
    );
    label(&waymark, &labels).await?;
    let curl = Curl { waymark: &waymark, ca: &own };
    let (key, certificate) = (format!("{directory}/client.key"), format!("{directory}/client.pem"));
    let with = ["--key", &key, "--cert", &certificate];
    assert!(curl.get("own.test", &[]).await.is_err(), "no client certificate, no service");
    let (_, status, body) = curl.get("own.test", &with).await?;
    assert_eq!(status, 200, "{body}");
    // Nobody gets around it by the handshake of another host.
    let of_shared = Curl { waymark: &waymark, ca: &shared };
    let (_, status, _) = of_shared.get("shared.test", &["-H", "Host: own.test"]).await?;
    assert_eq!(status, 421);
    // The service port speaks TLS, too.
    let service = waymark.service(10000);
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "10", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(["--resolve", &format!("own.test:10000:{}", service.ip())])
        .args(["--cacert", &own.display().to_string()])
        .args(with)
        .arg("https://own.test:10000/")
        .output()
        .await?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn clients_that_know_speak_http2_in_plain_text() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let config = scratch.path().join("waymark.toml");
    std::fs::write(&config, "[http]\nh2c = true\n")?;
    let waymark = Waymark::dev(PROGRAM, &["--config", &config.display().to_string()]).await?;
    label(&waymark, r#"{"HAPROXY_0_VHOST":"a.test"}"#).await?;
    for (flag, version) in [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1")] {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "10", "--noproxy", "*", "-o", "/dev/null", flag])
            .args(["-w", "%{http_version} %{http_code}", "-H", "Host: a.test"])
            .arg(format!("http://{}/", waymark.address("http")))
            .output()
            .await?;
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{version} 200"));
    }
    Ok(())
}

#[tokio::test]
async fn without_a_certificate_one_is_made() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    let output = Command::new("curl")
        .args(["-sSk", "--max-time", "10", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("https://{}/", waymark.address("https")))
        .output()
        .await?;
    // The handshake is done; nobody has this host.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "503", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Both ends are openssl's and curl's, which know nothing of what stands between them.
#[tokio::test]
async fn tls_of_a_host_in_mode_tcp_is_passed_on() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let own = certificate(scratch.path(), "own.pem", &["own.test"])?;
    // Found free and given up: the instance is told its port.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let _instance = Command::new("openssl")
        .args(["s_server", "-www", "-quiet", "-accept", &format!("127.0.0.1:{port}")])
        .args(["-cert", &own.display().to_string(), "-key", &own.display().to_string()])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let scheduler = ScriptedScheduler::start().await?;
    let labels = serde_json::json!({"HAPROXY_0_MODE": "tcp", "HAPROXY_0_VHOST": "own.test"});
    let instance = ScriptedInstance { task_id: "own.1".to_owned(), port };
    scheduler.set_app("/own", 26000, labels, &[instance]);
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &[]).await?;
    let curl = Curl { waymark: &waymark, ca: &own };
    let deadline = tokio::time::Instant::now() + tests::client::DEADLINE;
    let (status, body) = loop {
        match curl.get("own.test", &[]).await {
            Ok((_, status, body)) => break (status, body),
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    assert!(status == 200 && body.contains("s_server"), "{status} {body}");
    // Other names are ended here, with another certificate.
    assert!(curl.get("other.test", &[]).await.is_err());
    let why = waymark.ok(&["route", "explain", "https://own.test/"]).await?;
    assert!(why.contains("passed on as they are") && why.contains("own_26000"), "{why}");
    Ok(())
}
