//! `waymark exec`: a command inside the cluster, with the names of the cluster.

use tests::waymark::Waymark;

use crate::{APP, PROGRAM, VIP_NAME};

#[tokio::test]
async fn curl_reaches_the_vip_by_its_name() -> anyhow::Result<()> {
    // SAFETY: geteuid(2) has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("SKIPPED: waymark exec needs root");
        return Ok(());
    }
    let turn = std::process::id();
    let dns = format!("127.{}.{}.53:53", 32 | (turn >> 8) & 0x1f, turn & 0xff);
    let waymark = Waymark::dev(PROGRAM, &["--dns-listen", &dns]).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let url = format!("{VIP_NAME}:10000");
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..6 {
        answers
            .insert(waymark.ok(&["exec", "--", "curl", "--silent", "--show-error", "--fail", &url]).await?);
    }
    assert_eq!(answers.len(), 2, "{answers:?}");
    let output = waymark.run(&["exec", "--", "sh", "-c", "cat /etc/resolv.conf; exit 7"]).await?;
    assert_eq!(output.code, Some(7), "the exit status is the command's");
    assert!(output.stdout.contains(dns.trim_end_matches(":53")), "{}", output.stdout);
    let outside = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert!(!outside.contains(dns.trim_end_matches(":53")), "nothing outside has changed");
    Ok(())
}
