//! What a user writes: the handler, the messages it is lent, its answers.

use std::fmt;

use super::{Connection, Upgrade};
use crate::{
    connection::CloseReason,
    protocol::{HttpRequest, HttpResponse, MessageKind, UpgradeRequest},
};

/// A message, lent from the memory it was received into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// UTF-8 text (RFC 6455 section 5.6), checked.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
}

impl<'a> Message<'a> {
    /// The payload.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Text or binary.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Text(_) => MessageKind::Text,
            Self::Binary(_) => MessageKind::Binary,
        }
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Message<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Binary(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Message<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Binary(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Message<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Binary(bytes)
    }
}

/// What a program does with its connections. Every shard has a handler value of its own, made on the shard's
/// thread: it needs neither locks nor `Send`.
///
/// The handler is called with what was received lent to it, and what it does brings about other calls when
/// it has returned: it is never called from within its own calls. A panic in any of these closes the one
/// connection with 1011, before the upgrade with status 500, and is counted; everything else goes on.
pub trait Handler: 'static {
    /// What the program keeps for each connection, stored beside it.
    type Session: 'static;

    /// Decides on an upgrade request that has passed every check of RFC 6455 section 4.2.1.
    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<Self::Session>;

    /// The connection is open; the answer to the upgrade is on its way.
    fn on_open(&mut self, connection: &mut Connection<'_, Self::Session>) {
        let _ = connection;
    }

    /// A message arrived, in full.
    fn on_message(&mut self, connection: &mut Connection<'_, Self::Session>, message: Message<'_>);

    /// The outbox had been above its high mark, or had refused a message, and fell to its low mark:
    /// sending may go on.
    fn on_drain(&mut self, connection: &mut Connection<'_, Self::Session>) {
        let _ = connection;
    }

    /// Messages for this connection were dropped or replaced by newer ones since this was last called:
    /// [`Connection::drops`] has the sums, by reason. Called with the next tick, of 100 ms, however many
    /// there were: the peer may have caught up meanwhile ([`Connection::outbox_bytes`]), or a close may have
    /// begun ([`Connection::is_open`]). Not called any more after `on_close`, which can ask for the sums too.
    fn on_dropped(&mut self, connection: &mut Connection<'_, Self::Session>) {
        let _ = connection;
    }

    /// No more messages will come and none can be sent. Called exactly once for every opened connection.
    fn on_close(&mut self, connection: &mut Connection<'_, Self::Session>, reason: &CloseReason) {
        let _ = (connection, reason);
    }

    /// Whether a connection may subscribe to a topic; asked by [`Connection::subscribe`]. Default: yes.
    fn allows_subscription(session: &Self::Session, topic: &str) -> bool {
        let _ = (session, topic);
        true
    }

    /// Answers an HTTP request that does not ask for an upgrade, such as a health check. The connection is
    /// closed behind the answer.
    fn on_http(&mut self, request: &HttpRequest<'_>) -> HttpResponse {
        let _ = request;
        HttpResponse::upgrade_required()
    }
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => formatter.write_str(text),
            Self::Binary(bytes) => write!(formatter, "{} bytes", bytes.len()),
        }
    }
}
