//! An HTTP server that answers with what it was asked: its own port, the request line and the headers.
//!
//! It understands requests without a body and nothing finer.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Backend {
    /// `extra`: whole header lines of every response, without their line end.
    pub async fn start(extra: &'static [&'static str]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, address.port(), extra));
            }
        });
        Ok(Self { address, accepting })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, port: u16, extra: &[&str]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        loop {
            let begin = head.len();
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
            if head.len() - begin <= 2 {
                break;
            }
        }
        let body = format!("{port}\n{}", head.replace("\r\n", "\n").to_ascii_lowercase());
        let extra: String = extra.iter().map(|line| format!("{line}\r\n")).collect();
        let answer = format!("HTTP/1.1 200 OK\r\n{extra}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}
