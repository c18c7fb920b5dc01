//! The deadlines of a connection: when it needs attention next, and what happens then.

use super::{Endpoint, Initiator, Phase, Settings, Timestamp};
use crate::{buffer::CorkPool, protocol::CloseCode};

/// What a deadline brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// The peer did not finish the close handshake, or did not end the stream after it.
    Close,
    /// The upgrade took too long.
    Handshake,
    /// No message in either direction for too long: closed with 1001.
    Idle,
    /// The longest lifetime is over: closed with 1001.
    Lifetime,
    /// A ping was not answered: the connection is lost.
    Pong,
}

impl Endpoint {
    /// When [`handle_deadline`](Self::handle_deadline) is to be called, unless something changes before.
    #[must_use]
    pub fn deadline(&self, settings: &Settings) -> Timestamp {
        if self.phase != Phase::Open {
            return if self.phase == Phase::Closed { Timestamp::NEVER } else { self.awaited_until };
        }
        let timeouts = &settings.timeouts;
        let idle = self.last_message.after_some(timeouts.idle);
        let keepalive = if self.paused {
            // A pong that has arrived cannot be seen: the peer is not to blame.
            Timestamp::NEVER
        } else if self.awaiting_pong {
            self.awaited_until
        } else {
            self.last_received.after_some(timeouts.ping_interval)
        };
        idle.min(keepalive).min(self.expires)
    }

    /// Does what is due at `now`. Answers what ended the connection, if anything did.
    pub fn handle_deadline(
        &mut self,
        settings: &Settings,
        corks: &mut CorkPool,
        now: Timestamp,
    ) -> Option<Expired> {
        if self.deadline(settings) > now {
            return None;
        }
        match self.phase {
            Phase::Handshake | Phase::Deciding => {
                self.abort(CloseCode::ABNORMAL, "handshake timeout", Initiator::Local);
                return Some(Expired::Handshake);
            }
            Phase::Closing | Phase::Flushing | Phase::Lingering => {
                self.abort(CloseCode::ABNORMAL, "close timeout", Initiator::Local);
                return Some(Expired::Close);
            }
            Phase::Closed => return None,
            Phase::Open => {}
        }
        if self.expires <= now {
            self.close(CloseCode::GOING_AWAY, "connection lifetime reached", settings, corks, now);
            return Some(Expired::Lifetime);
        }
        if self.last_message.after_some(settings.timeouts.idle) <= now {
            self.close(CloseCode::GOING_AWAY, "idle timeout", settings, corks, now);
            return Some(Expired::Idle);
        }
        if self.awaiting_pong {
            self.abort(CloseCode::ABNORMAL, "ping not answered", Initiator::Local);
            return Some(Expired::Pong);
        }
        self.awaiting_pong = true;
        self.ping_sent = now;
        self.awaited_until = now.after(settings.timeouts.pong);
        self.outbox.push_ping(&now.as_millis().to_be_bytes(), &settings.outbox, corks);
        None
    }
}
