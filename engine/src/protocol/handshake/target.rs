//! The target of a request, and whom it is for.
//!
//! It only borrows the text, and judges its grammar; whether there is anything at that place is for others to
//! say.

/// What a request asks for: a path with an optional query, or a URI with them (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    text: &'a str,
    /// Of a URI.
    authority: Option<&'a str>,
    /// Path and query.
    resource: &'a str,
}

impl<'a> Target<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        const SCHEMES: [&str; 4] = ["ws", "wss", "http", "https"];
        match text.split_once("://") {
            Some((scheme, rest)) if SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)) => {
                let (authority, resource) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                Self { text, authority: Some(authority), resource }
            }
            _ => Self { text, authority: None, resource: text },
        }
    }

    pub(super) fn as_sent(&self) -> &'a str {
        self.text
    }

    pub(super) fn authority(&self) -> Option<&'a str> {
        self.authority
    }

    pub(super) fn path(&self) -> &'a str {
        let path = self.resource.split_once('?').map_or(self.resource, |(path, _)| path);
        if path.is_empty() { "/" } else { path }
    }

    pub(super) fn query(&self) -> Option<&'a str> {
        self.resource.split_once('?').map(|(_, query)| query)
    }

    /// Whether this is what a WebSocket URI has behind its authority (RFC 6455 section 3), which has no
    /// fragment.
    pub(super) fn names_a_resource(&self) -> bool {
        let begins = match self.authority {
            Some(_) => self.resource.is_empty() || self.resource.starts_with(['/', '?']),
            None => self.resource.starts_with('/'),
        };
        begins && self.resource.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
    }
}

/// Whether `text` is a host, perhaps with a port (RFC 3986 section 3.2.2).
pub(super) fn is_host(text: &str) -> bool {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let (name, port, is_address) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, port)) => (address, port, true),
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (name, port, false)
        }
    };
    !name.is_empty()
        && name.bytes().all(|byte| is_name(byte) || is_address && byte == b':')
        && (port.is_empty()
            || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_names_or_addresses_and_perhaps_ports() {
        for host in
            ["localhost", "127.0.0.1:9001", "[::1]", "[2001:db8::1]:443", "a_b.example:", "xn--nxasmq6b"]
        {
            assert!(is_host(host), "{host}");
        }
        for other in
            ["", "a b", "u@a", "a/b", "a:80:80", "a:http", "[::1", "[::1]a", "::1", ":80", "caf\u{e9}"]
        {
            assert!(!is_host(other), "{other}");
        }
    }
}
