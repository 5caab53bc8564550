//! The idioms of public app definitions, and what is not understood.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rustls::pki_types::ServerName;

use super::super::tests::read_all;
use super::super::{CheckKind, Listens, ServiceLabels, StaticServer};
use crate::access::{Proxied, ToHttps, Ways};
use crate::edits::{Change, Edit, Forwarding, Value, When};
use crate::tls::{ServerTls, Verify};

const HTTP: (&str, &str) = ("HAPROXY_0_MODE", "http");

fn read(labels: &[(&str, &str)]) -> ServiceLabels {
    let labels: Vec<_> = [HTTP].iter().chain(labels).copied().collect();
    let (read, problems) = read_all(&labels);
    assert!(problems.is_empty(), "{labels:?}: {problems:?}");
    read
}

fn edit(change: Change, name: &str, when: When) -> Edit {
    Edit { change, name: name.parse().unwrap(), when }
}

fn text(text: &str) -> Value {
    Value::Text(text.parse().unwrap())
}

#[test]
fn time_outs_and_balance() {
    let labels = read(&[(
        "HAPROXY_0_BACKEND_HEAD",
        "\nbackend {backend}\n  balance {balance}\n  mode {mode}\n  timeout server 30m\n  timeout client 30m\n  timeout connect 500\n  timeout tunnel 2h\n  timeout queue 5s\n  balance leastconn\n",
    )]);
    let timeouts = labels.timeouts;
    assert_eq!(timeouts.server, Some(Duration::from_secs(1800)));
    assert_eq!(timeouts.client, Some(Duration::from_secs(1800)));
    assert_eq!(timeouts.connect, Some(Duration::from_millis(500)));
    assert_eq!(timeouts.tunnel, Some(Duration::from_secs(7200)));
    assert_eq!(labels.capacity.queue_timeout, Duration::from_secs(5));
    assert_eq!(labels.balance, l4_vip::policy::Policy::LeastConn);
}

#[test]
fn the_default_http_options_are_what_is_done_anyway() {
    let labels = read(&[(
        "HAPROXY_0_BACKEND_HTTP_OPTIONS",
        "  option forwardfor\n  http-request set-header X-Forwarded-Port %[dst_port]\n  http-request add-header X-Forwarded-Proto https if { ssl_fc }\n",
    )]);
    assert_eq!(labels.edits.forwarding, Forwarding::ByEdits);
    assert_eq!(
        labels.edits.request,
        [
            edit(Change::Add(Value::ClientAddress), "x-forwarded-for", When::Always),
            edit(Change::Set(Value::LocalPort), "x-forwarded-port", When::Always),
            edit(Change::Add(text("https")), "x-forwarded-proto", When::Tls),
        ]
    );
}

#[test]
fn headers_of_requests_and_responses() {
    let labels = read(&[(
        "HAPROXY_0_BACKEND_HTTP_OPTIONS",
        "no option http-keep-alive\noption httplog\nhttp-request set-header Host b.test\nhttp-request del-header X-Secret\nhttp-response set-header X-Frame-Options \"SAME ORIGIN\"\nrspadd X-Old:\\ a\\ b\n",
    )]);
    assert_eq!(
        labels.edits.request,
        [
            edit(Change::Set(text("b.test")), "host", When::Always),
            edit(Change::Remove, "x-secret", When::Always),
        ]
    );
    assert_eq!(
        labels.edits.response,
        [
            edit(Change::Set(text("SAME ORIGIN")), "x-frame-options", When::Always),
            edit(Change::Add(text("a b")), "x-old", When::Always),
        ]
    );
}

#[test]
fn a_redirect_behind_a_balancer_that_ends_tls() {
    for (lines, status, proxied) in [
        (
            "acl is_proxy_https hdr(X-Forwarded-Proto) https\nredirect scheme https unless { ssl_fc } or is_proxy_https",
            StatusCode::FOUND,
            Proxied::Trusted,
        ),
        (
            "acl https hdr(X-Forwarded-Proto) -i https\nredirect scheme https code 301 if !{ ssl_fc } !https",
            StatusCode::MOVED_PERMANENTLY,
            Proxied::Trusted,
        ),
        ("redirect scheme https if !{ ssl_fc }", StatusCode::FOUND, Proxied::Ignored),
        (
            "http-request redirect scheme https code 307 unless {{ ssl_fc }}",
            StatusCode::TEMPORARY_REDIRECT,
            Proxied::Ignored,
        ),
    ] {
        let labels = read(&[("HAPROXY_0_BACKEND_HTTP_OPTIONS", lines)]);
        assert_eq!(labels.admission.to_https, Some(ToHttps { status, ways: Ways::All, proxied }), "{lines}");
    }
}

