//! The opening handshake: a request is understood whole or not at all, and whatever is put into an answer, it
//! stays one answer.

use ringwire::protocol::{
    HttpRequest, HttpResponse, SwitchingProtocols, UpgradeRequest,
    handshake::{accept_key, parse_client_response},
};

const HEADER_BYTES_MAX: usize = 2048;

/// A request, and after it what does for a body.
pub(crate) fn handshake(data: &[u8]) {
    // The other side's parser reads the same bytes.
    let _ = parse_client_response(data, "AAAAAAAAAAAAAAAAAAAAAA==");
    let (request, head_bytes) = match HttpRequest::parse(data, HEADER_BYTES_MAX) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => {
            assert!(data.len() <= HEADER_BYTES_MAX, "{} bytes, and more are wanted", data.len());
            return;
        }
        Err(error) => return check_response(&error.response(), None),
    };
    assert!(head_bytes <= data.len() && head_bytes <= HEADER_BYTES_MAX);
    for shorter in [head_bytes - 1, head_bytes / 2, 1, 0] {
        let early = HttpRequest::parse(&data[..shorter], HEADER_BYTES_MAX);
        assert!(matches!(early, Ok(None)), "{shorter} of {head_bytes} bytes: {early:?}");
    }
    let query = request.query().map(|query| format!("?{query}")).unwrap_or_default();
    let is_bare = request.path() == "/" && request.target().ends_with(&query);
    assert!(is_bare || request.target().ends_with(&format!("{}{query}", request.path())));

    let headers: Vec<_> = request
        .headers()
        .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    // Someone may put into an answer what a request has, or what follows it.
    let rest = String::from_utf8_lossy(&data[head_bytes..]).into_owned();
    let (name, value) = rest.split_once(':').unwrap_or((&rest, ""));
    let response = headers
        .iter()
        .fold(HttpResponse::new(403), |response, (name, value)| response.header(name.clone(), value.as_str()))
        .header(name.to_owned(), value)
        .body(rest.as_bytes());
    check_response(&response, Some(rest.as_bytes()));

    let peer_address = ([127, 0, 0, 1], 1).into();
    let upgrade = match UpgradeRequest::check(&request, peer_address) {
        Ok(upgrade) => upgrade,
        Err(error) => return check_response(&error.response(), None),
    };
    assert!(request.wants_upgrade(), "accepted, but not wanted");
    let key = request.header("Sec-WebSocket-Key").expect("an accepted request has a key").trim();
    assert_eq!(upgrade.accept_key(), accept_key(key));
    for subprotocol in upgrade.subprotocols().map(Some).chain([None, Some(rest.as_str())]) {
        let mut answer = Vec::new();
        SwitchingProtocols {
            accept_key: &upgrade.accept_key(),
            subprotocol,
            headers: &[headers.as_slice(), &[(name.to_owned(), value.to_owned())]].concat(),
        }
        .append_to(&mut answer);
        assert_eq!(end_of_head(&answer), Some(answer.len()), "more than one answer");
        check_lines(&answer);
    }
}

/// The head is well formed and says how long the body is.
fn check_response(response: &HttpResponse, body: Option<&[u8]>) {
    let mut bytes = Vec::new();
    response.append_to(&mut bytes);
    let head_bytes = end_of_head(&bytes).expect("a head that ends");
    check_lines(&bytes[..head_bytes]);
    let head = std::str::from_utf8(&bytes[..head_bytes]).expect("a head of text");
    assert!(head.starts_with(&format!("HTTP/1.1 {} ", response.status())), "{head}");
    let length = format!("\r\nContent-Length: {}\r\n", bytes.len() - head_bytes);
    assert_eq!(head.matches(&length).count(), 1, "{head}");
    if let Some(body) = body {
        assert_eq!(&bytes[head_bytes..], body);
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Every line ends in CRLF, and neither occurs elsewhere; every header has a name.
fn check_lines(head: &[u8]) {
    let head = std::str::from_utf8(head).expect("a head of text");
    let mut lines = head.strip_suffix("\r\n\r\n").expect("an empty line").split("\r\n");
    assert!(lines.next().is_some_and(|status| status.starts_with("HTTP/1.1 ")));
    for line in lines {
        assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
        assert!(line.split_once(':').is_some_and(|(name, _)| !name.is_empty()), "{line:?}");
    }
}
