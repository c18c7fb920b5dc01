//! A stream that keeps what is written until its reader finds no more input. Then it leaves in one write.
//!
//! fastwebsockets writes every frame by itself, and its reading may not be abandoned halfway to see whether
//! there is more. But it takes any stream, and this one knows when there is no more.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// From here on a copy costs more than a write of its own.
const DIRECT_BYTES_MIN: usize = 8 << 10;
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Keeps what is written to `stream` until nothing more can be read from it.
pub(crate) struct Corked<S> {
    stream: S,
    kept: Vec<u8>,
    written: usize,
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, kept: Vec::new(), written: 0 }
    }

    fn poll_uncork(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        while self.written < self.kept.len() {
            let unwritten = &self.kept[self.written..];
            self.written += ready!(Pin::new(&mut self.stream).poll_write(context, unwritten))?;
        }
        self.kept.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        // Where the peer takes no more, both directions wake the task.
        if read.is_pending()
            && let Poll::Ready(Err(error)) = self.poll_uncork(context)
        {
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if bytes >= DIRECT_BYTES_MIN || self.kept.len() + bytes > KEPT_BYTES_MAX {
            ready!(self.poll_uncork(context))?;
        }
        if bytes >= DIRECT_BYTES_MIN {
            return Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        }
        for piece in pieces {
            self.kept.extend_from_slice(piece);
        }
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_uncork(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_uncork(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
