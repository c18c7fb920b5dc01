//! How an endpoint ends: the close handshake of RFC 6455 section 7, and what cuts it short.
//!
//! Invariant: `ended` is set once, by whatever ended the connection first.

use super::{Endpoint, Phase};
use crate::{
    buffer::CorkPool,
    connection::{CloseReason, Dropped, Initiator, Settings, Timestamp},
    protocol::{CloseCode, ProtocolError, append_close_frame, parse_close},
};

impl Endpoint {
    /// Begins the close handshake (RFC 6455 section 7.1.2). A code that may not be sent (section 7.4) becomes
    /// 1000.
    pub fn close(
        &mut self,
        code: CloseCode,
        reason: &str,
        settings: &Settings,
        corks: &mut CorkPool,
        now: Timestamp,
    ) {
        let code = if code.is_allowed_on_wire() { code } else { CloseCode::NORMAL };
        match self.phase {
            Phase::Handshake | Phase::Deciding => self.abort(code, reason, Initiator::Local),
            Phase::Open => {
                self.queue_close_frame(Some(code), reason, corks);
                self.phase = Phase::Closing;
                self.pause_receive(false);
                self.awaited_until = now.after(settings.timeouts.close);
                self.ended = Some(Box::new(CloseReason::new(code, reason, Initiator::Local)));
            }
            _ => {}
        }
    }

    /// Ends the connection without waiting for the peer's close frame (RFC 6455 section 7.1.7).
    pub fn fail(
        &mut self,
        code: CloseCode,
        reason: &str,
        corks: &mut CorkPool,
        settings: &Settings,
        now: Timestamp,
    ) {
        if self.phase == Phase::Open {
            self.queue_close_frame(Some(code), reason, corks);
            self.ended = Some(Box::new(CloseReason::new(code, reason, Initiator::Local)));
        }
        if self.phase < Phase::Flushing {
            self.begin_flushing(settings, now);
        }
    }

    /// Drops what has not begun to leave and begins to close; the answer to a full outbox.
    pub fn give_up(
        &mut self,
        code: CloseCode,
        settings: &Settings,
        corks: &mut CorkPool,
        now: Timestamp,
    ) -> Dropped {
        let dropped = self.outbox.drop_unsent();
        self.close(code, "outbox full", settings, corks, now);
        dropped
    }

    /// Ends the connection at once, without a close frame.
    pub fn abort(&mut self, code: CloseCode, reason: &str, initiator: Initiator) {
        if self.phase == Phase::Closed {
            return;
        }
        if self.phase <= Phase::Closing && self.ended.is_none() {
            self.ended = Some(Box::new(CloseReason::new(code, reason, initiator)));
        }
        self.phase = Phase::Closed;
    }

    /// How many messages have not begun to leave.
    #[must_use]
    pub fn unsent_messages(&self) -> u64 {
        self.outbox.unsent_messages()
    }

    /// The peer ended its side of the stream.
    pub fn handle_end_of_stream(&mut self) {
        self.peer_ended = true;
        match self.phase {
            Phase::Flushing => {}
            Phase::Lingering => self.phase = Phase::Closed,
            _ => self.abort(CloseCode::ABNORMAL, "end of stream without a close frame", Initiator::Transport),
        }
    }

    /// The transport failed.
    pub fn handle_transport_error(&mut self, description: &str) {
        self.abort(CloseCode::ABNORMAL, description, Initiator::Transport);
    }

    /// Why the connection ended, once, as soon as no more messages can come.
    pub fn take_ended(&mut self) -> Option<Box<CloseReason>> {
        if self.phase > Phase::Closing { self.ended.take() } else { None }
    }

    pub(super) fn handle_close(
        &mut self,
        payload: &[u8],
        settings: &Settings,
        corks: &mut CorkPool,
        now: Timestamp,
    ) -> Result<(), ProtocolError> {
        match parse_close(payload) {
            Err(error) => {
                self.fail(error.close_code(), &error.to_string(), corks, settings, now);
                Err(error)
            }
            Ok(frame) => {
                if self.phase == Phase::Open {
                    // RFC 6455 section 5.5.1: the answer typically echoes the status code.
                    self.queue_close_frame(frame.map(|(code, _)| code), "", corks);
                    let (code, reason) = frame.unwrap_or((CloseCode::NO_STATUS, ""));
                    self.ended = Some(Box::new(CloseReason::new(code, reason, Initiator::Peer)));
                }
                self.begin_flushing(settings, now);
                Ok(())
            }
        }
    }

    fn queue_close_frame(&mut self, code: Option<CloseCode>, reason: &str, corks: &mut CorkPool) {
        let mut frame = Vec::with_capacity(2 + 125);
        append_close_frame(&mut frame, code, reason);
        // The header of a control frame takes two bytes.
        self.outbox.push_close(&frame[2..], corks);
    }

    pub(super) fn begin_flushing(&mut self, settings: &Settings, now: Timestamp) {
        // One deadline for all of it: the time runs since our close frame, if it was the first.
        if self.phase != Phase::Closing {
            self.awaited_until = now.after(settings.timeouts.close);
        }
        self.phase = Phase::Flushing;
        self.paused = false;
        self.partial = None;
    }
}
