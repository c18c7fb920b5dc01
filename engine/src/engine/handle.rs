//! The handle: what any thread may ask of a running engine, without waiting for a shard.

use std::{
    any::Any,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    connection::SendStatus,
    protocol::CloseCode,
    runtime::{Command, Mailbox},
    shard::{
        Connection, ConnectionId, Counters, CountersSnapshot, Envelope, Errand, Gone, Handler, Inbox,
        Message, PreparedMessage, Publication, TopicInterest, TopicRegistry,
    },
};

/// A way to a running engine from any thread or runtime. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) shards: Arc<[ShardHandle]>,
    pub(super) registry: Arc<TopicRegistry>,
}

pub(super) struct ShardHandle {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) inbox: Inbox,
    pub(super) counters: Arc<Counters>,
}

impl ShardHandle {
    /// Drops what nobody will take any more, and with it the ends at which answers are awaited.
    fn empty_inbox(&self) {
        while self.inbox.pop().is_some() {}
    }
}

/// Says that a shard has ended, however it ended.
pub(super) struct EndGuard(pub(super) EngineHandle, pub(super) usize);

impl Drop for EndGuard {
    fn drop(&mut self) {
        if let Some(shard) = self.0.shards.get(self.1) {
            shard.mailbox.close();
            shard.empty_inbox();
        }
    }
}

/// An engine did not take what a handle gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The shard's inbox is full: it does not keep up. Try later, or publish less.
    #[error("the inbox of shard {shard} is full: it does not keep up; try later, or publish less")]
    InboxFull {
        /// The shard.
        shard: usize,
    },
    /// The engine stopped meanwhile, the closure panicked, or the shard's handler is of another type than the
    /// one named.
    #[error("no answer: the engine has stopped, the closure panicked, or the handler is of another type")]
    NoAnswer,
    /// The engine has no shard of this number; an id that names it is another engine's.
    #[error("there is no shard {shard}: there are {shards}, numbered from 0; an id may be another engine's")]
    NoSuchShard {
        /// The number.
        shard: usize,
        /// How many shards there are.
        shards: usize,
    },
    /// The shard has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// The answer to a request, on its way from a shard: a future on any runtime, or [`wait`](Self::wait).
#[derive(Debug)]
#[must_use = "the request is under way; its answer is here"]
pub struct Answer<T>(oneshot::Receiver<T>);

impl<T> Answer<T> {
    /// Blocks this thread until the answer is there. Never on a shard's own thread.
    ///
    /// # Errors
    /// [`HandleError::NoAnswer`] when the engine stops first.
    pub fn wait(self) -> Result<T, HandleError> {
        self.0.recv().map_err(|_| HandleError::NoAnswer)
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, HandleError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(|_| HandleError::NoAnswer)
    }
}

/// A topic looked up once, for publishing to it often from outside the shards.
///
/// As long as it lives, the topic stays known.
#[derive(Clone)]
pub struct Topic {
    handle: EngineHandle,
    interest: Arc<TopicInterest>,
}

impl EngineHandle {
    /// Stops the engine: it accepts no more, closes every connection with 1001 and cuts off what is left
    /// after `deadline`. What the calling thread has asked before is done before. Returns at once;
    /// [`Engine::join`](crate::Engine::join) waits for the end.
    pub fn stop(&self, deadline: Duration) {
        for shard in self.shards.iter() {
            shard.mailbox.post(Command::Stop { deadline });
        }
    }

