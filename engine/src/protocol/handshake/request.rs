//! A client's HTTP request, and the same request once it passed every check of the opening handshake.
//!
//! Invariants: both types only borrow the bytes they were parsed from; an [`UpgradeRequest`] exists only
//! for a request that may be answered with 101. They do not know whether the application wants it.

use std::net::SocketAddr;
use std::ops::Deref;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::{accept_key, is_token, lists_token};
use crate::protocol::error::UpgradeError;

/// The largest number of headers a request may have.
pub const HEADERS_MAX: usize = 64;

/// The head of an HTTP/1 request, borrowed from the bytes received.
#[derive(Clone, Debug)]
pub struct HttpRequest<'a> {
    method: &'a str,
    target: &'a str,
    minor_version: u8,
    headers: [httparse::Header<'a>; HEADERS_MAX],
    header_count: usize,
}

impl<'a> HttpRequest<'a> {
    /// Reads the request at the start of `bytes` and says how long its head is; `None` if more bytes are
    /// needed. What follows the head belongs to the WebSocket stream, or to a body nobody reads.
    ///
    /// # Errors
    /// What is not HTTP/1, has no end within `header_bytes_max`, or has more than [`HEADERS_MAX`] headers.
    pub fn parse(bytes: &'a [u8], header_bytes_max: usize) -> Result<Option<(Self, usize)>, UpgradeError> {
        let head = bytes.get(..header_bytes_max).unwrap_or(bytes);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(consumed)) => {
                let (Some(method), Some(target), Some(minor_version)) =
                    (parsed.method, parsed.path, parsed.version)
                else {
                    return Err(UpgradeError::Malformed);
                };
                let header_count = parsed.headers.len();
                Ok(Some((Self { method, target, minor_version, headers, header_count }, consumed)))
            }
            Ok(httparse::Status::Partial) if bytes.len() > header_bytes_max => {
                Err(UpgradeError::HeaderBlockTooLarge)
            }
            Ok(httparse::Status::Partial) => Ok(None),
            Err(httparse::Error::TooManyHeaders) => Err(UpgradeError::TooManyHeaders),
            Err(_) => Err(UpgradeError::Malformed),
        }
    }

    /// The method, as sent: methods are case-sensitive.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The request target, as sent: path and query.
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// The target up to its query, not decoded.
    pub fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// What follows the target's first question mark, not decoded.
    pub fn query(&self) -> Option<&'a str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// The first header of that name, in any case; `None` if there is none or it is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.header_values(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The values of all headers of that name, in any case and in order.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers()
            .filter(move |(header_name, _)| header_name.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// All headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.headers.iter().take(self.header_count).map(|header| (header.name, header.value))
    }

    /// Whether this asks to become a WebSocket connection; whether rightly is for
    /// [`UpgradeRequest::check`] to say.
    pub fn wants_upgrade(&self) -> bool {
        lists_token(self.header_values("upgrade"), "websocket")
    }

    fn announces_body(&self) -> bool {
        self.header_values("transfer-encoding").next().is_some()
            || self.header_values("content-length").any(|value| value != b"0")
    }
}

/// A request that may be answered with 101 Switching Protocols.
///
/// Everything of the [`HttpRequest`] is there too: path, query, headers.
#[derive(Clone, Copy, Debug)]
pub struct UpgradeRequest<'a> {
    request: &'a HttpRequest<'a>,
    key: &'a str,
    host: &'a str,
    peer_address: SocketAddr,
}

impl<'a> UpgradeRequest<'a> {
    /// Makes every check of RFC 6455 section 4.2.1.
    ///
    /// # Errors
    /// The first check that failed; its [`response`](UpgradeError::response) is what to answer.
    pub fn check(request: &'a HttpRequest<'a>, peer_address: SocketAddr) -> Result<Self, UpgradeError> {
        // RFC 6455 section 4.2.1, item 1: "An HTTP/1.1 or higher GET request".
        if request.method != "GET" {
            return Err(UpgradeError::WrongMethod);
        }
        if request.minor_version != 1 {
            return Err(UpgradeError::UnsupportedHttpVersion);
        }
        // Item 2: "A |Host| header field containing the server's authority"; RFC 9112 section 3.2 refuses
        // requests with none or several.
        let host = only_text(request, "host").ok_or(UpgradeError::InvalidHost)?;
        // Item 3: "An |Upgrade| header field containing the value "websocket", treated as an ASCII
        // case-insensitive value."
        if !request.wants_upgrade() {
            return Err(UpgradeError::NotAnUpgrade);
        }
        // Item 4: "A |Connection| header field that includes the token "Upgrade"".
        if !lists_token(request.header_values("connection"), "upgrade") {
            return Err(UpgradeError::ConnectionNotUpgrade);
        }
        // Item 6: "A |Sec-WebSocket-Version| header field, with a value of 13". Before the key, which other
        // versions may not have.
        if only_text(request, "sec-websocket-version") != Some("13") {
            return Err(UpgradeError::UnsupportedVersion);
        }
        // Item 5: "A |Sec-WebSocket-Key| header field with a base64-encoded value that, when decoded, is 16
        // bytes in length."
        let key = only_text(request, "sec-websocket-key")
            .filter(|key| is_key(key))
            .ok_or(UpgradeError::InvalidKey)?;
        // The bytes of a body would be taken for frames.
        if request.announces_body() {
            return Err(UpgradeError::BodyAnnounced);
        }
        Ok(Self { request, key, host, peer_address })
    }

    /// Whom the client says it called.
    pub fn host(&self) -> &'a str {
        self.host
    }

    /// The page a browser connects from; other clients may leave it out or make it up.
    pub fn origin(&self) -> Option<&'a str> {
        self.request.header("origin")
    }

    /// The other end of the transport connection, as the caller of `check` knew it.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// The subprotocols the client offers, in its order of preference; what is not a token is left out.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'a str> {
        self.request
            .header_values("sec-websocket-protocol")
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(|offer| offer.trim_matches([' ', '\t']))
            .filter(|offer| is_token(offer))
    }

    /// The `Sec-WebSocket-Accept` that answers this request.
    pub fn accept_key(&self) -> [u8; 28] {
        accept_key(self.key)
    }
}

impl<'a> Deref for UpgradeRequest<'a> {
    type Target = HttpRequest<'a>;

    fn deref(&self) -> &HttpRequest<'a> {
        self.request
    }
}

/// The value of a header that must be there exactly once and not empty.
fn only_text<'a>(request: &HttpRequest<'a>, name: &str) -> Option<&'a str> {
    let mut values = request.header_values(name);
    let value = values.next()?;
    if value.is_empty() || values.next().is_some() {
        return None;
    }
    std::str::from_utf8(value).ok()
}

fn is_key(text: &str) -> bool {
    let mut key = [0; 18];
    KEY_BASE64.decode_slice(text, &mut key) == Ok(16)
}

/// Clients exist that leave the unused bits of the last character set; the RFC does not forbid it.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);
