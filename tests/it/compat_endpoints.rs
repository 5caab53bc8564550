//! Programs that parse what Marathon-LB's endpoints answer: HAProxy's exporter, and Python programs that read the CSV.

use std::process::Stdio;

use serde_json::json;
use tests::client::{self, DEADLINE};
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::process::Command;

use crate::PROGRAM;

const EXPORTER: &str = "/usr/bin/prometheus-haproxy-exporter";

/// Reads the CSV as zdd.py does: names of columns become attributes, a quote is an apostrophe, the last field is cut.
const CSV_CLIENT: &str = r#"
import csv, sys
from collections import namedtuple
rows = sys.stdin.read().splitlines()
headings = rows.pop(0).lstrip('# ').rstrip(',\n').split(',')
Row = namedtuple('Row', headings)
rows = [Row(*row[0:-1]) for row in csv.reader(rows, delimiter=',', quotechar="'") if row[0][0] != '#']
print(sorted((r.pxname, r.svname, r.status) for r in rows if r.pxname == 'shop_25000'))
"#;

async fn serve() -> anyhow::Result<(ScriptedScheduler, Waymark)> {
    let scheduler = ScriptedScheduler::start().await?;
    let instance = ScriptedInstance { task_id: "shop.1".to_owned(), port: 31999 };
    let labels = json!({"HAPROXY_0_VHOST": "shop.test,www.shop.test", "HAPROXY_0_STICKY": "true"});
    scheduler.set_app("/shop", 25000, labels, &[instance]);
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &[]).await?;
    Ok((scheduler, waymark))
}

#[tokio::test]
async fn python_programs_read_the_csv() -> anyhow::Result<()> {
    let (_scheduler, waymark) = serve().await?;
    let file = waymark.scratch().join("stats.csv");
    std::fs::write(&file, waymark.stats("/haproxy?stats;csv").await?.text())?;
    let read = Command::new("python3")
        .args(["-c", CSV_CLIENT])
        .stdin(std::fs::File::open(&file)?)
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(DEADLINE, read).await? {
        Ok(output) => output,
        Err(error) => return skip("python3", &error),
    };
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "[('shop_25000', '127_0_0_1_31999', 'no check'), ('shop_25000', 'BACKEND', 'UP'), \
         ('shop_25000', 'FRONTEND', 'OPEN')]",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test]
async fn the_exporter_of_haproxy_reads_the_csv() -> anyhow::Result<()> {
    let (_scheduler, waymark) = serve().await?;
    // Found free and given up: nobody else on this machine asks for fixed ports in 127.0.0.0/8.
    let listen = std::net::TcpListener::bind((waymark.service_address, 0))?.local_addr()?;
    let spawned = Command::new(EXPORTER)
        .arg(format!("--haproxy.scrape-uri=http://{}/haproxy?stats;csv", waymark.address("stats")))
        .arg(format!("--web.listen-address={listen}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let _exporter = match spawned {
        Ok(exporter) => exporter,
        Err(error) => return skip(EXPORTER, &error),
    };
    let scrape = async {
        loop {
            match client::get(listen, "/metrics").await {
                Ok(answer) if answer.status == 200 => return answer.text(),
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    };
    let metrics = tokio::time::timeout(DEADLINE, scrape).await?;
    for line in [
        "haproxy_up 1",
        "haproxy_exporter_csv_parse_failures_total 0",
        "haproxy_backend_up{backend=\"shop_25000\"} 1",
        "haproxy_server_up{backend=\"shop_25000\",server=\"127_0_0_1_31999\"} 1",
        "haproxy_frontend_requests_denied_total{frontend=\"shop_25000\"} 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    Ok(())
}

#[tokio::test]
async fn the_other_endpoints_answer_as_marathon_lb() -> anyhow::Result<()> {
    let (scheduler, waymark) = serve().await?;
    for (path, body) in [
        ("/_haproxy_getvhostmap", "shop.test shop_25000\nwww.shop.test shop_25000\n".to_owned()),
        ("/_haproxy_getappmap", "/shop shop_25000\n".to_owned()),
        ("/_haproxy_getpids", format!("{}\n", waymark.pid().unwrap_or_default())),
        (
            "/_haproxy_health_check",
            "<html><body><h1>200 OK</h1>\nService ready.\n</body></html>\n".to_owned(),
        ),
    ] {
        assert_eq!(waymark.stats(path).await?.text(), body, "{path}");
    }
    assert!(waymark.stats("/_haproxy_getconfig").await?.text().contains("[http]"));
    assert_eq!(waymark.stats("/_mlb_signal/hup").await?.status, 405, "a GET changes nothing");

    // Nobody tells of this change: it is found because the signal asks for everything to be read anew.
    scheduler.set_app("/silent", 25001, json!({"HAPROXY_0_MODE": "http"}), &[]);
    let posted = client::Connection::open(waymark.address("stats"))
        .await?
        .request("POST", "/_mlb_signal/hup", &["Content-Length: 0"], b"")
        .await?;
    assert_eq!((posted.status, posted.text().as_str()), (200, "Sent SIGHUP signal to marathon-lb"));
    waymark
        .until("/_haproxy_getappmap", "the new app", |map| map.text().contains("/silent silent_25001"))
        .await?;
    Ok(())
}

/// Without the peer there is nothing to test; on the build server it must be there.
fn skip(program: &str, error: &std::io::Error) -> anyhow::Result<()> {
    anyhow::ensure!(std::env::var_os("CI").is_none(), "cannot run {program}: {error}");
    eprintln!("SKIPPED: cannot run {program}: {error}");
    Ok(())
}