    /// Publishes a message to all subscribers of a topic. Waits for no shard and no subscriber. The topic is
    /// looked up under a lock, which others hold for a look-up as well, or while they look for topics that
    /// nobody uses any more; a [`Topic`] does without.
    ///
    /// Publications of one thread to one topic arrive in their order; between threads there is none.
    ///
    /// # Errors
    /// [`HandleError::InboxFull`] when a shard with subscribers did not take it. The others did: publishing
    /// again reaches their subscribers twice.
    pub fn publish<'m>(&self, topic: &str, message: impl Into<Message<'m>>) -> Result<(), HandleError> {
        match self.registry.find(topic) {
            Some(interest) => self.publish_to(&interest, 0, || PreparedMessage::new(message)),
            None => Ok(()),
        }
    }

    /// Publishes a message that was encoded before, to many topics or many times, like
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_prepared(&self, topic: &str, message: &PreparedMessage) -> Result<(), HandleError> {
        match self.registry.find(topic) {
            Some(interest) => self.publish_to(&interest, 0, || message.clone()),
            None => Ok(()),
        }
    }

    /// Publishes the newest value of `key`; see [`Conflation::Latest`](crate::Conflation::Latest).
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_keyed<'m>(
        &self,
        topic: &str,
        key: u64,
        message: impl Into<Message<'m>>,
    ) -> Result<(), HandleError> {
        match self.registry.find(topic) {
            Some(interest) => self.publish_to(&interest, key, || PreparedMessage::new(message)),
            None => Ok(()),
        }
    }

    /// Looks a topic up, to publish to it often.
    #[must_use]
    pub fn topic(&self, name: &str) -> Topic {
        Topic { handle: self.clone(), interest: self.registry.intern(name) }
    }

    /// How many subscribers a topic has on all shards. A connection that closes is one until it has ended.
    #[must_use]
    pub fn subscribers(&self, topic: &str) -> usize {
        self.registry.find(topic).map_or(0, |interest| interest.subscribers())
    }

    /// Sends a message to one connection.
    ///
    /// # Errors
    /// When the shard does not take it. The answer says what became of it on the shard, and recognises a
    /// stale id.
    pub fn send<'m>(
        &self,
        id: ConnectionId,
        message: impl Into<Message<'m>>,
    ) -> Result<Answer<Result<SendStatus, Gone>>, HandleError> {
        self.send_prepared(id, PreparedMessage::new(message))
    }

    /// Sends a message that was encoded before to one connection.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_prepared(
        &self,
        id: ConnectionId,
        message: PreparedMessage,
    ) -> Result<Answer<Result<SendStatus, Gone>>, HandleError> {
        let (reply, answer) = oneshot::channel();
        self.post(id.shard(), Envelope::Send { id, frame: message.into_frame(), reply: Some(reply) })?;
        Ok(Answer(answer))
    }

    /// Begins to close one connection.
    ///
    /// # Errors
    /// When the shard does not take the request. The answer recognises a stale id.
    pub fn close(
        &self,
        id: ConnectionId,
        code: CloseCode,
        reason: &str,
    ) -> Result<Answer<Result<(), Gone>>, HandleError> {
        let (reply, answer) = oneshot::channel();
        self.post(id.shard(), Envelope::Close { id, code, reason: reason.into(), reply: Some(reply) })?;
        Ok(Answer(answer))
    }

    /// Runs a closure with the handler of a shard, on its thread.
    ///
    /// # Errors
    /// When the shard does not take the request. The answer is [`HandleError::NoAnswer`] when `H` is not the
    /// handler's type, or the closure panics.
    pub fn run_on<H: Handler, R: Send + 'static>(
        &self,
        shard: usize,
        action: impl FnOnce(&mut H) -> R + Send + 'static,
    ) -> Result<Answer<R>, HandleError> {
        let (reply, answer) = oneshot::channel();
        let run = move |handler: &mut dyn Any| {
            if let Some(handler) = handler.downcast_mut::<H>() {
                // Nobody may be waiting.
                let _ = reply.send(action(handler));
            }
        };
        self.post(shard, Envelope::Run(Box::new(run)))?;
        Ok(Answer(answer))
    }

    /// Lends one connection, and the handler of its shard, to a closure on the shard's thread: to
    /// subscribe it to a topic, say, or to look at its session. When the answer arrives, what it has asked
    /// for is in effect. A panic ends the connection with 1011, as in a handler.
    ///
    /// ```
    /// use ringwire::{Connection, ConnectionId, EngineHandle};
    /// # use ringwire::{Handler, Message, Upgrade, UpgradeRequest};
    /// # struct Chat;
    /// # impl Handler for Chat {
    /// #     type Session = ();
    /// #     fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> { Upgrade::accept(()) }
    /// #     fn on_message(&mut self, _: &mut Connection<'_, ()>, _: Message<'_>) {}
    /// # }
    ///
    /// fn leave(engine: &EngineHandle, member: ConnectionId, room: &str) {
    ///     let room = room.to_owned();
    ///     let left = engine.with_connection(member, move |_: &mut Chat, connection| {
    ///         connection.unsubscribe(&room);
    ///     });
    ///     # let _ =
    ///     left.map(|answer| answer.wait());
    /// }
    /// ```
    ///
    /// # Errors
    /// When the shard does not take the request. The answer recognises a stale id; it is
    /// [`HandleError::NoAnswer`] when `H` is not the handler's type, or the closure panics.
    pub fn with_connection<H: Handler, R: Send + 'static>(
        &self,
        id: ConnectionId,
        action: impl FnOnce(&mut H, &mut Connection<'_, H::Session>) -> R + Send + 'static,
    ) -> Result<Answer<Result<R, Gone>>, HandleError> {
        let (reply, answer) = oneshot::channel();
        let errand: Errand<H> = Box::new(move |reached| {
            let answer = reached.map(|(handler, connection)| action(handler, connection));
            Box::new(move || {
                // Nobody may be waiting.
                let _ = reply.send(answer);
            })
        });
        self.post(id.shard(), Envelope::Reach { id, errand: Box::new(errand) })?;
        Ok(Answer(answer))
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The counts of all shards together.
    #[must_use]
    pub fn counters(&self) -> CountersSnapshot {
        let mut sum = CountersSnapshot::default();
        for shard in self.shards.iter() {
            sum += shard.counters.snapshot();
        }
        sum
    }

    /// The counts of each shard.
    #[must_use]
    pub fn counters_by_shard(&self) -> Vec<CountersSnapshot> {
        self.shards.iter().map(|shard| shard.counters.snapshot()).collect()
    }

    fn publish_to(
        &self,
        interest: &Arc<TopicInterest>,
        key: u64,
        message: impl FnOnce() -> PreparedMessage,
    ) -> Result<(), HandleError> {
        if interest.subscribers() == 0 {
            return Ok(());
        }
        let publication = Publication::foreign(interest, message(), key);
        let mut result = Ok(());
        for shard in (0..self.shards.len()).filter(|shard| interest.interests(*shard)) {
            if let Err(error) = self.post(shard, Envelope::Publish(publication.clone())) {
                result = Err(error);
            }
        }
        result
    }

    fn post(&self, shard: usize, envelope: Envelope) -> Result<(), HandleError> {
        let none = HandleError::NoSuchShard { shard, shards: self.shards.len() };
        let handle = self.shards.get(shard).ok_or(none)?;
        if handle.inbox.push(envelope).is_err() {
            handle.counters.inbox_refused.add_from_anywhere(1);
            return Err(HandleError::InboxFull { shard });
        }
        if handle.mailbox.is_closed() {
            handle.empty_inbox();
            return Err(HandleError::Stopped);
        }
        handle.mailbox.ring();
        Ok(())
    }
}

impl Topic {
    /// The topic's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.interest.name()
    }

    /// How many subscribers it has on all shards.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.interest.subscribers()
    }

    /// Publishes a message, like [`EngineHandle::publish`] but without looking the name up.
    ///
    /// # Errors
    /// As [`EngineHandle::publish`].
    pub fn publish<'m>(&self, message: impl Into<Message<'m>>) -> Result<(), HandleError> {
        self.handle.publish_to(&self.interest, 0, || PreparedMessage::new(message))
    }

    /// Publishes a message that was encoded before, like [`EngineHandle::publish_prepared`] but without
    /// looking the name up.
    ///
    /// # Errors
    /// As [`EngineHandle::publish`].
    pub fn publish_prepared(&self, message: &PreparedMessage) -> Result<(), HandleError> {
        self.handle.publish_to(&self.interest, 0, || message.clone())
    }

    /// Publishes the newest value of `key`; see [`Conflation::Latest`](crate::Conflation::Latest).
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_keyed<'m>(&self, key: u64, message: impl Into<Message<'m>>) -> Result<(), HandleError> {
        self.handle.publish_to(&self.interest, key, || PreparedMessage::new(message))
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Topic").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EngineHandle").field("shards", &self.shards.len()).finish()
    }
}
