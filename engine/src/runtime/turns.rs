//! Giving way: a task that finds more to do each time it looks lets the driver and everybody else go first.
//!
//! On epoll a wait for readiness is over at once while a peer sends faster than it is served, and a task that
//! wakes itself keeps the runtime from looking at its driver. An event descriptor is a wait that only the
//! driver ends. On io_uring even that says little: a wait for what is signalled already is over when it is
//! submitted, which happens while other tasks are ready as well, and nothing else completes then. So the end
//! of a turn signals, where it has woken nobody, and the runtime has to ask its driver; and it is the end of
//! a turn that wakes those who gave way, all of them for the next one.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::Rc,
    task::{Poll, Waker},
};

use super::Worker;
use crate::{
    os::{Event, Socket},
    shard::Handler,
};

/// The tasks of a worker that gave way.
#[derive(Debug)]
pub(super) struct Turns {
    event: Event,
    waiting: RefCell<Vec<Waker>>,
    signalled: Cell<bool>,
    /// The driver has been asked: those who wait may go on.
    asked: Cell<bool>,
    ended: Cell<bool>,
}

impl Turns {
    pub(super) fn new(event: Event) -> Self {
        Self {
            event,
            waiting: RefCell::default(),
            signalled: Cell::new(false),
            asked: Cell::new(false),
            ended: Cell::new(false),
        }
    }

    pub(super) fn as_socket(&self) -> io::Result<Socket> {
        Socket::watch(&self.event)
    }

    /// Wakes the task behind `waker` when the driver has been asked what else there is. The turn is to
    /// have an end.
    pub(super) fn wait(&self, waker: &Waker) {
        self.waiting.borrow_mut().push(waker.clone());
    }

    /// A turn ends; `woke` tells that it has woken somebody who runs before the driver is asked, `wanted`
    /// that another turn is to follow whoever waits.
    pub(super) fn end_turn(&self, mut woke: bool, wanted: bool) {
        if self.asked.take() || self.ended.get() {
            let mut waiting = self.waiting.take();
            woke |= !waiting.is_empty();
            waiting.drain(..).for_each(Waker::wake);
            // For its memory.
            *self.waiting.borrow_mut() = waiting;
        }
        // Whoever was woken has a turn, and that has an end; the next tick has one where they are all gone.
        let is_awaited = wanted || !self.waiting.borrow().is_empty();
        if !woke && is_awaited && !self.signalled.replace(true) {
            self.event.signal();
        }
    }

    /// Gives way once.
    pub(super) async fn give_way(&self) {
        let mut gave_way = false;
        poll_fn(|context| {
            if std::mem::replace(&mut gave_way, true) {
                return Poll::Ready(());
            }
            self.wait(context.waker());
            Poll::Pending
        })
        .await;
    }

    /// Lets [`serve`] end.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.event.signal();
    }
}

/// Notes when the driver has been asked, for the end of the turn.
pub(super) async fn serve<H: Handler>(worker: Rc<Worker<H>>, watched: Socket) {
    let turns = &worker.turns;
    while !turns.ended.get() {
        if let Err(error) = watched.readable().await {
            return tracing::error!(%error, "turns cannot be waited for");
        }
        turns.event.clear();
        turns.signalled.set(false);
        turns.asked.set(true);
        worker.begin_turn();
    }
}
