//! Close codes and the body of close frames.
//!
//! Invariants: a close frame written here fits a control frame and carries only a code that may be on
//! the wire. It does not know the closing handshake: who answers whom is the connection's affair.

use std::fmt;

use super::error::ProtocolError;
use super::frame::{CONTROL_PAYLOAD_BYTES_MAX, OpCode, append_frame};

/// Why a connection closes (RFC 6455 section 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose of the connection is fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server goes down, or the browser leaves the page.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: the peer sent a kind of data that is not accepted here.
    pub const UNSUPPORTED: Self = Self(1003);
    /// 1005: a close frame without a code came. Never on the wire.
    pub const NO_STATUS: Self = Self(1005);
    /// 1006: the connection ended without a close frame. Never on the wire.
    pub const ABNORMAL: Self = Self(1006);
    /// 1007: a message's data did not match its type, such as text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: the peer broke a rule of this endpoint.
    pub const POLICY: Self = Self(1008);
    /// 1009: a message is too big to process.
    pub const TOO_BIG: Self = Self(1009);
    /// 1011: the server met a condition it did not expect.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the service restarts; come back after a moment (IANA registry).
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 1013: the service is overloaded; come back later (IANA registry).
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// The close code of that number, whether or not it may be on the wire.
    #[inline]
    pub const fn new(value: u16) -> Self {
        Self(value)
    }

    /// The code as a number.
    #[inline]
    pub const fn value(self) -> u16 {
        self.0
    }

    /// Whether a close frame may carry this code.
    ///
    /// RFC 6455 section 7.4: 1004, 1005, 1006 and 1015 are never sent; below 1000 nothing is used, and
    /// 1016-2999 are for revisions of the protocol that do not exist yet.
    #[inline]
    pub const fn is_allowed_on_wire(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

impl From<u16> for CloseCode {
    fn from(value: u16) -> Self {
        Self(value)
    }
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> Self {
        code.0
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The longest reason a close frame can carry: a control payload without its two bytes of code.
pub const REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - 2;

/// Reads the unmasked payload of a close frame: code and reason, or `None` if it is empty.
///
/// # Errors
/// A payload of one byte, a code that may not be on the wire, or a reason that is not UTF-8.
pub fn parse_close(payload: &[u8]) -> Result<Option<(CloseCode, &str)>, ProtocolError> {
    if payload.is_empty() {
        return Ok(None);
    }
    // RFC 6455 section 5.5.1: "If there is a body, the first two bytes of the body MUST be a 2-byte
    // unsigned integer".
    let (code, reason) = payload.split_first_chunk::<2>().ok_or(ProtocolError::CloseBodyTooShort)?;
    let code = CloseCode(u16::from_be_bytes(*code));
    if !code.is_allowed_on_wire() {
        return Err(ProtocolError::InvalidCloseCode(code));
    }
    // RFC 6455 section 5.5.1: the reason is "UTF-8-encoded data".
    let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::InvalidCloseReason)?;
    Ok(Some((code, reason)))
}

/// Appends an unmasked close frame.
///
/// Without a code, or with one that may not be on the wire, the frame is empty, as there is no reason
/// without a code. A reason over [`REASON_BYTES_MAX`] is cut at a character border.
pub fn append_close_frame(out: &mut Vec<u8>, code: Option<CloseCode>, reason: &str) {
    let Some(code) = code.filter(|code| code.is_allowed_on_wire()) else {
        return append_frame(out, OpCode::Close, &[]);
    };
    let reason = cut_reason(reason).as_bytes();
    let mut payload = [0; CONTROL_PAYLOAD_BYTES_MAX];
    payload[..2].copy_from_slice(&code.0.to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason);
    append_frame(out, OpCode::Close, &payload[..2 + reason.len()]);
}

fn cut_reason(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close_frame(code: Option<CloseCode>, reason: &str) -> Vec<u8> {
        let mut out = Vec::new();
        append_close_frame(&mut out, code, reason);
        out
    }

    #[test]
    fn codes_allowed_on_the_wire_are_those_of_section_7_4() {
        for (range, is_allowed) in [
            (0..=999, false),
            (1000..=1003, true),
            (1004..=1006, false),
            (1007..=1014, true),
            (1015..=2999, false),
            (3000..=4999, true),
            (5000..=u16::MAX, false),
        ] {
            for value in range {
                assert_eq!(CloseCode::new(value).is_allowed_on_wire(), is_allowed, "{value}");
            }
        }
    }

    #[test]
    fn close_bodies_are_parsed() {
        assert_eq!(parse_close(b""), Ok(None));
        assert_eq!(parse_close(b"\x03\xE8"), Ok(Some((CloseCode::NORMAL, ""))));
        assert_eq!(parse_close(b"\x03\xE9bye"), Ok(Some((CloseCode::GOING_AWAY, "bye"))));
    }

    #[test]
    fn bad_close_bodies_are_refused_with_the_right_code() {
        let table: [(&[u8], ProtocolError, CloseCode); 5] = [
            (b"\x03", ProtocolError::CloseBodyTooShort, CloseCode::PROTOCOL_ERROR),
            (b"\x03\xED", ProtocolError::InvalidCloseCode(CloseCode::NO_STATUS), CloseCode::PROTOCOL_ERROR),
            (b"\0\0x", ProtocolError::InvalidCloseCode(CloseCode::new(0)), CloseCode::PROTOCOL_ERROR),
            (b"\x03\xE8\xFF", ProtocolError::InvalidCloseReason, CloseCode::INVALID_PAYLOAD),
            (b"\x03\xE8\xE2\x82", ProtocolError::InvalidCloseReason, CloseCode::INVALID_PAYLOAD),
        ];
        for (payload, error, code) in table {
            assert_eq!(parse_close(payload), Err(error));
            assert_eq!(error.close_code(), code);
        }
    }

    #[test]
    fn close_frames_are_written() {
        assert_eq!(close_frame(None, "lost without a code"), b"\x88\x00");
        assert_eq!(close_frame(Some(CloseCode::NORMAL), ""), b"\x88\x02\x03\xE8");
        assert_eq!(close_frame(Some(CloseCode::SERVICE_RESTART), "soon"), b"\x88\x06\x03\xF4soon");
    }

    #[test]
    fn code_not_allowed_on_the_wire_is_never_written() {
        for code in [CloseCode::NO_STATUS, CloseCode::ABNORMAL, CloseCode::new(7)] {
            assert_eq!(close_frame(Some(code), "reason"), b"\x88\x00");
        }
    }

    #[test]
    fn long_reason_is_cut_at_a_character_border() {
        assert_eq!(close_frame(Some(CloseCode::NORMAL), &"a".repeat(500)).len(), 127);
        // 41 characters of three bytes fill the 123 exactly; one byte in front leaves room for 40.
        assert_eq!(close_frame(Some(CloseCode::NORMAL), &"\u{20ac}".repeat(42)).len(), 127);
        assert_eq!(close_frame(Some(CloseCode::NORMAL), &format!("a{}", "\u{20ac}".repeat(42))).len(), 125);
    }

    proptest! {
        #[test]
        fn written_close_frame_parses(value in 3000_u16..5000, reason: String) {
            let frame = close_frame(Some(CloseCode::new(value)), &reason);
            let (code, parsed) = parse_close(&frame[2..]).unwrap().unwrap();
            prop_assert_eq!(code.value(), value);
            prop_assert!(reason.starts_with(parsed));
        }

        #[test]
        fn arbitrary_close_body_never_panics(payload: Vec<u8>) {
            let _ = parse_close(&payload);
        }
    }
}
