//! A handler made of closures, so that a test says beside its client what the server is to do.

use ringwire::{
    CloseReason, Connection, Handler, HttpRequest, HttpResponse, Message, Upgrade, UpgradeRequest,
};

type OnUpgrade = Box<dyn FnMut(&UpgradeRequest<'_>) -> Upgrade<()>>;
type OnConnection = Box<dyn FnMut(&mut Connection<'_, ()>)>;
type OnMessage = Box<dyn FnMut(&mut Connection<'_, ()>, Message<'_>)>;
type OnClose = Box<dyn FnMut(&mut Connection<'_, ()>, &CloseReason)>;
type OnHttp = Box<dyn FnMut(&HttpRequest<'_>) -> HttpResponse>;

/// Accepts everything and echoes, but for what a test replaces.
pub(crate) struct Script {
    upgrade: OnUpgrade,
    open: OnConnection,
    message: OnMessage,
    drain: OnConnection,
    dropped: OnConnection,
    close: OnClose,
    http: OnHttp,
}

impl Script {
    pub(crate) fn echo() -> Self {
        Self {
            upgrade: Box::new(|_| Upgrade::accept(())),
            open: Box::new(|_| {}),
            message: Box::new(|connection, message| {
                let _ = connection.send(message);
            }),
            drain: Box::new(|_| {}),
            dropped: Box::new(|_| {}),
            close: Box::new(|_, _| {}),
            http: Box::new(|_| HttpResponse::not_found()),
        }
    }

    pub(crate) fn on_upgrade(
        mut self,
        call: impl FnMut(&UpgradeRequest<'_>) -> Upgrade<()> + 'static,
    ) -> Self {
        self.upgrade = Box::new(call);
        self
    }

    pub(crate) fn on_open(mut self, call: impl FnMut(&mut Connection<'_, ()>) + 'static) -> Self {
        self.open = Box::new(call);
        self
    }

    pub(crate) fn on_message(
        mut self,
        call: impl FnMut(&mut Connection<'_, ()>, Message<'_>) + 'static,
    ) -> Self {
        self.message = Box::new(call);
        self
    }

    pub(crate) fn on_drain(mut self, call: impl FnMut(&mut Connection<'_, ()>) + 'static) -> Self {
        self.drain = Box::new(call);
        self
    }

    pub(crate) fn on_dropped(mut self, call: impl FnMut(&mut Connection<'_, ()>) + 'static) -> Self {
        self.dropped = Box::new(call);
        self
    }

    pub(crate) fn on_close(
        mut self,
        call: impl FnMut(&mut Connection<'_, ()>, &CloseReason) + 'static,
    ) -> Self {
        self.close = Box::new(call);
        self
    }

    pub(crate) fn on_http(mut self, call: impl FnMut(&HttpRequest<'_>) -> HttpResponse + 'static) -> Self {
        self.http = Box::new(call);
        self
    }
}

impl Handler for Script {
    type Session = ();

    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<()> {
        (self.upgrade)(request)
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        (self.open)(connection);
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        (self.message)(connection, message);
    }

    fn on_drain(&mut self, connection: &mut Connection<'_, ()>) {
        (self.drain)(connection);
    }

    fn on_dropped(&mut self, connection: &mut Connection<'_, ()>) {
        (self.dropped)(connection);
    }

    fn on_close(&mut self, connection: &mut Connection<'_, ()>, reason: &CloseReason) {
        (self.close)(connection, reason);
    }

    fn on_http(&mut self, request: &HttpRequest<'_>) -> HttpResponse {
        (self.http)(request)
    }
}
