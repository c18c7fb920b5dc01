//! The answers to an HTTP request: a plain response, or the switch to WebSocket.
//!
//! Invariants: a header is written only if its name is a token and its value cannot end the line, so no
//! caller's text can inject a header or a second response; framing headers are written here and nowhere
//! else. It does not know why an answer was chosen.

use std::borrow::Cow;

use super::is_token;

/// A whole HTTP response, after which the connection is closed.
///
/// ```
/// use ringwire::protocol::HttpResponse;
///
/// let mut out = Vec::new();
/// HttpResponse::new(200).header("Content-Type", "text/plain").body("fine").append_to(&mut out);
/// assert!(out.starts_with(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"));
/// assert!(out.ends_with(b"\r\n\r\nfine"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    status: u16,
    headers: Vec<(Cow<'static, str>, String)>,
    body: Vec<u8>,
}

impl HttpResponse {
    /// A response without headers or body. A status outside 200-599, which is not a final one, becomes 500.
    pub const fn new(status: u16) -> Self {
        let status = if matches!(status, 200..=599) { status } else { 500 };
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header. One that cannot be written safely, and those that say where the response ends
    /// (`Connection`, `Content-Length`, `Transfer-Encoding`), are dropped.
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into(), value.into());
        if is_writable(&name, &value, RESPONSE_HEADERS) {
            self.headers.push((name, value));
        }
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// 400: the request cannot be understood.
    pub const fn bad_request() -> Self {
        Self::new(400)
    }

    /// 401: the client has not said who it is.
    pub const fn unauthorized() -> Self {
        Self::new(401)
    }

    /// 403: the client may not.
    pub const fn forbidden() -> Self {
        Self::new(403)
    }

    /// 404: there is nothing at this path.
    pub const fn not_found() -> Self {
        Self::new(404)
    }

    /// 426: only WebSocket is spoken here.
    pub fn upgrade_required() -> Self {
        Self::new(426).header("Upgrade", "websocket")
    }

    /// 429: the client asks too often.
    pub const fn too_many_requests() -> Self {
        Self::new(429)
    }

    /// 500: something went wrong on this side.
    pub const fn internal_server_error() -> Self {
        Self::new(500)
    }

    /// 503: overloaded or going down.
    pub const fn service_unavailable() -> Self {
        Self::new(503)
    }

    /// The status code.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Appends the response as bytes, with its length and the notice that the connection closes.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        self.append_head_to(out);
        if self.has_content() {
            out.extend_from_slice(&self.body);
        }
    }

    /// The same without the body: the answer to a HEAD request.
    pub fn append_head_to(&self, out: &mut Vec<u8>) {
        append_all(out, &["HTTP/1.1 ", &self.status.to_string(), " ", reason_phrase(self.status), "\r\n"]);
        for (name, value) in &self.headers {
            append_header(out, name, value);
        }
        // RFC 9110 section 7.8: "A sender of Upgrade MUST also send an "Upgrade" connection option", and
        // 426 is nothing without it.
        let mut offers_upgrade = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("upgrade"));
        if self.status == 426 && !offers_upgrade {
            append_header(out, "Upgrade", "websocket");
            offers_upgrade = true;
        }
        append_header(out, "Connection", if offers_upgrade { "close, Upgrade" } else { "close" });
        if self.has_content() {
            append_header(out, "Content-Length", &self.body.len().to_string());
        }
        out.extend_from_slice(b"\r\n");
    }

    /// RFC 9110 sections 8.6 and 15: neither status has a body, and 204 no length either.
    fn has_content(&self) -> bool {
        self.status != 204 && self.status != 304
    }
}

/// The answer that turns the connection into a WebSocket (RFC 6455 section 4.2.2, item 5).
#[derive(Clone, Copy, Debug)]
pub struct SwitchingProtocols<'a> {
    /// From [`UpgradeRequest::accept_key`](super::UpgradeRequest::accept_key).
    pub accept_key: &'a [u8; 28],
    /// One of the subprotocols the client offered, or none.
    pub subprotocol: Option<&'a str>,
    /// Further headers, such as cookies. Those the handshake writes itself, and those that cannot be
    /// written safely, are dropped.
    pub headers: &'a [(String, String)],
}

