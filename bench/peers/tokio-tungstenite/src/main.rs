//! Echo and fan-out on tokio-tungstenite: one thread, messages that are there are answered in one write.

use std::error::Error;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::broadcast::{self, error::TryRecvError};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MESSAGE_BYTES_MAX: usize = 16 << 20;
const BACKLOG: u32 = 4096;
/// By default it is 128 KiB, which every read zeroes first and every connection keeps.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// Publications a subscriber may lag behind before it loses some.
const LAG_MAX: usize = 4096;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, port, mode] = arguments.as_slice() else {
        return Err("usage: server PORT echo|fanout".into());
    };
    let listener = listen(port.parse()?)?;
    let topic = broadcast::Sender::new(LAG_MAX);
    loop {
        let (stream, _) = listener.accept().await?;
        if mode == "fanout" {
            tokio::spawn(fan_out(stream, topic.clone()).map(drop));
        } else {
            tokio::spawn(echo(stream).map(drop));
        }
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    Ok(socket.listen(BACKLOG)?)
}

async fn accept(stream: TcpStream) -> Result<WebSocketStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    Ok(accept_async_with_config(stream, Some(config)).await?)
}

async fn echo(stream: TcpStream) -> Result<()> {
    let mut socket = accept(stream).await?;
    while let Some(first) = socket.next().await {
        let mut message = first?;
        loop {
            if message.is_text() || message.is_binary() {
                socket.feed(message).await?;
            }
            match socket.next().now_or_never() {
                Some(Some(next)) => message = next?,
                Some(None) => return Ok(()),
                None => break,
            }
        }
        socket.flush().await?;
    }
    Ok(())
}

async fn fan_out(stream: TcpStream, topic: broadcast::Sender<Message>) -> Result<()> {
    let mut subscription = topic.subscribe();
    let (mut sink, mut source) = accept(stream).await?.split();
    loop {
        tokio::select! {
            message = source.next() => {
                let Some(message) = message.transpose()? else {
                    return Ok(());
                };
                if message.is_text() || message.is_binary() {
                    let _ = topic.send(message);
                }
            }
            published = subscription.recv() => {
                sink.feed(published?).await?;
                loop {
                    match subscription.try_recv() {
                        Ok(published) => sink.feed(published).await?,
                        Err(TryRecvError::Empty) => break,
                        Err(error) => return Err(error.into()),
                    }
                }
                sink.flush().await?;
            }
        }
    }
}
