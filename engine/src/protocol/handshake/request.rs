//! A client's HTTP request, and the same request once it passed every check of the opening handshake.
//!
//! Invariants: both types only borrow the bytes they were parsed from; an [`UpgradeRequest`] exists only
//! for a request that may be answered with 101. They do not know whether the application wants it.

use std::net::SocketAddr;
use std::ops::Deref;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::offers::{are_extensions, are_subprotocols, as_token};
use super::target::{Target, is_host};
use super::{accept_key, elements, lists_token};
use crate::protocol::error::UpgradeError;

/// The largest number of headers a request may have.
pub const HEADERS_MAX: usize = 64;

/// The head of an HTTP/1 request, borrowed from the bytes received.
#[derive(Clone, Debug)]
pub struct HttpRequest<'a> {
    method: &'a str,
    target: Target<'a>,
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
                let target = Target::new(target);
                let header_count = parsed.headers.len();
                let request = Self { method, target, minor_version, headers, header_count };
                Ok(Some((request, consumed)))
            }
            Ok(httparse::Status::Partial) if bytes.len() > header_bytes_max => {
                let in_target = parsed.method.is_some() && parsed.path.is_none();
                Err(if in_target { UpgradeError::TargetTooLong } else { UpgradeError::HeaderBlockTooLarge })
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

    /// The request target, as sent: path and query, mostly.
    pub fn target(&self) -> &'a str {
        self.target.as_sent()
    }

    /// The target's path, not decoded: the same whether the target is a path or a whole URI (RFC 9112 section
    /// 3.2).
    pub fn path(&self) -> &'a str {
        self.target.path()
    }

    /// What follows the target's first question mark, not decoded.
    pub fn query(&self) -> Option<&'a str> {
        self.target.query()
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
        // The same item: a "Request-URI [...] matching the /resource name/ defined in Section 3", or a URI
        // that contains one.
        if !request.target.names_a_resource() {
            return Err(UpgradeError::InvalidTarget);
        }
        // Item 2: "A |Host| header field containing the server's authority"; RFC 9112 section 3.2 refuses
        // requests with none or several, and has the authority of a whole URI go before it.
        let host = only_text(request, "host").filter(|host| is_host(host));
        let host = host.map(|host| request.target.authority().unwrap_or(host)).filter(|host| is_host(host));
        let host = host.ok_or(UpgradeError::InvalidHost)?;
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
        // Items 8 and 9. Both lists are optional, and "any violations of the ABNF grammar specified for the
        // components of the handshake" end it.
        if !are_subprotocols(request.header_values("sec-websocket-protocol")) {
            return Err(UpgradeError::InvalidSubprotocols);
        }
        if !are_extensions(request.header_values("sec-websocket-extensions")) {
            return Err(UpgradeError::InvalidExtensions);
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

    /// The subprotocols the client offers, in its order of preference: tokens, each of them once.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'a str> {
        elements(self.request.header_values("sec-websocket-protocol")).filter_map(as_token)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "GET /chat?room=1&x=?y HTTP/1.1\r\n\
        Host: server.example.com\r\n\
        Upgrade: websocket\r\n\
        Connection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Origin: http://example.com\r\n\
        Sec-WebSocket-Protocol: chat, superchat\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    const HEADER_BYTES_MAX: usize = 8192;

    fn peer() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 4711))
    }

    fn parsed(text: &str) -> HttpRequest<'_> {
        HttpRequest::parse(text.as_bytes(), HEADER_BYTES_MAX).unwrap().unwrap().0
    }

    fn checked(text: &str) -> Result<(), UpgradeError> {
        UpgradeRequest::check(&parsed(text), peer()).map(|_| ())
    }

    #[test]
    fn good_request_is_read_whole() {
        let request = parsed(GOOD);
        assert!(request.wants_upgrade());
        let upgrade = UpgradeRequest::check(&request, peer()).unwrap();
        assert_eq!(upgrade.method(), "GET");
        assert_eq!(upgrade.target(), "/chat?room=1&x=?y");
        assert_eq!(upgrade.path(), "/chat");
        assert_eq!(upgrade.query(), Some("room=1&x=?y"));
        assert_eq!(upgrade.host(), "server.example.com");
        assert_eq!(upgrade.origin(), Some("http://example.com"));
        assert_eq!(upgrade.header("SEC-WEBSOCKET-VERSION"), Some("13"));
        assert_eq!(upgrade.header("cookie"), None);
        assert_eq!(upgrade.headers().count(), 7);
        assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["chat", "superchat"]);
        assert_eq!(upgrade.peer_address(), peer());
        assert_eq!(&upgrade.accept_key(), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn target_may_be_a_whole_uri() {
        for (target, host, path, query) in [
            ("http://b.example:80/a?b", "b.example:80", "/a", Some("b")),
            ("WSS://b.example/a", "b.example", "/a", None),
            ("ws://[::1]:9001", "[::1]:9001", "/", None),
            ("https://b.example?c=/d", "b.example", "/", Some("c=/d")),
            ("/http://b.example/", "server.example.com", "/http://b.example/", None),
            ("/?a=ws://b.example/", "server.example.com", "/", Some("a=ws://b.example/")),
        ] {
            let text = GOOD.replace("/chat?room=1&x=?y", target);
            let request = parsed(&text);
            let upgrade = UpgradeRequest::check(&request, peer()).unwrap();
            assert_eq!((upgrade.host(), upgrade.path(), upgrade.query()), (host, path, query), "{target}");
            assert_eq!(upgrade.target(), target);
        }
    }

    #[test]
    fn request_in_pieces_asks_for_more_until_its_last_byte() {
        for end in 0..GOOD.len() {
            assert!(HttpRequest::parse(&GOOD.as_bytes()[..end], HEADER_BYTES_MAX).unwrap().is_none());
        }
    }

    #[test]
    fn bytes_behind_the_request_are_not_consumed() {
        let bytes = [GOOD.as_bytes(), b"\x81\x85mask....."].concat();
        let (_, consumed) = HttpRequest::parse(&bytes, HEADER_BYTES_MAX).unwrap().unwrap();
        assert_eq!(consumed, GOOD.len());
    }

    #[test]
    fn equivalent_spellings_are_accepted() {
        for (from, to) in [
            ("Upgrade: websocket", "UPGRADE: h2c, WebSocket"),
            ("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade:websocket"),
            ("Connection: Upgrade", "connection: keep-alive, upgrade"),
            ("Connection: Upgrade", "Connection: keep-alive\r\nConnection: UPGRADE"),
            ("Origin: http://example.com", "Content-Length: 0"),
            // Unused bits of the last character are set.
            ("dGhlIHNhbXBsZSBub25jZQ==", "AAAAAAAAAAAAAAAAAAAAAB=="),
        ] {
            assert_eq!(checked(&GOOD.replace(from, to)), Ok(()), "{to}");
        }
    }

    #[test]
    fn each_failed_check_has_its_error_and_status() {
        use UpgradeError::*;
        let table = [
            ("GET ", "POST ", WrongMethod, 405),
            ("GET ", "get ", WrongMethod, 405),
            ("HTTP/1.1", "HTTP/1.0", UnsupportedHttpVersion, 505),
            ("GET /", "GET ", InvalidTarget, 400),
            ("/chat", "*", InvalidTarget, 400),
            ("/chat", "/chat#part", InvalidTarget, 400),
            ("/chat", "/caf\u{e9}", InvalidTarget, 400),
            ("/chat", "ftp://a/chat", InvalidTarget, 400),
            ("/chat", "ws:///chat", InvalidHost, 400),
            ("/chat", "ws://user@a/chat", InvalidHost, 400),
            ("Host: server.example.com", "Host: a b", InvalidHost, 400),
            ("Host: server.example.com", "Host: u@a", InvalidHost, 400),
            ("Host: server.example.com", "Host: a/b", InvalidHost, 400),
            ("Host: server.example.com", "Host: a:80:80", InvalidHost, 400),
            ("Host: server.example.com", "Host: a:http", InvalidHost, 400),
            ("Host: server.example.com", "Host: [::1", InvalidHost, 400),
            ("Host: server.example.com", "Host: [::1]a", InvalidHost, 400),
            ("Host: server.example.com", "Host: :80", InvalidHost, 400),
            ("Host: server.example.com", "X: y", InvalidHost, 400),
            ("Host: server.example.com", "Host: ", InvalidHost, 400),
            ("Host: server.example.com", "Host: a\r\nHost: a", InvalidHost, 400),
            ("Upgrade: websocket", "Upgrade: websocket2", NotAnUpgrade, 426),
            ("Upgrade: websocket", "X: y", NotAnUpgrade, 426),
            ("Connection: Upgrade", "Connection: close", ConnectionNotUpgrade, 400),
            ("Connection: Upgrade", "X: y", ConnectionNotUpgrade, 400),
            ("Version: 13", "Version: 8", UnsupportedVersion, 426),
            ("Version: 13", "Version: 13, 8", UnsupportedVersion, 426),
            ("Sec-WebSocket-Version: 13", "X: y", UnsupportedVersion, 426),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "X: y", InvalidKey, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", InvalidKey, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", InvalidKey, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", InvalidKey, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWFi", InvalidKey, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWFiYWFhYWFhYWFhYWFh", InvalidKey, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j!Q==", InvalidKey, 400),
            ("Origin: ", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX: ", InvalidKey, 400),
            ("chat, superchat", "chat, super chat", InvalidSubprotocols, 400),
            ("chat, superchat", "chat\r\nSec-WebSocket-Protocol: chat", InvalidSubprotocols, 400),
            ("chat, superchat", "", InvalidSubprotocols, 400),
            ("Origin: ", "Sec-WebSocket-Extensions: x-frame; =1\r\nX: ", InvalidExtensions, 400),
            ("Origin: http://example.com", "Content-Length: 5", BodyAnnounced, 400),
            ("Origin: http://example.com", "Content-Length: 0\r\nContent-Length: 9", BodyAnnounced, 400),
            ("Origin: http://example.com", "Transfer-Encoding: chunked", BodyAnnounced, 400),
        ];
        for (from, to, error, status) in table {
            assert!(GOOD.contains(from));
            assert_eq!(checked(&GOOD.replacen(from, to, 1)), Err(error), "{from} -> {to}");
            assert_eq!(error.response().status(), status, "{error}");
        }
    }

    #[test]
    fn malformed_requests_are_refused() {
        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00"[..],
            b"GET / HTTP/2.0\r\n",
            b"GET / FTP/1.1\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\n: a\r\n\r\n",
        ] {
            let error = HttpRequest::parse(bytes, HEADER_BYTES_MAX).unwrap_err();
            assert_eq!(error, UpgradeError::Malformed, "{bytes:?}");
            assert_eq!(error.response().status(), 400);
        }
    }

    #[test]
    fn header_block_over_the_limit_is_refused() {
        let too_large = |bytes: &str, limit| {
            HttpRequest::parse(bytes.as_bytes(), limit).err() == Some(UpgradeError::HeaderBlockTooLarge)
        };
        assert!(!too_large(GOOD, GOOD.len()));
        assert!(too_large(GOOD, GOOD.len() - 1));
        assert!(!too_large(&GOOD[..100], 100), "the next byte decides");
        assert!(too_large(&GOOD[..101], 100));
        assert_eq!(UpgradeError::HeaderBlockTooLarge.response().status(), 431);
        let endless = HttpRequest::parse(&[b"GET /", &[b'a'; 100][..]].concat(), 100).unwrap_err();
        assert_eq!((endless, endless.response().status()), (UpgradeError::TargetTooLong, 414));
    }

    #[test]
    fn more_than_64_headers_are_refused() {
        let with_headers = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(parsed(&with_headers(HEADERS_MAX)).headers().count(), HEADERS_MAX);
        let error =
            HttpRequest::parse(with_headers(HEADERS_MAX + 1).as_bytes(), HEADER_BYTES_MAX).unwrap_err();
        assert_eq!(error, UpgradeError::TooManyHeaders);
        assert_eq!(error.response().status(), 431);
    }

    #[test]
    fn plain_request_is_read_without_asking_for_an_upgrade() {
        let request = parsed("GET /health HTTP/1.0\r\n\r\n");
        assert!(!request.wants_upgrade());
        assert_eq!((request.path(), request.query()), ("/health", None));
    }

    #[test]
    fn offered_subprotocols_come_from_all_lines() {
        let text = GOOD.replace(
            "Sec-WebSocket-Protocol: chat, superchat",
            "sec-websocket-protocol: a ,,c,\td\r\nSec-WebSocket-Protocol: g\r\nSec-WebSocket-Protocol:",
        );
        let request = parsed(&text);
        let upgrade = UpgradeRequest::check(&request, peer()).unwrap();
        assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["a", "c", "d", "g"]);
    }

    #[test]
    fn header_that_is_not_utf8_is_only_there_as_bytes() {
        let bytes = b"GET / HTTP/1.1\r\nX: \xFF\r\n\r\n";
        let (request, _) = HttpRequest::parse(bytes, HEADER_BYTES_MAX).unwrap().unwrap();
        assert_eq!(request.header("x"), None);
        assert!(request.header_values("x").eq([b"\xFF"]));
    }

    proptest! {
        #[test]
        fn arbitrary_request_never_panics(
            mut bytes in prop_oneof![Just(GOOD.as_bytes().to_vec()), any::<Vec<u8>>()],
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            header_bytes_max in 0_usize..400,
        ) {
            for (index, byte) in flips {
                if !bytes.is_empty() {
                    let index = index.index(bytes.len());
                    bytes[index] = byte;
                }
            }
            if let Ok(Some((request, consumed))) = HttpRequest::parse(&bytes, header_bytes_max) {
                prop_assert!(consumed <= bytes.len().min(header_bytes_max));
                let _ = request.wants_upgrade();
                if let Ok(upgrade) = UpgradeRequest::check(&request, peer()) {
                    let _ = (upgrade.path(), upgrade.query(), upgrade.origin(), upgrade.accept_key());
                    let _ = upgrade.subprotocols().count();
                }
            }
        }
    }
}
