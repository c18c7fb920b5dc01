//! What a client offers in its request: subprotocols and extensions (RFC 6455 section 4.2.1, items 8 and 9).
//!
//! Invariant: nothing is kept of a list but slices of the header it came in. It does not know which offers
//! are taken.

use super::{elements, is_token};

/// `element` as a token, if it is one.
pub(super) fn as_token(element: &[u8]) -> Option<&str> {
    std::str::from_utf8(element).ok().filter(|text| is_token(text))
}

/// Whether the values of `Sec-WebSocket-Protocol` are a list of tokens, none of them twice (RFC 6455 section
/// 4.1, item 10). The header may be missing.
pub(super) fn are_subprotocols<'a>(lines: impl Iterator<Item = &'a [u8]>) -> bool {
    let Some(list) = optional_list(lines) else { return false };
    let Some(mut names) = list.into_iter().map(as_token).collect::<Option<Vec<_>>>() else { return false };
    // Sorted, so that a long list costs no more than its length's worth.
    names.sort_unstable();
    names.is_sorted_by(|one, next| one < next)
}

/// Whether the values of `Sec-WebSocket-Extensions` follow the grammar of RFC 6455 section 9.1. A parameter's
/// value "after quoted-string unescaping MUST conform to the 'token' ABNF", so separators cannot hide in
/// quotes. The header may be missing.
pub(super) fn are_extensions<'a>(lines: impl Iterator<Item = &'a [u8]>) -> bool {
    optional_list(lines).is_some_and(|list| list.into_iter().all(is_extension))
}

/// The elements of a header that may be missing, but if it is there, must have some (`1#element` in the
/// grammars): `None` where it has none.
fn optional_list<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Vec<&'a [u8]>> {
    let mut lines = lines.peekable();
    let is_missing = lines.peek().is_none();
    let list: Vec<_> = elements(lines).collect();
    (is_missing || !list.is_empty()).then_some(list)
}

fn is_extension(element: &[u8]) -> bool {
    let mut parts = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    parts.next().is_some_and(|name| as_token(name).is_some()) && parts.all(is_parameter)
}

fn is_parameter(part: &[u8]) -> bool {
    let Some(equals) = part.iter().position(|&byte| byte == b'=') else { return as_token(part).is_some() };
    let (name, value) = (part[..equals].trim_ascii(), part[equals + 1..].trim_ascii());
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    as_token(name).is_some()
        && match quoted {
            None => as_token(value).is_some(),
            Some(quoted) => unescaped(quoted).is_some_and(|value| as_token(&value).is_some()),
        }
}

/// The content of a quoted-string without its escapes (RFC 9110 section 5.6.4), or `None` if the last one
/// escapes nothing.
fn unescaped(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = quoted.iter();
    let mut value = Vec::with_capacity(quoted.len());
    while let Some(&byte) = bytes.next() {
        value.push(if byte == b'\\' { *bytes.next()? } else { byte });
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> impl Iterator<Item = &[u8]> {
        text.split_terminator('\n').map(str::as_bytes)
    }

    #[test]
    fn subprotocols_are_tokens_and_unique() {
        for good in ["", "chat", "chat, superchat", "chat,,v2.chat , ", "a\nb, c\nd", "Chat, chat"] {
            assert!(are_subprotocols(lines(good)), "{good:?}");
        }
        for bad in [" ", ",", "cha t", "chat;q=1", "\"chat\"", "gr\u{fc}n", "a, b, a", "a\nb\na", "a/b"] {
            assert!(!are_subprotocols(lines(bad)), "{bad:?}");
        }
        assert!(!are_subprotocols([&b"\xFF"[..]].into_iter()));
    }

    #[test]
    fn extensions_follow_the_grammar() {
        for good in [
            "",
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;server_max_window_bits=10 ; client_max_window_bits, foo;a;b=c",
            "foo; a = \"10\", ,bar",
            "foo; a=\"1\\0\"\nbar",
        ] {
            assert!(are_extensions(lines(good)), "{good:?}");
        }
        for bad in [
            " ",
            ",",
            "; a",
            "foo;",
            "foo; a=",
            "foo; =1",
            "foo; a=1=2",
            "foo bar",
            "foo; a=\"",
            "foo; a=\"\"",
            "foo; a=\"1",
            "foo; a=\"1 2\"",
            "foo; a=\"1,2\"",
            "foo; a=\"1\\\"",
            "foo; a b",
            "f\u{e9}",
        ] {
            assert!(!are_extensions(lines(bad)), "{bad:?}");
        }
    }
}
