//! Looking at the first bytes of a connection without taking them.
//!
//! What they mean is for the caller to say; nothing is read off the socket here.

use std::io::{self, ErrorKind};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Waits until there are more than `n_known` bytes and looks at them; `n_known` or fewer: no more will come. The caller
/// limits the time.
pub(crate) async fn beyond(stream: &TcpStream, n_known: usize, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let has_ended = stream.ready(Interest::READABLE).await?.is_read_closed();
        let n = stream.peek(buffer).await?;
        if n > n_known || n == 0 || has_ended || n == buffer.len() {
            return Ok(n);
        }
        // The socket stays readable while these bytes lie there. To have found nothing new is what clears the
        // readiness; the next bytes set it again.
        let _: io::Result<()> = stream.try_io(Interest::READABLE, || Err(ErrorKind::WouldBlock.into()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn it_waits_for_more_and_sees_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 8];
        client.write_all(b"ab").await.unwrap();
        assert_eq!(beyond(&server, 0, &mut buffer).await.unwrap(), 2);
        let none = tokio::time::timeout(Duration::from_millis(50), beyond(&server, 2, &mut buffer)).await;
        assert!(none.is_err(), "nothing new came");
        client.write_all(b"c").await.unwrap();
        assert_eq!(beyond(&server, 2, &mut buffer).await.unwrap(), 3);
        client.shutdown().await.unwrap();
        assert_eq!(beyond(&server, 3, &mut buffer).await.unwrap(), 3, "no more will come");
        let mut left = Vec::new();
        server.read_to_end(&mut left).await.unwrap();
        assert_eq!(left, b"abc");
    }
}
