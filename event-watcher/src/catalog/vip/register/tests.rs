//! The rules of the table, and that it is the same however it came about.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::catalog::VipLabel;

/// An app with one TCP VIP, and the families of its endpoints.
fn claims(app: &str, label: &str, families: &[Family]) -> (AppId, Claims) {
    let key = VipLabel::parse(label, "marathon").unwrap().for_protocol(Protocol::Tcp);
    let id = AppId::new(app);
    let service = ServiceId { app: id.clone(), port_index: 0 };
    let services = vec![(service, vec![key], families.iter().copied().collect())];
    (id, Claims { services, agents: BTreeSet::new() })
}

fn registered(claims: &[(AppId, Claims)], pools: &[VipPool], reserved: &[Reserved]) -> Register {
    let mut register = Register::new(pools.to_vec());
    register.reserve(reserved.to_vec());
    let mut touched = BTreeSet::new();
    claims.iter().for_each(|(app, claims)| register.claim(app, claims.clone(), &mut touched));
    register.settle(touched);
    register
}

fn allocate(claims: &[(AppId, Claims)], pools: &[&str]) -> (Vec<String>, Vec<String>) {
    let pools: Vec<VipPool> = pools.iter().map(|pool| pool.parse().unwrap()).collect();
    let reserved = [
        ("10.0.0.1", "an address of this host"),
        ("198.51.100.1", "where Waymark's DNS listens"),
        ("11.9.179.74", "an address of this host"),
    ];
    let reserved = reserved.map(|(ip, what)| Reserved { address: ip.parse().unwrap(), what: what.into() });
    let register = registered(claims, &pools, &reserved);
    let vips = register.vips.iter().map(|vip| {
        let services: Vec<String> = vip.services.iter().map(ToString::to_string).collect();
        format!("{}:{} {:?} {}", vip.key.target, vip.key.port, vip.addresses, services.join(" "))
    });
    (vips.collect(), register.problems().map(ToString::to_string).collect())
}

#[test]
fn families_follow_the_endpoints() {
    use Family::{Ipv4, Ipv6};
    const V4: &str = "11.202.66.36";
    const V6: &str = "fd01:c::da94:49ac:1e87:4a07";
    for (families, expect) in [
        (&[][..], format!("[{V4}]")),
        (&[Ipv4], format!("[{V4}]")),
        (&[Ipv6], format!("[{V6}]")),
        (&[Ipv4, Ipv6], format!("[{V4}, {V6}]")),
    ] {
        let (vips, problems) =
            allocate(&[claims("/a", "redis:80", families)], &["11.0.0.0/8", "fd01:c::/64"]);
        assert_eq!(vips, [format!("redis.marathon:80 {expect} /a#0")]);
        assert!(problems.is_empty(), "{problems:?}");
    }
    let (vips, problems) = allocate(&[claims("/a", "redis:80", &[Ipv6])], &["11.0.0.0/8"]);
    assert_eq!(vips, ["redis.marathon:80 [] /a#0"], "the name stays");
    assert!(problems[0].contains("only IPv6") && problems[0].contains("--vip-pool"), "{problems:?}");
}

