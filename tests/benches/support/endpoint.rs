//! An HTTP/1.1 endpoint behind the proxies that are compared, on a thread of this process.
//!
//! It answers as fast as it can and checks nothing.

use std::io;
use std::net::SocketAddr;
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A port of 127.0.0.1 that nobody listens on now.
pub fn free_address() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Answers every request as fast as it can.
pub fn spawn_endpoint() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        let serve = async {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(answer(stream));
            }
        };
        let ended: io::Result<()> = runtime.block_on(serve);
        println!("the endpoint failed: {ended:?}");
        std::process::exit(1);
    });
    Ok(address)
}

/// The path says how long the response is to be.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(80 << 10);
    let mut response = Vec::new();
    loop {
        buffer.clear();
        let head_end = loop {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
        let number = |text: Option<&str>| text.and_then(|t| t.trim().parse::<usize>().ok()).unwrap_or(0);
        let mut lines = head.lines();
        let n = number(lines.next().and_then(|l| l.split(' ').nth(1)?.strip_prefix('/')));
        let field =
            lines.find_map(|l| l.strip_prefix("Content-Length: ").or(l.strip_prefix("content-length: ")));
        let mut left = number(field).saturating_sub(buffer.len() - head_end);
        while left > 0 {
            buffer.clear();
            let n = stream.read_buf(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            left = left.saturating_sub(n);
        }
        response.clear();
        response.extend_from_slice(
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {n}\r\n\r\n").as_bytes(),
        );
        response.resize(response.len() + n, b'x');
        stream.write_all(&response).await?;
    }
}
