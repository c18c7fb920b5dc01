//! The user's futures: run as tasks of the shard's thread, guarded against panics, dropped when the worker
//! ends or the connection they decide about is gone.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use slab::Slab;

use super::Worker;
use crate::shard::{ConnectionId, Handler, Upgrade};

/// The wakers of the user's futures that are running.
#[derive(Debug, Default)]
pub(super) struct Futures {
    wakers: RefCell<Slab<(Option<ConnectionId>, Option<Waker>)>>,
    ended: Cell<bool>,
}

impl Futures {
    /// Drops every future.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.wake(|_| true);
    }

    /// Drops the futures that decide about connection `id`.
    pub(super) fn abandon(&self, id: ConnectionId) {
        if !self.wakers.borrow().is_empty() {
            self.wake(|owner| owner == Some(id));
        }
    }

    fn wake(&self, which: impl Fn(Option<ConnectionId>) -> bool) {
        for (_, (owner, waker)) in self.wakers.borrow().iter() {
            if let Some(waker) = waker.as_ref().filter(|_| which(*owner)) {
                waker.wake_by_ref();
            }
        }
    }
}

/// Runs a future for a connection's sake.
pub(super) fn spawn<H: Handler>(worker: &Rc<Worker<H>>, future: Pin<Box<dyn Future<Output = ()>>>) {
    let guarded = Guarded::new(worker, None, future);
    worker.spawn_task(async move {
        guarded.await;
    });
}

/// Runs a deferred decision and hands its result to the shard.
pub(super) fn defer<H: Handler>(
    worker: &Rc<Worker<H>>,
    id: ConnectionId,
    decision: Pin<Box<dyn Future<Output = Upgrade<H::Session>>>>,
) {
    let guarded = Guarded::new(worker, Some(id), decision);
    let decided_for = Rc::clone(worker);
    worker.spawn_task(async move {
        let upgrade = match guarded.await {
            Outcome::Ready(upgrade) => upgrade,
            Outcome::Panicked => Upgrade::reject(500, ""),
            Outcome::Ended => return,
        };
        let now = decided_for.now();
        decided_for.shard.borrow_mut().handle_upgrade(id, upgrade, now);
        decided_for.carry_out(None);
    });
}

enum Outcome<T> {
    Ready(T),
    Panicked,
    /// The worker ends, or the connection is gone.
    Ended,
}

struct Guarded<H: Handler, T> {
    worker: Rc<Worker<H>>,
    owner: Option<ConnectionId>,
    future: Option<Pin<Box<dyn Future<Output = T>>>>,
    key: usize,
}

impl<H: Handler, T> Guarded<H, T> {
    fn new(
        worker: &Rc<Worker<H>>,
        owner: Option<ConnectionId>,
        future: Pin<Box<dyn Future<Output = T>>>,
    ) -> Self {
        let key = worker.futures.wakers.borrow_mut().insert((owner, None));
        Self { worker: Rc::clone(worker), owner, future: Some(future), key }
    }

    fn is_abandoned(&self) -> bool {
        let gone = |id| self.worker.shard.borrow().endpoint(id).is_none();
        self.worker.futures.ended.get() || self.owner.is_some_and(gone)
    }
}

impl<H: Handler, T> Future for Guarded<H, T> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<T>> {
        let this = &mut *self;
        this.worker.begin_turn();
        let Some(future) = this.future.as_mut().filter(|_| !this.worker.futures.ended.get()) else {
            return Poll::Ready(Outcome::Ended);
        };
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        this.worker.carry_out(None);
        match polled {
            Ok(Poll::Ready(value)) => Poll::Ready(Outcome::Ready(value)),
            Ok(Poll::Pending) if this.is_abandoned() => Poll::Ready(Outcome::Ended),
            Ok(Poll::Pending) => {
                if let Some(entry) = this.worker.futures.wakers.borrow_mut().get_mut(this.key) {
                    entry.1 = Some(context.waker().clone());
                }
                Poll::Pending
            }
            Err(_) => {
                tracing::error!("a future of the handler's panicked");
                this.worker.counters.handler_panics.add(1);
                Poll::Ready(Outcome::Panicked)
            }
        }
    }
}

impl<H: Handler, T> Drop for Guarded<H, T> {
    fn drop(&mut self) {
        self.worker.futures.wakers.borrow_mut().try_remove(self.key);
        let future = self.future.take();
        if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
            self.worker.counters.handler_panics.add(1);
        }
    }
}

// The future is boxed: moving the guard does not move it.
impl<H: Handler, T> Unpin for Guarded<H, T> {}
