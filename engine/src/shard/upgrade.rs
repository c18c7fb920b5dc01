//! The decision on an upgrade request.

use std::{fmt, future::Future, pin::Pin};

use crate::protocol::HttpResponse;

/// What [`Handler::on_upgrade`](super::Handler::on_upgrade) answers.
///
/// ```
/// # use ringwire::Upgrade;
/// # fn check(token: Option<String>) -> Upgrade<String> {
/// match token {
///     Some(user) => Upgrade::accept(user).subprotocol("chat.v1"),
///     None => Upgrade::reject(403, "no token"),
/// }
/// # }
/// # assert!(format!("{:?}", check(None)).contains("403"));
/// ```
#[derive(Debug)]
pub struct Upgrade<S>(pub(super) Decision<S>);

/// A future that a shard polls on its own thread.
pub(crate) type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

pub(super) enum Decision<S> {
    Accept(Acceptance<S>),
    Reject(HttpResponse),
    Defer(LocalFuture<Upgrade<S>>),
}

pub(super) struct Acceptance<S> {
    pub(super) session: S,
    pub(super) subprotocol: Option<String>,
    pub(super) headers: Vec<(String, String)>,
}

impl<S> Upgrade<S> {
    /// Opens the connection with this session.
    #[must_use]
    pub fn accept(session: S) -> Self {
        Self(Decision::Accept(Acceptance { session, subprotocol: None, headers: Vec::new() }))
    }

    /// Answers with an HTTP status, mostly from 400 to 599, and a body.
    #[must_use]
    pub fn reject(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self(Decision::Reject(HttpResponse::new(status).body(body)))
    }

    /// Answers with a response of the handler's own.
    #[must_use]
    pub fn reject_with(response: HttpResponse) -> Self {
        Self(Decision::Reject(response))
    }

    /// Decides later: the future runs on the shard's thread, within the handshake timeout.
    ///
    /// It is dropped when the timeout passes. It may use monoio's I/O and timers; work for other
    /// threads or runtimes goes there by channel.
    #[must_use]
    pub fn defer(decision: impl Future<Output = Self> + 'static) -> Self {
        Self(Decision::Defer(Box::pin(decision)))
    }

    /// Selects a subprotocol for an accepted upgrade. One that the client did not offer is left out (RFC 6455
    /// section 4.2.2), with a warning in the log.
    #[must_use]
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        if let Decision::Accept(acceptance) = &mut self.0 {
            acceptance.subprotocol = Some(name.into());
        }
        self
    }

    /// Adds a header to the answer of an accepted upgrade.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Decision::Accept(acceptance) = &mut self.0 {
            acceptance.headers.push((name.into(), value.into()));
        }
        self
    }
}

impl<S> fmt::Debug for Decision<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept(acceptance) => write!(formatter, "Accept({:?})", acceptance.subprotocol),
            Self::Reject(response) => write!(formatter, "Reject({})", response.status()),
            Self::Defer(_) => formatter.write_str("Defer"),
        }
    }
}
