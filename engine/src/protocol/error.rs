//! What a peer did wrong: one variant per violation, and the one map from each to what is answered.
//!
//! Invariant: every error blames the peer's bytes, never the caller, a socket or this machine. It does
//! not know whether or how the answer is sent.

use super::close::CloseCode;
use super::handshake::HttpResponse;

/// A violation of the protocol, or of a limit, in the frames of an open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A close frame's body has one byte (RFC 6455 section 5.5.1).
    #[error("close frame with a body of one byte")]
    CloseBodyTooShort,
    /// A control frame has more than 125 bytes of payload (RFC 6455 section 5.5).
    #[error("control frame over 125 bytes")]
    ControlFrameTooLong,
    /// A control frame is fragmented (RFC 6455 section 5.5).
    #[error("fragmented control frame")]
    FragmentedControlFrame,
    /// A new message began before the one in progress ended (RFC 6455 section 5.4).
    #[error("new message inside a fragmented message")]
    InterruptedMessage,
    /// A close code that may not be on the wire (RFC 6455 section 7.4).
    #[error("close code {0} is not allowed on the wire")]
    InvalidCloseCode(CloseCode),
    /// A close frame's reason is not UTF-8 (RFC 6455 section 5.5.1).
    #[error("close reason is not UTF-8")]
    InvalidCloseReason,
    /// A text message is not UTF-8 (RFC 6455 section 8.1).
    #[error("text message is not UTF-8")]
    InvalidUtf8,
    /// The top bit of a 64-bit length is set (RFC 6455 section 5.2).
    #[error("top bit of a 64-bit length is set")]
    LengthTopBitSet,
    /// A server masked a frame (RFC 6455 section 5.1).
    #[error("masked frame from a server")]
    MaskedFrame,
    /// A message is larger than the limit (RFC 6455 section 7.4.1, code 1009).
    #[error("message over the size limit")]
    MessageTooBig,
    /// A length is not encoded in the shortest form (RFC 6455 section 5.2).
    #[error("length not in its shortest form")]
    NonMinimalLength,
    /// A reserved bit is set and no extension gives it a meaning (RFC 6455 section 5.2).
    #[error("reserved bit set without an extension")]
    ReservedBits,
    /// A reserved opcode (RFC 6455 section 5.2).
    #[error("reserved opcode")]
    ReservedOpCode,
    /// A message has more fragments than the limit (RFC 6455 section 10.4 asks for such limits).
    #[error("message over the fragment limit")]
    TooManyFragments,
    /// A continuation came with no message in progress (RFC 6455 section 5.4).
    #[error("continuation without a message")]
    UnexpectedContinuation,
    /// A client did not mask a frame (RFC 6455 section 5.1).
    #[error("unmasked frame from a client")]
    UnmaskedFrame,
}

impl ProtocolError {
    /// The close code to answer with (RFC 6455 section 7.4.1): the only map from violation to code.
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::InvalidCloseReason | Self::InvalidUtf8 => CloseCode::INVALID_PAYLOAD,
            Self::MessageTooBig => CloseCode::TOO_BIG,
            Self::TooManyFragments => CloseCode::POLICY,
            Self::CloseBodyTooShort
            | Self::ControlFrameTooLong
            | Self::FragmentedControlFrame
            | Self::InterruptedMessage
            | Self::InvalidCloseCode(_)
            | Self::LengthTopBitSet
            | Self::MaskedFrame
            | Self::NonMinimalLength
            | Self::ReservedBits
            | Self::ReservedOpCode
            | Self::UnexpectedContinuation
            | Self::UnmaskedFrame => CloseCode::PROTOCOL_ERROR,
        }
    }
}

