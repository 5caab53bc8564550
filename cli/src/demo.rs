//! The demo app, `/dcos-101/app2`: an HTTP server that says which instance answered, as in the DC/OS tutorial.
//! It runs as an instance like any other program, so it takes everything from its environment.
//!
//! Not here: the scheduler that runs it. `demo_app_definition` is only what a user would post.

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Requests in flight may take this long after SIGTERM; well below the scheduler's grace period.
const FINISH_WITHIN: Duration = Duration::from_millis(900);

/// Longest pause that `/slow` makes.
const SLOWEST: Duration = Duration::from_secs(60);

const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The tutorial's app as one posts it, running `exe` with the subcommand `demo-app`.
pub fn demo_app_definition(exe: &Path) -> Value {
    json!({
        "id": "/dcos-101/app2",
        "args": [exe.to_string_lossy(), "demo-app"],
        "instances": 1,
        "cpus": 0.1,
        "mem": 32,
        "portDefinitions": [{"port": 10000, "protocol": "tcp", "name": "http",
            "labels": {"VIP_0": "/dcos-101/app2:10000"}}],
        "labels": {"HAPROXY_GROUP": "external", "HAPROXY_0_MODE": "http", "HAPROXY_0_VHOST": "app2.localhost"},
    })
}

/// Who answers, from the environment of a task.
#[derive(Debug)]
struct Identity {
    host: String,
    port: u16,
    instance: String,
}

/// Serves until SIGTERM or SIGINT. Errors: a bad `HOST` or `PORT0`, or an address that is taken.
pub fn run() -> anyhow::Result<()> {
    let host = std::env::var("HOST").unwrap_or_else(|_| "127.0.0.1".into());
    let port = std::env::var("PORT0").or_else(|_| std::env::var("PORT")).unwrap_or_else(|_| "0".into());
    let address: IpAddr = host.parse().map_err(|_| anyhow::anyhow!("HOST is not an address: {host}"))?;
    let port: u16 = port.parse().map_err(|_| anyhow::anyhow!("PORT0 is not a port: {port}"))?;
    let instance = std::env::var("MESOS_TASK_ID").unwrap_or_else(|_| "none".into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((address, port)).await?;
        let port = listener.local_addr()?.port();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            stopping.cancel();
        });
        serve(listener, Identity { host, port, instance }, stop).await;
        Ok(())
    })
}

async fn serve(listener: TcpListener, identity: Identity, stop: CancellationToken) {
    let identity = Arc::new(identity);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, identity.clone(), stop.clone()));
                }
                // Out of descriptors, or a client that has gone again: the next one may do better.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    // Connections that were accepted by the kernel but not by us belong to requests that were sent before
    // the listener closes; they are served too.
    while let Ok(Ok((stream, _))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        connections.spawn(converse(stream, identity.clone(), stop.clone()));
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FINISH_WITHIN, all).await;
}

async fn converse(stream: TcpStream, identity: Arc<Identity>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request| {
        let identity = identity.clone();
        async move { Ok::<_, Infallible>(respond(&request, &identity).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn respond(request: &Request<Incoming>, identity: &Identity) -> Response<Full<Bytes>> {
    let Identity { host, port, instance } = identity;
    match request.uri().path() {
        "/" => {}
        "/health" => return answer(StatusCode::OK, "text/plain", "ok\n".into()),
        "/slow" => {
            let query = request.uri().query().unwrap_or_default();
            let ms = query.strip_prefix("ms=").and_then(|ms| ms.parse().ok()).unwrap_or(1000);
            tokio::time::sleep(Duration::from_millis(ms).min(SLOWEST)).await;
        }
        _ => return answer(StatusCode::NOT_FOUND, "text/plain", "not found\n".into()),
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") {
        // Nothing here comes from the request, and task ids have no special characters.
        let page = format!(
            "<!doctype html><meta charset=\"utf-8\"><title>app2</title><h1>app2</h1>\
             <p>Host <b>{host}</b>, port <b>{port}</b>, instance <b>{instance}</b></p>\n"
        );
        return answer(StatusCode::OK, "text/html; charset=utf-8", page);
    }
    answer(StatusCode::OK, "text/plain", format!("app2 on {host}:{port}, instance {instance}\n"))
}

fn answer(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
