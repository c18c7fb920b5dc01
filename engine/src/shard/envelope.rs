//! What travels between shards, and into a shard from other threads.

use std::{any::Any, fmt, sync::Arc};

use super::{Connection, ConnectionId, Handler, PreparedMessage, registry::TopicInterest};
use crate::{buffer::SharedFrame, connection::SendStatus, mesh::Weight, protocol::CloseCode};

/// A publication, or several in a row by one shard to one topic: frames encoded once for everybody.
#[derive(Clone, Debug)]
pub struct Publication {
    pub(super) topic: Arc<TopicInterest>,
    pub(super) frames: Arc<Vec<u8>>,
    /// How many frames there are.
    pub(super) count: u32,
    /// The connections that published some of them and do not get those, by the range of bytes.
    pub(super) own: Option<Arc<[OwnFrame]>>,
    /// Where the topic conflates: what newer publications replace this one by.
    pub(super) key: u64,
}

impl Publication {
    /// A publication from outside any shard.
    /// Whether the topic conflates is for the receiving shard to say.
    #[must_use]
    pub fn foreign(topic: &Arc<TopicInterest>, message: PreparedMessage, key: u64) -> Self {
        let frames = message.into_frame().into();
        Self { topic: Arc::clone(topic), frames, count: 1, own: None, key }
    }
}

/// A frame of a publication that is not for its publisher.
#[derive(Clone, Debug)]
pub(super) struct OwnFrame {
    pub(super) publisher: ConnectionId,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What is sent to a shard.
pub(crate) enum Envelope {
    /// Deliver to the local subscribers.
    Publish(Publication),
    /// Send to one connection.
    Send { id: ConnectionId, frame: SharedFrame, reply: Reply<Result<SendStatus, Gone>> },
    /// Close one connection.
    Close { id: ConnectionId, code: CloseCode, reason: Box<str>, reply: Reply<Result<(), Gone>> },
    /// Run on the shard's thread with its handler.
    Run(Action),
    /// Run there with one connection as well: an [`Errand`] to the shard's type of handler.
    Reach { id: ConnectionId, errand: Box<dyn Any + Send> },
}

impl Weight for Envelope {
    fn bytes(&self) -> usize {
        match self {
            Self::Publish(publication) => publication.frames.len(),
            Self::Send { frame, .. } => frame.bytes().len(),
            Self::Close { reason, .. } => reason.len(),
            Self::Run(_) | Self::Reach { .. } => 0,
        }
    }
}

/// What is to be done with a shard's handler.
pub(crate) type Action = Box<dyn FnOnce(&mut dyn Any) + Send>;

/// What is to be done with a connection and its shard's handler, or in their absence. The answer is given
/// when what was asked for is in effect.
pub(crate) type Errand<H> = Box<dyn FnOnce(Reached<'_, '_, H>) -> Box<dyn FnOnce()> + Send>;

/// A connection that an errand was sent to, with the handler of its shard.
pub(crate) type Reached<'a, 'b, H> =
    Result<(&'a mut H, &'a mut Connection<'b, <H as Handler>::Session>), Gone>;

/// Where an answer goes; nobody may be waiting.
pub(crate) type Reply<T> = Option<oneshot::Sender<T>>;

/// The connection has ended, or its id is of another engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is gone")]
pub struct Gone;

impl fmt::Debug for Envelope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publish(publication) => write!(formatter, "Publish({})", publication.topic.name()),
            Self::Send { id, .. } => write!(formatter, "Send({id})"),
            Self::Close { id, .. } => write!(formatter, "Close({id})"),
            Self::Run(_) => formatter.write_str("Run"),
            Self::Reach { id, .. } => write!(formatter, "Reach({id})"),
        }
    }
}