/// Why an HTTP request did not become a WebSocket connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The server's `Sec-WebSocket-Accept` does not answer our key (RFC 6455 section 4.1); client side only.
    #[error("Sec-WebSocket-Accept does not match the key")]
    AcceptMismatch,
    /// The upgrade request announces a body, whose bytes would be taken for frames.
    #[error("upgrade request with a body")]
    BodyAnnounced,
    /// `Connection` does not name `upgrade` (RFC 6455 section 4.2.1, item 4).
    #[error("Connection header without upgrade")]
    ConnectionNotUpgrade,
    /// The request line and headers are longer than the limit.
    #[error("header block over the size limit")]
    HeaderBlockTooLarge,
    /// `Sec-WebSocket-Extensions` does not follow its grammar (RFC 6455 section 9.1).
    #[error("malformed Sec-WebSocket-Extensions")]
    InvalidExtensions,
    /// There is not exactly one usable `Host` (RFC 6455 section 4.2.1, item 2).
    #[error("missing, repeated or unusable Host header")]
    InvalidHost,
    /// There is not exactly one `Sec-WebSocket-Key` of 16 bytes in base64 (RFC 6455 section 4.2.1, item 5).
    #[error("missing, repeated or malformed Sec-WebSocket-Key")]
    InvalidKey,
    /// `Sec-WebSocket-Protocol` is not a list of different tokens (RFC 6455 section 4.1, item 10).
    #[error("malformed or repeated names in Sec-WebSocket-Protocol")]
    InvalidSubprotocols,
    /// The request's target is not a path with an optional query, or a URI with one (RFC 6455 section 4.2.1,
    /// item 1).
    #[error("request target is no resource name")]
    InvalidTarget,
    /// The bytes are not HTTP/1.
    #[error("malformed HTTP")]
    Malformed,
    /// `Upgrade` does not name `websocket` (RFC 6455 section 4.2.1, item 3).
    #[error("not a WebSocket upgrade")]
    NotAnUpgrade,
    /// The request line does not end within the limit of the header block.
    #[error("request target over the size limit")]
    TargetTooLong,
    /// More headers than are accepted.
    #[error("too many headers")]
    TooManyHeaders,
    /// The server uses an extension that was not offered (RFC 6455 section 4.1); client side only.
    #[error("the server uses an extension that was not offered")]
    UnexpectedExtension,
    /// The server answered with another status than 101 (RFC 6455 section 4.1); client side only.
    #[error("server answered {0} instead of 101")]
    UnexpectedStatus(u16),
    /// The request is not HTTP/1.1 (RFC 6455 section 4.2.1, item 1).
    #[error("HTTP version is not 1.1")]
    UnsupportedHttpVersion,
    /// `Sec-WebSocket-Version` is not 13 (RFC 6455 section 4.2.1, item 6).
    #[error("Sec-WebSocket-Version is not 13")]
    UnsupportedVersion,
    /// The method is not GET (RFC 6455 section 4.2.1, item 1).
    #[error("method is not GET")]
    WrongMethod,
}

impl UpgradeError {
    /// The HTTP answer to give: the only map from violation to status code.
    pub fn response(&self) -> HttpResponse {
        match self {
            Self::BodyAnnounced
            | Self::ConnectionNotUpgrade
            | Self::InvalidExtensions
            | Self::InvalidHost
            | Self::InvalidKey
            | Self::InvalidSubprotocols
            | Self::InvalidTarget
            | Self::Malformed => HttpResponse::bad_request(),
            Self::WrongMethod => HttpResponse::new(405).header("Allow", "GET"),
            Self::NotAnUpgrade => HttpResponse::upgrade_required(),
            // RFC 6455 section 4.2.2, item 4: "abort [...] and send an appropriate HTTP error code (such as
            // 426 Upgrade Required) and a |Sec-WebSocket-Version| header field".
            Self::UnsupportedVersion => {
                HttpResponse::upgrade_required().header("Sec-WebSocket-Version", "13")
            }
            Self::HeaderBlockTooLarge | Self::TooManyHeaders => HttpResponse::new(431),
            Self::TargetTooLong => HttpResponse::new(414),
            Self::UnsupportedHttpVersion => HttpResponse::new(505),
            // A client has nobody to answer; a gateway that opens connections itself says 502.
            Self::AcceptMismatch | Self::UnexpectedExtension | Self::UnexpectedStatus(_) => {
                HttpResponse::new(502)
            }
        }
    }
}

// Errors travel in every `Result` of the hot path.
const _: () = assert!(size_of::<ProtocolError>() <= 4);