#[test]
fn hosts_by_their_end_and_by_expressions() {
    const VHOST: (&str, &str) = ("HAPROXY_0_VHOST", "a.test");
    for (key, template, hosts, paths) in [
        (
            "HAPROXY_0_HTTP_FRONTEND_ACL",
            "  acl host_{cleanedUpHostname} hdr_end(host) -i .{hostname}\n  use_backend {backend} if host_{cleanedUpHostname}\n",
            &["*.a.test"][..],
            &[][..],
        ),
        (
            "HAPROXY_0_HTTP_FRONTEND_ACL",
            "acl h hdr_end(host) -i {hostname}\nuse_backend {backend} if h",
            &["a.test", "*.a.test"],
            &[],
        ),
        (
            "HAPROXY_0_HTTP_FRONTEND_ACL",
            "acl h hdr_reg(host) -i ^(www\\\\.)?a\\\\.test$\nuse_backend {backend} if h",
            &["~^(www\\.)?a\\.test$"],
            &[],
        ),
        (
            "HAPROXY_0_HTTP_FRONTEND_ACL",
            "acl h hdr_dom(host) -i a\nuse_backend {backend} if h",
            &["~(^|\\.)a($|\\.|:)"],
            &[],
        ),
        (
            "HAPROXY_0_HTTPS_FRONTEND_ACL",
            "  use_backend {backend} if {{ ssl_fc_sni -m end .{hostname} }}",
            &["a.test", "*.a.test"],
            &[],
        ),
        (
            "HAPROXY_0_HTTPS_FRONTEND_ACL",
            "  use_backend {backend} if { ssl_fc_sni {hostname} }",
            &["a.test"],
            &[],
        ),
        (
            "HAPROXY_0_HTTP_FRONTEND_ACL_WITH_PATH",
            "acl p path_beg -i /.well-known/acme-challenge\nuse_backend {backend} if p",
            &["*"],
            &["/.well-known/acme-challenge"],
        ),
        (
            "HAPROXY_0_HTTP_FRONTEND_ACL_WITH_PATH",
            "use_backend {backend} if host_{cleanedUpHostname} path_{backend}",
            &["a.test"],
            &[],
        ),
    ] {
        let labels = read(&[VHOST, (key, template)]);
        assert_eq!(labels.vhosts.iter().map(ToString::to_string).collect::<Vec<_>>(), hosts, "{template}");
        assert_eq!(labels.paths.iter().map(|p| &*p.prefix).collect::<Vec<_>>(), paths, "{template}");
    }
}

#[test]
fn static_servers() {
    let server =
        |name: &str, host: &str, port| Some(StaticServer { name: name.into(), host: host.into(), port });
    for (template, expect) in [
        (
            "  timeout server 86400s\n  server prometheus prometheus.prometheus.l4lb.thisdcos.directory:9090\n",
            server("prometheus", "prometheus.prometheus.l4lb.thisdcos.directory", 9090),
        ),
        ("server s 10.0.0.1:80 check inter 2s", server("s", "10.0.0.1", 80)),
        ("server s [fd00::1]:80", server("s", "fd00::1", 80)),
        (
            "  server {serverName} {host_ipv4}:{port} id {serverId} {cookieOptions} {healthCheckOptions} {otherOptions}",
            None,
        ),
    ] {
        assert_eq!(
            read(&[("HAPROXY_0_BACKEND_SERVER_OPTIONS", template)]).static_server,
            expect,
            "{template}"
        );
    }
}

#[test]
fn tls_to_servers() {
    let tls = |verify, name: &str| {
        let name = (!name.is_empty()).then(|| ServerName::try_from(name.to_owned()).unwrap());
        Some(Arc::new(ServerTls { verify, name }))
    };
    let file = || Verify::Authorities("/ca.pem".into());
    let per_instance = "server {serverName} {host_ipv4}:{port} {cookieOptions}{healthCheckOptions}";
    for (template, expect) in [
        ("server s a.test:443 check", None),
        ("server s a.test:443 ssl", tls(Verify::System, "a.test")),
        ("server s a.test:443 ssl verify required ca-file @system-ca", tls(Verify::System, "a.test")),
        ("server s a.test:443 check ssl verify none", tls(Verify::None, "a.test")),
        ("server s a.test:443 verify none", None),
        ("server s 10.0.0.1:443 ssl ca-file /ca.pem", tls(file(), "10.0.0.1")),
        ("server s 10.0.0.1:443 ssl ca-file /ca.pem sni str(b.test) check-ssl", tls(file(), "b.test")),
        ("server s 10.0.0.1:443 ssl verifyhost b.test", tls(Verify::System, "b.test")),
        (&format!("{per_instance} ssl verify none"), tls(Verify::None, "")),
        (&format!("{per_instance} ssl ca-file /ca.pem sni str(b.test)"), tls(file(), "b.test")),
    ] {
        let labels = read(&[("HAPROXY_0_BACKEND_SERVER_OPTIONS", template)]);
        assert_eq!(labels.server_tls, expect, "{template}");
    }
    for line in [
        "ssl verify maybe",
        "ssl crt /client.pem",
        "ssl sni ssl_fc_sni",
        "ssl sni str(b.test) verifyhost c.test",
        "ssl sni str(b..test)",
        "ssl alpn h2",
        "ssl ca-file",
    ] {
        let template = format!("server s a.test:443 {line}");
        let (labels, problems) = read_all(&[("HAPROXY_0_BACKEND_SERVER_OPTIONS", &template)]);
        assert_eq!((labels.static_server, labels.server_tls, problems.len()), (None, None, 1), "{line}");
    }
}

