//! DNS as its users meet it: dig, the C library, curl over HTTPS, Unbound as an upstream, and as the host's resolver.

#![allow(clippy::print_stdout, reason = "whoever runs the tests should see what was not tested")]

use std::process::Stdio;

use serde_json::Value;
use tests::client::{DEADLINE, get};
use tests::waymark::Waymark;
use tokio::process::Command;

use crate::{APP, PROGRAM, VIP_NAME};

/// What a program printed; `None` when it is not on this machine.
async fn output(program: &str, arguments: &[&str]) -> anyhow::Result<Option<String>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(DEADLINE, command.output()).await? {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
        }
        Ok(output) => {
            anyhow::bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "{program} is needed");
            println!("SKIPPED: {program} is not installed");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn dig(waymark: &Waymark, words: &[&str]) -> anyhow::Result<Option<String>> {
    let address = waymark.address("dns");
    let (server, port) = (format!("@{}", address.ip()), address.port().to_string());
    let fixed = [&server, "-p", &port, "+short", "+tries=1"];
    output("dig", &[&fixed[..], words].concat()).await
}

#[tokio::test]
async fn dig_finds_an_app_by_all_its_names() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--dns-upstreams", "none"]).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let Some(vip) = dig(&waymark, &[VIP_NAME]).await? else { return Ok(()) };
    assert!(vip.starts_with("127."), "{vip}");
    for (words, expect) in [
        (&["app2-dcos-101.marathon.mesos"][..], "127.0.0.1"),
        (&["APP2-dcos-101.marathon.mesos", "+tcp"], "127.0.0.1"),
        (&["app2-dcos-101.marathon.agentip.dcos.thisdcos.directory"], "127.0.0.1"),
        (&["leader.mesos"], "127.0.0.1"),
        (&["thisnode.thisdcos.directory"], "127.0.0.1"),
        (&["-x", &vip], &format!("{VIP_NAME}.")),
        (&[&format!("_10000._tcp.{VIP_NAME}"), "SRV"], &format!("0 1 10000 {VIP_NAME}.")),
        (&["nobody.marathon.mesos"], ""),
    ] {
        assert_eq!(dig(&waymark, words).await?.as_deref(), Some(expect), "{words:?}");
    }
    let services = dig(&waymark, &["_app2-dcos-101._tcp.marathon.mesos", "SRV"]).await?.unwrap_or_default();
    assert_eq!(services.lines().count(), 2, "{services}");
    Ok(())
}

