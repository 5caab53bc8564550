//! Decisions about requests, and the passwords behind them.

use super::*;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn facts(target: &'static str) -> RequestFacts<'static> {
    RequestFacts {
        way: Way::Hosts,
        scheme: Scheme::Http,
        client: CLIENT,
        host: "A.test:80",
        target,
        authorization: None,
        forwarded_proto: None,
    }
}

/// The decision in short: a status, with the location or the challenge.
fn decided(admission: &Admission, facts: &RequestFacts<'_>) -> String {
    match admission.admit(facts) {
        Admit::Continue => "continue".to_owned(),
        Admit::Redirect { status, location } => format!("{} {location}", status.as_u16()),
        Admit::Deny => "403".to_owned(),
        Admit::Challenge(challenge) => format!("401 {challenge}"),
        Admit::Verify(_) => "verify".to_owned(),
    }
}

#[test]
fn networks_let_in_and_turn_away() {
    let networks = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Network>>();
    for (allow, deny, expect) in [
        (&[][..], &[][..], "continue"),
        (&["10.0.0.0/8"], &[], "continue"),
        (&["192.168.0.0/16"], &[], "403"),
        (&["192.168.0.0/16", "10.0.0.1"], &[], "continue"),
        (&[], &["10.0.0.1"], "403"),
        (&["10.0.0.0/8"], &["10.0.0.1"], "403"),
        (&[], &["10.0.0.2"], "continue"),
    ] {
        let admission = Admission { allow: networks(allow), deny: networks(deny), ..Admission::default() };
        assert_eq!(decided(&admission, &facts("/")), expect, "{allow:?} {deny:?}");
    }
}

#[test]
fn plain_requests_are_sent_to_https() {
    let to_https = |ways, proxied| Admission {
        to_https: Some(ToHttps { status: StatusCode::MOVED_PERMANENTLY, ways, proxied }),
        ..Admission::default()
    };
    let (hosts, all) = (to_https(Ways::Hosts, Proxied::Ignored), to_https(Ways::All, Proxied::Trusted));
    let plain = facts("/a?b=c");
    let proxied = RequestFacts { forwarded_proto: Some(b"HTTPS"), ..plain };
    let by_port = RequestFacts { way: Way::ServicePort, ..plain };
    for (admission, facts, expect) in [
        (&hosts, plain, "301 https://A.test/a?b=c"),
        (&hosts, proxied, "301 https://A.test/a?b=c"),
        (&hosts, by_port, "continue"),
        (&hosts, RequestFacts { scheme: Scheme::Https, ..plain }, "continue"),
        (&all, by_port, "301 https://A.test/a?b=c"),
        (&all, proxied, "continue"),
    ] {
        assert_eq!(decided(admission, &facts), expect, "{facts:?}");
    }
}

#[test]
fn only_the_root_of_its_hosts_is_redirected() {
    let root = |hosts: &[&str]| Admission {
        root: Some(RootRedirect {
            location: "/web/".into(),
            hosts: hosts.iter().map(|h| (*h).into()).collect(),
        }),
        ..Admission::default()
    };
    for (hosts, target, expect) in [
        (&["a.test"][..], "/", "301 /web/"),
        (&["a.test"], "/?x", "301 /web/"),
        (&["a.test"], "/x", "continue"),
        (&["b.test"], "/", "continue"),
        (&[], "/", "301 /web/"),
    ] {
        assert_eq!(decided(&root(hosts), &facts(target)), expect, "{hosts:?} {target}");
    }
}

#[tokio::test]
async fn a_password_is_looked_at_once_and_then_known() {
    let hash = PasswordHash::parse("$1$abcdefgh$7.vq19w/w3Vm.hk1FOA7Q/").unwrap();
    let login = Login::new("the \"realm\"", "bob", hash.clone(), Ways::All);
    let admission = Admission { login: Some(login.clone()), ..Admission::default() };
    let with = |authorization| RequestFacts { authorization: Some(authorization), ..facts("/") };
    let challenge = "401 Basic realm=\"the realm\"";
    for (authorization, expect) in [
        (&b"Basic Ym9iOnMzY3JldA=="[..], "verify"),
        (b"basic   Ym9iOnMzY3JldA", "verify"),
        (b"Basic YWxpY2U6czNjcmV0", challenge),
        (b"Basic Ym9i", challenge),
        (b"Basic !!", challenge),
        (b"Bearer Ym9iOnMzY3JldA==", challenge),
        (b"", challenge),
    ] {
        let text = String::from_utf8_lossy(authorization);
        assert_eq!(decided(&admission, &with(authorization)), expect, "{text}");
    }
    assert_eq!(decided(&admission, &facts("/")), challenge);

    let Admit::Verify(wrong) = admission.admit(&with(b"Basic Ym9iOndyb25n")) else { panic!() };
    assert!(matches!(wrong.run().await, Admit::Challenge(_)));
    let right = with(b"Basic Ym9iOnMzY3JldA==");
    let Admit::Verify(verification) = admission.admit(&right) else { panic!() };
    assert!(matches!(verification.run().await, Admit::Continue));
    assert_eq!(decided(&admission, &right), "continue", "it is known now");
    assert_eq!(decided(&admission, &with(b"Basic Ym9iOndyb25n")), "verify", "another one is not");

    assert_eq!(login, Login::new("the \"realm\"", "bob", hash.clone(), Ways::All));
    assert_ne!(login, Login::new("the \"realm\"", "eve", hash, Ways::All));
}

#[test]
fn a_login_that_cannot_be_read_lets_nobody_in() {
    let admission = Admission { login: Some(Login::nobody(Ways::All)), ..Admission::default() };
    let any = RequestFacts { authorization: Some(b"Basic Ym9iOnMzY3JldA=="), ..facts("/") };
    assert_eq!(decided(&admission, &any), "401 Basic realm=\"restricted\"");
}
