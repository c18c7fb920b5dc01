//! The client's side of the opening handshake, for load generators and tests.
//!
//! Invariant: a response is accepted only after the checks of RFC 6455 section 4.1, but for the subprotocol,
//! which is the caller's to judge. It does not make keys: randomness is the caller's too.

use super::request::HEADERS_MAX;
use super::{accept_key, lists_token};
use crate::protocol::error::UpgradeError;

/// Appends an upgrade request. `key` is 16 random bytes in base64; the caller answers for all texts
/// being fit for a header line.
pub fn append_client_request(out: &mut Vec<u8>, host: &str, target: &str, key: &str, subprotocols: &[&str]) {
    let mut append = |texts: &[&str]| texts.iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
    append(&["GET ", target, " HTTP/1.1\r\nHost: ", host]);
    append(&["\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ", key]);
    append(&["\r\nSec-WebSocket-Version: 13\r\n"]);
    if !subprotocols.is_empty() {
        append(&["Sec-WebSocket-Protocol: ", &subprotocols.join(", "), "\r\n"]);
    }
    append(&["\r\n"]);
}

/// Reads a server's answer to the request with `key` and says how long its head is; `None` if more bytes
/// are needed. What follows the head are frames.
///
/// # Errors
/// What is not an HTTP/1 response that switches to WebSocket in answer to `key`.
pub fn parse_client_response(bytes: &[u8], key: &str) -> Result<Option<usize>, UpgradeError> {
    let head = bytes.get(..RESPONSE_HEAD_BYTES_MAX).unwrap_or(bytes);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let consumed = match response.parse(head) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) if bytes.len() > RESPONSE_HEAD_BYTES_MAX => {
            return Err(UpgradeError::HeaderBlockTooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(UpgradeError::TooManyHeaders),
        Err(_) => return Err(UpgradeError::Malformed),
    };
    let values = |name: &'static str| {
        let headers = response.headers.iter();
        headers.filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    if response.version != Some(1) {
        return Err(UpgradeError::UnsupportedHttpVersion);
    }
    // RFC 6455 section 4.1, the list of what the client validates in the server's response.
    match response.code {
        Some(101) => {}
        status => return Err(UpgradeError::UnexpectedStatus(status.unwrap_or_default())),
    }
    if !lists_token(values("upgrade"), "websocket") {
        return Err(UpgradeError::NotAnUpgrade);
    }
    if !lists_token(values("connection"), "upgrade") {
        return Err(UpgradeError::ConnectionNotUpgrade);
    }
    // Item 5: an extension that was not asked for, and none is.
    if values("sec-websocket-extensions").next().is_some() {
        return Err(UpgradeError::UnexpectedExtension);
    }
    if !values("sec-websocket-accept").eq([accept_key(key)]) {
        return Err(UpgradeError::AcceptMismatch);
    }
    Ok(Some(consumed))
}

const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::protocol::handshake::{HttpRequest, SwitchingProtocols, UpgradeRequest};

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn good_response() -> String {
        let accept_key = &accept_key(KEY);
        let mut out = Vec::new();
        SwitchingProtocols { accept_key, subprotocol: Some("chat"), headers: &[] }.append_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn our_request_passes_our_checks() {
        let mut bytes = Vec::new();
        append_client_request(&mut bytes, "localhost:9001", "/a?b", KEY, &["chat", "news"]);
        let (request, consumed) = HttpRequest::parse(&bytes, 8192).unwrap().unwrap();
        assert_eq!(consumed, bytes.len());
        let upgrade = UpgradeRequest::check(&request, SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
        assert_eq!((upgrade.host(), upgrade.target()), ("localhost:9001", "/a?b"));
        assert_eq!(upgrade.accept_key(), accept_key(KEY));
        assert!(upgrade.subprotocols().eq(["chat", "news"]));
    }

    #[test]
    fn our_response_is_accepted_once_complete() {
        let response = good_response();
        for end in 0..response.len() {
            assert_eq!(parse_client_response(&response.as_bytes()[..end], KEY), Ok(None));
        }
        let with_frame = [response.as_bytes(), b"\x81\x00"].concat();
        assert_eq!(parse_client_response(&with_frame, KEY), Ok(Some(response.len())));
    }

    #[test]
    fn response_that_does_not_answer_is_refused() {
        use UpgradeError::*;
        for (from, to, error) in [
            ("101", "200", UnexpectedStatus(200)),
            ("Upgrade: websocket", "Upgrade: h2c", NotAnUpgrade),
            ("Connection: Upgrade", "Connection: close", ConnectionNotUpgrade),
            ("s3pPLM", "S3pPLM", AcceptMismatch),
            ("Sec-WebSocket-Accept", "X", AcceptMismatch),
            ("HTTP/1.1", "SPDY/9", Malformed),
            ("HTTP/1.1", "HTTP/1.0", UnsupportedHttpVersion),
            ("Upgrade: ", "Sec-WebSocket-Extensions: permessage-deflate\r\nUpgrade: ", UnexpectedExtension),
        ] {
            let response = good_response().replacen(from, to, 1);
            assert_eq!(parse_client_response(response.as_bytes(), KEY), Err(error), "{from} -> {to}");
        }
    }

    #[test]
    fn endless_response_head_is_refused() {
        let head = format!("HTTP/1.1 101 x\r\nX: {}", "y".repeat(RESPONSE_HEAD_BYTES_MAX));
        assert_eq!(parse_client_response(head.as_bytes(), KEY), Err(UpgradeError::HeaderBlockTooLarge));
    }
}
