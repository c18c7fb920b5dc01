//! RFC 6455 on plain bytes: frames, messages, close codes and the opening handshake.
//!
//! Everything here is sans-IO: bytes go in, items or bytes come out. This layer knows no socket, no
//! clock, no buffer pool and no connection; whoever calls it owns the bytes and decides when to read,
//! write and give up.
//!
//! Invariant: bytes from the peer never reach an index that can panic, an `unwrap` or an allocation
//! whose size the peer chose.
//!
//! | module | what it owns |
//! |---|---|
//! | [`frame`] | one frame's header and the writers of whole frames |
//! | [`decoder`] | the incoming stream: frames to messages, in place |
//! | [`utf8`] | UTF-8 across chunk borders |
//! | [`close`] | close codes and close frames |
//! | [`handshake`] | the HTTP request and response before the first frame |
//! | [`error`] | what a peer did wrong, and its close code or HTTP status |
#![forbid(unsafe_code)]

pub mod close;
pub mod decoder;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod utf8;

pub use close::{CloseCode, append_close_frame, parse_close};
pub use decoder::{Decoded, Decoder, Item, Limits};
pub use error::{ProtocolError, UpgradeError};
pub use frame::{FrameHeader, MessageKind, OpCode, Role};
pub use handshake::{HttpRequest, HttpResponse, SwitchingProtocols, UpgradeRequest};