#[test]
fn a_vip_may_have_several_apps_and_needs_no_instance() {
    let apps = [
        claims("/a", "redis:80", &[Family::Ipv4]),
        claims("/b", "/REDIS:80", &[]),
        claims("/c", "redis:81", &[]),
    ];
    let (vips, problems) = allocate(&apps, &["11.0.0.0/8"]);
    let expect = ["redis.marathon:80 [11.202.66.36] /a#0 /b#0", "redis.marathon:81 [11.202.66.36] /c#0"];
    assert_eq!(vips, expect);
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn what_would_shadow_something_is_refused_with_the_reason() {
    use Family::{Ipv4, Ipv6};
    let mut elsewhere = claims("/elsewhere", "elsewhere:80", &[Ipv4]);
    elsewhere.1.agents = ["10.0.0.2".parse().unwrap()].into();
    for (label, families, reason) in [
        ("10.0.0.1:80", &[Ipv4], "an address of this host"),
        ("198.51.100.1:53", &[Ipv4], "DNS"),
        ("10.0.0.2:80", &[Ipv4], "an agent"),
        ("127.0.0.1:80", &[Ipv4], "loopback"),
        ("[::1]:80", &[Ipv6], "loopback"),
        ("[fd01:c::5]:80", &[Ipv4], "only IPv4"),
        ("10.0.0.9:80", &[Ipv6], "only IPv6"),
    ] {
        let apps = [elsewhere.clone(), claims("/a", label, families)];
        let (vips, problems) = allocate(&apps, &["11.0.0.0/8"]);
        assert_eq!(vips.len(), 1, "{label}: {vips:?}");
        assert_eq!(problems.len(), 1, "{label}: {problems:?}");
        assert!(problems[0].starts_with("/a: VIP ") && problems[0].contains(reason), "{label}: {problems:?}");
    }
    let (vips, problems) = allocate(&[claims("/a", "127.11.0.9:80", &[Ipv4])], &["127.11.0.0/16"]);
    assert_eq!((vips.len(), problems.len()), (1, 0), "loopback inside the pool");

    let (vips, problems) = allocate(&[claims("/acme", "acme:80", &[Ipv4])], &["11.0.0.0/8"]);
    assert_eq!(vips, ["acme.marathon:80 [] /acme#0"], "a name whose address is this host's");
    assert!(problems[0].contains("an address of this host"), "{problems:?}");
}

#[test]
fn tables_differ_by_what_changed() {
    let label = |i: u32, port: u16| claims(&format!("/a{i}"), &format!("a{i}:{port}"), &[Family::Ipv4]);
    let all: Vec<(AppId, Claims)> = (0..300).map(|i| label(i, 80)).collect();
    let mut register = registered(&all, &["11.0.0.0/8".parse().unwrap()], &[]);
    let first = Arc::clone(register.vips());
    let mut touched = BTreeSet::new();
    for (app, claims) in [label(7, 81), (AppId::new("/a100"), Claims::default()), label(300, 80)] {
        register.claim(&app, claims, &mut touched);
    }
    assert_eq!(touched.len(), 3, "{touched:?}");
    register.settle(touched);
    let second = Arc::clone(register.vips());
    let told = |keys: &mut dyn Iterator<Item = &VipKey>| {
        keys.map(|key| format!("{}:{}", key.target, key.port)).collect::<Vec<_>>()
    };
    let expect =
        ["a100.marathon:80", "a300.marathon:80", "a7.marathon:80", "a7.marathon:81"].map(String::from);
    assert_eq!(told(&mut second.changed_since(&first)), expect);
    let VipTarget::Named(name) = &first.iter().next().unwrap().key.target else { unreachable!() };
    assert_eq!(told(&mut first.of_name(name).map(|vip| &vip.key)), ["a0.marathon:80"]);

    let mut touched = BTreeSet::new();
    let (app, claims) = label(7, 81);
    register.claim(&app, claims, &mut touched);
    register.settle(touched);
    assert!(Arc::ptr_eq(&second, register.vips()), "nothing changed");
}

#[test]
fn names_keep_off_agents_and_chosen_addresses() {
    let mut agent = claims("/a", "redis:80", &[]);
    agent.1.agents = ["11.202.66.36".parse().unwrap()].into();
    let apps = [agent, claims("/b", "11.202.66.37:80", &[])];
    let (vips, _) = allocate(&apps, &["11.0.0.0/8"]);
    assert_eq!(vips[0], "redis.marathon:80 [11.202.66.38] /a#0");
}

#[test]
fn a_full_pool_is_told() {
    let apps: Vec<_> = (0..7).map(|i| claims(&format!("/{i}"), &format!("n{i}:80"), &[])).collect();
    let (vips, problems) = allocate(&apps, &["127.11.0.0/29"]);
    assert_eq!((vips.len(), problems.len()), (7, 1));
    assert!(problems[0].contains("no address is left"), "{problems:?}");
}

#[test]
fn an_address_of_this_host_that_somebody_chose_is_taken_here_too() {
    let apps = [claims("/a", "acme:80", &[Family::Ipv4]), claims("/b", "11.9.179.74:80", &[Family::Ipv4])];
    let (here, _) = allocate(&apps, &["11.0.0.0/8"]);
    assert_eq!(
        here,
        ["acme.marathon:80 [11.9.179.75] /a#0"],
        "as on the nodes where the other VIP is served"
    );
}

/// The whole table at once, as the rules say it.
fn whole(
    claims: &BTreeMap<AppId, Claims>,
    pools: &[VipPool],
    reserved: &[Reserved],
) -> BTreeMap<VipKey, (Vec<IpAddr>, Vec<ServiceId>)> {
    let agents: BTreeSet<IpAddr> = claims.values().flat_map(|claims| &claims.agents).copied().collect();
    let mut families: BTreeMap<&VipTarget, BTreeSet<Family>> = BTreeMap::new();
    let mut services: BTreeMap<&VipKey, BTreeSet<ServiceId>> = BTreeMap::new();
    for (service, keys, of_service) in claims.values().flat_map(|claims| &claims.services) {
        for key in keys {
            families.entry(&key.target).or_default().extend(of_service);
            services.entry(key).or_default().insert(service.clone());
        }
    }
    let mut taken = agents.clone();
    let mut names: BTreeSet<&VipName> = BTreeSet::new();
    for key in services.keys() {
        match &key.target {
            VipTarget::Ip(ip) => drop(taken.insert(*ip)),
            VipTarget::Named(name) => drop(names.insert(name)),
        }
    }
    let allocations = pools.iter().map(|pool| {
        let mut allocation = Allocation::new(*pool);
        taken.iter().for_each(|ip| allocation.take(*ip));
        names.iter().for_each(|name| allocation.add(name));
        allocation
    });
    let allocations: Vec<Allocation> = allocations.collect();
    let is_reserved = |ip: &IpAddr| reserved.iter().any(|r| r.address == *ip);
    let mut table = BTreeMap::new();
    for (key, services) in services {
        let all: Vec<IpAddr> = match &key.target {
            VipTarget::Ip(ip) if agents.contains(ip) || is_reserved(ip) => continue,
            VipTarget::Ip(ip) => vec![*ip],
            VipTarget::Named(name) => allocations.iter().filter_map(|a| a.address(name)).collect(),
        };
        let mut of_vip = families[&key.target].clone();
        if of_vip.is_empty() {
            of_vip.insert(match key.target {
                VipTarget::Ip(ip) => Family::of(ip),
                VipTarget::Named(_) => before_endpoints(pools),
            });
        }
        let fits = |ip: &IpAddr| of_vip.contains(&Family::of(*ip)) && !is_reserved(ip);
        let addresses: Vec<IpAddr> = all.into_iter().filter(fits).collect();
        if addresses.is_empty() && matches!(key.target, VipTarget::Ip(_)) {
            continue;
        }
        table.insert(key.clone(), (addresses, services.into_iter().collect()));
    }
    table
}

/// An app's VIPs, the families of its endpoints and its agents, in small numbers that meet often.
fn any_claims() -> impl Strategy<Value = (AppId, Claims)> {
    let key = (0_u8..14, any::<bool>(), 80_u16..82).prop_map(|(target, is_tcp, port)| {
        let target = match target {
            0..10 => VipTarget::Named(VipName::new(&format!("app{target}"), "marathon").unwrap()),
            10 => VipTarget::Ip("10.0.0.1".parse().unwrap()),
            ip => VipTarget::Ip(format!("127.11.0.{ip}").parse().unwrap()),
        };
        VipKey { target, protocol: if is_tcp { Protocol::Tcp } else { Protocol::Udp }, port }
    });
    let families = proptest::collection::btree_set(
        any::<bool>().prop_map(|v4| if v4 { Family::Ipv4 } else { Family::Ipv6 }),
        0..3,
    );
    let service = (proptest::collection::vec(key, 1..4), families);
    let agents =
        proptest::collection::btree_set((9_u8..16).prop_map(|ip| IpAddr::from([127, 11, 0, ip])), 0..3);
    (0_u8..8, proptest::collection::vec(service, 0..3), agents).prop_map(|(app, services, agents)| {
        let id = AppId::new(&format!("/{app}"));
        let services = services.into_iter().enumerate().map(|(port_index, (keys, families))| {
            (ServiceId { app: id.clone(), port_index }, keys, families)
        });
        (id.clone(), Claims { services: services.collect(), agents })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Apps come, change and go: after each step the table is the one that is made at once of what is there, so it is
    /// the same on a node that started a moment ago; what is refused is the same, too, and unchanged VIPs are shared.
    #[test]
    fn the_table_is_that_of_the_apps_that_are_there(
        steps in proptest::collection::vec(proptest::collection::vec(any_claims(), 1..3), 1..30),
    ) {
        let pools: Vec<VipPool> = ["127.11.0.0/28", "fd01:c::/125"].map(|pool| pool.parse().unwrap()).into();
        let reserved = ["10.0.0.1", "127.11.0.4"]
            .map(|ip| Reserved { address: ip.parse().unwrap(), what: "an address of this host".into() });
        let mut register = registered(&[], &pools, &reserved);
        let mut held = BTreeMap::new();
        for step in steps {
            let mut touched = BTreeSet::new();
            for (app, claims) in step {
                register.claim(&app, claims.clone(), &mut touched);
                held.insert(app, claims);
            }
            register.settle(touched);
            let got: BTreeMap<_, _> = register
                .vips
                .iter()
                .map(|vip| (vip.key.clone(), (vip.addresses.clone(), vip.services.clone())))
                .collect();
            prop_assert_eq!(&got, &whole(&held, &pools, &reserved));

            let others: Vec<(AppId, Claims)> = held.clone().into_iter().rev().collect();
            let fresh = registered(&others, &pools, &reserved);
            prop_assert_eq!(register.vips(), fresh.vips());
            prop_assert_eq!(register.problems().collect::<Vec<_>>(), fresh.problems().collect::<Vec<_>>());
            prop_assert!([&register.families.len(), &register.taken.len()] == [&fresh.families.len(), &fresh.taken.len()]);
        }
    }
}
