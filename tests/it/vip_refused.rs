//! VIPs at addresses that are somebody else's: refused with the reason, where people look, and nothing else suffers.

use serde_json::{Value, json};
use tests::client;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;

use crate::PROGRAM;

/// An address of this host that is not loopback, as another program would find it: where packets would be sent from.
fn own_address() -> Option<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

#[tokio::test]
async fn addresses_of_others_are_refused_with_the_reason_and_the_rest_is_served() -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    // Inside the pool, so that nothing else is wrong with it.
    let dns = "127.63.3.1";
    let mut refused = vec![
        (format!("{dns}:53"), "the address of Waymark's DNS server"),
        (format!("{}:80", scheduler.address.ip()), "the scheduler's address"),
        ("127.77.0.1:80".to_owned(), "a loopback address outside the VIP pool"),
        ("224.0.0.1:80".to_owned(), "224.0.0.1 is not a unicast address"),
        ("0.0.0.0:80".to_owned(), "0.0.0.0 is not a unicast address"),
        ("10.255.255.9:80".to_owned(), "the address of an agent"),
        ("nothing".to_owned(), "has no port"),
        ("web:70000".to_owned(), "is not a port between"),
        ("/:80".to_owned(), "has no letter or digit"),
    ];
    if let Some(own) = own_address() {
        refused.push((format!("{own}:80"), "an address of this host"));
    }
    let mut labels = json!({"VIP_good": "127.63.3.9:8080"});
    for (index, (label, _)) in refused.iter().enumerate() {
        labels[format!("VIP_{index}")] = label.as_str().into();
    }
    let instance = ScriptedInstance { task_id: "web.1".to_owned(), port: 31999 };
    let app = json!({
        "id": "/web", "version": "v1", "instances": 1, "networks": [{"mode": "host"}],
        "portDefinitions": [{"port": 0, "protocol": "tcp", "labels": labels}],
        "tasks": [{"id": instance.task_id, "host": "10.255.255.9", "state": "TASK_RUNNING",
                   "ports": [instance.port], "version": "v1"}],
    });
    scheduler.set_definition(app);
    let extra = ["--vip-pool", "127.63.3.0/24", "--dns-listen", &format!("{dns}:0")];
    // A name is looked up, so that its address is known, too.
    let marathon = format!("http://localhost:{}", scheduler.address.port());
    let waymark = Waymark::serve_as(PROGRAM, &marathon, &extra).await?;

    let is_served = |answer: &client::Response| {
        answer.json().is_ok_and(|vips| vips["vips"][0]["served"] == json!(["127.63.3.9"]))
    };
    let vips = waymark.until("/api/vips", "the good one is served", is_served).await?.json()?;
    assert_eq!(vips["vips"].as_array().map(Vec::len), Some(1), "{vips}");
    assert_eq!(vips["vips"][0]["backends"][0]["address"], "10.255.255.9:31999");

    let status: Value = serde_json::from_str(&waymark.ok(&["status", "--json"]).await?)?;
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    let text = waymark.ok(&["status"]).await?;
    let page = waymark.stats("/").await?.text();
    for (label, reason) in &refused {
        let is_told = |what: &str| what.contains(reason);
        assert!(
            problems.iter().any(|p| p["app"] == "/web" && is_told(p["what"].as_str().unwrap_or_default())),
            "{label}: {reason} is not among {problems:#?}"
        );
        assert!(is_told(&text), "waymark status does not say {reason}:\n{text}");
        let escaped = reason.replace('\'', "&#39;");
        assert!(page.contains(reason) || page.contains(&escaped), "the stats page does not say {reason}");
    }
    assert_eq!(problems.len(), refused.len(), "{problems:#?}");
    Ok(())
}
