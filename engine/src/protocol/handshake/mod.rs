//! The opening handshake: the HTTP/1.1 request of a client, its checks, and the answers.
//!
//! Invariants: nothing an application puts into an answer can end a header line early; a request is
//! accepted only after every check of RFC 6455 section 4.2.1. It does not know routes, sessions or deadlines,
//! and reads no body.

pub mod client;
mod offers;
pub mod request;
pub mod response;
mod target;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

pub use client::{append_client_request, parse_client_response};
pub use request::{HEADERS_MAX, HttpRequest, UpgradeRequest};
pub use response::{HttpResponse, SwitchingProtocols};

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2, item 5.4).
///
/// ```
/// use ringwire::protocol::handshake::accept_key;
///
/// assert_eq!(&accept_key("dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
pub fn accept_key(key: &str) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let mut accept = [0; 28];
    let written = STANDARD.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(28), "20 bytes are 28 in base64");
    accept
}

/// The elements of a list in one header line or several. Empty ones are passed over (RFC 9110 section
/// 5.6.1.2).
fn elements<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    lines
        .flat_map(|line| line.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Whether a list names `token` in any case.
fn lists_token<'a>(lines: impl Iterator<Item = &'a [u8]>, token: &str) -> bool {
    elements(lines).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether `text` is a token of RFC 9110 section 5.6.2: what header names and subprotocols are made of.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_key_answers_the_example_of_section_1_3() {
        assert_eq!(&accept_key("dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn token_is_found_in_lists_of_any_case() {
        for values in [&[&b"keep-alive, Upgrade"[..]][..], &[b"keep-alive", b"\tUPGRADE ,x"], &[b"upgrade"]] {
            assert!(lists_token(values.iter().copied(), "upgrade"), "{values:?}");
        }
        for values in [&[&b"upgraded"[..]][..], &[b"up grade", b"x"], &[b""], &[]] {
            assert!(!lists_token(values.iter().copied(), "upgrade"), "{values:?}");
        }
    }

    #[test]
    fn tokens_have_no_separators() {
        for token in ["chat", "v1.chat~x", "graphql-transport-ws", "!#$%&'*+-.^_`|~09azAZ"] {
            assert!(is_token(token));
        }
        for other in ["", "a b", "a,b", "a;b", "a:b", "a/b", "\u{e9}", "a\r\n", "a\0", "\"a\""] {
            assert!(!is_token(other), "{other:?}");
        }
    }
}