#[tokio::test]
async fn curl_finds_an_app_over_https_without_root() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--dns-upstreams", "none"]).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let doh = format!("https://{}/dns-query", waymark.address("dns_http"));
    let page = format!("http://{VIP_NAME}:10000/");
    // SAFETY: a call without arguments that cannot fail.
    let as_nobody: &[&str] = match unsafe { libc::geteuid() } {
        0 => &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "curl"],
        _ => &["curl"],
    };
    let words = ["-sS", "--noproxy", "*", "--doh-insecure", "--doh-url", &doh, &page];
    let words = [&as_nobody[1..], &words].concat();
    let Some(answer) = output(as_nobody[0], &words).await? else { return Ok(()) };
    assert!(answer.contains("dcos-101_app2.instance-"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn the_apis_of_mesos_dns_and_dcos_net_have_their_shapes() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--dns-upstreams", "none"]).await?;
    let api = waymark.address("dns_http");
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let json = async |path: &str| get(api, path).await?.json();
    assert_eq!(json("/v1/version").await?["Service"], "Mesos-DNS");
    assert_eq!(json("/net/v1/version").await?["Service"], "dcos-dns");
    let host = "app2-dcos-101.marathon.mesos";
    assert_eq!(json(&format!("/v1/hosts/{host}")).await?[0]["host"], format!("{host}."));
    assert_eq!(json("/v1/hosts/none.mesos").await?[0]["ip"], "");
    assert_eq!(json("/net/v1/hosts/none.mesos").await?.as_array().map(Vec::len), Some(0));
    let service = json("/v1/services/_app2-dcos-101._tcp.marathon.mesos").await?;
    assert!(service[0]["port"].is_string() && service[0]["ip"] == "127.0.0.1", "{service}");
    let service = json("/net/v1/services/_app2-dcos-101._tcp.marathon.mesos").await?;
    assert!(service[0]["port"].is_number(), "{service}");
    let tasks = json("/v1/enumerate").await?;
    assert_eq!(tasks["frameworks"][0]["name"], "marathon");
    assert!(tasks["frameworks"][0]["tasks"][0]["records"].as_array().is_some_and(|r| r.len() > 4), "{tasks}");
    let axfr = json("/v1/axfr").await?;
    assert_eq!(axfr["Records"]["As"][format!("{host}.")][0], "127.0.0.1", "{axfr}");
    let vips = get(api, "/net/v1/vips").await?;
    assert!(vips.header("etag").is_some());
    assert_eq!(vips.json()?[0]["vip"], format!("{VIP_NAME}:10000"));
    let vips = json("/networking/api/v1/vips").await?;
    assert_eq!(vips["array"][0]["port"], "10000");
    assert_eq!(json("/networking/api/v1/summary").await?["array"][0]["backends"], 2);
    for (path, status) in [("/v1/hosts/x/ports", 501), ("/lashup/key", 404), ("/dns-query", 400)] {
        assert_eq!(get(api, path).await?.status, status, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_trace_says_where_an_answer_comes_from_and_why_there_is_none() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--dns-upstreams", "none"]).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let trace = async |name: &str| waymark.run(&["dns", "lookup", name, "--trace"]).await;
    let found = trace("app2-dcos-101.marathon.mesos").await?;
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.stdout.contains(APP) && found.stdout.contains("answered (running"), "{found:?}");
    let leader = trace("leader.mesos").await?;
    assert!(leader.stdout.contains("cluster scheduler and configuration: 127.0.0.1: answered"), "{leader:?}");
    let missing = trace("dcos-101app3.marathon.l4lb.thisdcos.directory").await?;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stdout.contains(VIP_NAME), "the nearest name is shown: {missing:?}");
    let foreign = trace("www.example.com").await?;
    assert!(foreign.stdout.contains("no upstreams"), "{foreign:?}");

    waymark.ok(&["app", "scale", APP, "0", "--wait"]).await?;
    let empty = trace("app2-dcos-101.marathon.mesos").await?;
    assert!(empty.stdout.contains("has no instances"), "{empty:?}");
    let metrics = waymark.stats("/metrics").await?.text();
    assert!(
        metrics.contains("waymark_dns_answers_by_zone_total{zone=\"mesos\",rcode=\"NOERROR\"}"),
        "{metrics}"
    );
    Ok(())
}

/// An address that no client's connection takes a port of.
const UNBOUND: &str = "127.53.0.1";

/// Unbound with a zone of its own, on a free port.
async fn unbound(waymark: &Waymark) -> anyhow::Result<Option<(tokio::process::Child, u16)>> {
    let port = std::net::UdpSocket::bind((UNBOUND, 0))?.local_addr()?.port();
    let config = waymark.scratch().join("unbound.conf");
    std::fs::write(
        &config,
        format!(
            "server:\n  directory: \"{}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  \
             interface: {UNBOUND}@{port}\n  access-control: 127.0.0.0/8 allow\n  local-zone: \"example.test.\" static\n  \
             local-data: \"www.example.test. 60 A 192.0.2.80\"\n",
            waymark.scratch().display()
        ),
    )?;
    let started = Command::new("unbound").arg("-d").arg("-c").arg(config).kill_on_drop(true).spawn();
    match started {
        Ok(child) => Ok(Some((child, port))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "unbound is needed");
            println!("SKIPPED: unbound is not installed");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn unbound_is_asked_for_foreign_names() -> anyhow::Result<()> {
    let scratch = Waymark::dev(PROGRAM, &["--no-demo", "--dns-upstreams", "none"]).await?;
    let Some((mut child, port)) = unbound(&scratch).await? else { return Ok(()) };
    let upstream = format!("example.test={UNBOUND}:{port}");
    let waymark =
        Waymark::dev(PROGRAM, &["--no-demo", "--dns-upstreams", "none", "--dns-upstreams", &upstream])
            .await?;
    let found = async {
        // Unbound takes a moment to listen.
        loop {
            let answer = dig(&waymark, &["www.example.test"]).await?;
            if answer.as_deref() != Some("") {
                return anyhow::Ok(answer);
            }
        }
    };
    let found = tokio::time::timeout(DEADLINE, found).await??;
    assert_eq!(found.as_deref(), Some("192.0.2.80"));
    let missing = waymark.run(&["dns", "lookup", "none.example.test"]).await?;
    assert!(missing.stderr.contains("NXDOMAIN"), "{missing:?}");
    let refused = waymark.run(&["dns", "lookup", "www.example.com"]).await?;
    assert!(refused.stderr.contains("REFUSED"), "{refused:?}");
    child.kill().await?;
    let cached = dig(&waymark, &["www.example.test"]).await?;
    assert_eq!(cached.as_deref(), Some("192.0.2.80"), "it is still known");
    let metrics = waymark.stats("/metrics").await?.text();
    let answered = format!("waymark_dns_upstream_latency_seconds_count{{upstream=\"{UNBOUND}:{port}\"}} ");
    assert!(metrics.contains(&answered), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn it_becomes_the_resolver_of_a_host_and_goes_with_its_process() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--dns-upstreams", "none"]).await?;
    let root = waymark.scratch().join("host");
    std::fs::create_dir_all(root.join("etc"))?;
    let resolv_conf = root.join("etc/resolv.conf");
    let before = "search example\nnameserver 10.0.0.1\n";
    std::fs::write(&resolv_conf, before)?;
    let root = root.display().to_string();
    let install = async |words: &[&str]| {
        let fixed = ["dns", "install", "--root", &root, "--address", "198.51.100.1"];
        waymark.ok(&[&fixed[..], words].concat()).await
    };
    let read = || std::fs::read_to_string(&resolv_conf);

    let shown = install(&["--print"]).await?;
    assert!(shown.contains("nameserver 198.51.100.1\nnameserver 10.0.0.1"), "{shown}");
    assert_eq!(read()?, before);
    install(&["--apply"]).await?;
    install(&["--apply"]).await?;
    assert!(shown.ends_with(&read()?), "what was shown is what was written");
    install(&["--remove"]).await?;
    assert_eq!(read()?, before);

    // A process that ends without a word.
    let mut other = Command::new("sleep").arg("1000").kill_on_drop(true).spawn()?;
    let pid = other.id().unwrap_or_default().to_string();
    let mut guard = Command::new(PROGRAM)
        .args(["dns", "install", "--root", &root, "--address", "198.51.100.1", "--apply"])
        .args(["--until-exit-of", &pid])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let installed = async {
        while read()? == before {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, installed).await??;
    other.kill().await?;
    assert!(tokio::time::timeout(DEADLINE, guard.wait()).await??.success());
    assert_eq!(read()?, before, "nothing is left behind");
    Ok(())
}

#[tokio::test]
async fn the_c_library_resolves_names_through_it() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--dns-upstreams", "none"]).await?;
    let status: Value = waymark.stats("/api/status").await?.json()?;
    // SAFETY: a call without arguments that cannot fail.
    if unsafe { libc::geteuid() } != 0 || !status["addresses"]["dns53"].is_string() {
        assert!(std::env::var_os("CI").is_none(), "this needs root");
        println!("SKIPPED: a private resolv.conf needs root and port 53");
        return Ok(());
    }
    let found = waymark.ok(&["exec", "--", "getent", "ahostsv4", VIP_NAME]).await?;
    assert!(found.starts_with("127."), "{found}");
    Ok(())
}