impl SwitchingProtocols<'_> {
    /// Appends the response as bytes; frames may follow at once.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\n\
              Upgrade: websocket\r\n\
              Connection: Upgrade\r\n\
              Sec-WebSocket-Accept: ",
        );
        out.extend_from_slice(self.accept_key);
        out.extend_from_slice(b"\r\n");
        if let Some(subprotocol) = self.subprotocol.filter(|subprotocol| is_token(subprotocol)) {
            append_header(out, "Sec-WebSocket-Protocol", subprotocol);
        }
        for (name, value) in self.headers {
            if is_writable(name, value, HANDSHAKE_HEADERS) {
                append_header(out, name, value);
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether the header can stand on one line and is not one of those written here.
fn is_writable(name: &str, value: &str, written_here: &[&str]) -> bool {
    is_token(name)
        // RFC 9110 section 5.5: no control characters but the tab.
        && !value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t')
        && !written_here.iter().any(|reserved| reserved.eq_ignore_ascii_case(name))
}

fn append_header(out: &mut Vec<u8>, name: &str, value: &str) {
    append_all(out, &[name, ": ", value, "\r\n"]);
}

fn append_all(out: &mut Vec<u8>, texts: &[&str]) {
    for text in texts {
        out.extend_from_slice(text.as_bytes());
    }
}

/// The usual phrase; clients ignore it.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

const RESPONSE_HEADERS: &[&str] = &["connection", "content-length", "transfer-encoding"];

const HANDSHAKE_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "transfer-encoding",
    "upgrade",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::UpgradeError;

    fn written(response: &HttpResponse) -> String {
        let mut out = Vec::new();
        response.append_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn switched(subprotocol: Option<&str>, headers: &[(&str, &str)]) -> String {
        let headers: Vec<_> = headers.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        let accept_key = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let mut out = Vec::new();
        SwitchingProtocols { accept_key, subprotocol, headers: &headers }.append_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn response_says_its_length_and_closes() {
        let response = HttpResponse::not_found().header("X-Reason", "gone fishing").body("nothing here");
        assert_eq!(
            written(&response),
            "HTTP/1.1 404 Not Found\r\nX-Reason: gone fishing\r\nConnection: close\r\n\
             Content-Length: 12\r\n\r\nnothing here"
        );
    }

    #[test]
    fn refusals_tell_the_client_what_would_do() {
        assert!(written(&UpgradeError::WrongMethod.response()).contains("\r\nAllow: GET\r\n"));
        let wrong_version = written(&UpgradeError::UnsupportedVersion.response());
        assert!(wrong_version.starts_with("HTTP/1.1 426 Upgrade Required\r\n"));
        assert!(wrong_version.contains("\r\nSec-WebSocket-Version: 13\r\n"));
        let no_upgrade = written(&UpgradeError::NotAnUpgrade.response());
        assert!(no_upgrade.contains("\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\n"));
    }

    #[test]
    fn header_that_would_end_its_line_is_dropped() {
        let plain = HttpResponse::forbidden();
        for (name, value) in [
            ("X", "a\r\nSet-Cookie: b"),
            ("X", "a\nb"),
            ("X", "a\rb"),
            ("X", "a\0b"),
            ("X", "a\x1bb"),
            ("X", "a\x7fb"),
            ("X\r\nY", "a"),
            ("X:", "a"),
            ("X Y", "a"),
            ("", "a"),
        ] {
            assert_eq!(plain.clone().header(name, value), plain, "{name:?}: {value:?}");
            assert_eq!(switched(None, &[(name, value)]), switched(None, &[]));
        }
    }

    #[test]
    fn framing_headers_are_written_once() {
        let plain = HttpResponse::forbidden();
        for name in ["content-length", "Connection", "TRANSFER-ENCODING"] {
            assert_eq!(plain.clone().header(name, "5"), plain);
        }
    }

    #[test]
    fn status_that_ends_nothing_becomes_500() {
        for status in [0, 100, 101, 199, 600, u16::MAX] {
            assert_eq!(HttpResponse::new(status).status(), 500);
        }
    }

    #[test]
    fn response_without_content_has_no_length() {
        let text = written(&HttpResponse::new(204).body("ignored"));
        assert_eq!(text, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn head_says_the_length_of_what_it_leaves_out() {
        let mut out = Vec::new();
        HttpResponse::new(200).body("fine").append_head_to(&mut out);
        assert_eq!(out, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n");
    }

    #[test]
    fn upgrade_required_says_to_what() {
        let text = written(&HttpResponse::new(426));
        assert!(text.contains("\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\n"), "{text}");
        assert_eq!(written(&HttpResponse::upgrade_required()), text);
    }

    #[test]
    fn switch_is_the_example_of_section_1_3() {
        assert_eq!(
            switched(Some("chat"), &[("Set-Cookie", "a=b")]),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
             Sec-WebSocket-Protocol: chat\r\nSet-Cookie: a=b\r\n\r\n"
        );
    }

    #[test]
    fn handshake_headers_cannot_be_overridden() {
        for name in HANDSHAKE_HEADERS {
            assert_eq!(switched(None, &[(name, "x")]), switched(None, &[]));
        }
        assert_eq!(switched(Some("not, a token"), &[]), switched(None, &[]));
    }
}
