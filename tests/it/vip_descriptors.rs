//! More connections than there are file descriptors: those that are open go on, the stats page answers, and when some
//! end new ones come in.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{PROGRAM, VIP_NAME};

const DEADLINE: Duration = Duration::from_secs(10);
const N_CONNECTIONS: usize = 400;

async fn exchange(connection: &mut TcpStream) -> std::io::Result<()> {
    connection.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let mut buffer = [0; 4096];
    match tokio::time::timeout(DEADLINE, connection.read(&mut buffer)).await?? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

async fn open(vip: SocketAddr) -> std::io::Result<TcpStream> {
    let mut connection = TcpStream::connect(vip).await?;
    exchange(&mut connection).await?;
    Ok(connection)
}

/// Until there is an answer.
async fn open_in_time(vip: SocketAddr) -> anyhow::Result<TcpStream> {
    let opened = async {
        loop {
            match open(vip).await {
                Ok(connection) => return connection,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    Ok(tokio::time::timeout(DEADLINE, opened).await?)
}

#[tokio::test]
async fn running_out_of_descriptors_costs_only_what_does_not_fit() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let program = scratch.path().join("limited");
    std::fs::write(&program, format!("#!/bin/sh\nulimit -n 256\nexec '{PROGRAM}' \"$@\"\n"))?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let program = program.to_str().expect("a temporary directory has a plain name");
    let waymark = Waymark::dev(program, &["--workers", "1"]).await?;
    let vip: std::net::IpAddr = waymark.ok(&["dns", "lookup", "--short", VIP_NAME]).await?.trim().parse()?;
    let vip = SocketAddr::new(vip, 10000);

    // The demo app may not listen yet.
    let mut kept = vec![open_in_time(vip).await?];
    let mut n_refused = 0;
    for _ in 0..N_CONNECTIONS {
        match open(vip).await {
            Ok(connection) => kept.push(connection),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::ConnectionReset, "refused at once, not left waiting");
                n_refused += 1;
            }
        }
    }
    assert!(n_refused > 0 && kept.len() > 20, "{} of {N_CONNECTIONS} fit", kept.len());
    for connection in &mut kept {
        exchange(connection).await?;
    }
    let metrics = waymark.stats("/metrics").await?.text();
    let counted = format!("waymark_vip_refused_for_descriptors_total {n_refused}");
    assert!(metrics.lines().any(|line| line == counted), "{counted} is not in\n{metrics}");

    kept.truncate(kept.len() / 2);
    open_in_time(vip).await?;
    for connection in &mut kept {
        exchange(connection).await?;
    }
    Ok(())
}
