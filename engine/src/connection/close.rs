//! Why a connection ended.

use crate::protocol::CloseCode;

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// This side: the handler, a limit, a timeout or a stop.
    Local,
    /// The peer sent a close frame first.
    Peer,
    /// The transport was lost without a close frame.
    Transport,
}

/// Why a connection ended; what [`Handler::on_close`](crate::Handler::on_close) is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// The code of the first close frame, whoever sent it. [`CloseCode::NO_STATUS`] when the peer's was first
    /// and carried none, [`CloseCode::ABNORMAL`] when there was no close frame.
    pub code: CloseCode,
    /// The reason given for it, which is cut where it is sent, or words for what went wrong.
    pub reason: Box<str>,
    /// Who ended it.
    pub initiator: Initiator,
}

impl CloseReason {
    pub(crate) fn new(code: CloseCode, reason: &str, initiator: Initiator) -> Self {
        Self { code, reason: reason.into(), initiator }
    }
}
