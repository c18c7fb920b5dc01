//! The client's side of the opening handshake, for load generators and tests.
//!
//! Invariant: a response is accepted only after the checks of RFC 6455 section 4.1. It does not make
//! keys: randomness is the caller's.

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
    if !values("sec-websocket-accept").eq([accept_key(key)]) {
        return Err(UpgradeError::AcceptMismatch);
    }
    Ok(Some(consumed))
}

const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;
