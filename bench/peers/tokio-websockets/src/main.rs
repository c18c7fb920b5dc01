//! Echo on tokio-websockets: one thread, messages that are there are answered in one write.

use std::error::Error;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_websockets::{Limits, ServerBuilder};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MESSAGE_BYTES_MAX: usize = 16 << 20;
const BACKLOG: u32 = 4096;
/// Messages that are answered together at most, so that a flood does not pile up.
const MESSAGES_AT_ONCE_MAX: usize = 64;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, port, _] = arguments.as_slice() else {
        return Err("usage: server PORT echo".into());
    };
    let port: u16 = port.parse()?;
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(serve(port))
}

async fn serve(port: u16) -> Result<()> {
    let listener = listen(port)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo(stream).map(drop));
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    Ok(socket.listen(BACKLOG)?)
}

async fn echo(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let limits = Limits::default().max_payload_len(Some(MESSAGE_BYTES_MAX));
    let (_, mut socket) = ServerBuilder::new().limits(limits).accept(stream).await?;
    let mut messages = Vec::new();
    while let Some(first) = socket.next().await {
        messages.push(first?);
        // A read sends what is queued, so all that is there is read before the first of it is answered. What
        // came right before a close goes unanswered.
        while messages.len() < MESSAGES_AT_ONCE_MAX
            && let Some(Some(next)) = socket.next().now_or_never()
        {
            messages.push(next?);
        }
        for message in messages.drain(..) {
            if message.is_text() || message.is_binary() {
                socket.feed(message).await?;
            }
        }
        socket.flush().await?;
    }
    Ok(())
}