#[test]
fn an_empty_frontend_closes_the_service_port() {
    assert_eq!(read(&[]).listens, Listens::Yes);
    let closed = read(&[("HAPROXY_0_FRONTEND_HEAD", ""), ("HAPROXY_0_FRONTEND_BACKEND_GLUE", " ")]);
    assert_eq!(closed.listens, Listens::No);
    let default = "\nfrontend {backend}\n  bind {bindAddr}:{servicePort}{sslCerts}{bindOptions}\n  mode {mode}\n  timeout client 1h";
    let labels = read(&[("HAPROXY_0_FRONTEND_HEAD", default)]);
    assert_eq!((labels.listens, labels.timeouts.client), (Listens::Yes, Some(Duration::from_secs(3600))));
}

#[test]
fn cookies_have_the_name_that_the_template_gives() {
    let labels = read(&[
        ("HAPROXY_0_STICKY", "true"),
        ("HAPROXY_0_BACKEND_STICKY_OPTIONS", "  cookie SRV insert indirect nocache httponly secure"),
    ]);
    assert_eq!(labels.cookie.set("x"), "SRV=x; path=/; HttpOnly; Secure");
}

#[test]
fn check_options() {
    use event_watcher::catalog::{HealthCheck, HealthCheckProtocol};
    let check = HealthCheck {
        protocol: HealthCheckProtocol::Http,
        path: Some("/h".into()),
        port_index: Some(0),
        port: None,
        grace_period_seconds: None,
        interval_seconds: Some(10),
        timeout_seconds: Some(5),
        max_consecutive_failures: Some(2),
    };
    for (key, template, expect) in [
        (
            "BACKEND_HTTP_HEALTHCHECK_OPTIONS",
            "  option httpchk HEAD {healthCheckPath} HTTP/1.1\\r\\nHost:\\ www\n  timeout check {healthCheckTimeoutSeconds}s",
            Some(("HEAD", "/h", Some("www"), 10, 3)),
        ),
        (
            "BACKEND_SERVER_HTTP_HEALTHCHECK_OPTIONS",
            " check inter 2s fall {healthCheckFalls} rise 1",
            Some(("GET", "/h", None, 2, 3)),
        ),
        ("BACKEND_SERVER_HTTP_HEALTHCHECK_OPTIONS", "", None),
    ] {
        let app = super::super::tests::app(&[(&format!("HAPROXY_0_{key}"), template)], vec![check.clone()]);
        let mut problems = Vec::new();
        let labels =
            super::super::read(&app, &app.services[0], &super::super::Reading::default(), &mut problems);
        let spec = labels.unwrap().check;
        let spec = spec.as_ref().map(|c| match &c.kind {
            CheckKind::Http { method, path, host, .. } => {
                (&**method, &**path, host.as_deref(), c.interval.as_secs(), c.fall)
            }
            CheckKind::Tcp => ("", "", None, 0, 0),
        });
        assert_eq!(spec, expect, "{template}");
        assert!(problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn what_is_not_understood_is_named_and_has_no_effect() {
    for (key, template, n_problems) in [
        ("HAPROXY_0_BACKEND_HTTP_OPTIONS", "http-request lua.x\nhttp-request set-header A %[lua.y]", 2),
        ("HAPROXY_0_BACKEND_HTTP_OPTIONS", "http-request set-header Transfer-Encoding chunked", 1),
        ("HAPROXY_0_BACKEND_HEAD", "backend {nope}", 1),
        ("HAPROXY_0_BACKEND_SERVER_OPTIONS", "server s kube.test:6443 ssl crt /client.pem", 1),
        ("HAPROXY_0_USERLIST_HEAD", "userlist x", 1),
        ("HAPROXY_0_HEAD", "global", 1),
        ("HAPROXY_0_HTTP_FRONTEND_ACL", "acl h src 10.0.0.0/8\nuse_backend {backend} if !h", 2),
        ("HAPROXY_0_BIND_OPTIONS", "interface eth0", 1),
    ] {
        let (read, problems) = read_all(&[HTTP, (key, template)]);
        let mut default = read_all(&[HTTP]).0;
        default.edits.forwarding = read.edits.forwarding;
        assert_eq!(read, default, "{template}");
        assert_eq!(problems, vec![format!("labels.{key}"); n_problems], "{template}");
    }
}
