//! Connections of clients that take too long.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::Connected;

/// No request is shorter, and no HTTP/2 preface: with so many bytes the protocol is known, and its
/// own time limits apply.
const FIRST_BYTES: usize = 24;

/// A connection that breaks if its first bytes do not come in time, or if what is written to it
/// is not taken for as long.
#[derive(Debug)]
pub struct Patient<IO> {
    connection: IO,
    patience: Duration,
    /// Bytes that are still missing.
    missing: usize,
    waiting: Pin<Box<Sleep>>,
    /// Whether a write waits.
    stuck: bool,
}

impl<IO> Patient<IO> {
    /// Gives a new connection so much time.
    pub fn new(connection: IO, patience: Duration) -> Self {
        Self {
            connection,
            patience,
            missing: FIRST_BYTES,
            waiting: Box::pin(sleep(patience)),
            stuck: false,
        }
    }

    /// The error of a connection whose time is up.
    fn overdue(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.waiting
            .as_mut()
            .poll(context)
            .map(|()| io::ErrorKind::TimedOut.into())
    }

    /// What came of a write; one that waits, waits no longer than allowed.
    fn written<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            // Whoever is answered has made a request.
            self.missing = 0;
            self.stuck = false;
            return written;
        }
        if !self.stuck {
            self.stuck = true;
            self.missing = 0;
            let until = Instant::now() + self.patience;
            self.waiting.as_mut().reset(until);
        }
        self.overdue(context).map(Err)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Patient<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.connection).poll_read(context, buffer) {
            Poll::Ready(read) => {
                let read_now = buffer.filled().len() - before;
                self.missing = self.missing.saturating_sub(read_now);
                Poll::Ready(read)
            }
            Poll::Pending if self.missing == 0 => Poll::Pending,
            Poll::Pending => Poll::Ready(Err(ready!(self.overdue(context)))),
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Patient<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, pieces);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

impl<IO: Connected> Connected for Patient<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.connection.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_client_that_says_nothing_is_left() {
        let (mut client, server) = duplex(64);
        let mut server = Patient::new(server, PATIENCE);
        client.write_all(&[0; FIRST_BYTES - 1]).await.expect("sent");
        let mut bytes = vec![];
        let error = server.read_to_end(&mut bytes).await.expect_err("too slow");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(bytes.len(), FIRST_BYTES - 1);
    }

    #[tokio::test]
    async fn a_client_that_has_begun_may_pause() {
        let (mut client, server) = duplex(64);
        let mut server = Patient::new(server, PATIENCE);
        client.write_all(&[0; FIRST_BYTES]).await.expect("sent");
        let later = async {
            sleep(2 * PATIENCE).await;
            client.write_all(&[0; 1]).await.expect("sent");
        };
        let mut bytes = [0; FIRST_BYTES + 1];
        let (read, ()) = tokio::join!(server.read_exact(&mut bytes), later);
        assert_eq!(read.expect("read"), FIRST_BYTES + 1);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_left() {
        let (mut client, server) = duplex(64);
        let mut server = Patient::new(server, PATIENCE);
        server.write_all(&[0; 64]).await.expect("there is room");
        client.read_exact(&mut [0; 32]).await.expect("read");
        let error = server.write_all(&[0; 64]).await.expect_err("not taken");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
