//! The stats page as a browser shows it: scripts run under the policy, figures move, nothing complains.

use tests::browser::Browser;
use tests::client;
use tests::waymark::Waymark;

use crate::{APP, PROGRAM};

#[tokio::test]
async fn the_page_moves_while_one_looks() -> anyhow::Result<()> {
    let Some(mut browser) = Browser::start()? else {
        assert!(std::env::var_os("CI").is_none(), "chromium is not installed");
        eprintln!("SKIPPED: chromium is not installed");
        return Ok(());
    };
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    browser.open(&format!("http://{}/", waymark.address("stats"))).await?;
    browser.until(&format!("document.body.innerText.includes({APP:?})")).await?;
    let before = browser.evaluate("document.body.innerText").await?;
    for _ in 0..7 {
        client::get(waymark.service(10000), "/").await?;
    }
    browser.until(&format!("document.body.innerText !== {before}")).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let answer = client::get(waymark.address("scheduler"), &format!("/v2/apps{APP}/tasks")).await?.json()?;
    for task in answer["tasks"].as_array().into_iter().flatten() {
        let id = task["id"].as_str().unwrap_or_default();
        browser.until(&format!("document.documentElement.outerHTML.includes({id:?})")).await?;
    }
    assert!(browser.complaints().is_empty(), "{:?}", browser.complaints());

    browser.open(&format!("http://{}/haproxy?stats", waymark.address("stats"))).await?;
    browser.until("document.body.innerText.includes('dcos-101_app2_10000')").await?;
    assert!(browser.complaints().is_empty(), "{:?}", browser.complaints());
    Ok(())
}
